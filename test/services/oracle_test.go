package services

import (
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// oracle says what must become of a connection, straight from the API's words and one packet at a time: no maps, no memory,
// and nothing in common with the compiler but the types.
type oracle struct {
	snap *model.Snapshot
}

// conn is a new connection. fromNode says that a process of this node opened it.
type conn struct {
	protocol model.Protocol
	src      netip.Addr
	dst      netip.AddrPort
	fromNode bool
}

// fate is what becomes of it.
type fate struct {
	// pass: not ours; refuse: the client is told; drop: it is not. Otherwise it goes to one of the backends, and all of them
	// must be possible unless the Service is sticky.
	pass, refuse, drop bool
	sticky             bool
	backends           []netip.AddrPort
}

func (o oracle) fate(c conn) fate {
	s, port, field := o.find(c)
	if s == nil {
		if o.isClusterIP(c.dst.Addr()) {
			return fate{refuse: true}
		}
		return fate{pass: true}
	}
	if field == "vip" && !o.mayConnect(s, c) {
		return fate{drop: true}
	}
	eps := o.endpoints(s, port, c.dst.Addr().Is6())
	if !slices.ContainsFunc(eps, usable) {
		return fate{refuse: true}
	}
	var chosen []place
	switch {
	case field == "cluster" && s.InternalLocal, field != "cluster" && s.ExternalLocal && !o.inside(c):
		if chosen = serving(keep(eps, func(p place) bool { return p.node == "here" })); len(chosen) == 0 {
			return fate{drop: true}
		}
	default:
		chosen = o.near(s, eps)
	}
	f := fate{sticky: s.AffinityTimeout > 0}
	for _, p := range chosen {
		f.backends = append(f.backends, netip.AddrPortFrom(netip.MustParseAddr(p.addr), map[string]uint16{"t": 8080, "u": 5353, "s": 9090}[port.Name]))
	}
	return f
}

// masqueraded says whether the backend must see another source than the client's: when its answer would not come back by
// this node otherwise.
func (o oracle) masqueraded(c conn, backend netip.Addr) bool {
	if backend == c.src {
		return !slices.Contains(nodeAddrs, backend) // to itself; the node needs no help for that
	}
	isPod := func(a netip.Addr) bool { return podRanges[0].Contains(a) || podRanges[1].Contains(a) }
	return !isPod(c.src) && !isPod(backend) && !slices.Contains(nodeAddrs, backend)
}

// inside: this node, or a Pod of it.
func (o oracle) inside(c conn) bool {
	return c.fromNode || podRanges[0].Contains(c.src) || podRanges[1].Contains(c.src)
}

// find returns the Service and port that a connection is for, and whether it came by the cluster, vip, external or node address.
func (o oracle) find(c conn) (*model.Service, *model.ServicePort, string) {
	for _, s := range o.snap.Services {
		if s.OtherProxy != "" || s.Type == "ExternalName" {
			continue
		}
		field := ""
		if slices.Contains(s.ClusterIPs, c.dst.Addr()) {
			field = "cluster"
		}
		for _, in := range s.Ingress {
			if in.IP == c.dst.Addr() && !in.Proxy {
				field = "vip"
			}
		}
		if slices.Contains(s.ExternalIPs, c.dst.Addr()) {
			field = "external"
		}
		for i := range s.Ports {
			p := &s.Ports[i]
			if p.Protocol != c.protocol {
				continue
			}
			if field != "" && p.Port == c.dst.Port() {
				return s, p, field
			}
			if slices.Contains(nodeAddrs, c.dst.Addr()) && p.NodePort == c.dst.Port() && p.NodePort != 0 {
				return s, p, "node"
			}
		}
	}
	return nil, nil, ""
}

func (o oracle) isClusterIP(a netip.Addr) bool {
	for _, s := range o.snap.Services {
		if s.OtherProxy == "" && s.Type != "ExternalName" && slices.Contains(s.ClusterIPs, a) {
			return true
		}
	}
	return false
}

// mayConnect applies loadBalancerSourceRanges of the address's family; the node's packets to an address of its own come
// from that address, and count as the node's.
func (o oracle) mayConnect(s *model.Service, c conn) bool {
	some := false
	for _, r := range s.SourceRanges {
		if r.Addr().Is4() != c.dst.Addr().Is4() {
			continue
		}
		some = true
		if r.Contains(c.src) || c.src == c.dst.Addr() && (r.Contains(nodeAddrs[0]) || r.Contains(nodeAddrs[1])) {
			return true
		}
	}
	return !some
}

// endpoints reads the slices of a Service back into places.
func (o oracle) endpoints(s *model.Service, port *model.ServicePort, v6 bool) (out []place) {
	for _, e := range o.snap.Slices {
		if e.Service != s.Name || e.IPv6 != v6 {
			continue
		}
		for _, at := range e.Endpoints {
			p := place{
				addr: at.Addresses[0].String(), node: at.Node, zone: at.Zone, zones: at.ForZones, nodes: at.ForNodes,
				ready: at.Ready || s.PublishNotReady, serving: at.Serving, terminating: at.Terminating,
			}
			if !slices.ContainsFunc(out, func(q place) bool { return q.addr == p.addr }) {
				out = append(out, p)
			}
		}
	}
	return out
}

func keep(ps []place, f func(place) bool) (out []place) {
	for _, p := range ps {
		if f(p) {
			out = append(out, p)
		}
	}
	return out
}

func isReady(p place) bool    { return p.ready }
func isDraining(p place) bool { return !p.ready && p.serving && p.terminating }
func usable(p place) bool     { return isReady(p) || isDraining(p) }

// serving returns the ready ones, or the draining ones if no one is ready.
func serving(ps []place) []place {
	if ready := keep(ps, isReady); len(ready) > 0 {
		return ready
	}
	return keep(ps, isDraining)
}

// near applies hints, or the Service's wish where no endpoint has any.
func (o oracle) near(s *model.Service, eps []place) []place {
	best := serving(eps)
	if !best[0].ready {
		return best
	}
	hinted := slices.ContainsFunc(best, func(p place) bool { return p.zones != nil || p.nodes != nil })
	if !hinted && s.TrafficDistribution != "" {
		for i := range best {
			best[i] = best[i].hint(best[i].zone, map[bool]string{true: best[i].node}[s.TrafficDistribution == "PreferSameNode"])
		}
	}
	for _, level := range []struct {
		of   func(place) []string
		here string
	}{{func(p place) []string { return p.nodes }, "here"}, {func(p place) []string { return p.zones }, "a"}} {
		complete := len(keep(best, func(p place) bool { return len(level.of(p)) > 0 })) == len(best)
		mine := keep(best, func(p place) bool { return slices.Contains(level.of(p), level.here) })
		if complete && len(mine) > 0 {
			return mine
		}
	}
	return best
}
