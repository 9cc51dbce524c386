package netlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// The pool of these stories is in the nodes' own subnet; the router, with a foot in it, is the host that is no node.
const edgePool = `apiVersion: weft.network/v1alpha1
kind: LoadBalancerPool
metadata: {name: edge}
spec:
  addresses: [172.30.1.200-172.30.1.219, "fd00:172:30:1::200-fd00:172:30:1::21f"]
`

// expose writes a Service of type LoadBalancer with these Pods behind it; more are further lines of its spec.
func (s *story) expose(name string, number int, more string, pods ...*lab.Pod) {
	s.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: default}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.1.%[2]d, "fd00:10:96:1::%[2]d"]
  ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]
%[3]s
`, name, number, more)
	for _, f := range []int{4, 6} {
		fmt.Fprintf(&b, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[2]s-ipv%[1]d, namespace: default, labels: {kubernetes.io/service-name: %[2]s}}
addressType: IPv%[1]d
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [`, f, name)
		for _, p := range pods {
			fmt.Fprintf(&b, "{addresses: [%q], conditions: {ready: true}, nodeName: %s},", p.Address(f), p.Node)
		}
		b.WriteString("]\n")
	}
	s.write(name+".yaml", b.String())
}

// balancer is what stories look at of GET /v1/lb.
type balancer struct {
	Name, Reason, Message string
	Addresses             []balanced
}

type balanced struct {
	Address netip.Addr
	Pool    string
	Why     string
	L2      []struct {
		Link, Node     string
		Self           bool
		ConflictingMAC string
	}
}

func (s *story) balancer(node, name string) (balancer, error) {
	var list []balancer
	if err := s.Ask(s.ctx, node, "/v1/lb", &list); err != nil {
		return balancer{}, err
	}
	for _, b := range list {
		if b.Name == name {
			return b, nil
		}
	}
	return balancer{}, fmt.Errorf("%s knows no load balancer %s", node, name)
}

// owner waits until one of the nodes answers for an address and all of them agree on it.
func (s *story) owner(name string, addr netip.Addr, nodes ...string) string {
	s.t.Helper()
	owner := ""
	s.eventually("the nodes agree on who answers for "+addr.String(), 10*time.Second, func() error {
		owner = ""
		for _, node := range nodes {
			b, err := s.balancer(node, name)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(b.Addresses, func(a balanced) bool { return a.Address == addr })
			if i < 0 || len(b.Addresses[i].L2) != 1 || b.Addresses[i].L2[0].Node == "" {
				return fmt.Errorf("%s: %+v", node, b)
			}
			if o := b.Addresses[i].L2[0].Node; owner == "" {
				owner = o
			} else if owner != o {
				return fmt.Errorf("%s says %s, another %s", node, o, owner)
			}
		}
		return nil
	})
	return owner
}

// answering asks as a host of the segment which hardware address has an address.
func (s *story) answering(addr netip.Addr) (string, error) {
	argv := []string{"arping", "-c", "1", "-w", "15", "-I", "subnet1", addr.String()}
	if addr.Is6() {
		argv = []string{"ndisc6", "-1", "-r", "15", "-w", "1000", addr.String(), "subnet1"}
	}
	out, err := s.Output(s.ctx, lab.Router, argv...)
	for _, f := range strings.FieldsFunc(strings.ToLower(out), func(r rune) bool { return strings.ContainsRune(" []\n", r) }) {
		if strings.Count(f, ":") == 5 && len(f) == 17 {
			return f, err
		}
	}
	return "", errors.Join(err, fmt.Errorf("no hardware address in %q", out))
}

// ownerAnswers waits until the owner of an address of the Service web, and nobody else, answers for it. A node whose weftd does not run
// for a while is taken for dead, and has its addresses again after that.
func (s *story) ownerAnswers(vip netip.Addr, nodes ...string) (owner string) {
	s.t.Helper()
	s.eventually("the owner answers for "+vip.String(), lbPatience, func() error {
		owner = s.owner("web", vip, nodes...)
		mac, err := s.answering(vip)
		if err == nil && mac != s.mac(owner, "eth0") {
			err = fmt.Errorf("%s answers, and %s with %s should", mac, owner, s.mac(owner, "eth0"))
		}
		return err
	})
	return owner
}

// ownerStays waits until a node is the owner of an address of the Service web.
func (s *story) ownerStays(vip netip.Addr, owner string, nodes ...string) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("%s is at %s", vip, owner), lbPatience, func() error {
		if now := s.owner("web", vip, nodes...); now != owner {
			return fmt.Errorf("it is at %s", now)
		}
		return nil
	})
}

// mac returns the hardware address of a machine's link.
func (s *story) mac(machine, link string) string {
	return strings.Fields(s.out(machine, "ip -br link show "+link))[2]
}

// answers asks for all addresses once, with little patience.
func (s *story) answers(vips ...netip.Addr) error {
	argv := []string{"weft", lab.PodCommand, "get", "--timeout", "250ms"}
	for _, vip := range vips {
		argv = append(argv, fmt.Sprintf("http://%s/", netip.AddrPortFrom(vip, 80)))
	}
	_, err := s.Output(s.ctx, lab.Router, argv...)
	return err
}

// drain labels a node so that it gives its addresses away, or takes the label back.
func (s *story) drain(node string, drained bool) {
	s.t.Helper()
	file := "node-" + node + ".json"
	data, err := os.ReadFile(filepath.Join(s.Dir, "manifests", file))
	s.no(err)
	var o map[string]any
	s.no(json.Unmarshal(data, &o))
	meta := o["metadata"].(map[string]any)
	delete(meta, "labels")
	if drained {
		meta["labels"] = map[string]any{"weft.network/drain": "true"}
	}
	data, err = json.Marshal(o)
	s.no(err)
	s.write(file, string(data))
}

// lbGoal is what a user is promised for a dead node, lbPatience what a busy machine may take before the story fails.
const (
	lbGoal     = 2 * time.Second
	lbPatience = 15 * time.Second
)

// TestLoadBalancer: a Service gets addresses from a pool, the same ones on every node. A host on the segment reaches it, also after
// the node that answers was killed, or drained, and while nobody writes to the cluster. A machine that takes the address is named.
func TestLoadBalancer(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 3})
	nodes := []string{"node1", "node2", "node3"}
	var web []*lab.Pod
	for i, n := range nodes {
		web = append(web, s.run(n, fmt.Sprintf("web%d", i))...)
	}
	s.write("pool.yaml", edgePool)
	s.expose("web", 80, "", web...)
	var vips []netip.Addr
	s.eventually("the Service has the same addresses on every node", 5*time.Second, func() error {
		vips = nil
		for _, n := range nodes {
			b, err := s.balancer(n, "web")
			if err != nil {
				return err
			}
			var own []netip.Addr
			for _, a := range b.Addresses {
				own = append(own, a.Address)
			}
			if len(own) != 2 || vips != nil && !slices.Equal(vips, own) {
				return fmt.Errorf("%s: %+v, others %v", n, b, vips)
			}
			vips = own
		}
		return nil
	})
	took := s.eventually("a host on the segment reaches it", lbPatience, func() error {
		_, err := s.getAll(lab.Router, 80, vips...)
		return err
	})
	t.Logf("%v answer after %v", vips, took)
	seen := map[string]bool{}
	for range 20 {
		answers, err := s.getAll(lab.Router, 80, vips...)
		s.no(err)
		for _, a := range answers {
			seen[a.Pod] = true
		}
	}
	if len(seen) != 3 {
		t.Errorf("40 connections reached %v, want all three Pods", seen)
	}
	for _, vip := range vips {
		owner := s.ownerAnswers(vip, nodes...)
		if out := s.out(owner, "ip -br addr"); strings.Contains(out, vip.String()) {
			t.Errorf("%s is on a link of %s: %s", vip, owner, out)
		}
	}

	for _, vip := range vips { // no machine has the address, so nobody else would refuse
		if _, err := s.get(lab.Router, vip, 81); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("a port without a Service: %v, want a refusal", err)
		}
	}
	s.restartOwner(vips[0], nodes)
	s.drainOwner(vips, nodes)
	s.stranger(vips[0], nodes)
	s.killOwner(vips, nodes, web)
}

// restartOwner: a daemon that is killed and starts again goes on; the address does not move, and traffic does not notice.
func (s *story) restartOwner(vip netip.Addr, nodes []string) {
	owner := s.owner("web", vip, nodes...)
	s.no(s.KillDaemon(s.ctx, owner, unix.SIGKILL))
	s.no(s.StartDaemon(s.ctx, owner))
	for range 20 {
		if _, err := s.get(lab.Router, vip, 80); err != nil {
			s.t.Errorf("while weftd of %s is restarted: %v", owner, err)
		}
	}
	s.no(s.WaitReady(s.ctx, owner))
	s.ownerStays(vip, owner, nodes...)
}

// drainOwner: a label, or a command on the node, takes the addresses from it, within moments and without a gap.
func (s *story) drainOwner(vips []netip.Addr, nodes []string) {
	owner := s.owner("web", vips[0], nodes...)
	s.drainBy(vips, nodes, owner, func(drained bool) { s.drain(owner, drained) })
	s.drainBy(vips, nodes, owner, func(drained bool) {
		s.out(owner, map[bool]string{true: "weft bgp drain", false: "weft bgp undrain"}[drained])
	})
}

func (s *story) drainBy(vips []netip.Addr, nodes []string, owner string, drain func(bool)) {
	drain(true)
	start := time.Now()
	s.eventually("another node answers for the address of a drained one", lbPatience, func() error {
		b, err := s.balancer(nodes[0], "web")
		if err == nil && (len(b.Addresses) == 0 || len(b.Addresses[0].L2) == 0 || b.Addresses[0].L2[0].Node == owner) {
			err = fmt.Errorf("%s still does: %+v", owner, b)
		}
		return err
	})
	s.t.Logf("drained: another node answers after %v", time.Since(start).Round(time.Millisecond))
	if _, err := s.getAll(lab.Router, 80, vips...); err != nil {
		s.t.Error(err)
	}
	drain(false)
	s.ownerStays(vips[0], owner, nodes...)
}

// stranger: a machine that is no node takes the address. It is named, and the node goes on answering.
func (s *story) stranger(vip netip.Addr, nodes []string) {
	owner := s.owner("web", vip, nodes...)
	s.out(lab.Router, "ip addr add "+vip.String()+"/32 dev subnet1")
	s.out(lab.Router, "arping -U -c 2 -I subnet1 -s "+vip.String()+" "+vip.String())
	mac := s.mac(lab.Router, "subnet1")
	s.eventually("the stranger is named", lbPatience, func() error {
		for _, w := range s.status(owner).Warnings {
			if strings.Contains(w, vip.String()) && strings.Contains(w, mac) {
				return nil
			}
		}
		return fmt.Errorf("no warning of %s names %s: %v", owner, mac, s.status(owner).Warnings)
	})
	s.out(lab.Router, "ip addr del "+vip.String()+"/32 dev subnet1")
	s.ownerStays(vip, owner, nodes...)
}

// killOwner: the node that answers dies, and the cluster's objects know nothing of it.
func (s *story) killOwner(vips []netip.Addr, nodes []string, web []*lab.Pod) {
	owner := s.owner("web", vips[0], nodes...)
	survivor := web[(slices.Index(nodes, owner)+1)%len(nodes)]
	s.expose("web", 80, "", survivor)
	s.eventually("only the survivor is left behind the Service", lbPatience, func() error {
		for range 5 {
			a, err := s.get(lab.Router, vips[0], 80)
			if err != nil || a.Pod != survivor.FullName() {
				return fmt.Errorf("%s answers, %w", a.Pod, err)
			}
		}
		return nil
	})
	s.no(s.PowerOff(s.ctx, owner))
	start := time.Now()
	for {
		err := s.answers(vips...)
		if took := time.Since(start); err == nil {
			s.t.Logf("%s was killed: both addresses answer %v later (goal %v)", owner, took.Round(10*time.Millisecond), lbGoal)
			break
		} else if took > lbPatience {
			s.t.Fatalf("no answer %v after %s was killed: %v", took, owner, err)
		}
	}
	var left []string
	for _, n := range nodes {
		if n != owner {
			left = append(left, n)
		}
	}
	for _, vip := range vips {
		s.ownerAnswers(vip, left...)
	}
}
