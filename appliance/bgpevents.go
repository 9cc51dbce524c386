package appliance

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/compile/peering"
	"weft.network/weft/appliance/model"
)

// The Events on a Service whose addresses BGP peers are told about by this node, or not any more.
const (
	eventAdvertised = "AddressAdvertised"
	eventWithdrawn  = "AddressWithdrawn"
)

// tellServices emits an Event on each Service that this node tells neighbours about since the last round, or no longer does. Another
// address or another neighbour alone is not worth one.
func (b *bgp) tellServices(snap *model.Snapshot, old, want *peering.Speaker) {
	before, now := servicesTold(old), servicesTold(want)
	for _, key := range slices.SortedFunc(maps.Keys(now), compareKeys) {
		if s := snap.Services[key]; s != nil && before[key] == nil {
			b.d.source.Recorder().Service(key, s.UID, false, eventAdvertised,
				fmt.Sprintf("node %s tells BGP peers about %s: %s", b.d.cfg.NodeName, join(now[key].prefixes), strings.Join(now[key].peers, ", ")))
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(before), compareKeys) {
		if s := snap.Services[key]; s != nil && now[key] == nil {
			b.d.source.Recorder().Service(key, s.UID, false, eventWithdrawn,
				fmt.Sprintf("node %s no longer tells BGP peers about %s: %s", b.d.cfg.NodeName, join(before[key].prefixes), withdrawn(s, want)))
		}
	}
}

// withdrawn says why a Service is not told.
func withdrawn(s *model.Service, want *peering.Speaker) string {
	switch {
	case len(want.Neighbours) == 0:
		return "it has no peer"
	case want.Drained != "":
		return "the node is drained (" + want.Drained + ")"
	case s.ExternalLocal:
		return "it has no ready endpoint on this node (externalTrafficPolicy Local), or no address"
	}
	return "it has no ready endpoint, or no address"
}

// serviceTold is what is told for one Service, and to whom.
type serviceTold struct {
	prefixes []netip.Prefix
	peers    []string
}

func servicesTold(s *peering.Speaker) map[model.ServiceKey]*serviceTold {
	members := map[string][]string{}
	for _, n := range s.Neighbours {
		members[n.Group] = append(members[n.Group], n.Name)
	}
	out := map[model.ServiceKey]*serviceTold{}
	for _, p := range s.Paths {
		for _, key := range p.Services {
			t := out[key]
			if t == nil {
				t = &serviceTold{}
				out[key] = t
			}
			t.prefixes = append(t.prefixes, p.Prefix)
			for _, g := range p.Groups {
				t.peers = append(t.peers, members[g]...)
			}
		}
	}
	for _, t := range out {
		slices.Sort(t.peers)
		t.peers = slices.Compact(t.peers)
		t.prefixes = slices.Compact(t.prefixes)
	}
	return out
}

// join lists prefixes; that of one address is written as the address.
func join(list []netip.Prefix) string {
	parts := make([]string, len(list))
	for i, p := range list {
		if parts[i] = p.String(); p.IsSingleIP() {
			parts[i] = p.Addr().String()
		}
	}
	return strings.Join(parts, ", ")
}
