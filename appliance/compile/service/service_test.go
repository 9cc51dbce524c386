package service

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"weft.network/weft/appliance/model"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(s string) (out []netip.Addr) {
	for _, a := range strings.Fields(s) {
		out = append(out, addr(a))
	}
	return out
}

func places2(s string) (out []netip.AddrPort) {
	for _, a := range strings.Fields(s) {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

var node = Input{NodeName: "here", Zone: "a", NodeAddresses: addrs("192.168.9.1 fd00:9::1")}

// svc makes a Service with one port 80/tcp and changes it.
func svc(name, clusterIPs string, change func(*model.Service)) *model.Service {
	s := &model.Service{Namespace: "shop", Name: name, Type: "ClusterIP", ClusterIPs: addrs(clusterIPs), Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}}
	if change != nil {
		change(s)
	}
	return s
}

// slice makes an EndpointSlice for port 80. Each endpoint is written as address@node, with ! in front if it is not ready, ~ if
// it drains.
func slice(service, name string, endpoints string) *model.EndpointSlice {
	e := &model.EndpointSlice{Namespace: "shop", Name: service + "-" + name, Service: service, Ports: []model.EndpointPort{{Protocol: model.TCP, Port: 8080}}}
	for _, text := range strings.Fields(endpoints) {
		ep := model.Endpoint{Ready: true, Serving: true}
		switch text[0] {
		case '!':
			ep.Ready, ep.Serving = false, false
		case '~':
			ep.Ready, ep.Terminating = false, true
		}
		a, at, _ := strings.Cut(strings.TrimLeft(text, "!~"), "@")
		ep.Addresses, ep.Node = addrs(a), at
		e.IPv6 = ep.Addresses[0].Is6()
		e.Endpoints = append(e.Endpoints, ep)
	}
	return e
}

// snapshot joins Services and slices.
func snapshot(objects ...any) *model.Snapshot {
	out := &model.Snapshot{Services: map[model.ServiceKey]*model.Service{}, Slices: map[model.SliceKey]*model.EndpointSlice{}}
	for _, o := range objects {
		switch o := o.(type) {
		case *model.Service:
			out.Services[o.Key()] = o
		case *model.EndpointSlice:
			out.Slices[o.Key()] = o
		}
	}
	return out
}

// text prints what is served, a line for each frontend.
func text(r Result) string {
	var lines []string
	for k, f := range r.Frontends {
		for _, p := range f.Ports {
			for _, at := range p.Frontends {
				line := fmt.Sprintf("%s %s: %s", k, at.text(p.Protocol), targetText(p, at.Inside))
				if at.Outside != at.Inside {
					line += "; from outside " + targetText(p, at.Outside)
				}
				if len(at.Sources) > 0 {
					line += fmt.Sprintf("; only for %v", at.Sources)
				}
				lines = append(lines, line)
			}
		}
	}
	for k, h := range r.HealthChecks {
		lines = append(lines, fmt.Sprintf("%s health check %d: %d", k, h.Port, h.LocalEndpoints))
	}
	for _, p := range r.Problems {
		lines = append(lines, p.String())
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func targetText(p Port, t Target) string {
	switch t {
	case ToCluster:
		return fmt.Sprint(p.Cluster)
	case ToLocal:
		return fmt.Sprint("local ", p.Local)
	}
	return t.String()
}

func TestCompile(t *testing.T) {
	loadBalancer := func(s *model.Service) {
		s.Type, s.ExternalLocal, s.HealthCheckNodePort = "LoadBalancer", true, 31000
		s.Ingress = []model.ServiceIngress{{IP: addr("203.0.113.1")}, {IP: addr("203.0.113.2"), Proxy: true}}
		s.Ports[0].NodePort = 30080
	}
	for _, c := range []struct {
		name    string
		objects []any
		want    string
	}{
		{"no endpoints", []any{svc("web", "10.96.0.1", nil)}, "shop/web 10.96.0.1:80/tcp (ClusterIP): refuse"},
		{"slices in any number, with a duplicate", []any{
			svc("web", "10.96.0.1 fd00:96::1", nil), slice("web", "b", "10.42.1.2@here 10.42.2.1@there"), slice("web", "a", "10.42.2.1@there"), slice("web", "c", "fd00:42::1@here"),
		}, `shop/web 10.96.0.1:80/tcp (ClusterIP): [10.42.1.2:8080 10.42.2.1:8080]
shop/web [fd00:96::1]:80/tcp (ClusterIP): [[fd00:42::1]:8080]`},
		{
			"an address twice: the Pod that lives",
			[]any{svc("web", "10.96.0.1", nil), slice("web", "a", "10.42.1.2@here"), slice("web", "b", "~10.42.1.2@there")},
			"shop/web 10.96.0.1:80/tcp (ClusterIP): [10.42.1.2:8080]",
		},
		{"the family that the Service has", []any{svc("web", "10.96.0.1", nil), slice("web", "a", "fd00:42::1@here")}, "shop/web 10.96.0.1:80/tcp (ClusterIP): refuse"},
		{
			"load balancer, policy Local",
			[]any{svc("web", "10.96.0.1", loadBalancer), slice("web", "a", "10.42.2.1@there 10.42.1.2@here !10.42.1.3@here")},
			`shop/web 10.96.0.1:80/tcp (ClusterIP): [10.42.1.2:8080 10.42.2.1:8080]
shop/web 203.0.113.1:80/tcp (LoadBalancer): [10.42.1.2:8080 10.42.2.1:8080]; from outside local [10.42.1.2:8080]
shop/web health check 31000: 1
shop/web node port 30080/tcp: [10.42.1.2:8080 10.42.2.1:8080]; from outside local [10.42.1.2:8080]`,
		},
		{
			"the same without local endpoints",
			[]any{svc("web", "10.96.0.1", loadBalancer), slice("web", "a", "10.42.2.1@there")},
			`shop/web 10.96.0.1:80/tcp (ClusterIP): [10.42.2.1:8080]
shop/web 203.0.113.1:80/tcp (LoadBalancer): [10.42.2.1:8080]; from outside drop, no local endpoint
shop/web health check 31000: 0
shop/web node port 30080/tcp: [10.42.2.1:8080]; from outside drop, no local endpoint`,
		},
		{
			"a type that changed leaves nothing behind",
			[]any{svc("web", "10.96.0.1", func(s *model.Service) { loadBalancer(s); s.Type = "ClusterIP" }), slice("web", "a", "10.42.1.2@here")},
			"shop/web 10.96.0.1:80/tcp (ClusterIP): [10.42.1.2:8080]",
		},
		{"not ours", []any{
			svc("mesh", "10.96.0.1", func(s *model.Service) { s.OtherProxy = "mesh" }), svc("head", "", func(s *model.Service) { s.Headless = true }),
			svc("name", "10.96.0.9", func(s *model.Service) { s.Type = "ExternalName" }),
		}, ""},
		{"an external address that is the load balancer's, too", []any{svc("web", "10.96.0.1", func(s *model.Service) {
			s.Type, s.Ingress, s.ExternalIPs = "LoadBalancer", []model.ServiceIngress{{IP: addr("203.0.113.1")}}, addrs("203.0.113.1")
		})}, "shop/web 10.96.0.1:80/tcp (ClusterIP): refuse\nshop/web 203.0.113.1:80/tcp (LoadBalancer): refuse"},
		{"source ranges", []any{svc("web", "10.96.0.1 fd00:96::1", func(s *model.Service) {
			s.Type, s.Ingress = "LoadBalancer", []model.ServiceIngress{{IP: addr("203.0.113.1")}, {IP: addr("2001:db8::1")}}
			s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.168.9.7/24")}
		})}, `Service shop/web: loadBalancerSourceRanges has no IPv6 range, so everybody may connect to 2001:db8::1; add one to limit that
shop/web 10.96.0.1:80/tcp (ClusterIP): refuse
shop/web 203.0.113.1:80/tcp (LoadBalancer): refuse; only for [192.168.9.0/24 203.0.113.1/32]
shop/web [2001:db8::1]:80/tcp (LoadBalancer): refuse
shop/web [fd00:96::1]:80/tcp (ClusterIP): refuse`},
		{"addresses that cannot be", []any{
			svc("web", "10.96.0.1", func(s *model.Service) { s.ExternalIPs = addrs("127.0.0.1 224.0.0.1 0.0.0.0 ::1") }),
			slice("web", "a", "127.0.0.1@here 169.254.1.1@here 224.0.0.1@here 0.0.0.0@here 255.255.255.255@here ::ffff:10.42.1.9@here 10.42.1.2@here"), &model.EndpointSlice{
				Namespace: "shop", Name: "web-b", Service: "web", Ports: []model.EndpointPort{{Protocol: model.TCP, Port: 0}}, Endpoints: []model.Endpoint{{}},
			}, &model.EndpointSlice{
				Namespace: "shop", Name: "web-c", Service: "web", Ports: []model.EndpointPort{{Protocol: model.TCP, Port: 8080}},
				Endpoints: []model.Endpoint{{Ready: true}, {Addresses: addrs("fd00::1"), Ready: true}},
			},
		}, `Service shop/web: EndpointSlice web-a: endpoint 0.0.0.0 is the unspecified address (ignored)
Service shop/web: EndpointSlice web-a: endpoint 127.0.0.1 is a loopback address (ignored)
Service shop/web: EndpointSlice web-a: endpoint 169.254.1.1 is a link-local address (ignored)
Service shop/web: EndpointSlice web-a: endpoint 224.0.0.1 is a group address (ignored)
Service shop/web: EndpointSlice web-a: endpoint 255.255.255.255 is a group address (ignored)
Service shop/web: EndpointSlice web-b: port "" is 0, which no connection can be sent to (ignored)
Service shop/web: EndpointSlice web-c has an endpoint without address (ignored)
Service shop/web: externalIPs 0.0.0.0 is the unspecified address (ignored)
Service shop/web: externalIPs 127.0.0.1 is a loopback address (ignored)
Service shop/web: externalIPs 224.0.0.1 is a group address (ignored)
Service shop/web: has more problems than these
shop/web 10.96.0.1:80/tcp (ClusterIP): [10.42.1.2:8080 10.42.1.9:8080]`},
		{"ports that cannot be", []any{svc("web", "10.96.0.1", func(s *model.Service) {
			s.Ports = []model.ServicePort{{Name: "zero", Protocol: model.TCP}, {Name: "icmp", Protocol: 1, Port: 8}, {Name: "last", Protocol: model.UDP, Port: 65535}}
		})}, `Service shop/web: port "icmp" (8/1) is not one that can be served; use 1 to 65535 over TCP, UDP or SCTP
Service shop/web: port "zero" (0/tcp) is not one that can be served; use 1 to 65535 over TCP, UDP or SCTP
shop/web 10.96.0.1:65535/udp (ClusterIP): refuse`},
		{"one Service that asks twice", []any{svc("web", "10.96.0.1", func(s *model.Service) {
			s.Type = "NodePort"
			s.Ports = []model.ServicePort{
				{Name: "a", Protocol: model.TCP, Port: 80, NodePort: 30080},
				{Name: "b", Protocol: model.TCP, Port: 81, NodePort: 30080},
				{Name: "c", Protocol: model.TCP, Port: 80},
				{Name: "d", Protocol: model.UDP, Port: 80, NodePort: 30080},
			}
		})}, `Service shop/web: port "b" asks for what port "a" has: tcp port 30080 (ignored)
Service shop/web: port "c" asks for what port "a" has: tcp port 80 (ignored)
shop/web 10.96.0.1:80/tcp (ClusterIP): refuse
shop/web 10.96.0.1:80/udp (ClusterIP): refuse
shop/web 10.96.0.1:81/tcp (ClusterIP): refuse
shop/web node port 30080/tcp: refuse
shop/web node port 30080/udp: refuse`},
		{"two ClusterIPs of one family", []any{svc("web", "10.96.0.1 10.96.0.2", nil)}, "Service shop/web: clusterIP 10.96.0.2 is the second of its family (ignored)\nshop/web 10.96.0.1:80/tcp (ClusterIP): refuse"},
		{"two Services with one address: the older one has it", []any{
			svc("new", "10.96.0.1", func(s *model.Service) { s.Created = 20 }), svc("old", "10.96.0.1", func(s *model.Service) { s.Created = 10 }),
			svc("port", "10.96.0.3", func(s *model.Service) { s.Type, s.Ports[0].NodePort, s.Created = "NodePort", 30080, 30 }),
			svc("port2", "10.96.0.4", func(s *model.Service) { s.Type, s.Ports[0].NodePort, s.Created = "NodePort", 30080, 30 }),
		}, `Service shop/new: 10.96.0.1:80/tcp (ClusterIP) belongs to the older Service shop/old, so this one is not served there; change one of the two
Service shop/port2: node port 30080/tcp belongs to the older Service shop/port, so this one is not served there; change one of the two
shop/old 10.96.0.1:80/tcp (ClusterIP): refuse
shop/port 10.96.0.3:80/tcp (ClusterIP): refuse
shop/port node port 30080/tcp: refuse
shop/port2 10.96.0.4:80/tcp (ClusterIP): refuse`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := text(new(Compiler).Compile(snapshot(c.objects...), node)); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
	if r := new(Compiler).Compile(nil, node); len(r.Frontends)+len(r.HealthChecks)+len(r.Problems) != 0 {
		t.Errorf("a Snapshot that is not there: %+v", r)
	}
}

// TestHairpin: a Pod that reaches itself through a Service needs another source address, also where no slice says that it is here.
func TestHairpin(t *testing.T) {
	r := new(Compiler).Compile(snapshot(svc("web", "10.96.0.1", nil), slice("web", "a", "10.42.1.2@here 10.42.2.1@there 10.42.1.3 192.168.9.1@here")), node)
	for _, f := range r.Frontends {
		if got := f.Ports[0].Hairpin; !slices.Equal(got, addrs("10.42.1.2 10.42.1.3")) {
			t.Errorf("hairpin %v", got)
		}
	}
}

func TestPointersStay(t *testing.T) {
	var c Compiler
	web, old := svc("web", "10.96.0.1", nil), svc("old", "10.96.0.2", nil)
	first := c.Compile(snapshot(web, old, slice("web", "a", "10.42.1.2@here")), node)
	again := *slice("web", "a", "10.42.1.2@here")
	again.Triggered = 7
	labelled := *web
	labelled.Labels = map[string]string{"a": "b"}
	same := c.Compile(snapshot(&labelled, old, &again), node)
	if reflect.ValueOf(first.Frontends).Pointer() != reflect.ValueOf(same.Frontends).Pointer() {
		t.Error("another map although nothing that counts has changed")
	}
	more := c.Compile(snapshot(web, old, slice("web", "a", "10.42.1.2@here 10.42.1.3@here")), node)
	if first.Frontends[old.Key()] != more.Frontends[old.Key()] || first.Frontends[web.Key()] == more.Frontends[web.Key()] {
		t.Error("only shop/web has changed")
	}
	if len(first.Frontends[web.Key()].Ports[0].Cluster) != 1 {
		t.Error("an old result has changed")
	}
	elsewhere := node
	elsewhere.Zone = "b"
	if moved := c.Compile(snapshot(web, old, slice("web", "a", "10.42.1.2@here 10.42.1.3@here")), elsewhere); moved.Frontends[web.Key()] != more.Frontends[web.Key()] {
		t.Error("without hints the zone changes nothing")
	}
}

// TestIncremental changes things at random and compares with a Compiler that has no memory.
func TestIncremental(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var c Compiler
	snap := snapshot()
	for round := range 400 {
		next := &model.Snapshot{Services: maps.Clone(snap.Services), Slices: maps.Clone(snap.Slices)}
		for range 1 + r.IntN(3) {
			change(r, next)
		}
		if r.IntN(4) == 0 {
			next.Services = snap.Services
		}
		if r.IntN(4) == 0 {
			next.Slices = snap.Slices
		}
		snap = next
		in := node
		in.Zone = string(rune('a' + round/100))
		got, want := c.Compile(snap, in), new(Compiler).Compile(snap, in)
		if g, w := text(sorted(got)), text(sorted(want)); g != w {
			t.Fatalf("round %d: got\n%s\nwant\n%s", round, g, w)
		}
		if len(c.claims.owner) > 500 || len(c.claims.rivals) > 500 {
			t.Fatalf("round %d: %d claims, %d of them contested", round, len(c.claims.owner), len(c.claims.rivals))
		}
	}
	if r := c.Compile(nil, node); len(r.Frontends)+len(r.Problems)+len(c.claims.owner)+len(c.claims.rivals)+len(c.entries)+len(c.bySvc)+len(c.problems) != 0 {
		t.Errorf("something is left behind: %+v", c)
	}
}

// change adds, replaces or removes a Service or a slice. There are few names and addresses, so that they often clash.
func change(r *rand.Rand, snap *model.Snapshot) {
	name := fmt.Sprintf("s%d", r.IntN(8))
	if r.IntN(2) == 0 {
		s := svc(name, fmt.Sprintf("10.96.0.%d", r.IntN(6)+1), func(s *model.Service) {
			s.Created = int64(r.IntN(3))
			s.ExternalIPs = addrs(fmt.Sprintf("203.0.113.%d", r.IntN(3)+1))
			s.Type = []string{"ClusterIP", "NodePort", "ExternalName"}[r.IntN(3)]
			s.Ports[0].NodePort = uint16(30000 + r.IntN(3))
			s.ExternalLocal = r.IntN(2) == 0
			s.Ports = append(s.Ports, model.ServicePort{Name: "dns", Protocol: model.UDP, Port: uint16(53 + r.IntN(2))})
		})
		if snap.Services[s.Key()] = s; r.IntN(4) == 0 {
			delete(snap.Services, s.Key())
		}
		return
	}
	var endpoints []string
	for range r.IntN(5) {
		endpoints = append(endpoints, fmt.Sprintf("%s10.42.1.%d@%s", []string{"", "", "!", "~"}[r.IntN(4)], r.IntN(9)+1, []string{"here", "there"}[r.IntN(2)]))
	}
	e := slice(name, string(rune('a'+r.IntN(2))), strings.Join(endpoints, " "))
	e.Ports = append(e.Ports, model.EndpointPort{Name: "dns", Protocol: model.UDP, Port: 53})
	if r.IntN(10) == 0 { // a slice that was relabelled
		e.Service = fmt.Sprintf("s%d", r.IntN(8))
	}
	if snap.Slices[e.Key()] = e; r.IntN(4) == 0 {
		delete(snap.Slices, e.Key())
	}
}

// sorted returns a copy in which the order of endpoints does not depend on history.
func sorted(r Result) Result {
	out := r
	out.Frontends = map[model.ServiceKey]*Frontends{}
	for k, f := range r.Frontends {
		g := &Frontends{Service: f.Service, Ports: slices.Clone(f.Ports)}
		for i := range g.Ports {
			p := &g.Ports[i]
			p.Cluster, p.Local = slices.Clone(p.Cluster), slices.Clone(p.Local)
			slices.SortFunc(p.Cluster, netip.AddrPort.Compare)
			slices.SortFunc(p.Local, netip.AddrPort.Compare)
		}
		out.Frontends[k] = g
	}
	return out
}

func TestSettle(t *testing.T) {
	for _, c := range []struct{ before, now, want string }{
		{"", "10.0.0.1:1 10.0.0.2:1", "10.0.0.1:1 10.0.0.2:1"},
		{"10.0.0.1:1 10.0.0.2:1 10.0.0.3:1", "10.0.0.2:1 10.0.0.3:1", "10.0.0.3:1 10.0.0.2:1"},
		{"10.0.0.1:1 10.0.0.2:1 10.0.0.3:1", "10.0.0.1:1 10.0.0.3:1 10.0.0.4:1", "10.0.0.1:1 10.0.0.4:1 10.0.0.3:1"},
		{"10.0.0.2:1 10.0.0.3:1", "10.0.0.1:1 10.0.0.2:1 10.0.0.3:1", "10.0.0.2:1 10.0.0.3:1 10.0.0.1:1"},
		{"10.0.0.1:1 10.0.0.2:1 10.0.0.3:1 10.0.0.4:1", "10.0.0.2:1", "10.0.0.2:1"},
		{"10.0.0.1:1 10.0.0.2:1", "", ""},
	} {
		if got := settle(places2(c.before), places2(c.now)); !slices.Equal(got, places2(c.want)) {
			t.Errorf("%s to %s: %v, want %s", c.before, c.now, got, c.want)
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	var before []netip.AddrPort
	for range 2000 {
		var now []netip.AddrPort
		for i := range 12 {
			if r.IntN(2) == 0 {
				now = append(now, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80))
			}
		}
		got := settle(before, now)
		check := slices.SortedFunc(slices.Values(got), netip.AddrPort.Compare)
		if !slices.Equal(check, now) {
			t.Fatalf("%v to %v: %v", before, now, got)
		}
		before = got
	}
}

func TestGone(t *testing.T) {
	dns := func(change func(*model.Service)) *model.Service {
		return svc("dns", "10.96.0.10", func(s *model.Service) {
			s.Ports = []model.ServicePort{{Protocol: model.UDP, Port: 53, NodePort: 30053}, {Name: "t", Protocol: model.TCP, Port: 53}}
			s.Type = "NodePort"
			if change != nil {
				change(s)
			}
		})
	}
	udp := func(endpoints string) *model.EndpointSlice {
		e := slice("dns", "a", endpoints)
		e.Ports = []model.EndpointPort{{Protocol: model.UDP, Port: 5353}, {Name: "t", Protocol: model.TCP, Port: 5353}}
		return e
	}
	two := snapshot(dns(nil), udp("10.42.1.1@here 10.42.2.2@there"))
	for _, c := range []struct {
		what          string
		before, after *model.Snapshot
		want          string
	}{
		{"nothing", two, snapshot(dns(nil), udp("10.42.1.1@here 10.42.2.2@there")), ""},
		{"an endpoint goes", two, snapshot(dns(nil), udp("10.42.1.1@here")), ":30053 at 10.42.2.2:5353, 10.96.0.10:53 at 10.42.2.2:5353"},
		{"it drains", two, snapshot(dns(nil), udp("10.42.1.1@here ~10.42.2.2@there")), ""},
		{"it is not ready", two, snapshot(dns(nil), udp("10.42.1.1@here !10.42.2.2@there")), ":30053 at 10.42.2.2:5353, 10.96.0.10:53 at 10.42.2.2:5353"},
		{"to zero", two, snapshot(dns(nil)), ":30053 at 10.42.1.1:5353, :30053 at 10.42.2.2:5353, 10.96.0.10:53 at 10.42.1.1:5353, 10.96.0.10:53 at 10.42.2.2:5353"},
		{"the Service goes", two, snapshot(), ":30053 at 10.42.1.1:5353, :30053 at 10.42.2.2:5353, 10.96.0.10:53"},
		{"the Service comes", snapshot(), two, ":30053 untranslated, 10.96.0.10:53 untranslated"},
		{"endpoints come", snapshot(dns(nil)), two, ":30053 untranslated, 10.96.0.10:53 untranslated"},
		{"the policy becomes Local", two, snapshot(dns(func(s *model.Service) { s.InternalLocal = true }), udp("10.42.1.1@here 10.42.2.2@there")), ""},
		{"the port has another name", two, func() *model.Snapshot {
			e := udp("10.42.1.1@here 10.42.2.2@there")
			e.Ports[0].Name = "dns"
			return snapshot(dns(func(s *model.Service) { s.Ports[0].Name = "dns" }), e)
		}(), ""},
		{
			"another node port", two, snapshot(dns(func(s *model.Service) { s.Ports[0].NodePort = 30054 }), udp("10.42.1.1@here 10.42.2.2@there")),
			":30053 at 10.42.1.1:5353, :30053 at 10.42.2.2:5353, :30054 untranslated",
		},
		{"to another proxy", two, snapshot(dns(func(s *model.Service) { s.OtherProxy = "mesh" }), udp("10.42.1.1@here")), ":30053 at 10.42.1.1:5353, :30053 at 10.42.2.2:5353, 10.96.0.10:53"},
	} {
		before := new(Compiler).Compile(c.before, node)
		after := new(Compiler).Compile(c.after, node)
		var got []string
		for _, f := range Gone(before.Frontends, after.Frontends) {
			s := fmt.Sprintf(":%d", f.Port)
			if f.Addr.IsValid() {
				s = f.Addr.String() + s
			}
			if f.Backend.IsValid() {
				s += " at " + f.Backend.String()
			}
			if f.Untranslated {
				s += " untranslated"
			}
			if f.Protocol != model.UDP {
				t.Errorf("%s: a flow of %s", c.what, f.Protocol)
			}
			got = append(got, s)
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: %s, want %s", c.what, strings.Join(got, ", "), c.want)
		}
	}

	a := NewAuditor(new(Compiler).Compile(two, node).Frontends)
	for _, c := range []struct {
		dst, backend string
		local, want  bool
	}{
		{"10.96.0.10:53", "10.42.1.1:5353", false, false},
		{"10.96.0.10:53", "10.42.1.9:5353", false, true},
		{"10.96.0.10:53", "10.96.0.10:53", false, true},
		{"10.96.0.11:53", "10.42.1.9:5353", false, false},
		{"192.168.9.1:30053", "10.42.1.9:5353", true, true},
		{"192.168.9.1:30053", "10.42.2.2:5353", true, false},
		{"192.168.9.1:30053", "192.168.9.1:30053", true, false},
		{"198.51.100.1:30053", "198.51.100.1:30053", false, false},
	} {
		if got := a.Stale(netip.MustParseAddrPort(c.dst), netip.MustParseAddrPort(c.backend), c.local); got != c.want {
			t.Errorf("a flow to %s answered by %s: stale %v, want %v", c.dst, c.backend, got, c.want)
		}
	}
}
