package appliance

import (
	"net/netip"
	"slices"
	"testing"

	"weft.network/weft/appliance/compile/peering"
	"weft.network/weft/appliance/model"
)

// TestBGPEvents: a Service has an Event when this node begins or ceases to tell about it, and none when only an address or a peer changes,
// or while no session is there.
func TestBGPEvents(t *testing.T) {
	f := &fakeCluster{services: map[model.ServiceKey]*model.Service{}}
	f.put("a", "b")
	b := &bgp{d: allocatorDaemon(f), told: map[model.ServiceKey]*serviceTold{}}
	snap := f.snapshot("192.0.2.0/30")
	speaker := func(peers []string, paths map[string][]string) *peering.Speaker {
		s := &peering.Speaker{}
		for _, name := range peers {
			s.Neighbours = append(s.Neighbours, peering.Neighbour{Name: name, Address: peerAddress(name), Group: "g"})
		}
		for prefix, services := range paths {
			p := peering.Path{Prefix: netip.MustParsePrefix(prefix), Groups: []string{"g"}}
			for _, name := range services {
				p.Services = append(p.Services, model.ServiceKey{Namespace: "default", Name: name})
			}
			s.Paths = append(s.Paths, p)
		}
		return s
	}
	steps := []struct {
		speaker *peering.Speaker
		up      []string
		events  []string
	}{
		{speaker([]string{"tor"}, map[string][]string{"10.244.1.0/24": nil}), []string{"tor"}, nil},
		{speaker([]string{"tor"}, map[string][]string{"192.0.2.0/32": {"a"}}), nil, nil},
		{speaker([]string{"tor"}, nil), nil, nil}, // it never was
		{speaker([]string{"tor"}, map[string][]string{"192.0.2.0/32": {"a"}}), nil, nil},
		{speaker([]string{"tor"}, map[string][]string{"192.0.2.0/32": {"a"}}), []string{"tor"}, []string{"default/a AddressAdvertised false"}},
		{speaker([]string{"tor", "tor2"}, map[string][]string{"192.0.2.0/32": {"a"}, "192.0.2.1/32": {"a"}}), []string{"tor", "tor2"}, nil},
		{speaker([]string{"tor", "tor2"}, map[string][]string{"192.0.2.0/32": {"a"}}), nil, nil},
		{speaker([]string{"tor", "tor2"}, map[string][]string{"192.0.2.0/32": {"a"}}), []string{"tor2"}, nil},
		{speaker([]string{"tor"}, map[string][]string{"192.0.2.0/31": {"a", "b", "gone"}}), []string{"tor"}, []string{"default/b AddressAdvertised false"}},
		{speaker([]string{"tor"}, map[string][]string{"192.0.2.0/31": {"b"}}), []string{"tor"}, []string{"default/a AddressWithdrawn false"}},
		{speaker(nil, nil), nil, []string{"default/b AddressWithdrawn false"}},
	}
	for i, step := range steps {
		f.events = nil
		b.tellServices(snap, step.speaker, func() map[netip.Addr]bool {
			up := map[netip.Addr]bool{}
			for _, name := range step.up {
				up[peerAddress(name)] = true
			}
			return up
		})
		if !slices.Equal(f.events, step.events) {
			t.Errorf("step %d: told %v, want %v", i, f.events, step.events)
		}
	}
	if why := withdrawn(&model.Service{}, &peering.Speaker{Neighbours: make([]peering.Neighbour, 1), Drained: "weft bgp drain"}); why != "the node is drained (weft bgp drain)" {
		t.Error(why)
	}
}

// peerAddress is an address that only the peer of that name has.
func peerAddress(name string) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 51, 100, byte(len(name))})
}
