package iface

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/podnet"
)

// DelPod takes one Pod's interface away, by the name of its host end. The routes to the Pod are gone when it returns; the links
// follow in the background (see Flush). It needs neither the Pod's namespace nor the addresses: without a.Addresses it asks the
// kernel for them. A Pod that is not there is fine, and a link of that name that is not weft's is left alone.
func (b *Backend) DelPod(ctx context.Context, a podnet.Attachment) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var link, limit netlink.Link
	look := getLink(a.HostIf, func(l netlink.Link) { link = l })
	lookLimit := getLink(limitLinkName(a.HostIf), func(l netlink.Link) { limit = l })
	look.fine, lookLimit.fine = []error{unix.ENODEV}, []error{unix.ENODEV}
	if err := b.pods.do(look, lookLimit); err != nil {
		return fmt.Errorf("deleting %s: %w", a.HostIf, err)
	}
	var rs []*request
	if link != nil && isPodLink(link) {
		index := link.Attrs().Index
		addresses := a.Addresses
		if len(addresses) == 0 {
			var err error
			if addresses, err = b.podAddresses(index); err != nil {
				return fmt.Errorf("deleting %s: %w", a.HostIf, err)
			}
		}
		for _, addr := range addresses {
			r := fibRoute{dst: host(addr), link: index}
			rs = append(rs, r.del("removing route "+r.text(a.HostIf)))
		}
		rs = append(rs, giveUp(a.HostIf, index))
	}
	if limit != nil && isLimitLink(limit) {
		rs = append(rs, giveUp(limit.Attrs().Name, limit.Attrs().Index))
	}
	if len(rs) == 0 {
		return nil
	}
	err := b.pods.do(rs...)
	b.remover.enqueue()
	if err != nil {
		return fmt.Errorf("deleting %s: %w", a.HostIf, err)
	}
	return nil
}

// giveUp moves a link to GroupDeleting.
func giveUp(name string, index int) *request {
	r := setLink("queueing link "+linkText(name, index)+" for removal", index, nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(GroupDeleting)))
	r.fine = []error{unix.ENODEV}
	return r
}

// Flush waits until the links of all Pods deleted so far are gone.
func (b *Backend) Flush(ctx context.Context) error { return b.remover.flush(ctx) }

// SetPodMTU sets the MTU of both ends to a.MTU, in bytes; nsFD is the Pod's namespace and stays the caller's.
func (b *Backend) SetPodMTU(ctx context.Context, nsFD int, a podnet.Attachment) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	hostLink, podLink, pod, err := b.bothEnds(nsFD, a)
	if err != nil {
		return fmt.Errorf("setting the MTU of %s: %w", a.HostIf, err)
	}
	defer pod.Close()
	if err := b.links.LinkSetMTU(hostLink, a.MTU); err != nil {
		return fmt.Errorf("setting the MTU of %s to %d: %w", a.HostIf, a.MTU, err)
	}
	if err := pod.LinkSetMTU(podLink, a.MTU); err != nil {
		return fmt.Errorf("setting the MTU of %s in the Pod's namespace to %d: %w", a.PodIf, a.MTU, err)
	}
	return nil
}

// SetRouteLocalnet lets connections from the node to 127.0.0.1 be sent on to the Pod (a hostPort reached through localhost).
// It is off unless asked for: with it, a Pod may also send to the node's 127.0.0.0/8, which the firewall must then refuse.
func (b *Backend) SetRouteLocalnet(ctx context.Context, hostIf string, on bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	link, err := b.links.LinkByName(hostIf)
	if err != nil {
		return fmt.Errorf("letting localhost reach %s: %w", hostIf, err)
	}
	value := uint32(0)
	if on {
		value = 1
	}
	return b.pods.do(setLink("setting route_localnet of "+hostIf, link.Attrs().Index, b.quietLink(map[int]uint32{devconfRouteLocalnet: value})))
}

// podAddresses returns the addresses that weft's routes send to a link.
func (b *Backend) podAddresses(index int) ([]netip.Addr, error) {
	routes, err := b.listRoutes(b.routes, netlink.Route{Protocol: ProtoWeft, LinkIndex: index}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, r := range routes {
		if p := prefixOf(r.Dst); p.IsValid() && p.IsSingleIP() {
			addrs = append(addrs, p.Addr())
		}
	}
	return addrs, nil
}
