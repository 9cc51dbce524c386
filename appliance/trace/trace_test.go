package trace

import (
	"net/netip"
	"strings"
	"testing"

	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/model"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// world has two nodes, a Service with an endpoint on each, and one with a policy.
func world() *World {
	node := func(name, addr, pods string) *model.Node {
		return &model.Node{Name: name, Addresses: []netip.Addr{ip(addr)}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(pods)}}
	}
	end := func(addr, node, pod string) model.Endpoint {
		return model.Endpoint{Addresses: []netip.Addr{ip(addr)}, Ready: true, Serving: true, Node: node, Pod: model.PodRef{Namespace: "shop", Name: pod}}
	}
	port := model.ServicePort{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080}
	snap := &model.Snapshot{
		Nodes: map[string]*model.Node{"a": node("a", "192.168.1.1", "10.1.0.0/24"), "b": node("b", "192.168.1.2", "10.2.0.0/24")},
		Services: map[model.ServiceKey]*model.Service{
			{Namespace: "shop", Name: "web"}:  {Namespace: "shop", Name: "web", Type: "NodePort", ClusterIPs: []netip.Addr{ip("10.96.0.1")}, Ports: []model.ServicePort{port}, ExternalLocal: true},
			{Namespace: "shop", Name: "off"}:  {Namespace: "shop", Name: "off", Type: "ClusterIP", ClusterIPs: []netip.Addr{ip("10.96.0.2")}, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}},
			{Namespace: "shop", Name: "bare"}: {Namespace: "shop", Name: "bare", Type: "ClusterIP", Headless: true},
		},
		Slices: map[model.SliceKey]*model.EndpointSlice{
			{Namespace: "shop", Name: "web-1"}: {
				Namespace: "shop", Name: "web-1", Service: "web", Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}},
				Endpoints: []model.Endpoint{end("10.1.0.5", "a", "web-a"), end("10.2.0.5", "b", "web-b")},
			},
		},
	}
	w := &World{Snapshot: snap, This: "a", Leases: []*model.Lease{{Kind: model.LeasePod, Pod: model.PodRef{Namespace: "shop", Name: "client"}, Addresses: []netip.Addr{ip("10.1.0.9")}}}}
	w.Node = func(name string) *Node {
		return Compiled(snap, route.Config{Mode: route.ModeVXLAN, Port: 4789, VNI: 1, Masquerade: true}, route.Underlay{}, name)
	}
	return w
}

func TestTrace(t *testing.T) {
	for _, tc := range []struct {
		name, from, to string
		proto          model.Protocol
		verdict        string // a part of it
		works          bool
		sees           string // endpoint=source, sorted by endpoint
	}{
		{"a Pod to a Service", "shop/client", "shop/web:http", model.TCP, "one of 2", true, "10.1.0.5=10.1.0.9 10.2.0.5=10.1.0.9"},
		{"a node to a Service: its answer must come back", "a", "svc/shop/web:80", model.TCP, "one of 2", true, "10.1.0.5=192.168.1.1 10.2.0.5=10.1.0.1"},
		{"a Pod to itself", "pod/shop/web-a", "10.96.0.1:80", model.TCP, "one of 2", true, "10.1.0.5=10.1.0.1 10.2.0.5=10.1.0.5"},
		{"outside to a node port, policy Local", "203.0.113.9", "b:30080", model.TCP, "shop/web-b", true, "10.2.0.5=203.0.113.9"},
		{"a port that the Service has not", "shop/client", "10.96.0.1:81", model.TCP, "refused, and the client is told, on a in prerouting by inet weft_services refuse", false, ""},
		{"no endpoints", "shop/client", "shop/off:80", model.TCP, "refused", false, ""},
		{"another protocol", "shop/client", "10.96.0.1:80", model.UDP, "refused", false, ""},
		{"straight to a Pod of another node", "shop/client", "shop/web-b:8080", model.TCP, "reaches Pod shop/web-b", true, ""},
		{"to a node", "shop/client", "node/b:22", model.TCP, "reaches a process of node b", true, ""},
		{"to the internet", "shop/client", "198.51.100.1:443", model.TCP, "leaves node a over eth0", true, ""},
		{"a tunnel end is not for Pods", "shop/client", "192.168.1.2:4789", model.UDP, "dropped on a in postrouting", false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := world()
			if tc.from == "203.0.113.9" {
				w.This = "b" // where the packets come in
			}
			r, err := w.Trace(tc.from, tc.to, tc.proto)
			if err != nil {
				t.Fatal(err)
			}
			p := r.Paths[0]
			if !strings.Contains(p.Verdict, tc.verdict) || p.Works != tc.works {
				t.Errorf("works %v: %s", p.Works, p.Verdict)
			}
			var sees []string
			for _, e := range p.Endpoints {
				sees = append(sees, e.Address.Addr().String()+"="+e.Source.String())
			}
			if got := strings.Join(sees, " "); got != tc.sees {
				t.Errorf("endpoints see %s, want %s", got, tc.sees)
			}
		})
	}
}

func TestQuestions(t *testing.T) {
	for _, tc := range []struct{ from, to, want string }{
		{"shop/client", "10.96.0.1", "has no port"},
		{"shop/client", "fd00::1:", "has no port"},
		{"shop/client", "shop/client:0", "must be 1 to 65535"},
		{"shop/client", "shop/web:htp", "no port \"htp\" over tcp; it has http (80/tcp)"},
		{"shop/client", "shop/bare:80", "headless"},
		{"shop/nobody", "shop/web:80", "nothing is known of a Pod \"shop/nobody\""},
		{"svc/shop/web", "shop/web:80", "Services open no connections"},
		{"node/c", "shop/web:80", "no node \"c\""},
		{"shop/client", "[fd00::1]:80", "no address family in common"},
	} {
		if _, err := world().Trace(tc.from, tc.to, model.TCP); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s to %s: %v, want %q", tc.from, tc.to, err, tc.want)
		}
	}
}

// TestDifferences traces through a node of which something is missing.
func TestDifferences(t *testing.T) {
	w := world()
	whole, err := w.Trace("shop/client", "shop/web:80", model.TCP)
	if err != nil {
		t.Fatal(err)
	}
	if d := whole.Differences(&whole, "here"); d != nil {
		t.Errorf("differs from itself: %v", d)
	}
	web := w.Snapshot.Slices[model.SliceKey{Namespace: "shop", Name: "web-1"}]
	for _, n := range []int{1, 0} {
		web.Endpoints = web.Endpoints[:n]
		part, err := w.Trace("shop/client", "10.96.0.1:80", model.TCP)
		if err != nil {
			t.Fatal(err)
		}
		if d := strings.Join(whole.Differences(&part, "here"), "; "); !strings.Contains(d, "here") {
			t.Errorf("with %d endpoints: %q", n, d)
		}
	}
}
