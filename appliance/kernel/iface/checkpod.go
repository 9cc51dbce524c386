package iface

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/model"
)

// CheckPod compares a Pod's interface with what it should be: both links, addresses, routes and neighbours. The error names
// everything that differs; nil means that all is as AddPod made it. nsFD stays the caller's.
func (b *Backend) CheckPod(ctx context.Context, nsFD int, a podnet.Attachment) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	hostLink, podLink, pod, err := b.bothEnds(nsFD, a)
	if err != nil {
		return fmt.Errorf("checking %s: %w", a.HostIf, err)
	}
	defer pod.Close()
	errs := []error{
		checkLink(a.HostIf, hostLink, a.MTU, a.HostMAC),
		checkLink(a.PodIf+" in the Pod's namespace", podLink, a.MTU, a.PodMAC),
	}
	if got := hostLink.Attrs().Alias; got != a.Alias {
		errs = append(errs, fmt.Errorf("alias of %s is %q, want %q", a.HostIf, got, a.Alias))
	}
	if hostLink.Attrs().Group != GroupPods {
		errs = append(errs, fmt.Errorf("group of %s is %d, want %d", a.HostIf, hostLink.Attrs().Group, GroupPods))
	}
	hostIndex, podIndex := hostLink.Attrs().Index, podLink.Attrs().Index
	if peerIndex(hostLink) != podIndex || peerIndex(podLink) != hostIndex {
		errs = append(errs, fmt.Errorf("%s is not the other end of %s", a.PodIf, a.HostIf))
	}
	var hostRoutes []fibRoute
	hostNeighbors, podNeighbors := map[netip.Addr]model.MAC{}, map[netip.Addr]model.MAC{}
	for _, addr := range a.Addresses {
		hostRoutes = append(hostRoutes, fibRoute{dst: host(addr), link: hostIndex})
		hostNeighbors[addr] = a.PodMAC
	}
	for _, gw := range a.Gateways {
		podNeighbors[gw] = a.HostMAC
	}
	const inPod = " in the Pod's namespace"
	errs = append(errs,
		checkAddresses(pod, podLink, a.Addresses),
		b.checkRoutes(b.routes, a.HostIf, hostIndex, hostRoutes, ""),
		b.checkRoutes(pod, a.PodIf, podIndex, podRoutes(a, podIndex), inPod),
		checkNeighbors(b.links, a.HostIf, hostIndex, hostNeighbors, ""),
		checkNeighbors(pod, a.PodIf, podIndex, podNeighbors, inPod))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("checking %s: %w", a.HostIf, err)
	}
	return nil
}

// bothEnds returns both links of a Pod and a handle in the Pod's namespace, which the caller closes.
func (b *Backend) bothEnds(nsFD int, a podnet.Attachment) (hostLink, podLink netlink.Link, pod *netlink.Handle, err error) {
	if hostLink, err = b.links.LinkByName(a.HostIf); err != nil {
		return nil, nil, nil, fmt.Errorf("link %s: %w", a.HostIf, err)
	}
	if !isPodLink(hostLink) {
		return nil, nil, nil, fmt.Errorf("link %s: %w", a.HostIf, ErrNameTaken)
	}
	if pod, err = netlink.NewHandleAt(netns.NsHandle(nsFD), unix.NETLINK_ROUTE); err != nil {
		return nil, nil, nil, fmt.Errorf("opening a netlink socket in the Pod's namespace: %w", err)
	}
	if podLink, err = pod.LinkByName(a.PodIf); err != nil {
		pod.Close()
		return nil, nil, nil, fmt.Errorf("link %s in the Pod's namespace: %w", a.PodIf, err)
	}
	return hostLink, podLink, pod, nil
}

// checkLink compares the attributes of one end.
func checkLink(name string, l netlink.Link, mtu int, mac model.MAC) error {
	var errs []error
	at := l.Attrs()
	if l.Type() != "veth" {
		errs = append(errs, fmt.Errorf("%s is a %s link, want veth", name, l.Type()))
	}
	if at.MTU != mtu {
		errs = append(errs, fmt.Errorf("MTU of %s is %d, want %d", name, at.MTU, mtu))
	}
	if !slices.Equal(at.HardwareAddr, mac[:]) {
		errs = append(errs, fmt.Errorf("MAC address of %s is %s, want %s", name, at.HardwareAddr, mac))
	}
	if at.Flags&net.FlagUp == 0 {
		errs = append(errs, fmt.Errorf("%s is down", name))
	}
	return errors.Join(errs...)
}

// checkAddresses looks for each address, as a host prefix, on the Pod's end.
func checkAddresses(pod *netlink.Handle, l netlink.Link, want []netip.Addr) error {
	have, err := dump("addresses in the Pod's namespace", func() ([]netlink.Addr, error) { return pod.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	var errs []error
	for _, addr := range want {
		if !slices.ContainsFunc(have, func(h netlink.Addr) bool { return prefixOf(h.IPNet) == host(addr) }) {
			errs = append(errs, fmt.Errorf("address %s on %s in the Pod's namespace %w", host(addr), l.Attrs().Name, errMissing))
		}
	}
	return errors.Join(errs...)
}

// checkRoutes looks for each route among those of weft's protocol on one link.
func (b *Backend) checkRoutes(h *netlink.Handle, name string, index int, want []fibRoute, where string) error {
	list, err := b.listRoutes(h, netlink.Route{Protocol: ProtoWeft, LinkIndex: index}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF)
	if err != nil {
		return err
	}
	have := map[fibRoute]bool{}
	for i := range list {
		if r, ok := fibRouteOf(&list[i]); ok {
			have[r] = true
		}
	}
	var errs []error
	for _, r := range want {
		if !have[r] {
			errs = append(errs, fmt.Errorf("route %s%s %w", r.text(name), where, errMissing))
		}
	}
	return errors.Join(errs...)
}

// checkNeighbors looks for each permanent neighbour of one link.
func checkNeighbors(h *netlink.Handle, name string, index int, want map[netip.Addr]model.MAC, where string) error {
	have, err := listNeighbors(h, index)
	if err != nil {
		return err
	}
	var errs []error
	for addr, mac := range want {
		if got, ok := have[addr]; !ok {
			errs = append(errs, fmt.Errorf("neighbour %s on %s%s %w", addr, name, where, errMissing))
		} else if got != mac {
			errs = append(errs, fmt.Errorf("neighbour %s on %s%s has MAC address %s, want %s", addr, name, where, got, mac))
		}
	}
	return errors.Join(errs...)
}

// listNeighbors returns the permanent neighbours of a link, both families.
func listNeighbors(h *netlink.Handle, index int) (map[netip.Addr]model.MAC, error) {
	list, err := dump("neighbours", func() ([]netlink.Neigh, error) { return h.NeighList(index, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	m := map[netip.Addr]model.MAC{}
	for _, n := range list {
		if n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 && n.Family != unix.AF_BRIDGE {
			m[addrOf(n.IP)] = model.MAC(n.HardwareAddr)
		}
	}
	return m, nil
}

// errMissing ends the sentence about something that a check did not find.
var errMissing = errors.New("is missing")
