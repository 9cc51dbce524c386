package appliance

import (
	"net/netip"
	"slices"
	"testing"

	"weft.network/weft/appliance/compile/peering"
	"weft.network/weft/appliance/model"
)

// TestBGPEvents: a Service has an Event when this node begins or ceases to tell about it, and none when only an address or a peer changes.
func TestBGPEvents(t *testing.T) {
	f := &fakeCluster{services: map[model.ServiceKey]*model.Service{}}
	f.put("a", "b")
	b := &bgp{d: allocatorDaemon(f)}
	snap := f.snapshot("192.0.2.0/30")
	speaker := func(peers []string, paths map[string][]string) *peering.Speaker {
		s := &peering.Speaker{}
		for _, name := range peers {
			s.Neighbours = append(s.Neighbours, peering.Neighbour{Name: name, Group: "g"})
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
		events  []string
	}{
		{speaker([]string{"tor"}, map[string][]string{"10.244.1.0/24": nil}), nil},
		{speaker([]string{"tor"}, map[string][]string{"192.0.2.0/32": {"a"}}), []string{"default/a AddressAdvertised false"}},
		{speaker([]string{"tor", "tor2"}, map[string][]string{"192.0.2.0/32": {"a"}, "192.0.2.1/32": {"a"}}), nil},
		{speaker([]string{"tor"}, map[string][]string{"192.0.2.0/31": {"a", "b", "gone"}}), []string{"default/b AddressAdvertised false"}},
		{speaker([]string{"tor"}, map[string][]string{"192.0.2.0/31": {"b"}}), []string{"default/a AddressWithdrawn false"}},
		{speaker(nil, nil), []string{"default/b AddressWithdrawn false"}},
	}
	for i := 1; i < len(steps); i++ {
		f.events = nil
		b.tellServices(snap, steps[i-1].speaker, steps[i].speaker)
		if !slices.Equal(f.events, steps[i].events) {
			t.Errorf("step %d: told %v, want %v", i, f.events, steps[i].events)
		}
	}
	if why := withdrawn(&model.Service{}, &peering.Speaker{Neighbours: make([]peering.Neighbour, 1), Drained: "weft bgp drain"}); why != "the node is drained (weft bgp drain)" {
		t.Error(why)
	}
}
