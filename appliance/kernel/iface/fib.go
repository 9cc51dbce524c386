package iface

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// metric6 is what the kernel makes of "no metric" for IPv6 (IP6_RT_PRIO_USER).
const metric6 = 1024

// fibRoute is one route of the main table, as far as weft sets it. Two of them can be compared with ==.
type fibRoute struct {
	dst      netip.Prefix
	via, src netip.Addr
	link     int // 0 for an unreachable route
	onlink   bool
	refuse   bool // type unreachable
	metric   int  // 0 is the kernel's default
}

// add returns the request that adds the route; flags are NLM_F_EXCL or NLM_F_REPLACE.
func (r fibRoute) add(what string, flags int) *request {
	return r.request(what, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|flags, ProtoWeft)
}

// del returns the request that removes the route, if its protocol is ProtoWeft.
func (r fibRoute) del(what string) *request {
	req := r.request(what, unix.RTM_DELROUTE, 0, ProtoWeft)
	req.fine = []error{unix.ESRCH}
	return req
}

func (r fibRoute) request(what string, kind, flags int, protocol uint8) *request {
	m := nl.NewRtMsg()
	m.Family, m.Dst_len, m.Protocol = family(r.dst.Addr()), uint8(r.dst.Bits()), protocol
	m.Table, m.Scope, m.Type = unix.RT_TABLE_MAIN, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	var attrs []*nl.RtAttr
	if r.dst.Bits() > 0 {
		attrs = append(attrs, nl.NewRtAttr(unix.RTA_DST, r.dst.Addr().AsSlice()))
	}
	switch {
	case r.refuse:
		m.Type = unix.RTN_UNREACHABLE
	case !r.via.IsValid():
		m.Scope = unix.RT_SCOPE_LINK
	default:
		attrs = append(attrs, nl.NewRtAttr(unix.RTA_GATEWAY, r.via.AsSlice()))
	}
	if r.src.IsValid() {
		attrs = append(attrs, nl.NewRtAttr(unix.RTA_PREFSRC, r.src.AsSlice()))
	}
	if r.link != 0 {
		attrs = append(attrs, nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(r.link))))
	}
	if r.onlink {
		m.Flags |= unix.RTNH_F_ONLINK
	}
	if r.metric != 0 {
		attrs = append(attrs, nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(r.metric))))
	}
	return newRequest(what, kind, flags, m, attrs...)
}

// getRouteType asks what the kernel would do with a packet to an address: RTN_LOCAL, RTN_UNICAST, …
func getRouteType(addr netip.Addr, answer func(kind uint8)) *request {
	m := &nl.RtMsg{RtMsg: unix.RtMsg{Family: family(addr), Dst_len: uint8(addr.BitLen())}}
	r := newRequest("asking for the route to "+addr.String(), unix.RTM_GETROUTE, 0, m, nl.NewRtAttr(unix.RTA_DST, addr.AsSlice()))
	r.fine = []error{unix.EHOSTUNREACH, unix.ENETUNREACH} // a range of our own that is unreachable, until the address is in it
	r.reply = func(b []byte) { answer(nl.DeserializeRtMsg(b).Type) }
	return r
}

// text prints the route as ip(8) would; name is the name of its link.
func (r fibRoute) text(name string) string {
	s := r.dst.String()
	if r.refuse {
		s = "unreachable " + s
	}
	if r.via.IsValid() {
		s += " via " + r.via.String()
	}
	if name != "" && !r.refuse {
		s += " dev " + name
	}
	if r.src.IsValid() {
		s += " src " + r.src.String()
	}
	if r.metric != 0 {
		s += fmt.Sprintf(" metric %d", r.metric)
	}
	if r.onlink {
		s += " onlink"
	}
	return s
}

// fibRouteOf reads back a route of the library; ok is false for one that weft never sets, such as a multipath route.
func fibRouteOf(r *netlink.Route) (f fibRoute, ok bool) {
	f.metric = r.Priority
	if r.Family == unix.AF_INET6 && r.Priority == metric6 {
		f.metric = 0
	}
	f.dst = prefixOf(r.Dst)
	if !f.dst.IsValid() {
		f.dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Family == unix.AF_INET6 {
			f.dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	}
	f.via, f.src = addrOf(r.Gw), addrOf(r.Src)
	f.onlink = r.Flags&unix.RTNH_F_ONLINK != 0
	switch r.Type {
	case unix.RTN_UNICAST:
		f.link = r.LinkIndex
	case unix.RTN_UNREACHABLE:
		f.refuse = true // IPv6 says "dev lo" here
	default:
		return f, false
	}
	return f, len(r.MultiPath) == 0
}

// listRoutes returns the routes of the main table that match the filter, both families. The kernel filters by protocol and
// link; a node that speaks BGP may hold a million other routes.
func (b *Backend) listRoutes(h *netlink.Handle, filter netlink.Route, mask uint64) ([]netlink.Route, error) {
	filter.Table = unix.RT_TABLE_MAIN
	var all []netlink.Route
	families := []int{unix.AF_INET}
	if b.ipv6 {
		families = append(families, unix.AF_INET6)
	}
	for _, fam := range families {
		routes, err := dump("routes", func() ([]netlink.Route, error) {
			f := filter
			return h.RouteListFiltered(fam, &f, mask|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, err
		}
		all = append(all, routes...)
	}
	return all, nil
}

// addrOf converts from net.IP; an absent one becomes the zero Addr.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// prefixOf converts from net.IPNet; an absent one becomes the zero Prefix.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), ones)
}

// fibKey is what makes two routes the same route to the kernel: only one of them can be in the table.
type fibKey struct {
	dst    netip.Prefix
	metric int
}

func (r fibRoute) key() fibKey { return fibKey{r.dst, r.metric} }

// toPod reports whether the route is the kind that AddPod makes: one address, straight on a link. Routes to other nodes have a next hop.
func (r fibRoute) toPod() bool { return r.dst.IsSingleIP() && !r.via.IsValid() && r.link != 0 }
