package appliance

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/peering"
	"weft.network/weft/appliance/model"
)

// The Events on a Service whose addresses BGP peers are told about by this node, or not any more.
const (
	eventAdvertised = "AddressAdvertised"
	eventWithdrawn  = "AddressWithdrawn"
)

// tellServices emits an Event on each Service that this node begins to tell neighbours about, once a session is there to do so, and on
// each that it no longer does. Another address or another neighbour alone is not worth one, and neither is a session that comes and goes.
func (b *bgp) tellServices(snap *model.Snapshot, want *peering.Speaker, established func() map[netip.Addr]bool) {
	wanted := servicesTold(want)
	news := func(key model.ServiceKey) bool { return b.told[key] == nil }
	if slices.ContainsFunc(slices.Collect(maps.Keys(wanted)), news) {
		up := established()
		reached := *want
		reached.Neighbours = slices.DeleteFunc(slices.Clone(want.Neighbours), func(n peering.Neighbour) bool { return !up[n.Address] })
		now := servicesTold(&reached)
		for _, key := range slices.SortedFunc(maps.Keys(now), compareKeys) {
			if s := snap.Services[key]; s != nil && news(key) {
				b.d.source.Recorder().Service(key, s.UID, false, eventAdvertised,
					fmt.Sprintf("node %s tells BGP peers about %s: %s", b.d.cfg.NodeName, join(now[key].prefixes), strings.Join(now[key].peers, ", ")))
				b.told[key] = now[key]
			}
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(b.told), compareKeys) {
		if wanted[key] != nil {
			b.told[key] = wanted[key]
			continue
		}
		if s := snap.Services[key]; s != nil {
			b.d.source.Recorder().Service(key, s.UID, false, eventWithdrawn,
				fmt.Sprintf("node %s no longer tells BGP peers about %s: %s", b.d.cfg.NodeName, join(b.told[key].prefixes), withdrawn(s, want)))
		}
		delete(b.told, key)
	}
}

// established asks the speaker which neighbours it has a session with. No answer is none: there is another round.
func (b *bgp) established(ctx context.Context) map[netip.Addr]bool {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	up := map[netip.Addr]bool{}
	sessions, err := b.server.Sessions(ctx, false)
	if err != nil {
		b.d.log.Debug("asking for the BGP sessions", zap.Error(err))
	}
	for _, s := range sessions {
		up[s.Neighbour.Address] = s.State == "Established"
	}
	return up
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
		var peers []string
		for _, g := range p.Groups {
			peers = append(peers, members[g]...)
		}
		if len(peers) == 0 {
			continue
		}
		for _, key := range p.Services {
			t := out[key]
			if t == nil {
				t = &serviceTold{}
				out[key] = t
			}
			t.prefixes = append(t.prefixes, p.Prefix)
			t.peers = append(t.peers, peers...)
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
