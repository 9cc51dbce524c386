package iface

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/podnet"
)

// ErrNameTaken means that an interface of the wanted name is there and is not weft's.
var ErrNameTaken = errors.New("name is taken by an interface that weft did not make")

// loopbackIndex is the interface index of lo in every network namespace (LOOPBACK_IFINDEX in include/net/flow.h).
const loopbackIndex = 1

// AddPod makes the veth pair of one Pod with everything on it, in the node's namespace and in the Pod's (nsFD, which stays the
// caller's). When it returns, packets flow both ways. If the same attachment is there already and complete, nothing is done; what
// is left of an earlier try is made anew. After an error nothing is left. ErrNameTaken says that another plugin's interface is in the way.
func (b *Backend) AddPod(ctx context.Context, nsFD int, a podnet.Attachment) error {
	if err := checkAttachment(a); err != nil {
		return err
	}
	err := b.addPod(ctx, nsFD, a, false)
	if errors.Is(err, unix.EACCES) && slices.ContainsFunc(a.Addresses, netip.Addr.Is6) {
		// "IPv6 is disabled on this device": some runtimes make the namespace so, and some nodes switch it off for new links.
		err = b.addPod(ctx, nsFD, a, true)
	}
	if err != nil {
		return fmt.Errorf("adding interface %s of %s: %w", a.PodIf, a.HostIf, err)
	}
	return nil
}

// checkAttachment refuses what the kernel would take in a sense that nobody meant.
func checkAttachment(a podnet.Attachment) error {
	switch {
	case !isPodLinkName(a.HostIf) || len(a.HostIf) >= unix.IFNAMSIZ:
		return fmt.Errorf("host end %q: the name must start with %s and be shorter than %d characters", a.HostIf, podnet.HostIfPrefix, unix.IFNAMSIZ)
	case a.PodIf == "" || len(a.PodIf) >= unix.IFNAMSIZ || strings.ContainsAny(a.PodIf, "/: \t\n"):
		return fmt.Errorf("interface name %q is not one that the kernel takes (1 to %d characters, no space, slash or colon)", a.PodIf, unix.IFNAMSIZ-1)
	case a.MTU < 68 || a.MTU > 65535:
		return fmt.Errorf("MTU %d of %s is not between 68 and 65535", a.MTU, a.HostIf)
	case a.MTU < 1280 && slices.ContainsFunc(a.Addresses, netip.Addr.Is6):
		return fmt.Errorf("MTU %d of %s is less than the 1280 that IPv6 needs (RFC 8200 section 5); raise fabric.mtu or the MTU of the underlay", a.MTU, a.HostIf)
	case a.PodMAC.IsZero() || a.HostMAC.IsZero():
		return fmt.Errorf("attachment %s has no MAC addresses", a.HostIf)
	case len(a.Addresses) == 0:
		return fmt.Errorf("attachment %s has no addresses", a.HostIf)
	}
	return nil
}

// addPod is AddPod once; enable6 switches IPv6 on at both ends.
func (b *Backend) addPod(ctx context.Context, nsFD int, a podnet.Attachment, enable6 bool) (err error) {
	var pod *conn
	if err := b.step("opening the Pod's namespace"); err != nil {
		return err
	}
	if pod, err = dial(netns.NsHandle(nsFD)); err != nil {
		return fmt.Errorf("in the Pod's namespace: %w", err)
	}
	defer pod.close()

	link, err := b.makePair(ctx, nsFD, a)
	if err != nil || link == nil {
		return err
	}
	hostIndex, podIndex := link.Attrs().Index, peerIndex(link)
	defer func() {
		if err != nil {
			// The peer, the addresses, routes and neighbours of both ends go with the link.
			err = errors.Join(err, b.remover.removeNow(a.HostIf, hostIndex))
		}
	}()
	if err := b.podSysctls(nsFD, a, enable6); err != nil {
		return err
	}
	if err := b.run(ctx, pod, podRequests(a, podIndex)); err != nil {
		return err
	}
	if err := b.run(ctx, b.pods, b.hostRequests(a, hostIndex)); err != nil {
		return err
	}
	return b.settle(ctx, pod, a)
}

// settle waits for what the kernel does in threads of its own after it has answered: it is a matter of microseconds, but until
// then the Pod loses packets. The end that was up first gets its queue (asking for the link makes the kernel do it now,
// linkwatch_sync_dev, Linux 6.9), and IPv6 addresses come into use.
func (b *Backend) settle(ctx context.Context, pod *conn, a podnet.Attachment) error {
	if err := b.run(ctx, pod, []*request{getLink(a.PodIf, func(netlink.Link) {})}); err != nil {
		return err
	}
	return b.awaitLocal(ctx, pod, a.Addresses)
}

// awaitLocal waits until the kernel has a local route for each IPv6 address. It is set by a thread of its own, even for an
// address without duplicate address detection (addrconf_dad_work in net/ipv6/addrconf.c); until then packets to it are lost.
func (b *Backend) awaitLocal(ctx context.Context, c *conn, addrs []netip.Addr) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTimeout, errors.New("the kernel does not take an IPv6 address into use"))
	defer cancel()
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		local := 0
		var rs []*request
		for _, addr := range addrs {
			if addr.Is6() {
				rs = append(rs, getRouteType(addr, func(kind uint8) {
					if kind == unix.RTN_LOCAL {
						local++
					}
				}))
			}
		}
		if len(rs) == 0 {
			return nil
		}
		if err := b.run(ctx, c, rs); err != nil || local == len(rs) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

const (
	settleTimeout = 10 * time.Second // its worker waits for whoever changes links
	settlePoll    = 200 * time.Microsecond
)

// makePair makes the veth pair and returns its host end, or nil if the whole attachment is there already.
func (b *Backend) makePair(ctx context.Context, nsFD int, a podnet.Attachment) (netlink.Link, error) {
	for range 2 {
		var link netlink.Link
		make, look := newVeth(a, nsFD), getLink(a.HostIf, func(l netlink.Link) { link = l })
		look.fine = []error{unix.ENODEV}
		err := b.run(ctx, b.pods, []*request{make, look})
		if err == nil && link != nil {
			return link, nil
		}
		if make.sent && make.err == nil {
			return nil, errors.Join(err, b.remover.removeByName(a.HostIf))
		}
		if !errors.Is(make.err, unix.EEXIST) {
			return nil, err
		}
		if link == nil {
			return nil, fmt.Errorf("interface %s is in the Pod's namespace already; another network plugin made it, take it out of this Pod's networks or give it another name: %w",
				a.PodIf, ErrNameTaken)
		}
		if !isPodLink(link) {
			return nil, fmt.Errorf("link %s (%s) is on the node already; rename or remove it: %w", a.HostIf, link.Type(), ErrNameTaken)
		}
		if b.CheckPod(ctx, nsFD, a) == nil {
			return nil, nil
		}
		if err := b.remover.removeNow(a.HostIf, link.Attrs().Index); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("link %s comes back each time it is removed: is a second weftd running?", a.HostIf)
}

// podSysctls sets what netlink cannot.
func (b *Backend) podSysctls(nsFD int, a podnet.Attachment, enable6 bool) error {
	if err := b.step("settings of " + a.HostIf); err != nil {
		return err
	}
	err := b.inHostNS(func() error {
		// A node whose default is accept_ra=2 would take its routes from any Pod that sends a router advertisement.
		// Where /proc/sys is read-only the firewall is left to refuse them; EnsureSysctls reports that state of affairs.
		if err := clearLinkSysctl(a.HostIf, "accept_ra"); err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
		if enable6 {
			return clearLinkSysctl(a.HostIf, "disable_ipv6")
		}
		return nil
	})
	if err != nil || !enable6 {
		return err
	}
	return inNS(nsFD, func() error { return clearLinkSysctl(a.PodIf, "disable_ipv6") })
}

// podRequests are what the Pod's namespace needs, in order: addresses first, so that the routes find them.
func podRequests(a podnet.Attachment, index int) []*request {
	const where = " in the Pod's namespace"
	var rs []*request
	for _, addr := range a.Addresses {
		rs = append(rs, addressRequest(fmt.Sprintf("adding address %s to %s%s", addr, a.PodIf, where), unix.RTM_NEWADDR, index, addr))
	}
	rs = append(rs, linkUp("setting lo up"+where, loopbackIndex), linkUp("setting "+a.PodIf+" up"+where, index))
	for _, r := range podRoutes(a, index) {
		rs = append(rs, r.add("adding route "+r.text(a.PodIf)+where, unix.NLM_F_EXCL))
	}
	for _, gw := range a.Gateways {
		rs = append(rs, neighborRequest(fmt.Sprintf("adding neighbour %s%s", gw, where), unix.RTM_NEWNEIGH, index, gw, a.HostMAC))
	}
	return rs
}

// podRoutes are the routes of the Pod: its gateway on the link, and everything else through the gateway. The first one is not
// needed for forwarding, but tools that look the gateway up expect it.
func podRoutes(a podnet.Attachment, index int) []fibRoute {
	var rs []fibRoute
	for _, gw := range a.Gateways {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if gw.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		rs = append(rs, fibRoute{dst: host(gw), link: index}, fibRoute{dst: all, via: gw, link: index, onlink: true})
	}
	return rs
}

// hostRequests are what the node's namespace needs. The link goes up only after it was told to be quiet.
func (b *Backend) hostRequests(a podnet.Attachment, index int) []*request {
	rs := []*request{
		setLink("naming the Pod on "+a.HostIf, index,
			nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(a.Alias)),
			b.quietLink(map[int]uint32{devconfForwarding: 1})),
		linkUp("setting "+a.HostIf+" up", index),
	}
	for _, addr := range a.Addresses {
		r := fibRoute{dst: host(addr), link: index}
		rs = append(rs,
			neighborRequest(fmt.Sprintf("adding neighbour %s on %s", addr, a.HostIf), unix.RTM_NEWNEIGH, index, addr, a.PodMAC),
			r.add("adding route "+r.text(a.HostIf), unix.NLM_F_EXCL))
	}
	return rs
}

// run sends requests, unless the context has ended or a test makes one fail: then those before it are sent.
func (b *Backend) run(ctx context.Context, c *conn, requests []*request) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	for i, r := range requests {
		if err := b.step(r.what); err != nil {
			return errors.Join(err, c.do(requests[:i]...))
		}
	}
	return c.do(requests...)
}

// step lets a test fail the step of that name.
func (b *Backend) step(what string) error {
	if b.hook == nil {
		return nil
	}
	return b.hook(what)
}

// peerIndex returns the index of the other end of a veth pair. The kernel leaves IFLA_LINK out when both are the same number
// in their namespaces (nla_put_iflink in net/core/rtnetlink.c).
func peerIndex(l netlink.Link) int {
	if p := l.Attrs().ParentIndex; p != 0 {
		return p
	}
	return l.Attrs().Index
}

// isPodLinkName reports whether a name is one that only host ends of Pods may have.
func isPodLinkName(name string) bool {
	return strings.HasPrefix(name, podnet.HostIfPrefix) && len(name) > len(podnet.HostIfPrefix)
}

// isPodLink reports whether a link is the host end of a Pod that weft made.
func isPodLink(l netlink.Link) bool {
	g := l.Attrs().Group
	return l.Type() == "veth" && isPodLinkName(l.Attrs().Name) && (g == GroupPods || g == GroupDeleting)
}

// linkText names a link for an error text.
func linkText(name string, index int) string { return name + " (index " + strconv.Itoa(index) + ")" }
