package iface

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/route"
)

// Underlay returns the node's links that are up and have addresses, sorted by name. Not in it are weft's own links, the
// loopback, and link-local IPv6 addresses, which no node is known by.
func (b *Backend) Underlay(ctx context.Context) (route.Underlay, error) {
	if err := ctx.Err(); err != nil {
		return route.Underlay{}, err
	}
	links, errLinks := dump("links", b.links.LinkList)
	addrs, errAddrs := dump("addresses", func() ([]netlink.Addr, error) { return b.links.AddrList(nil, netlink.FAMILY_ALL) })
	if err := errors.Join(errLinks, errAddrs); err != nil {
		return route.Underlay{}, err
	}
	byLink := map[int][]netip.Prefix{}
	for _, a := range addrs {
		if p := prefixOf(a.IPNet); !p.Addr().IsLinkLocalUnicast() || p.Addr().Is4() {
			byLink[a.LinkIndex] = append(byLink[a.LinkIndex], p)
		}
	}
	var u route.Underlay
	for _, l := range links {
		at := l.Attrs()
		if isUnderlay(at) && len(byLink[at.Index]) > 0 {
			if err := b.completeSubnets(at.Index, byLink[at.Index]); err != nil {
				return route.Underlay{}, err
			}
			u.Links = append(u.Links, route.UnderlayLink{Name: at.Name, MTU: at.MTU, Addresses: byLink[at.Index]})
		}
	}
	slices.SortFunc(u.Links, func(x, y route.UnderlayLink) int { return strings.Compare(x.Name, y.Name) })
	return u, nil
}

// completeSubnets gives the link's IPv6 addresses that come without their subnet, as those of DHCPv6 do (/128), the length of the one that
// a router advertised: the kernel, or who reads advertisements in its stead, made a route for it. Without that this node would tunnel to
// a node that has the subnet's length, and that sends its own packets without a tunnel.
func (b *Backend) completeSubnets(link int, addrs []netip.Prefix) error {
	alone := func(p netip.Prefix) bool { return p.Addr().Is6() && p.IsSingleIP() }
	if !slices.ContainsFunc(addrs, alone) {
		return nil
	}
	var subnets []netip.Prefix
	for _, protocol := range []netlink.RouteProtocol{unix.RTPROT_KERNEL, unix.RTPROT_RA} {
		routes, err := b.listRoutes(b.routes, netlink.Route{Protocol: protocol, LinkIndex: link}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if p := prefixOf(r.Dst); r.Gw == nil && r.Via == nil && r.Type == unix.RTN_UNICAST && p.IsValid() && p.Bits() > 0 && !p.IsSingleIP() {
				subnets = append(subnets, p)
			}
		}
	}
	slices.SortFunc(subnets, func(x, y netip.Prefix) int { return y.Bits() - x.Bits() }) // the smallest first
	for i, p := range addrs {
		at := slices.IndexFunc(subnets, func(s netip.Prefix) bool { return s.Contains(p.Addr()) })
		if alone(p) && at >= 0 {
			addrs[i] = netip.PrefixFrom(p.Addr(), subnets[at].Bits())
		}
	}
	return nil
}

// isUnderlay reports whether a link may carry traffic between nodes.
func isUnderlay(at *netlink.LinkAttrs) bool {
	return at.Flags&net.FlagUp != 0 && at.Flags&net.FlagLoopback == 0 && !isOwnName(at.Name)
}

// isOwnName reports whether a name is one of weft's: NodeLink, TunnelLink, DNSLink, or a Pod's link.
func isOwnName(name string) bool {
	return name == route.NodeLink || name == route.TunnelLink || name == DNSLink || isPodLinkName(name) || isLimitName(name)
}

// Hops returns the first step on the way to each address, as the kernel's routes have it; one without a way, or without a gateway on it, is left out.
func (b *Backend) Hops(addrs []netip.Addr) map[netip.Addr]route.Hop {
	out := map[netip.Addr]route.Hop{}
	for _, a := range addrs {
		routes, err := b.links.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 {
			continue
		}
		if via := addrOf(routes[0].Gw); via.IsValid() && routes[0].Type == unix.RTN_UNICAST {
			out[a] = route.Hop{Via: via, Link: b.linkName(routes[0].LinkIndex)}
		}
	}
	return out
}
