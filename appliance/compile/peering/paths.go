package peering

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/model"
)

// class is a kind of path that can be switched on and off.
type class int

const (
	podRange class = iota
	loadBalancer
	external
	clusterIP
)

func (s switches) tells(c class) bool {
	switch c {
	case podRange:
		return s.pods
	case loadBalancer:
		return s.loadBalancer
	case external:
		return s.external
	}
	return s.cluster
}

// reasons gathers, for each prefix, the classes that it belongs to and whom it stands for.
type reasons struct {
	classes  []class
	why      []string
	services []model.ServiceKey
}

// paths works out what is told to whom.
func (c *compiler) paths() {
	all := map[netip.Prefix]*reasons{}
	add := func(p netip.Prefix, cl class, why string, of ...model.ServiceKey) {
		r := all[p]
		if r == nil {
			r = &reasons{}
			all[p] = r
		}
		if !slices.Contains(r.classes, cl) {
			r.classes = append(r.classes, cl)
		}
		r.why = append(r.why, why)
		r.services = append(r.services, of...)
	}
	for _, p := range c.self.PodCIDRs {
		add(p, podRange, "Pods of this node")
	}
	if c.out.Drained == "" {
		c.services(add)
	}
	for prefix, r := range all {
		c.path(prefix, r)
	}
	slices.SortFunc(c.out.Paths, func(a, b Path) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
}

// path adds one path with the groups that are told.
func (c *compiler) path(prefix netip.Prefix, r *reasons) {
	p := Path{Prefix: prefix, Why: explain(r.why), Services: r.services}
	for _, a := range c.self.Addresses {
		if a.Is4() == prefix.Addr().Is4() {
			p.NextHop = a
			break
		}
	}
	for _, g := range c.out.Groups { // sorted
		s := c.switches[g.Name]
		if !slices.ContainsFunc(r.classes, s.tells) || !allowed(s.export, prefix) {
			continue
		}
		if g.IPv6 == prefix.Addr().Is4() && !p.NextHop.IsValid() {
			continue // the session has no address of this family to name as next hop, and neither has the node
		}
		p.Groups = append(p.Groups, g.Name)
	}
	if len(p.Groups) > 0 {
		c.out.Paths = append(c.out.Paths, p)
	}
}

// explain lists a few of the reasons.
func explain(why []string) string {
	const most = 3
	slices.Sort(why)
	why = slices.Compact(why)
	if more := len(why) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(why[:most], ", "), more)
	}
	return strings.Join(why, ", ")
}

// allowed applies an export list: the first rule that matches decides, and without one the answer is yes.
func allowed(rules []model.PrefixRule, p netip.Prefix) bool {
	for _, r := range rules {
		if r.Matches(p) {
			return !r.Reject
		}
	}
	return true
}

// ready says where a Service has ready endpoints: on this node, on any node, or at all.
type ready struct{ here, placed, anywhere bool }

// services adds the addresses of Services that this node can serve.
func (c *compiler) services(add func(netip.Prefix, class, string, ...model.ServiceKey)) {
	wantCluster := false
	for _, s := range c.switches {
		wantCluster = wantCluster || s.cluster
	}
	wanted := map[model.ServiceKey]*ready{}
	for key, s := range c.snap.Services {
		if s.Headless || s.OtherProxy != "" {
			continue
		}
		if len(s.Ingress)+len(s.ExternalIPs) > 0 || wantCluster && len(s.ClusterIPs) > 0 {
			wanted[key] = &ready{}
		}
	}
	if len(wanted) == 0 {
		return
	}
	for _, slice := range c.snap.Slices {
		if r := wanted[slice.ServiceKey()]; r != nil && !slice.Unproxied {
			r.add(slice, c.self.Name)
		}
	}
	own := map[netip.Addr]bool{}
	for _, n := range c.snap.Nodes {
		for _, a := range n.Addresses {
			own[a] = true
		}
	}
	locals := c.locals(wanted)
	for key, r := range wanted {
		s := c.snap.Services[key]
		if r.anywhere {
			c.service(s, r, func(a netip.Addr, cl class, local bool) {
				here, shared := locals[a]
				switch {
				case own[a]: // a node's own address, as k3s puts it into the status, has a route already
				case shared && cl != clusterIP && !here: // here another Service at this address would lose its packets
				default:
					add(c.prefix(a, local || shared), cl, key.String(), key)
				}
			})
		}
	}
}

// locals lists the addresses of Services with externalTrafficPolicy Local that have an endpoint on some node, and whether all of those
// that share an address have one here.
func (c *compiler) locals(wanted map[model.ServiceKey]*ready) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for key, r := range wanted {
		s := c.snap.Services[key]
		if !s.ExternalLocal || !r.placed {
			continue
		}
		note := func(a netip.Addr) {
			here, known := out[a]
			out[a] = r.here && (here || !known)
		}
		for _, in := range s.Ingress {
			if !in.Proxy {
				note(in.IP)
			}
		}
		for _, a := range s.ExternalIPs {
			note(a)
		}
	}
	return out
}

// add counts the endpoints of one slice.
func (r *ready) add(slice *model.EndpointSlice, node string) {
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		if e.Ready && !e.Terminating {
			r.anywhere = true
			r.here, r.placed = r.here || e.Node == node, r.placed || e.Node != ""
		}
	}
}

// service tells the addresses of one Service. local is true for one that other nodes may not have.
func (c *compiler) service(s *model.Service, r *ready, tell func(a netip.Addr, cl class, local bool)) {
	if !s.ExternalLocal || r.here {
		if s.LoadBalancerClass == "" || strings.HasPrefix(s.LoadBalancerClass, ourClass) {
			for _, in := range s.Ingress {
				if !in.Proxy {
					tell(in.IP, loadBalancer, s.ExternalLocal)
				}
			}
		}
		for _, a := range s.ExternalIPs {
			tell(a, external, s.ExternalLocal)
		}
	}
	if !s.InternalLocal || r.here {
		for _, a := range s.ClusterIPs {
			tell(a, clusterIP, s.InternalLocal)
		}
	}
}

// prefix is what is told for an address: itself, or the aggregate that it is in. An address that only some nodes have is never
// hidden in an aggregate: the others would draw its traffic and drop it.
func (c *compiler) prefix(a netip.Addr, local bool) netip.Prefix {
	if !local {
		for _, p := range c.cfg.Aggregate {
			if p.Contains(a) {
				return p
			}
		}
	}
	return netip.PrefixFrom(a, a.BitLen())
}
