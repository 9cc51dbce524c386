package iface

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/route"
)

// ApplyHost makes the node's own network what it should be and returns what it changed, a line each in the words of ip(8);
// applied a second time it changes nothing. It looks only at what is weft's (see the package comment), so the zero HostNet takes
// all of it away, except for the Pods. What cannot be done does not hold up the rest: the error names each thing that failed.
//
// New ways are there before old ones go: links, addresses and neighbours are added, then routes are added or replaced in place,
// then stale routes, neighbours, addresses and links are removed.
func (b *Backend) ApplyHost(ctx context.Context, want route.HostNet) (changes []string, err error) {
	b.applying.Lock()
	defer b.applying.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a := &hostApply{b: b, want: want, names: map[int]string{}}
	b.expect.set(want)
	if nodeLink := a.nodeLink(); nodeLink != 0 {
		a.addresses(ctx, route.NodeLink, nodeLink, want.NodeAddresses)
	}
	if len(a.errs) > 0 {
		a.errs = []error{fmt.Errorf("%w: %w", route.ErrNodeLink, errors.Join(a.errs...))}
	}
	var stale []*request
	if tunnel := a.tunnelLink(); tunnel != 0 {
		stale = a.tunnelPeers(tunnel)
	}
	a.routes()
	a.do(stale...)
	a.staleLinks()
	return a.changes, errors.Join(a.errs...)
}

// nodeAlias is the alias of the node's own links, for people.
const nodeAlias = "weft: this node"

// hostApply is one run of ApplyHost.
type hostApply struct {
	b       *Backend
	want    route.HostNet
	names   map[int]string // of links, by index
	changes []string
	errs    []error
}

// fail notes an error.
func (a *hostApply) fail(format string, args ...any) {
	a.errs = append(a.errs, fmt.Errorf(format, args...))
}

// do sends requests and notes what became of each.
func (a *hostApply) do(requests ...*request) {
	if len(requests) == 0 {
		return
	}
	if err := a.b.pods.do(requests...); err != nil {
		a.errs = append(a.errs, err)
	}
	for _, r := range requests {
		if r.sent && r.err == nil {
			a.changes = append(a.changes, r.change)
		}
	}
}

// find returns one of the node's own links, or nil. A link of that name that weft did not make is an error.
func (a *hostApply) find(name, kind string) (link netlink.Link, err error) {
	link, err = a.b.links.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking up link %s: %w", name, err)
	}
	if link.Type() != kind || link.Attrs().Group != GroupNode {
		return nil, fmt.Errorf("link %s (%s) is on the node already; rename or remove it: %w", name, link.Type(), ErrNameTaken)
	}
	return link, nil
}

// create makes a link and keeps it quiet, and returns it as the kernel has it.
func (a *hostApply) create(l netlink.Link) (netlink.Link, error) {
	name := l.Attrs().Name
	l.Attrs().TxQLen, l.Attrs().Group = -1, GroupNode
	if err := a.b.links.LinkAdd(l); err != nil {
		return nil, fmt.Errorf("making link %s: %w", name, err)
	}
	index := l.Attrs().Index
	// On a node that has IPv6 off for new links, what needs IPv6 would fail; where this cannot be written, it says so itself.
	_ = a.b.inHostNS(func() error { return clearLinkSysctl(name, "disable_ipv6") })
	err := a.b.pods.do(setLink("settings of link "+name, index, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(nodeAlias)), a.b.quietLink(map[int]uint32{devconfForwarding: 1})))
	if err != nil {
		return nil, errors.Join(err, a.b.remover.removeNow(name, index))
	}
	a.changes = append(a.changes, fmt.Sprintf("link %s (%s) made", name, l.Type()))
	// The kernel makes the MTU of a tunnel smaller without a word when it does not fit the underlay: read it back.
	if l, err = a.b.links.LinkByIndex(index); err != nil {
		return nil, fmt.Errorf("looking up link %s: %w", name, err)
	}
	return l, nil
}

// setUp sets a link up if it is down.
func (a *hostApply) setUp(l netlink.Link) {
	if l.Attrs().Flags&net.FlagUp == 0 {
		a.do(linkUp("setting link "+l.Attrs().Name+" up", l.Attrs().Index).noting("link %s set up", l.Attrs().Name))
	}
}

// nodeLink makes NodeLink when the node has addresses in the Pod network, and returns its index or 0.
func (a *hostApply) nodeLink() int {
	if len(a.want.NodeAddresses) == 0 {
		return 0
	}
	return a.bridge(route.NodeLink)
}

// bridge makes a bridge without ports and returns its index, or 0.
func (a *hostApply) bridge(name string) int {
	link, err := a.find(name, "bridge")
	if err == nil && link == nil {
		no := false
		link, err = a.create(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}, MulticastSnooping: &no})
	}
	if err != nil {
		a.errs = append(a.errs, err)
		return 0
	}
	a.setUp(link)
	return link.Attrs().Index
}

// addresses gives a link these addresses and no others, each as a host prefix.
func (a *hostApply) addresses(ctx context.Context, name string, index int, want []netip.Addr) {
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	list, err := dump("addresses of "+name, func() ([]netlink.Addr, error) { return a.b.links.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		a.errs = append(a.errs, err)
		return
	}
	have := map[netip.Prefix]bool{}
	for _, h := range list {
		have[prefixOf(h.IPNet)] = true
	}
	var rs []*request
	var added []netip.Addr
	wanted := map[netip.Prefix]bool{}
	for _, addr := range want {
		p := host(addr)
		if wanted[p] = true; !have[p] {
			added = append(added, addr)
			rs = append(rs, addressRequest(fmt.Sprintf("adding address %s to %s", p, name), unix.RTM_NEWADDR, index, addr).
				noting("address %s added to %s", p, name))
		}
	}
	for _, h := range list {
		if p := prefixOf(h.IPNet); !wanted[p] {
			r := addressRequest(fmt.Sprintf("removing address %s from %s", p, name), unix.RTM_DELADDR, index, p.Addr()).
				noting("address %s removed from %s", p, name)
			r.fine = []error{unix.EADDRNOTAVAIL}
			rs = append(rs, r)
		}
	}
	a.do(rs...)
	if err := a.b.awaitLocal(ctx, a.b.pods, added); err != nil {
		a.fail("waiting for the addresses of %s: %w", name, err)
	}
}

// routes adds, replaces and removes routes of weft's protocol, except for those that lead to Pods.
func (a *hostApply) routes() {
	want := a.wantedRoutes()
	list, err := a.b.listRoutes(a.b.routes, netlink.Route{Protocol: ProtoWeft}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		a.errs = append(a.errs, err)
		return
	}
	have := map[fibKey]fibRoute{}
	var stale []*request
	for i := range list {
		r, ok := fibRouteOf(&list[i])
		if _, wanted := want[r.key()]; ok && wanted {
			have[r.key()] = r
		} else if !r.toPod() {
			text := r.text(a.name(r.link))
			stale = append(stale, r.del("removing route "+text).noting("route %s removed", text))
		}
	}
	for key, r := range want {
		old, exists := have[key]
		switch {
		case !exists:
			a.addRoute(r)
		case old != r:
			a.replaceRoute(old, r)
		}
	}
	a.do(stale...)
}

// wantedRoutes resolves the links of the wanted routes. A missing link is an error, once, and its routes are left out.
func (a *hostApply) wantedRoutes() map[fibKey]fibRoute {
	want := map[fibKey]fibRoute{}
	indexes := map[string]int{}
	for _, r := range a.want.Routes {
		index, known := indexes[r.Link]
		if !known {
			link, err := a.b.links.LinkByName(r.Link)
			if err != nil {
				a.fail("adding the routes through link %s: %w", r.Link, err)
			} else {
				index = link.Attrs().Index
				a.names[index] = r.Link
			}
			indexes[r.Link] = index
		}
		if index != 0 {
			f := fibRoute{dst: r.Dst.Masked(), via: r.Via, src: r.Src, link: index, onlink: r.OnLink, metric: r.Metric}
			want[f.key()] = f
		}
	}
	for _, p := range a.want.Blackholes {
		// After any other route to the range: a bridge that gives out these addresses (weft-ipam) has its subnet here, which the
		// kernel adds with metric 0 (IPv4) or 256 (IPv6). IPv6 makes metric6 of none by itself.
		f := fibRoute{dst: p.Masked(), refuse: true}
		if p.Addr().Is4() {
			f.metric = metric6
		}
		want[f.key()] = f
	}
	return want
}

// name returns the name of a link for a text.
func (a *hostApply) name(index int) string {
	if index == 0 {
		return ""
	}
	if _, known := a.names[index]; !known {
		a.names[index] = a.b.linkName(index)
	}
	return a.names[index]
}

// addRoute adds a route that is missing. If somebody else's route is in its place, that one stays and the error names it.
func (a *hostApply) addRoute(r fibRoute) {
	text := r.text(a.name(r.link))
	err := a.b.pods.do(r.add("adding route "+text, unix.NLM_F_EXCL))
	switch {
	case errors.Is(err, unix.EEXIST):
		a.fail("another program has set a route to %s (%s); remove it: %w", r.dst, a.b.foreignRoute(r.dst), err)
	case err != nil:
		a.errs = append(a.errs, err)
	default:
		a.changes = append(a.changes, "route "+text+" added")
	}
}

// replaceRoute changes a route in place, without a moment in which there is none. IPv6 refuses a next hop that the old route
// still sends elsewhere (ip6_route_check_nh_onlink in net/ipv6/route.c), as between native and tunnel; only then the old one goes first.
func (a *hostApply) replaceRoute(old, r fibRoute) {
	oldText, text := old.text(a.name(old.link)), r.text(a.name(r.link))
	if a.b.pods.do(r.add("replacing route "+oldText, unix.NLM_F_REPLACE)) != nil {
		err := a.b.pods.do(old.del("removing route "+oldText), r.add("adding route "+text, unix.NLM_F_EXCL))
		if err != nil {
			a.errs = append(a.errs, err)
			return
		}
	}
	a.changes = append(a.changes, fmt.Sprintf("route %s replaced by %s", oldText, text))
}

// foreignRoute describes the route to exactly dst that is not weft's.
func (b *Backend) foreignRoute(dst netip.Prefix) string {
	list, err := dump("routes", func() ([]netlink.Route, error) { return b.links.RouteList(nil, int(family(dst.Addr()))) })
	if err != nil {
		return err.Error()
	}
	for i := range list {
		if r, _ := fibRouteOf(&list[i]); r.dst == dst && list[i].Protocol != ProtoWeft {
			return strings.TrimSpace(r.text(b.linkName(list[i].LinkIndex)) + " proto " + list[i].Protocol.String())
		}
	}
	return "it is gone by now"
}

// staleLinks removes the node's own links that are not wanted any more.
func (a *hostApply) staleLinks() {
	if len(a.want.NodeAddresses) == 0 {
		a.removeLink(route.NodeLink, "bridge")
	}
	if a.want.Tunnel == nil {
		a.removeLink(route.TunnelLink, "vxlan")
	}
}

func (a *hostApply) removeLink(name, kind string) {
	link, err := a.find(name, kind)
	if link == nil || err != nil {
		return // a link that is not ours stays
	}
	if err := a.b.remover.removeNow(name, link.Attrs().Index); err != nil {
		a.errs = append(a.errs, err)
		return
	}
	a.changes = append(a.changes, "link "+name+" removed")
}
