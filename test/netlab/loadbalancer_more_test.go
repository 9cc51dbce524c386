package netlab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// becomes waits until a load balancer says that reason on a node, and returns it.
func (s *story) becomes(node, name, reason string) (b balancer) {
	s.t.Helper()
	s.eventually(name+" says "+reason, lbPatience, func() (err error) {
		if b, err = s.balancer(node, name); err == nil && b.Reason != reason {
			err = fmt.Errorf("it says %q: %s", b.Reason, b.Message)
		}
		return err
	})
	return b
}

// TestLoadBalancerWishes: everything that can be wrong with pools and wishes is said with names, counts and what to do.
func TestLoadBalancerWishes(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1, Families: lab.IPv4})
	pool := func(name, addresses, more string) {
		s.write("pool-"+name+".yaml", fmt.Sprintf("apiVersion: weft.network/v1alpha1\nkind: LoadBalancerPool\nmetadata: {name: %s}\nspec: {addresses: [%s]%s}\n", name, addresses, more))
	}
	wish := func(name string, number int, annotations, more string) {
		s.write(name+".yaml", fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, annotations: {%s}}\nspec: {type: LoadBalancer, clusterIP: 10.96.2.%d, ports: [{port: 80}]%s}\n",
			name, annotations, number, more))
	}
	pool("edge", "172.30.1.200-172.30.1.201", "")
	wish("a", 1, "", "")
	first := s.becomes("node1", "a", "Allocated").Addresses[0].Address
	wish("taken", 2, "metallb.io/loadBalancerIPs: "+first.String(), "")
	// What is asked for goes before what is just free, so the Service without a wish makes room.
	if now := s.becomes("node1", "taken", "Allocated").Addresses[0].Address; now != first {
		t.Errorf("asked for %s, got %s", first, now)
	}
	second := s.becomes("node1", "a", "Allocated").Addresses[0].Address
	wish("b", 3, "weft.network/load-balancer-ips: "+first.String(), "")
	if why := s.becomes("node1", "taken", "AddressTaken").Message; !strings.Contains(why, "default/b") {
		t.Errorf("taken by whom? %s", why)
	}
	wish("full", 4, "", "")
	if why := s.becomes("node1", "full", "PoolExhausted").Message; !strings.Contains(why, "pool edge has 2, of which 2 are in use") {
		t.Errorf("exhausted how? %s", why)
	}
	wish("outside", 5, "", ", loadBalancerIP: 203.0.113.9")
	s.becomes("node1", "outside", "AddressNotInPool")
	wish("bad", 6, "weft.network/load-balancer-ips: somewhere", "")
	s.becomes("node1", "bad", "MalformedRequest")
	wish("foreign", 7, "", ", loadBalancerClass: example.com/other")
	pool("young", "172.30.1.201-172.30.1.210", "")
	pool("pods", "10.244.1.0/28", "")
	s.eventually("the warnings", lbPatience, func() error {
		all := strings.Join(s.status("node1").Warnings, "\n")
		for _, want := range []string{
			"LoadBalancerPool young: its 172.30.1.201-172.30.1.210 overlaps 172.30.1.200/31 of pool edge",
			"LoadBalancerPool pods: its 10.244.1.0/28 overlaps 10.244.1.0/24, the Pod range of node node1",
			"Service default/full: no IPv4 address is free", "Service default/bad: annotation weft.network/load-balancer-ips",
		} {
			if !strings.Contains(all, want) {
				return fmt.Errorf("no %q in %s", want, all)
			}
		}
		return nil
	})
	s.owner("a", second, "node1")
	s.owner("b", first, "node1")
	for command, want := range map[string][]string{
		"weft lb list":                   {second.String(), "default/full", "not weft's to look after", "node1 (eth0"},
		"weft lb pools":                  {"edge", "172.30.1.200/31", "is not used"},
		"weft lb why full":               {"it needs IPv4", "pool edge: 2 of 2 addresses in use", "pool young: not used", "PoolExhausted"},
		"weft lb why a":                  {second.String(), "this node, node1, answers for it since", "nodes heard on eth0"},
		"weft lb why foreign":            {"its loadBalancerClass is example.com/other"},
		"weft lb list -o json":           {`"reason": "PoolExhausted"`},
		"weft lb why -o json a":          {`"lines"`},
		"weft lb pools -o json":          {`"used": 2`},
		"weft lb why default/a":          {"order of the nodes"},
		"curl -s localhost:9465/metrics": {`weft_lb_pool_addresses{pool="edge",state="used"} 2`, `weft_lb_announced{link="eth0"} 2`, `weft_lb_services{reason="PoolExhausted"} 1`},
	} {
		out := s.out("node1", command)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s does not say %q:\n%s", command, w, out)
			}
		}
	}
	// A pool that cannot be read keeps the state before it.
	pool("edge", "172.30.1.200-172.30.1.300", "")
	s.eventually("the file is named", lbPatience, func() error {
		if st := s.status("node1"); !strings.Contains(st.Source.Error, "spec.addresses[0]") {
			return fmt.Errorf("source: %+v", st.Source)
		}
		return nil
	})
	s.becomes("node1", "a", "Allocated")
}

// TestLoadBalancerLocal: with externalTrafficPolicy Local the address is where the endpoint is, and the endpoint sees the client.
func TestLoadBalancerLocal(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 3})
	nodes := []string{"node1", "node2", "node3"}
	two, three := s.run("node2", "two")[0], s.run("node3", "three")[0]
	s.write("pool.yaml", edgePool)
	s.expose("web", 80, "  externalTrafficPolicy: Local", two)
	b := s.becomes("node1", "web", "Allocated")
	for _, place := range []struct {
		pod *lab.Pod
		on  string
	}{{two, "node2"}, {three, "node3"}, {two, "node2"}} {
		s.expose("web", 80, "  externalTrafficPolicy: Local", place.pod)
		for i, f := range []int{4, 6} {
			vip := b.Addresses[i].Address
			s.eventually(fmt.Sprintf("%s is at %s", vip, place.on), lbPatience, func() error {
				if o := s.owner("web", vip, nodes...); o != place.on {
					return fmt.Errorf("it is at %s", o)
				}
				a, err := s.get(lab.Router, vip, 80)
				if err == nil && (a.Pod != place.pod.FullName() || a.Client != routerAddress(f)) {
					err = fmt.Errorf("%s answers and sees %s", a.Pod, a.Client)
				}
				return err
			})
		}
	}
	s.expose("web", 80, "  externalTrafficPolicy: Local")
	s.eventually("nobody announces it, and says why", lbPatience, func() error {
		b, err := s.balancer("node2", "web")
		if err == nil && (len(b.Addresses) == 0 || len(b.Addresses[0].L2) == 0 || !strings.Contains(b.Addresses[0].Why, "no node that may announce it has a ready endpoint") || b.Addresses[0].L2[0].Node != "") {
			err = fmt.Errorf("%+v", b)
		}
		return err
	})
}

func routerAddress(family int) netip.Addr {
	if family == 4 {
		return netip.MustParseAddr("172.30.1.1")
	}
	return netip.MustParseAddr("fd00:172:30:1::1")
}

// TestLoadBalancerSegments: an address is answered for on the segment that it is on, and nowhere else; hosts elsewhere come by the
// router. A node that boots without the cluster's API answers all the same.
func TestLoadBalancerSegments(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 3, Subnets: 2, Families: lab.IPv4}) // node1 and node3 on the first
	web := s.run("node2", "web")
	s.write("pool.yaml", strings.Replace(edgePool, `, "fd00:172:30:1::200-fd00:172:30:1::21f"`, "", 1))
	s.write("web.yaml", fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: LoadBalancer, clusterIP: 10.96.1.80, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [%s], conditions: {ready: true}, nodeName: node2}]
`, web[0].Address(4)))
	vip := s.becomes("node2", "web", "Allocated").Addresses[0].Address
	owner := s.owner("web", vip, "node1", "node3")
	if b, err := s.balancer("node2", "web"); err != nil || len(b.Addresses[0].L2) != 0 {
		t.Errorf("node2 has no link there and says %+v, %v", b, err)
	}
	for _, from := range []string{lab.Outside, lab.Router, "node1", "node2", "node3", web[0].FullName()} {
		if _, err := s.get(from, vip, 80); err != nil {
			t.Errorf("from %s: %v", from, err)
		}
	}
	s.no(s.KillDaemon(s.ctx, owner, unix.SIGTERM)) // so that it has written what it knows, which it does every few seconds
	s.no(s.Reboot(s.ctx, owner, lab.RebootOptions{WithoutAPI: true}))
	s.eventually("the rebooted node answers again", lbPatience, func() error {
		if st := s.status(owner); !st.Source.Stored {
			return fmt.Errorf("%s has an API: %+v", owner, st.Source)
		}
		if mac, err := s.answering(vip); err != nil || mac != s.mac(owner, "eth0") {
			return fmt.Errorf("%s answers, %w", mac, err)
		}
		_, err := s.get(lab.Outside, vip, 80)
		return err
	})
}

// TestLoadBalancerNodeAddresses: the one-node box, with the node's own addresses as its pool.
func TestLoadBalancerNodeAddresses(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1})
	web := s.run("node1", "web")
	s.write("pool.yaml", "apiVersion: weft.network/v1alpha1\nkind: LoadBalancerPool\nmetadata: {name: box}\nspec: {nodeAddresses: true}\n")
	s.expose("web", 80, "", web...)
	node, err := s.Node("node1")
	s.no(err)
	if b := s.becomes("node1", "web", "NodeAddress"); len(b.Addresses) != 2 || b.Addresses[0].Address != node.Addresses[0] {
		t.Errorf("got %+v, want %v", b, node.Addresses)
	}
	s.eventually("a host outside reaches it at the node's addresses", lbPatience, func() error {
		_, err := s.getAll(lab.Outside, 80, node.Addresses...)
		return err
	})
	s.expose("again", 81, "", web...)
	if why := s.becomes("node1", "web", "PoolExhausted").Message; !strings.Contains(why, "default/again, whose port 80/tcp this one wants too") {
		t.Errorf("two Services with one port: %s", why)
	}
	if out := s.out("node1", "weft lb list"); !strings.Contains(out, "node node1, whose own it is") {
		t.Errorf("weft lb list:\n%s", out)
	}
}

// TestLoadBalancerNodeAddressesLocal: of the nodes' own addresses, a Service with externalTrafficPolicy Local has those where its ready
// endpoints are, and the others do not send anybody into the void.
func TestLoadBalancerNodeAddressesLocal(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	one, two := s.run("node1", "one")[0], s.run("node2", "two")[0]
	s.write("pool.yaml", "apiVersion: weft.network/v1alpha1\nkind: LoadBalancerPool\nmetadata: {name: box}\nspec: {nodeAddresses: true}\n")
	has := func(want ...string) {
		t.Helper()
		for _, node := range []string{"node1", "node2"} {
			s.eventually(fmt.Sprintf("%s: the Service has %v", node, want), lbPatience, func() error {
				b, err := s.balancer(node, "web")
				var got []string
				for _, a := range b.Addresses {
					if a.Address.Is4() {
						got = append(got, a.Address.String())
					}
				}
				if err == nil && !slices.Equal(got, want) {
					err = fmt.Errorf("it has %v, %s: %s", got, b.Reason, b.Message)
				}
				return err
			})
		}
	}
	const local = "  externalTrafficPolicy: Local"
	s.expose("web", 80, local, one)
	has("172.30.1.11")
	s.expose("web", 80, local, one, two)
	has("172.30.1.11", "172.30.1.12")
	s.expose("web", 80, local, two)
	has("172.30.1.12")
	s.eventually("a host outside reaches it where it is, with its own address", lbPatience, func() error {
		a, err := s.get(lab.Outside, netip.MustParseAddr("172.30.1.12"), 80)
		if err == nil && (a.Pod != "default/two" || a.Client != netip.MustParseAddr("198.51.100.2")) {
			err = fmt.Errorf("%+v", a)
		}
		return err
	})
	s.expose("web", 80, local)
	has()
	if b := s.becomes("node1", "web", "NoLocalEndpoint"); !strings.Contains(b.Message, "no node of pool box has a ready endpoint") {
		t.Errorf("it says %s", b.Message)
	}
	s.expose("web", 80, "", one)
	has("172.30.1.11", "172.30.1.12")
}
