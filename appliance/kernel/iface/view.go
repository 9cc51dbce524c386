package iface

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/model"
)

// expectation is what the last ApplyHost wanted: what it removes itself is never in it.
type expectation struct {
	mu         sync.Mutex
	addresses  map[netip.Prefix]bool
	routes     map[netip.Prefix]bool
	neighbors  map[netip.Addr]bool
	forwarding map[forwarding]bool
	links      map[string]bool
	dns        map[netip.Prefix]bool // on DNSLink
}

// setDNS is what the last ApplyDNS wanted.
func (e *expectation) setDNS(addrs []netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dns = map[netip.Prefix]bool{}
	for _, a := range addrs {
		e.dns[host(a)] = true
	}
}

func (e *expectation) set(h route.HostNet) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.addresses, e.routes = map[netip.Prefix]bool{}, map[netip.Prefix]bool{}
	e.neighbors, e.forwarding, e.links = map[netip.Addr]bool{}, map[forwarding]bool{}, map[string]bool{}
	for _, a := range h.NodeAddresses {
		e.addresses[host(a)] = true
		e.links[route.NodeLink] = true
	}
	for _, r := range h.Routes {
		e.routes[r.Dst.Masked()] = true
	}
	for _, p := range h.Blackholes {
		e.routes[p.Masked()] = true
	}
	if h.Tunnel == nil {
		return
	}
	e.links[route.TunnelLink] = true
	for _, p := range h.Tunnel.Peers {
		e.forwarding[forwarding{p.MAC, p.Outer}] = true
		for _, hop := range p.NextHops {
			e.neighbors[hop] = true
		}
	}
}

// expects looks one thing up in one of the maps of the expectation.
func expects[K comparable](e *expectation, of func(*expectation) map[K]bool, key K) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return of(e)[key]
}

// view is what the messages said so far; a message that says nothing new is not worth an Event. The kernel repeats link
// messages for statistics and address messages for each router advertisement.
type view struct {
	links     map[int]linkView
	addresses map[addressView]bool
}

// linkView is what counts of a link. Two of them can be compared with ==.
type linkView struct {
	name  string
	mtu   int
	mac   string
	up    bool
	group uint32
	pod   bool
}

type addressView struct {
	link   int
	prefix netip.Prefix
}

func viewOf(l netlink.Link) linkView {
	at := l.Attrs()
	return linkView{at.Name, at.MTU, at.HardwareAddr.String(), at.Flags&net.FlagUp != 0, at.Group, isPodLink(l)}
}

func newView(links []netlink.Link, addrs []netlink.Addr) view {
	v := view{map[int]linkView{}, map[addressView]bool{}}
	for _, l := range links {
		v.links[l.Attrs().Index] = viewOf(l)
	}
	for _, a := range addrs {
		v.addresses[addressView{a.LinkIndex, prefixOf(a.IPNet)}] = true
	}
	return v
}

// note adds the meaning of one message to the event.
func (v *view) note(e *Event, m *syscall.NetlinkMessage, b *Backend) {
	byUs := m.Header.Pid == b.pods.port || m.Header.Pid == b.remover.conn.port
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		v.noteLink(e, m, b, byUs)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		v.noteAddress(e, m, b)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		v.noteRoute(e, m, b, byUs)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		v.noteNeighbor(e, m, b, byUs)
	}
}

func (e *Event) ours(format string, args ...any) {
	e.Ours = append(e.Ours, fmt.Sprintf(format, args...))
}

func (v *view) noteLink(e *Event, m *syscall.NetlinkMessage, b *Backend, byUs bool) {
	if nl.DeserializeIfInfomsg(m.Data).Family == unix.AF_BRIDGE {
		return // a bridge port: "deleted" means that it left the bridge
	}
	link, err := netlink.LinkDeserialize(nil, m.Data)
	if err != nil {
		return
	}
	index, now := link.Attrs().Index, viewOf(link)
	before, known := v.links[index]
	deleted := m.Header.Type == unix.RTM_DELLINK
	if deleted {
		delete(v.links, index)
	} else {
		v.links[index] = now
	}
	if known && before == now && !deleted {
		return
	}
	if !isOwnName(now.name) && !isOwnName(before.name) {
		e.Underlay = e.Underlay || now.up || before.up
		return
	}
	mine := now.pod || before.pod || before.name == DNSLink ||
		expects(&b.expect, func(x *expectation) map[string]bool { return x.links }, before.name)
	if byUs || !known || !mine || now.group == GroupDeleting {
		return
	}
	switch {
	case deleted:
		e.ours("link %s deleted", before.name)
	case now.name != before.name:
		e.ours("link %s renamed to %s", before.name, now.name)
	case before.up && !now.up:
		e.ours("link %s set down", now.name)
	case now.mtu != before.mtu || now.mac != before.mac || now.group != before.group:
		e.ours("link %s changed", now.name)
	}
}

func (v *view) noteAddress(e *Event, m *syscall.NetlinkMessage, b *Backend) {
	if len(m.Data) < unix.SizeofIfAddrmsg {
		return
	}
	h := nl.DeserializeIfAddrmsg(m.Data)
	attrs, err := nl.ParseRouteAttrAsMap(m.Data[h.Len():])
	if err != nil {
		return
	}
	// IFA_ADDRESS is the other end on a point-to-point link; IFA_LOCAL, which IPv6 mostly leaves out, is ours.
	value, ok := attrs[unix.IFA_LOCAL]
	if !ok {
		value = attrs[unix.IFA_ADDRESS]
	}
	key := addressView{int(h.Index), netip.PrefixFrom(addrOf(value.Value), int(h.Prefixlen))}
	had, has := v.addresses[key], m.Header.Type == unix.RTM_NEWADDR
	if had == has {
		return
	}
	if has {
		v.addresses[key] = true
	} else {
		delete(v.addresses, key)
	}
	link := v.links[key.link]
	if !isOwnName(link.name) {
		e.Underlay = true
		return
	}
	of := func(x *expectation) map[netip.Prefix]bool { return x.addresses }
	if link.name == DNSLink {
		of = func(x *expectation) map[netip.Prefix]bool { return x.dns }
	}
	if wanted := expects(&b.expect, of, key.prefix); (link.name == route.NodeLink || link.name == DNSLink) && wanted != has {
		what := "deleted"
		if has {
			what = "added"
		}
		e.ours("address %s on %s %s", key.prefix, link.name, what)
	}
}

func (v *view) noteRoute(e *Event, m *syscall.NetlinkMessage, b *Backend, byUs bool) {
	if byUs || len(m.Data) < unix.SizeofRtMsg {
		return
	}
	h := nl.DeserializeRtMsg(m.Data)
	if h.Table != unix.RT_TABLE_MAIN {
		return
	}
	attrs, err := nl.ParseRouteAttrAsMap(m.Data[h.Len():])
	if err != nil {
		return
	}
	dst := netip.PrefixFrom(addrOf(attrs[unix.RTA_DST].Value), int(h.Dst_len))
	wanted := expects(&b.expect, func(x *expectation) map[netip.Prefix]bool { return x.routes }, dst)
	if m.Header.Type == unix.RTM_NEWROUTE {
		if h.Protocol != ProtoWeft && wanted && m.Header.Flags&unix.NLM_F_REPLACE != 0 {
			e.ours("route %s replaced", dst)
		}
		return
	}
	if h.Protocol != ProtoWeft {
		return
	}
	_, hasNextHop := attrs[unix.RTA_GATEWAY]
	if toPod := dst.IsSingleIP() && !hasNextHop && v.podLink(attrs[unix.RTA_OIF].Value); wanted || toPod {
		e.ours("route %s deleted", dst)
	}
}

// podLink reports whether the attribute names the link of a Pod that nobody is deleting.
func (v *view) podLink(oif []byte) bool {
	if len(oif) != 4 {
		return false
	}
	l := v.links[int(nl.NativeEndian().Uint32(oif))]
	return l.pod && l.group == GroupPods
}

func (v *view) noteNeighbor(e *Event, m *syscall.NetlinkMessage, b *Backend, byUs bool) {
	n, err := netlink.NeighDeserialize(m.Data)
	if err != nil || byUs {
		return
	}
	link, addr, what := v.links[n.LinkIndex], addrOf(n.IP), "changed"
	deleted := m.Header.Type == unix.RTM_DELNEIGH
	if deleted {
		what = "deleted"
	}
	// A Pod's link-local address comes and goes by itself; its other addresses are set by AddPod.
	if link.pod && link.group == GroupPods && !addr.IsLinkLocalUnicast() && (deleted || n.State&netlink.NUD_PERMANENT != 0) {
		e.ours("neighbour %s on %s %s", addr, link.name, what)
	}
	if link.name != route.TunnelLink {
		return
	}
	switch {
	case n.Family == unix.AF_BRIDGE:
		if len(n.HardwareAddr) == 6 && deleted && expects(&b.expect, func(x *expectation) map[forwarding]bool { return x.forwarding }, forwarding{model.MAC(n.HardwareAddr), addr}) {
			e.ours("forwarding entry %s dst %s deleted", n.HardwareAddr, addr)
		}
	case expects(&b.expect, func(x *expectation) map[netip.Addr]bool { return x.neighbors }, addr):
		e.ours("neighbour %s on %s %s", addr, link.name, what)
	}
}
