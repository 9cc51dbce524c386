package iface

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/model"
)

// ApplyPods repairs the node's side of attachments whose host end exists: the link is up, its routes and neighbours are there.
// It returns what it changed; a second call returns nothing. A host end that is gone took the Pod's interface with it, and only
// the runtime can have the Pod made anew.
func (b *Backend) ApplyPods(ctx context.Context, want []podnet.Attachment) (changes []string, err error) {
	if len(want) == 0 {
		return nil, ctx.Err()
	}
	links, err := dump("links", b.links.LinkList)
	if err != nil {
		return nil, err
	}
	index := map[string]netlink.Link{}
	for _, l := range links {
		if isPodLink(l) && l.Attrs().Group == GroupPods {
			index[l.Attrs().Name] = l
		}
	}
	routes, err := b.listRoutes(b.routes, netlink.Route{Protocol: ProtoWeft}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, err
	}
	have := map[fibRoute]bool{}
	for i := range routes {
		if r, ok := fibRouteOf(&routes[i]); ok {
			have[r] = true
		}
	}
	neighbors, err := b.permanentNeighbors()
	if err != nil {
		return nil, err
	}
	var rs []*request
	for _, a := range want {
		l, ok := index[a.HostIf]
		if !ok {
			continue
		}
		rs = append(rs, repairRequests(a, l, have, neighbors)...)
	}
	err = b.run(ctx, b.pods, rs)
	for _, r := range rs {
		if r.sent && r.err == nil {
			changes = append(changes, r.change)
		}
	}
	return changes, err
}

// neighborKey names one neighbour entry of the node.
type neighborKey struct {
	link int
	addr netip.Addr
}

// permanentNeighbors returns those of all links in one list.
func (b *Backend) permanentNeighbors() (map[neighborKey]model.MAC, error) {
	list, err := dump("neighbours", func() ([]netlink.Neigh, error) { return b.links.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	out := map[neighborKey]model.MAC{}
	for _, n := range list {
		if n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 && n.Family != unix.AF_BRIDGE {
			out[neighborKey{n.LinkIndex, addrOf(n.IP)}] = model.MAC(n.HardwareAddr)
		}
	}
	return out, nil
}

// repairRequests are what one attachment lacks. The link comes first: routes need it up.
func repairRequests(a podnet.Attachment, l netlink.Link, have map[fibRoute]bool, neighbors map[neighborKey]model.MAC) []*request {
	var rs []*request
	add := func(r *request, change string) {
		r.change = change
		rs = append(rs, r)
	}
	at := l.Attrs()
	down := at.Flags&net.FlagUp == 0
	if down {
		add(linkUp("setting "+a.HostIf+" up", at.Index), "link "+a.HostIf+" set up")
	}
	for _, addr := range a.Addresses {
		if down || neighbors[neighborKey{at.Index, addr}] != a.PodMAC {
			add(neighborRequest(fmt.Sprintf("adding neighbour %s on %s", addr, a.HostIf), unix.RTM_NEWNEIGH, at.Index, addr, a.PodMAC),
				fmt.Sprintf("neighbour %s on %s added", addr, a.HostIf))
		}
		r := fibRoute{dst: host(addr), link: at.Index}
		if down || !have[r] {
			add(r.add("adding route "+r.text(a.HostIf), unix.NLM_F_REPLACE), "route "+r.text(a.HostIf)+" added")
		}
	}
	return rs
}

// HasLink reports whether the host end of a Pod exists.
func (b *Backend) HasLink(ctx context.Context, name string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	l, err := b.links.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for link %s: %w", name, err)
	}
	return l.Attrs().Group != GroupDeleting, nil
}

// LinkOf returns the name of the link that packets to the address leave by.
func (b *Backend) LinkOf(ctx context.Context, addr netip.Addr) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	routes, err := b.links.RouteGet(addr.AsSlice())
	if err != nil {
		return "", fmt.Errorf("asking for the route to %s: %w", addr, err)
	}
	if len(routes) == 0 {
		return "", fmt.Errorf("there is no route to %s", addr)
	}
	return b.linkName(routes[0].LinkIndex), nil
}

// ClearPodBandwidth takes back the limits of the host end of an interface in a namespace. It is no error when there is none.
func (b *Backend) ClearPodBandwidth(ctx context.Context, nsFD int, ifName string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(nsFD), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening a netlink socket in the Pod's namespace: %w", err)
	}
	defer h.Close()
	l, err := h.LinkByName(ifName)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for link %s in the Pod's namespace: %w", ifName, err)
	}
	host, err := b.links.LinkByIndex(peerIndex(l))
	if errors.As(err, &missing) || err == nil && host.Type() != l.Type() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for the host end of %s: %w", ifName, err)
	}
	return b.ClearBandwidth(ctx, host.Attrs().Name)
}

// IsNetNS reports whether an open file is a network namespace.
func IsNetNS(f *os.File) bool { return checkNS(f) == nil }

// Loopback sets lo of the namespace up, which gives it 127.0.0.1 and ::1; with check it only says whether lo is up.
func (b *Backend) Loopback(ctx context.Context, nsFD int, check bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !check {
		c, err := dial(netns.NsHandle(nsFD))
		if err != nil {
			return fmt.Errorf("in the Pod's namespace: %w", err)
		}
		defer c.close()
		return c.do(linkUp("setting lo up in the Pod's namespace", loopbackIndex))
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(nsFD), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening a netlink socket in the Pod's namespace: %w", err)
	}
	defer h.Close()
	l, err := h.LinkByIndex(loopbackIndex)
	if err != nil {
		return fmt.Errorf("looking for lo in the Pod's namespace: %w", err)
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		return errors.New("lo is down in the Pod's namespace")
	}
	return nil
}
