package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// endpoint is one address and port behind a Service port.
type endpoint struct {
	at    netip.AddrPort
	of    *model.Endpoint
	ready bool
	local bool
}

// draining is a terminating endpoint that still answers: the last resort (KEP-1669).
func (e *endpoint) draining() bool { return e.of.Serving && e.of.Terminating }

// rank orders endpoints with one address: while a Pod's address is used again, the old Pod may be listed still; while an
// endpoint moves from slice to slice, it may be in both.
func (e *endpoint) rank() int {
	switch {
	case e.ready && !e.of.Terminating:
		return 0
	case e.ready:
		return 1
	case !e.of.Terminating:
		return 2
	case e.of.Serving:
		return 3
	}
	return 4
}

// gather returns the endpoints of one port in one family from all slices, each address once, sorted by address.
func (b *builder) gather(port *model.ServicePort, v6 bool) []endpoint {
	var out []endpoint
	for _, slice := range b.slices {
		if slice.Unproxied {
			continue
		}
		if slice.IPv6 != v6 {
			continue
		}
		for _, p := range slice.Ports {
			if p.Name != port.Name || p.Protocol != port.Protocol {
				continue
			}
			if p.Port == 0 {
				b.problem("EndpointSlice %s: port %q is 0, which no connection can be sent to (ignored)", slice.Name, p.Name)
				continue
			}
			for i := range slice.Endpoints {
				e := &slice.Endpoints[i]
				if a, ok := b.endpointAddr(slice, e); ok {
					out = append(out, endpoint{
						at: netip.AddrPortFrom(a, p.Port), of: e,
						ready: e.Ready || b.svc.PublishNotReady,
						local: b.in.NodeName != "" && e.Node == b.in.NodeName,
					})
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b endpoint) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.rank(), b.rank()))
	})
	return slices.CompactFunc(out, func(a, b endpoint) bool { return a.at == b.at })
}

// endpointAddr returns the address of an endpoint if connections may be sent there. Only the first address counts, as the
// API says.
func (b *builder) endpointAddr(slice *model.EndpointSlice, e *model.Endpoint) (netip.Addr, bool) {
	if len(e.Addresses) == 0 {
		b.problem("EndpointSlice %s has an endpoint without address (ignored)", slice.Name)
		return netip.Addr{}, false
	}
	a := e.Addresses[0].Unmap()
	if why := unusable(a, slice.IPv6); why != "" {
		b.problem("EndpointSlice %s: endpoint %s %s (ignored)", slice.Name, e.Addresses[0], why)
		return netip.Addr{}, false
	}
	return a, true
}

// unusable says why connections cannot go to an address of the given family; empty if they can.
func unusable(a netip.Addr, v6 bool) string {
	switch {
	case !a.IsValid():
		return "is not an address"
	case a.Is6() != v6:
		return fmt.Sprintf("is not of family %s", familyName(v6))
	case a.IsUnspecified():
		return "is the unspecified address"
	case a.IsLoopback():
		return "is a loopback address"
	case a.IsLinkLocalUnicast():
		return "is a link-local address"
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is a group address"
	}
	return ""
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// choice is what the traffic policies choose from.
type choice struct {
	cluster, local []endpoint
	// any says that the Service has endpoints somewhere in the cluster.
	any bool
}

// choose picks the endpoints for each policy: ready ones, else terminating ones that still serve, for each policy on its own.
func (b *builder) choose(all []endpoint, usesCluster, usesLocal bool) (c choice) {
	for i := range all {
		c.any = c.any || all[i].ready || all[i].draining()
	}
	if usesCluster {
		near := nearness(b.svc, all, b.in)
		c.cluster = filter(all, func(e *endpoint) bool { return e.ready && near(e.of) })
		if len(c.cluster) == 0 {
			c.cluster = filter(all, (*endpoint).draining)
		}
	}
	if usesLocal {
		c.local = filter(all, func(e *endpoint) bool { return e.local && e.ready })
		if len(c.local) == 0 {
			c.local = filter(all, func(e *endpoint) bool { return e.local && e.draining() })
		}
	}
	return c
}

func filter(all []endpoint, keep func(*endpoint) bool) []endpoint {
	var out []endpoint
	for i := range all {
		if keep(&all[i]) {
			out = append(out, all[i])
		}
	}
	return out
}

// nearness returns the test that topology hints ask for. Hints count only if every ready endpoint has them and at least
// one is meant for this node, or zone; otherwise all endpoints are as good (KEP-2433, KEP-3015).
func nearness(svc *model.Service, all []endpoint, in Input) func(*model.Endpoint) bool {
	nodes, zones := hints(svc, all)
	if everyReady(all, nodes, in.NodeName) {
		return func(e *model.Endpoint) bool { return slices.Contains(nodes(e), in.NodeName) }
	}
	if everyReady(all, zones, in.Zone) {
		return func(e *model.Endpoint) bool { return slices.Contains(zones(e), in.Zone) }
	}
	return func(*model.Endpoint) bool { return true }
}

func everyReady(all []endpoint, hints func(*model.Endpoint) []string, here string) bool {
	found := false
	for i := range all {
		if !all[i].ready {
			continue
		}
		h := hints(all[i].of)
		if len(h) == 0 {
			return false
		}
		found = found || slices.Contains(h, here)
	}
	return found
}

// hints returns how to read the hints of an endpoint. The EndpointSlice controller writes them for a Service with
// trafficDistribution; where there is no such controller, as with slices from files, they follow from node and zone.
func hints(svc *model.Service, all []endpoint) (nodes, zones func(*model.Endpoint) []string) {
	nodes = func(e *model.Endpoint) []string { return e.ForNodes }
	zones = func(e *model.Endpoint) []string { return e.ForZones }
	for i := range all {
		if all[i].ready && len(all[i].of.ForNodes)+len(all[i].of.ForZones) > 0 {
			return nodes, zones
		}
	}
	own := func(s string) []string {
		if s == "" {
			return nil
		}
		return []string{s}
	}
	switch svc.TrafficDistribution {
	case "PreferSameNode":
		nodes = func(e *model.Endpoint) []string { return own(e.Node) }
		zones = func(e *model.Endpoint) []string { return own(e.Zone) }
	case "PreferSameZone", "PreferClose":
		zones = func(e *model.Endpoint) []string { return own(e.Zone) }
	}
	return nodes, zones
}

// places returns the addresses of endpoints.
func places(es []endpoint) []netip.AddrPort {
	if len(es) == 0 {
		return nil
	}
	out := make([]netip.AddrPort, len(es))
	for i := range es {
		out[i] = es[i].at
	}
	return out
}

// settle returns now in an order as close to before as can be: who stays keeps its number, who is new takes the number of
// one who left, and the last ones fill the holes that remain. So the kernel's numbered map changes by a few elements.
func settle(before, now []netip.AddrPort) []netip.AddrPort {
	if len(before) == 0 || len(now) == 0 || slices.Equal(before, now) {
		return now
	}
	stays := make(map[netip.AddrPort]bool, len(now))
	for _, a := range now {
		stays[a] = true
	}
	out := slices.Clone(before)
	var holes []int
	for i, a := range before {
		if stays[a] {
			delete(stays, a) // what is left are the new ones
		} else {
			holes = append(holes, i)
		}
	}
	for _, a := range now {
		switch {
		case !stays[a]:
		case len(holes) > 0:
			out[holes[0]] = a
			holes = holes[1:]
		default:
			out = append(out, a)
		}
	}
	for len(holes) > 0 {
		last := len(out) - 1
		if hole := holes[0]; holes[len(holes)-1] == last {
			holes = holes[:len(holes)-1]
		} else {
			out[hole] = out[last]
			holes = holes[1:]
		}
		out = out[:last]
	}
	return out
}
