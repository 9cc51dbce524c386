package route

import (
	"fmt"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// ImportMetric is the metric of learned routes to other places than Pods: what the administrator or another program has set
// for the same destination goes first.
const ImportMetric = 4200

// Distant returns the next hops of learned routes that are on no subnet of the node.
func Distant(learned []model.LearnedRoute, under Underlay) (out []netip.Addr) {
	c := compiler{under: under}
	for _, l := range learned {
		if _, near := c.adjacent(l.NextHop); !near && l.NextHop.IsValid() && !slices.Contains(out, l.NextHop) {
			out = append(out, l.NextHop)
		}
	}
	return out
}

// learned adds the routes that BGP neighbours told this node: to the Pods of nodes on other subnets in mode native, and to all
// other places that the administrator has asked to import.
func (c *compiler) learned() {
	for _, l := range c.cfg.Learned {
		r, why := c.learnedRoute(l)
		if why != "" {
			c.warn("the BGP route to %s via %s is not installed: %s", l.Prefix, l.NextHop, why)
		}
		if r.Dst.IsValid() {
			c.out.HostNet.Routes = append(c.out.HostNet.Routes, r)
		}
	}
}

// learnedRoute returns the route to install; none and no reason for one that is not needed.
func (c *compiler) learnedRoute(l model.LearnedRoute) (r Route, why string) {
	for _, own := range c.self.PodCIDRs {
		if own.Overlaps(l.Prefix) && l.Prefix.Bits() >= own.Bits() {
			return r, "it is inside this node's own Pod range " + own.String()
		}
	}
	metric := ImportMetric
	for i := range c.out.Peers {
		p := &c.out.Peers[i]
		for _, pods := range p.PodCIDRs {
			switch {
			case !pods.Overlaps(l.Prefix) || l.Prefix.Bits() < pods.Bits():
			case l.Prefix != pods:
				return r, fmt.Sprintf("it is a part of the Pod range %s of node %s", pods, p.Node)
			case !p.Routed:
				return r, "" // there is a direct route, or a tunnel
			default:
				metric = 0
			}
		}
	}
	if metric == ImportMetric && l.Node {
		return r, "another node tells it, and it is no node's Pod range"
	}
	if metric == ImportMetric && c.hides(l.Prefix) {
		return r, "it is inside the subnet of a link of this node"
	}
	via, link, ok := c.firstHop(l.NextHop)
	if !ok {
		return r, "there is no way to its next hop"
	}
	if via.Is4() != l.Prefix.Addr().Is4() {
		return r, "its next hop is of another family"
	}
	return Route{Dst: l.Prefix, Via: via, Link: link, Metric: metric}, ""
}

// hides reports whether a route would draw traffic away from a subnet of the node's links: only a longer prefix can.
func (c *compiler) hides(p netip.Prefix) bool {
	for _, l := range c.under.Links {
		for _, a := range l.Addresses {
			if a.Masked().Overlaps(p) && p.Bits() > a.Bits() {
				return true
			}
		}
	}
	return false
}

// firstHop finds the neighbour on a subnet that leads to the next hop.
func (c *compiler) firstHop(next netip.Addr) (via netip.Addr, link string, ok bool) {
	if link, ok = c.adjacent(next); ok {
		return next, link, true
	}
	hop, ok := c.under.Hops[next]
	return hop.Via, hop.Link, ok && hop.Via.IsValid()
}
