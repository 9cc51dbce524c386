package appliance

import (
	"net/netip"
	"strings"
	"testing"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/kernel/conntrack"
	"weft.network/weft/appliance/model"
)

func TestStaleFlows(t *testing.T) {
	at := netip.MustParseAddrPort
	key := model.ServiceKey{Namespace: "kube-system", Name: "dns"}
	frontends := map[model.ServiceKey]*service.Frontends{key: {Service: key, Ports: []service.Port{{
		Protocol: model.UDP, Serving: []netip.AddrPort{at("10.1.0.5:53"), at("10.2.0.5:53")},
		Frontends: []service.Frontend{{Kind: service.ClusterIP, Addr: netip.MustParseAddr("10.96.0.10"), Port: 53}, {Kind: service.NodePort, Port: 30053}},
	}}}}
	view := flowView{
		services: service.NewAuditor(frontends), serves: true, ranges: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")},
		node: []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("10.1.0.1")},
		held: map[netip.Addr]bool{netip.MustParseAddr("10.1.0.5"): true, netip.MustParseAddr("10.1.0.6"): true},
		ports: []*model.HostPorts{{
			Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.6")},
			Mappings:  []model.PortMapping{{HostPort: 5000, ContainerPort: 50, Protocol: model.UDP}, {HostPort: 5001, ContainerPort: 51, Protocol: model.TCP}},
		}},
	}
	for _, tc := range []struct {
		name, src, dst, backend string
		stale                   bool
	}{
		{"an endpoint", "10.1.0.6:9", "10.96.0.10:53", "10.1.0.5:53", false},
		{"an endpoint elsewhere", "10.1.0.6:9", "10.96.0.10:53", "10.2.0.5:53", false},
		{"an endpoint that is gone", "10.1.0.6:9", "10.96.0.10:53", "10.2.0.6:53", true},
		{"past the Service, before it was served", "10.1.0.6:9", "10.96.0.10:53", "10.96.0.10:53", true},
		{"another port of the Service's address", "10.1.0.6:9", "10.96.0.10:54", "10.96.0.10:54", false},
		{"a node port", "192.0.2.1:9", "192.168.1.1:30053", "10.1.0.5:53", false},
		{"a node port, endpoint gone", "192.0.2.1:9", "192.168.1.1:30053", "10.2.0.9:53", true},
		{"the node port's number at another machine", "10.1.0.6:9", "192.0.2.1:30053", "192.0.2.1:30053", false},
		{"a host port", "192.0.2.1:9", "192.168.1.1:5000", "10.1.0.6:50", false},
		{"a host port that is closed", "192.0.2.1:9", "192.168.1.1:5002", "10.1.0.6:52", true},
		{"a host port of another protocol", "192.0.2.1:9", "192.168.1.1:5001", "10.1.0.6:51", true},
		{"to a process of the node", "192.0.2.1:9", "192.168.1.1:123", "192.168.1.1:123", false},
		{"to a Pod", "10.2.0.7:9", "10.1.0.6:53", "10.1.0.6:53", false},
		{"to a Pod that is gone", "10.2.0.7:9", "10.1.0.7:53", "10.1.0.7:53", true},
		{"from a Pod that is gone", "10.1.0.7:9", "192.0.2.1:53", "192.0.2.1:53", true},
		{"to the node's own address in the Pod network", "10.2.0.7:9", "10.1.0.1:9466", "10.1.0.1:9466", false},
		{"nothing of ours", "192.0.2.1:9", "192.0.2.2:53", "192.0.2.2:53", false},
	} {
		if got := view.stale(conntrack.Seen{Src: at(tc.src), Dst: at(tc.dst), Backend: at(tc.backend)}); got != tc.stale {
			t.Errorf("%s: stale %v, want %v", tc.name, got, tc.stale)
		}
	}
}

// TestForeignFlows: where another proxy serves Services, a flow to a Pod of ours by a port of the node is its business.
func TestForeignFlows(t *testing.T) {
	at := netip.MustParseAddrPort
	v := flowView{
		services: service.NewAuditor(nil), node: []netip.Addr{netip.MustParseAddr("192.168.9.1")},
		held: map[netip.Addr]bool{netip.MustParseAddr("10.42.1.5"): true},
	}
	if v.stale(conntrack.Seen{Src: at("192.168.9.77:9"), Dst: at("192.168.9.1:30053"), Backend: at("10.42.1.5:5353")}) {
		t.Error("a flow through another proxy counts as stale")
	}
}

func TestConntrackWarning(t *testing.T) {
	for _, tc := range []struct {
		count, limit int
		warned       bool
	}{{0, 0, false}, {79, 100, false}, {80, 100, true}, {100, 100, true}, {209715, 262144, false}, {209716, 262144, true}} {
		if got := conntrackWarning(tc.count, tc.limit); (got != "") != tc.warned || tc.warned && !strings.Contains(got, "nf_conntrack_max") {
			t.Errorf("%d of %d: %q", tc.count, tc.limit, got)
		}
	}
}
