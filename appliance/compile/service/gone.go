package service

import (
	"cmp"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// Flow names connections that must be forgotten. Fields at their zero value match everything.
type Flow struct {
	Protocol model.Protocol
	// Addr and Port are where the client sent its first packet; Addr is invalid for a node port.
	Addr netip.Addr
	Port uint16
	// Backend is who answers; invalid for anybody.
	Backend netip.AddrPort
	// Untranslated means only connections whose destination was not translated.
	Untranslated bool
}

func (f Flow) compare(g Flow) int {
	later := 0
	if f.Untranslated != g.Untranslated {
		later = 1
		if g.Untranslated {
			later = -1
		}
	}
	return cmp.Or(f.Addr.Compare(g.Addr), cmp.Compare(f.Port, g.Port), f.Backend.Compare(g.Backend), later)
}

// Gone returns the UDP flows that cannot go on after a change, sorted. A UDP client that keeps sending keeps its entry in
// the connection table, and with it an endpoint that is not there any more, for as long as it sends; TCP notices by itself.
//
//   - an endpoint no longer serves (terminating ones do), or the Service has none at all: flows from each of the Service's
//     frontends to that endpoint. A change of policy or topology moves no flow, as for TCP;
//   - a frontend is gone: flows to it;
//   - a frontend is new, or has endpoints for the first time: flows that went past it untranslated.
//
// Unchanged pointers cost one comparison.
func Gone(before, after map[model.ServiceKey]*Frontends) []Flow {
	var flows []Flow
	changes(before, after, func(_ model.ServiceKey, old, now *Frontends) {
		for _, p := range old.udp() {
			for _, f := range p.Frontends {
				flows = append(flows, left(p, f, now.at(p.IPv6, f))...)
			}
		}
		for _, p := range now.udp() {
			for _, f := range p.Frontends {
				if was := old.at(p.IPv6, f); len(p.Serving) > 0 && (was == nil || len(was.Serving) == 0) {
					flows = append(flows, Flow{Protocol: p.Protocol, Addr: f.Addr, Port: f.Port, Untranslated: true})
				}
			}
		}
	})
	slices.SortFunc(flows, Flow.compare)
	return slices.Compact(flows)
}

// left returns the flows of one frontend that is may not go on with; is is nil if the frontend is gone.
func left(was *Port, f Frontend, is *Port) (out []Flow) {
	flow := Flow{Protocol: was.Protocol, Addr: f.Addr, Port: f.Port}
	if is == nil && f.Addr.IsValid() {
		return []Flow{flow}
	}
	// A node port alone would match strangers' flows to that port, hence each endpoint by name.
	for _, flow.Backend = range was.Serving {
		if is == nil || !contains(is.Serving, flow.Backend) {
			out = append(out, flow)
		}
	}
	return out
}

func contains(sorted []netip.AddrPort, a netip.AddrPort) bool {
	_, ok := slices.BinarySearchFunc(sorted, a, netip.AddrPort.Compare)
	return ok
}

// udp returns the UDP ports; none of a nil value.
func (f *Frontends) udp() (out []*Port) {
	if f == nil {
		return nil
	}
	for i := range f.Ports {
		if f.Ports[i].Protocol == model.UDP {
			out = append(out, &f.Ports[i])
		}
	}
	return out
}

// at returns the UDP port that has a frontend, or nil.
func (f *Frontends) at(ipv6 bool, want Frontend) *Port {
	for _, p := range f.udp() {
		if p.IPv6 == ipv6 && slices.ContainsFunc(p.Frontends, func(g Frontend) bool { return g.Addr == want.Addr && g.Port == want.Port }) {
			return p
		}
	}
	return nil
}

// Auditor knows every UDP frontend and who may answer there: for a slow look through the whole connection table, which finds
// what was missed while nobody watched.
type Auditor struct {
	serving map[claim]map[netip.AddrPort]bool
}

// NewAuditor returns an Auditor of what is served now.
func NewAuditor(now map[model.ServiceKey]*Frontends) *Auditor {
	a := &Auditor{map[claim]map[netip.AddrPort]bool{}}
	for _, f := range now {
		for _, p := range f.udp() {
			set := map[netip.AddrPort]bool{}
			for _, at := range p.Serving {
				set[at] = true
			}
			for i := range p.Frontends {
				a.serving[claimOf(p, &p.Frontends[i])] = set
			}
		}
	}
	return a
}

// Serves reports whether UDP packets to an address and port are for a Service. local says that it is an address of this node.
func (a *Auditor) Serves(dst netip.AddrPort, local bool) bool {
	k := claim{dst.Addr(), dst.Port(), model.UDP, dst.Addr().Is6()}
	_, ok := a.serving[k]
	if !ok && local {
		k.addr = netip.Addr{}
		_, ok = a.serving[k]
	}
	return ok
}

// Stale reports whether a UDP flow to a Service is answered by somebody who is no endpoint of it. local says that the
// destination is an address of this node, where node ports are.
func (a *Auditor) Stale(dst, backend netip.AddrPort, local bool) bool {
	k := claim{dst.Addr(), dst.Port(), model.UDP, dst.Addr().Is6()}
	set, ok := a.serving[k]
	if !ok && local && dst != backend { // an untranslated flow to the node's own address is nobody's
		k.addr = netip.Addr{}
		set, ok = a.serving[k]
	}
	return ok && !set[backend]
}
