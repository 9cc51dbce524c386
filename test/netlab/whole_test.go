package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/lab"
)

// TestWholeNodeReboots: a node with all that a cluster has loses its power and comes back while the API is away. Its Pods have their
// addresses, its Services, names, policies and load balancers work, also between each other, and nothing is open that was closed.
func TestWholeNodeReboots(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	here := s.labelled("node1", "web", "front")
	there := s.labelled("node2", "other")
	web, front, other := here[0], here[1], there[0]
	s.write("pool.yaml", edgePool)
	s.expose("shop", 80, "", web)
	s.policy("web", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [
  {from: [{podSelector: {matchLabels: {app: front}}}], ports: [{port: 8080}]}, {from: [{ipBlock: {cidr: 172.30.0.0/16}}]}]}`)
	s.policy("front", `{podSelector: {matchLabels: {app: front}}, policyTypes: [Egress], egress: [
  {to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]}, {to: [{podSelector: {matchLabels: {app: web}}}]}]}`)

	const name = "shop.default.svc.cluster.local"
	var vip netip.Addr
	whole := func() error {
		b, err := s.balancer("node1", "shop")
		if err != nil {
			return err
		}
		if len(b.Addresses) == 0 {
			return fmt.Errorf("no load-balancer address: %+v", b)
		}
		vip = b.Addresses[0].Address
		got, err := s.Output(s.ctx, front.FullName(), "weft", lab.PodCommand, "get", "--timeout", s.limit.String(), "http://"+name+"/")
		if err != nil || !strings.Contains(got, web.FullName()) {
			return fmt.Errorf("front asks for %s: %q, %w", name, got, err)
		}
		if _, err := s.get(lab.Router, vip, 80); err != nil {
			return fmt.Errorf("from outside at %s: %w", vip, err)
		}
		return errors.Join(s.talk(other, web, false), s.talk(front, other, false), s.talk(front, web, true))
	}
	s.eventually("policies, names, Services and load balancers work together", 15*time.Second, whole)
	before, address := s.addresses(here...), vip

	s.isolated(web)
	s.stored("node1")
	s.no(s.Reboot(s.ctx, "node1", lab.RebootOptions{WithoutAPI: true}))
	// The first packet after the boot meets the policy: no moment in which all is open.
	s.no(s.talk(other, web, false))
	s.eventually("all of it works after the reboot", 15*time.Second, whole)
	if after := s.addresses(s.pods("node1")...); len(after) != len(before) {
		t.Errorf("before the reboot %v, after it %v", before, after)
	} else {
		for pod, a := range before {
			if !slices.Equal(a, after[pod]) {
				t.Errorf("%s had %v and has %v", pod, a, after[pod])
			}
		}
	}
	if vip != address {
		t.Errorf("the Service had the address %s and has %s", address, vip)
	}
	if st := s.status("node1"); !st.Source.Stored {
		t.Errorf("the node is not without the API: %+v", st.Source)
	}
}
