package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft.network/weft/appliance/model"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// blocks reads "192.0.2.0/28 192.0.2.100-192.0.2.110".
func blocks(text string) (out []model.AddressBlock) {
	for _, f := range strings.Fields(text) {
		if first, last, ok := strings.Cut(f, "-"); ok {
			out = append(out, model.AddressBlock{First: ip(first), Last: ip(last)})
		} else if strings.Contains(f, "/") {
			out = append(out, model.BlockOf(netip.MustParsePrefix(f)))
		} else {
			out = append(out, model.AddressBlock{First: ip(f), Last: ip(f)})
		}
	}
	return out
}

func pools(list ...*model.LoadBalancerPool) map[string]*model.LoadBalancerPool {
	out := map[string]*model.LoadBalancerPool{}
	for _, p := range list {
		out[p.Name] = p
	}
	return out
}

func edge(addresses string) *model.LoadBalancerPool {
	return &model.LoadBalancerPool{Name: "edge", Blocks: blocks(addresses)}
}

// svc makes a Service of type LoadBalancer with port 80; what are further settings such as "ip=192.0.2.1".
func svc(name string, what ...string) *model.Service {
	s := &model.Service{
		Namespace: "default", Name: name, UID: "uid-" + name, Type: "LoadBalancer", ClusterIPs: []netip.Addr{ip("10.96.0.1")},
		Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}, Annotations: map[string]string{}, Labels: map[string]string{},
	}
	for _, w := range what {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "ip":
			s.LoadBalancerIP = value
		case "has": // an address that weft gave
			s.Ingress = append(s.Ingress, model.ServiceIngress{IP: ip(value)})
			s.Allocation = &model.Allocation{OK: true, Reason: ReasonAllocated}
		case "status": // an address that somebody gave
			s.Ingress = append(s.Ingress, model.ServiceIngress{IP: ip(value)})
		case "dual":
			s.ClusterIPs, s.DualStack = []netip.Addr{ip("10.96.0.1"), ip("fd00::1")}, value
		case "v6":
			s.ClusterIPs = []netip.Addr{ip("fd00::1")}
		case "port":
			var n uint16
			_, _ = fmt.Sscan(value, &n)
			s.Ports[0].Port = n
		case "class":
			s.LoadBalancerClass = value
		case "type":
			s.Type = value
		case "ns":
			s.Namespace = value
		case "created":
			_, _ = fmt.Sscan(value, &s.Created)
		case "local":
			s.ExternalLocal = true
		case "label":
			k, v, _ := strings.Cut(value, ":")
			s.Labels[k] = v
		default:
			s.Annotations[key] = value
		}
	}
	return s
}

func services(list ...*model.Service) map[model.ServiceKey]*model.Service {
	out := map[model.ServiceKey]*model.Service{}
	for _, s := range list {
		out[s.Key()] = s
	}
	return out
}

func nodes(list ...*model.Node) map[string]*model.Node {
	out := map[string]*model.Node{}
	for _, n := range list {
		out[n.Name] = n
	}
	return out
}

// outcome prints "reason addresses" for a Service of namespace default.
func outcome(r Result, name string) string {
	a := r.Assignments[model.ServiceKey{Namespace: "default", Name: name}]
	if a == nil {
		return "nothing"
	}
	parts := []string{a.Reason}
	for _, x := range a.Addrs() {
		parts = append(parts, x.String())
	}
	return strings.Join(parts, " ")
}

func is(key, value string) *model.Selector {
	return &model.Selector{{Key: key, Op: model.OpIn, Values: []string{value}}}
}

func TestAllocate(t *testing.T) {
	two := pools(
		&model.LoadBalancerPool{Name: "a", Blocks: blocks("192.0.2.1-192.0.2.2"), Priority: 1},
		&model.LoadBalancerPool{Name: "b", Blocks: blocks("198.51.100.0/24 2001:db8::/120")},
	)
	box := nodes(&model.Node{Name: "box", Addresses: []netip.Addr{ip("192.168.1.5"), ip("2001:db8:1::5")}})
	nodePool := pools(&model.LoadBalancerPool{Name: "nodes", NodeAddresses: true})
	var each []*model.Node
	for i := 1; i <= 3; i++ {
		each = append(each, &model.Node{Name: fmt.Sprintf("n%d", i), Addresses: []netip.Addr{ip(fmt.Sprintf("192.168.1.%d", i))}})
	}
	three := nodes(each...)
	ready := func(name string, on ...string) map[model.ServiceKey]map[string]bool {
		out := map[string]bool{}
		for _, n := range on {
			out[n] = true
		}
		return map[model.ServiceKey]map[string]bool{{Namespace: "default", Name: name}: out}
	}
	named, proxied := *svc("named"), *svc("proxied")
	named.IngressName, proxied.Ingress = "lb.example.com", []model.ServiceIngress{{IP: ip("192.0.2.1"), Proxy: true}}
	svclb := map[model.PodKey]*model.Pod{{Namespace: "kube-system", Name: "svclb-web-x"}: {Labels: map[string]string{serviceLBLabel: "web"}}}
	for _, tc := range []struct {
		name string
		in   Input
		want string // outcome of each Service, by name
	}{
		{"no pools, nothing to say", Input{Services: services(svc("a"))}, "a: nothing"},
		{"first free", Input{Pools: pools(edge("192.0.2.0/30")), Services: services(svc("a"), svc("b", "created=5"))}, "a: Allocated 192.0.2.0; b: Allocated 192.0.2.1"},
		{"the older first", Input{Pools: pools(edge("192.0.2.1")), Services: services(svc("a", "created=9"), svc("b", "created=5"))}, "a: PoolExhausted; b: Allocated 192.0.2.1"},
		{"not ours", Input{Pools: pools(edge("192.0.2.1")), Services: services(svc("a", "class=x/y"), svc("b", "type=NodePort"))}, "a: nothing; b: nothing"},
		{"class named", Input{Pools: pools(edge("192.0.2.1")), Services: services(svc("a", "class="+Class), svc("b")), NoDefault: true}, "a: Allocated 192.0.2.1; b: nothing"},
		{"priority, then the next pool", Input{Pools: two, Services: services(svc("a"), svc("b"), svc("c"))}, "a: Allocated 192.0.2.1; b: Allocated 192.0.2.2; c: Allocated 198.51.100.0"},
		{"dual from two pools", Input{Pools: two, Services: services(svc("a", "dual=prefer"))}, "a: Allocated 192.0.2.1 2001:db8::"},
		{"one family is enough", Input{Pools: pools(edge("192.0.2.1")), Services: services(svc("a", "dual=prefer"))}, "a: PartlyAllocated 192.0.2.1"},
		{"both or none", Input{Pools: pools(edge("192.0.2.1")), Services: services(svc("a", "dual=require"))}, "a: NoPool"},
		{"IPv6 alone", Input{Pools: two, Services: services(svc("a", "v6"))}, "a: Allocated 2001:db8::"},
		{"keeps what it has", Input{Pools: two, Services: services(svc("a", "has=198.51.100.77"))}, "a: Allocated 198.51.100.77"},
		{"adopts from another allocator", Input{Pools: two, Services: services(svc("a", "status=198.51.100.77"))}, "a: Allocated 198.51.100.77"},
		{"leaves alone what another gave", Input{Pools: two, Services: services(svc("a", "status=203.0.113.1"))}, "a: OtherLoadBalancer"},
		{"or delivers by itself", Input{Pools: two, Services: services(&named, &proxied)}, "named: OtherLoadBalancer; proxied: OtherLoadBalancer"},
		{"while k3s has its ServiceLB", Input{Pools: two, Pods: svclb, Nodes: box, Services: services(svc("a"), svc("b", "class="+Class))}, "a: OtherLoadBalancer; b: Allocated 192.0.2.1"},
		{"what a ServiceLB left behind", Input{Pools: two, Pods: map[model.PodKey]*model.Pod{}, Nodes: box, Services: services(svc("a", "status=192.168.1.5"))}, "a: Allocated 192.0.2.1"},
		{"unless the class says weft", Input{Pools: two, Services: services(svc("a", "status=203.0.113.1", "class="+Class))}, "a: Allocated 192.0.2.1"},
		{"pool shrunk", Input{Pools: two, Services: services(svc("a", "has=198.51.101.1"))}, "a: OutsidePool 198.51.101.1"},
		{"all pools gone", Input{Services: services(svc("a", "has=198.51.101.1"))}, "a: OutsidePool 198.51.101.1"},
		{"the pool it asks for shrunk", Input{Pools: two, Services: services(svc("a", "has=198.51.101.1", "weft.network/load-balancer-pool=b"))}, "a: OutsidePool 198.51.101.1"},
		{"the pool it asks for is gone", Input{Pools: pools(edge("192.0.2.1")), Services: services(svc("a", "has=198.51.100.7", "weft.network/load-balancer-pool=b"))}, "a: OutsidePool 198.51.100.7"},
		{"the pool it asks for is refused", Input{Pools: pools(edge("192.0.2.1"), &model.LoadBalancerPool{Name: "b", Created: 9, Blocks: blocks("192.0.2.1 198.51.100.0/24")}), Services: services(svc("a", "has=198.51.100.7", "weft.network/load-balancer-pool=b"))}, "a: OutsidePool 198.51.100.7"},
		{"what another gave does not stay", Input{Pools: two, Services: services(svc("a", "status=203.0.113.1", "class="+Class, "weft.network/load-balancer-pool=b"))}, "a: Allocated 198.51.100.0"},
		{"asks for one", Input{Pools: two, Services: services(svc("a", "ip=198.51.100.9"))}, "a: Allocated 198.51.100.9"},
		{"by annotation, both", Input{Pools: two, Services: services(svc("a", "dual=require", "metallb.io/loadBalancerIPs=2001:db8::9, 198.51.100.9"))}, "a: Allocated 198.51.100.9 2001:db8::9"},
		{"asks for another than it has", Input{Pools: two, Services: services(svc("a", "has=198.51.100.8", "weft.network/load-balancer-ips=198.51.100.9"))}, "a: Allocated 198.51.100.9"},
		{"asked for goes before free", Input{Pools: pools(edge("192.0.2.1-192.0.2.2")), Services: services(svc("a"), svc("b", "created=9", "ip=192.0.2.1"))}, "a: Allocated 192.0.2.2; b: Allocated 192.0.2.1"},
		{"taken", Input{Pools: two, Services: services(svc("a", "has=198.51.100.9"), svc("b", "ip=198.51.100.9"))}, "a: Allocated 198.51.100.9; b: AddressTaken"},
		{"not in a pool", Input{Pools: two, Services: services(svc("a", "ip=203.0.113.9"))}, "a: AddressNotInPool"},
		{"malformed", Input{Pools: two, Services: services(svc("a", "ip=203.0.113"))}, "a: MalformedRequest"},
		{"malformed later keeps", Input{Pools: two, Services: services(svc("a", "has=198.51.100.9", "weft.network/load-balancer-ips=1.2.3.4,1.2.3.5"))}, "a: MalformedRequest 198.51.100.9"},
		{"asks for a pool", Input{Pools: two, Services: services(svc("a", "metallb.universe.tf/address-pool=b"))}, "a: Allocated 198.51.100.0"},
		{"moves to that pool", Input{Pools: two, Services: services(svc("a", "has=192.0.2.1", "weft.network/load-balancer-pool=b"))}, "a: Allocated 198.51.100.0"},
		{"no such pool", Input{Pools: two, Services: services(svc("a", "weft.network/load-balancer-pool=c"))}, "a: NoPool"},
		{
			"shares by key",
			Input{Pools: two, Services: services(svc("a", "weft.network/allow-shared-ip=k"), svc("b", "metallb.io/allow-shared-ip=k", "port=81"), svc("c", "weft.network/allow-shared-ip=k"), svc("d", "weft.network/allow-shared-ip=other", "port=82"))},
			"a: Allocated 192.0.2.1; b: Allocated 192.0.2.1; c: Allocated 192.0.2.2; d: Allocated 198.51.100.0",
		},
		{"shares what it asks for", Input{Pools: two, Services: services(svc("a", "weft.network/allow-shared-ip=k", "ip=198.51.100.9"), svc("b", "weft.network/allow-shared-ip=k", "port=81", "ip=198.51.100.9"))}, "a: Allocated 198.51.100.9; b: Allocated 198.51.100.9"},
		{"another policy does not share", Input{Pools: two, Services: services(svc("a", "weft.network/allow-shared-ip=k", "ip=198.51.100.9"), svc("b", "weft.network/allow-shared-ip=k", "port=81", "ip=198.51.100.9", "local"))}, "a: Allocated 198.51.100.9; b: AddressTaken"},
		{"a node's address is not given", Input{Pools: pools(edge("192.168.1.5-192.168.1.6")), Nodes: box, Services: services(svc("a"), svc("b", "ip=192.168.1.5"))}, "a: Allocated 192.168.1.6; b: AddressTaken"},
		{
			"node addresses, by port",
			Input{Pools: nodePool, Nodes: box, Services: services(svc("a", "dual=require"), svc("b", "port=81"), svc("c", "created=3"))},
			"a: NodeAddress 192.168.1.5 2001:db8:1::5; b: NodeAddress 192.168.1.5; c: PoolExhausted",
		},
		{
			"of the nodes, those with an endpoint",
			Input{Pools: nodePool, Nodes: three, Local: ready("a", "n1", "n3"), Services: services(svc("a", "local"), svc("b", "port=81"))},
			"a: NodeAddress 192.168.1.1 192.168.1.3; b: NodeAddress 192.168.1.1 192.168.1.2 192.168.1.3",
		},
		{"none of the nodes has an endpoint", Input{Pools: nodePool, Nodes: three, Local: ready("a"), Services: services(svc("a", "local"))}, "a: NoLocalEndpoint"},
		{"asks for a node with an endpoint", Input{Pools: nodePool, Nodes: three, Local: ready("a", "n2"), Services: services(svc("a", "local", "ip=192.168.1.2"))}, "a: NodeAddress 192.168.1.2"},
		{"asks for a node without an endpoint", Input{Pools: nodePool, Nodes: three, Local: ready("a", "n2"), Services: services(svc("a", "local", "ip=192.168.1.1"))}, "a: NoLocalEndpoint"},
		{"not the node's own ports", Input{Pools: nodePool, Nodes: box, Services: services(svc("a", "port=22"))}, "a: PoolExhausted"},
		{"nor when it asks for the address", Input{Pools: nodePool, Nodes: box, Services: services(svc("a", "port=6443", "ip=192.168.1.5"), svc("b", "port=10250", "dual=require", "weft.network/load-balancer-ips=192.168.1.5,2001:db8:1::5"))}, "a: AddressTaken; b: AddressTaken"},
		{"no ClusterIP yet", Input{Pools: two, Services: services(&model.Service{Namespace: "default", Name: "a", Type: "LoadBalancer"})}, "a: NoPool"},
		{"written and not seen yet", Input{Pools: two, Services: services(svc("a", "created=9"), svc("b")), Given: map[model.ServiceKey]Given{
			{Namespace: "default", Name: "a"}: {UID: "uid-a", Addresses: []netip.Addr{ip("192.0.2.1")}},
			{Namespace: "default", Name: "b"}: {UID: "before", Addresses: []netip.Addr{ip("192.0.2.9")}},
		}}, "a: Allocated 192.0.2.1; b: Allocated 192.0.2.2"},
	} {
		r := Allocate(tc.in)
		var got []string
		for _, want := range strings.Split(tc.want, "; ") {
			name, _, _ := strings.Cut(want, ":")
			got = append(got, name+": "+outcome(r, name))
		}
		if s := strings.Join(got, "; "); s != tc.want {
			t.Errorf("%s: got %s, want %s", tc.name, s, tc.want)
		}
	}
}

// TestSelectors: who may use a pool.
func TestSelectors(t *testing.T) {
	all := pools(
		&model.LoadBalancerPool{Name: "vip", Blocks: blocks("192.0.2.1-192.0.2.9"), Services: is("tier", "vip"), Priority: 9},
		&model.LoadBalancerPool{Name: "team", Blocks: blocks("192.0.2.11-192.0.2.19"), Namespaces: is("team", "x"), Priority: 8},
		&model.LoadBalancerPool{Name: "asked", Blocks: blocks("192.0.2.21-192.0.2.29"), OnRequest: true, Priority: 7},
		&model.LoadBalancerPool{Name: "rest", Blocks: blocks("192.0.2.31"), Namespaces: is("kubernetes.io/metadata.name", "default")},
	)
	in := Input{Pools: all, Namespaces: map[string]*model.Namespace{"x": {Name: "x", Labels: map[string]string{"team": "x"}}}, Services: services(
		svc("a", "label=tier:vip"), svc("b"), svc("c"), svc("d", "weft.network/load-balancer-pool=asked"),
		svc("e", "ns=x"), svc("f", "ip=192.0.2.1"), svc("g", "ns=y"), svc("h", "ip=192.0.2.25"),
	)}
	r := Allocate(in)
	for key, want := range map[string]string{
		"default/a": "192.0.2.1", "default/b": "192.0.2.31", "default/d": "192.0.2.21", "x/e": "192.0.2.11", "default/h": "192.0.2.25",
		"default/c": "pool rest has 1, of which 1 are in use",
		"default/f": "its serviceSelector (tier=vip) does not select the Service's labels",
		"y/g":       "its namespaceSelector (kubernetes.io/metadata.name=default) does not select namespace y",
	} {
		ns, name, _ := strings.Cut(key, "/")
		a := r.Assignments[model.ServiceKey{Namespace: ns, Name: name}]
		if !strings.Contains(a.Message, want) {
			t.Errorf("%s: %q does not say %q", key, a.Message, want)
		}
	}
}

// TestBadPools: the younger of two that overlap is refused, with both names; so is one in a Pod range.
func TestBadPools(t *testing.T) {
	r := Allocate(Input{
		Pools: pools(
			&model.LoadBalancerPool{Name: "old", Blocks: blocks("192.0.2.0/28"), Created: 1},
			&model.LoadBalancerPool{Name: "a-young", Blocks: blocks("198.51.100.0/24 192.0.2.15-192.0.2.20"), Created: 2},
			&model.LoadBalancerPool{Name: "pods", Blocks: blocks("10.244.1.128/25"), Created: 3},
			&model.LoadBalancerPool{Name: "empty", Created: 4},
			&model.LoadBalancerPool{Name: "six", Blocks: blocks("::ffff:0:0-::ffff:0:9"), Created: 5},
		),
		Nodes:    nodes(&model.Node{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}),
		Services: services(svc("a", "has=198.51.100.7"), svc("b", "ip=198.51.100.8")),
	})
	want := map[string]string{
		"old": "", "a-young": "overlaps 192.0.2.0/28 of pool old, which is older, so pool a-young is not used", "pods": "Pod range of node n1",
		"empty": "no addresses", "six": "",
	}
	for _, p := range r.Pools {
		if w := want[p.Name]; !strings.Contains(p.Problem, w) || (p.Problem == "") != (w == "") {
			t.Errorf("%s: %q, want %q", p.Name, p.Problem, w)
		}
	}
	if got := outcome(r, "a"); got != "OutsidePool 198.51.100.7" {
		t.Errorf("an address of a refused pool: %s", got)
	}
	if got := outcome(r, "b"); got != "AddressNotInPool" {
		t.Errorf("asking for an address of a refused pool: %s", got)
	}
	if p := r.Problems(); len(p) != 5 || !slices.IsSorted(p) {
		t.Errorf("problems %q", p)
	}
}

// TestSameWords: what is wrong with a pool is said in the same words each time, or its status would be written anew with each round.
func TestSameWords(t *testing.T) {
	list := map[model.ServiceKey]*model.Service{}
	for i := range 9 {
		s := svc(fmt.Sprintf("s%d", i))
		s.ClusterIPs = []netip.Addr{ip(fmt.Sprintf("192.0.2.%d", 9-i))}
		list[s.Key()] = s
	}
	in := Input{Pools: pools(edge("192.0.2.0/24")), Services: list}
	for range 50 {
		if got := Allocate(in).Pools[0].Problem; got != "192.0.2.1 is the ClusterIP of Service default/s8 and is not given out: leave it out of spec.addresses" {
			t.Fatal(got)
		}
	}
}

// TestSizes: counting and walking blocks, with edges, at the ends of 64 bits.
func TestSizes(t *testing.T) {
	for text, want := range map[string]uint64{
		"192.0.2.0/24": 256, "192.0.2.7": 1, "192.0.2.250-192.0.3.5": 12, "0.0.0.0/0": mostCounted, "2001:db8::/64": mostCounted,
		"2001:db8::ffff:ffff:ffff:fff0-2001:db8:0:1::f": 32,
	} {
		if got := size(blocks(text)[0]); got != want {
			t.Errorf("%s has %d addresses, want %d", text, got, want)
		}
	}
	b := blocks("2001:db8::ffff:ffff:ffff:fff0-2001:db8:0:1::f")[0]
	if got := at(b, 31); got != b.Last {
		t.Errorf("the last is %s, want %s", got, b.Last)
	}
	for text, want := range map[string]uint64{"192.0.2.0/24": 2, "192.0.2.1-192.0.2.254": 0, "192.0.2.255-192.0.3.0": 2, "10.0.0.0/16": 512, "192.0.2.0": 1, "192.0.2.255": 1} {
		if got := edges(blocks(text)[0]); got != want {
			t.Errorf("%s has %d edges, want %d", text, got, want)
		}
	}
	p := edge("192.0.2.254-192.0.3.2")
	p.AvoidEdges = true
	r := Allocate(Input{Pools: pools(p), Services: services(svc("a"), svc("b"), svc("c"), svc("d"), svc("e", "ip=192.0.3.0"))})
	if got := outcome(r, "a") + outcome(r, "b") + outcome(r, "c") + outcome(r, "d") + outcome(r, "e"); got != "Allocated 192.0.2.254Allocated 192.0.3.1Allocated 192.0.3.2PoolExhaustedAddressNotInPool" {
		t.Errorf("avoiding .0 and .255: %s", got)
	}
	if s := r.Pools[0]; s.Size != 3 || s.Used != 3 {
		t.Errorf("counted %+v", s)
	}
}

func TestBlockText(t *testing.T) {
	for _, text := range []string{"192.0.2.0/24", "192.0.2.7", "192.0.2.1-192.0.2.2", "2001:db8::/64", "0.0.0.0/0", "192.0.2.8-192.0.2.16"} {
		if got := blocks(text)[0].String(); got != text {
			t.Errorf("%s prints as %s", text, got)
		}
	}
}
