package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Names of the machines that are no nodes.
const (
	Router  = "router"
	Outside = "outside"
)

// uplink is the name of a machine's link to its subnet.
const uplink = "eth0"

// The addresses of the lab. The last part of a router's address is 1, a node's is nodeHost + its number.
const (
	nodeHost    = 10
	outsideHost = 2
)

func subnetName(subnet int) string { return fmt.Sprintf("subnet%d", subnet) }

// subnetPrefixes returns the prefixes of a subnet of nodes, with the given host part as their address.
func (s *state) subnetPrefixes(subnet, host int) []netip.Prefix {
	return s.keep(fmt.Sprintf("172.30.%d.%d/24", subnet, host), fmt.Sprintf("fd00:172:30:%d::%d/64", subnet, host))
}

// outsidePrefixes are documentation prefixes (RFC 5737, RFC 3849).
func (s *state) outsidePrefixes(host int) []netip.Prefix {
	return s.keep(fmt.Sprintf("198.51.100.%d/24", host), fmt.Sprintf("2001:db8:51::%d/64", host))
}

func (s *state) podPrefixes(number int) []netip.Prefix {
	return s.keep(fmt.Sprintf("10.244.%d.0/24", number), fmt.Sprintf("fd00:10:244:%d::/64", number))
}

// keep drops the families that the lab has not.
func (s *state) keep(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		if p := netip.MustParsePrefix(text); s.Families.has(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// hardwareAddress is the same at each boot, as a real network card's: the neighbours of a node that rebooted know it by this.
func hardwareAddress(machine string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(machine))
	return net.HardwareAddr{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]} // locally administered
}

func addressesOf(prefixes []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range prefixes {
		out = append(out, p.Addr())
	}
	return out
}

func handleAt(fd int) (*netlink.Handle, error) {
	return netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
}

// buildUnderlay makes the router with a bridge per subnet, and the machine outside with a server on it.
func (l *Lab) buildUnderlay(ctx context.Context) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	router, err := l.hold(ctx, s, Router, roleRouter)
	if err != nil {
		return err
	}
	outside, err := l.hold(ctx, s, Outside, roleHost)
	if err != nil {
		return err
	}
	if err := l.update(func(s *state) error { s.Router, s.Outside = router, outside; return nil }); err != nil {
		return err
	}
	h, fd, err := router.netlinkIn()
	if err != nil {
		return err
	}
	defer func() { h.Close(); _ = unix.Close(fd) }()
	for subnet := 1; subnet <= s.Subnets; subnet++ {
		if err := addBridge(h, subnetName(subnet), s.MTU, s.subnetPrefixes(subnet, 1)); err != nil {
			return err
		}
	}
	if err := addBridge(h, "uplink", s.MTU, s.outsidePrefixes(1)); err != nil {
		return err
	}
	if err := plug(h, outside, "uplink", s.MTU, s.outsidePrefixes(outsideHost), addressesOf(s.outsidePrefixes(1))); err != nil {
		return err
	}
	_, err = l.run(ctx, s, outside, l.serverProgram(s, Outside, Outside, "", Outside+"-server"))
	return err
}

// addBridge makes a subnet in the router.
func addBridge(h *netlink.Handle, name string, mtu int, addresses []netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	attrs.HardwareAddr = hardwareAddress(name) // or it would change with each port, and everybody know the router by an old one
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := h.LinkAdd(link); err != nil {
		return fmt.Errorf("making bridge %s: %w", name, err)
	}
	return setUp(h, link, addresses)
}

// setUp sets a link up with its addresses, all usable at once: duplicate address detection, also that of the link-local address
// which the kernel makes, would take seconds that a real network has had before anybody runs a Pod on it.
func setUp(h *netlink.Handle, link netlink.Link, addresses []netip.Prefix) error {
	all := slices.Clone(addresses)
	for _, p := range addresses {
		if p.Addr().Is4() {
			continue
		}
		if err := h.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE); err != nil {
			return fmt.Errorf("keeping the kernel from making a link-local address on %s: %w", link.Attrs().Name, err)
		}
		local := [16]byte{0: 0xfe, 1: 0x80, 15: p.Addr().As16()[15]}
		all = append(all, netip.PrefixFrom(netip.AddrFrom16(local), 64))
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting link %s up: %w", link.Attrs().Name, err)
	}
	return addAddresses(h, link, all)
}

func addAddresses(h *netlink.Handle, link netlink.Link, addresses []netip.Prefix) error {
	for _, p := range addresses {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("adding address %s to %s: %w", p, link.Attrs().Name, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// plug connects a machine to a bridge of the router, whose netlink handle is given.
func plug(router *netlink.Handle, m machine, bridge string, mtu int, addresses []netip.Prefix, gateways []netip.Addr) error {
	h, fd, err := m.netlinkIn()
	if err != nil {
		return err
	}
	defer func() { h.Close(); _ = unix.Close(fd) }()
	master, err := router.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("looking up bridge %s: %w", bridge, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = m.Name, mtu, master.Attrs().Index
	// Both ends are born where they belong: neither is ever seen on the host.
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerNamespace: netlink.NsFd(fd), PeerHardwareAddr: hardwareAddress(m.Name)}
	if err := router.LinkAdd(veth); err != nil {
		return fmt.Errorf("making the link of %s: %w", m.Name, err)
	}
	if err := router.LinkSetUp(veth); err != nil {
		return fmt.Errorf("setting the link of %s up: %w", m.Name, err)
	}
	link, err := h.LinkByName(uplink)
	if err != nil {
		return fmt.Errorf("looking up %s of %s: %w", uplink, m.Name, err)
	}
	if err := setUp(h, link, addresses); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	return setGateways(h, link, gateways)
}

func setGateways(h *netlink.Handle, link netlink.Link, gateways []netip.Addr) error {
	for _, gw := range gateways {
		zero := netip.IPv6Unspecified()
		if gw.Is4() {
			zero = netip.IPv4Unspecified()
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(zero, 0)), Gw: gw.AsSlice()}
		if err := h.RouteReplace(route); err != nil {
			return fmt.Errorf("setting the default route by %s: %w", gw, err)
		}
	}
	return nil
}

// unplug removes a machine's link, as pulling its cable would: at once, while the namespace itself takes a moment to go.
func unplug(s *state, name string) error {
	h, fd, err := s.Router.netlinkIn()
	if err != nil {
		return err
	}
	defer func() { h.Close(); _ = unix.Close(fd) }()
	link, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = h.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("removing the link of %s: %w", name, err)
	}
	return nil
}

// routePods tells the router the way to a node's Pods, where there is no tunnel and a router in between: mode native over
// several subnets. remove takes it back.
func routePods(s *state, n *Node, remove bool) error {
	if s.Mode != "native" || s.Subnets == 1 || s.Taught {
		return nil
	}
	h, fd, err := s.Router.netlinkIn()
	if err != nil {
		return err
	}
	defer func() { h.Close(); _ = unix.Close(fd) }()
	for _, dst := range n.PodCIDRs {
		for _, via := range n.Addresses {
			if via.Is4() != dst.Addr().Is4() {
				continue
			}
			route := &netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()}
			if remove {
				err = h.RouteDel(route)
			} else {
				err = h.RouteReplace(route)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("telling the router the way to %s: %w", dst, err)
			}
		}
	}
	return nil
}

// Readdress gives a node other addresses on its subnet, as a new DHCP lease would, and then changes its Node object.
func (l *Lab) Readdress(name string) error {
	n, s, err := l.node(name)
	if err != nil {
		return err
	}
	h, fd, err := n.netlinkIn()
	if err != nil {
		return err
	}
	defer func() { h.Close(); _ = unix.Close(fd) }()
	link, err := h.LinkByName(uplink)
	if err != nil {
		return fmt.Errorf("looking up %s of %s: %w", uplink, name, err)
	}
	for _, p := range s.subnetPrefixes(n.Subnet, n.Host) {
		// The old one goes first: a second address of a subnet is removed together with the first.
		if err := h.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
			return fmt.Errorf("removing address %s of %s: %w", p, name, err)
		}
	}
	if err := routePods(s, n, true); err != nil {
		return err
	}
	n.Host += 100
	if n.Host > 200 {
		n.Host -= 150
	}
	prefixes := s.subnetPrefixes(n.Subnet, n.Host)
	n.Addresses = addressesOf(prefixes)
	if err := addAddresses(h, link, prefixes); err != nil {
		return err
	}
	if err := setGateways(h, link, addressesOf(s.subnetPrefixes(n.Subnet, 1))); err != nil {
		return err
	}
	if err := routePods(s, n, false); err != nil {
		return err
	}
	if err := l.updateNode(name, func(old *Node) { old.Host, old.Addresses = n.Host, n.Addresses }); err != nil {
		return err
	}
	return l.writeNode(n)
}

// serverProgram is the built-in server, for a Pod or for the machine outside.
func (l *Lab) serverProgram(s *state, pod, node, netns, log string) program {
	return program{
		Argv: []string{s.WeftBin, PodCommand, "serve", "--pod", pod, "--node", node}, Log: l.logPath(log), NetNS: netns, Wait: true,
	}
}
