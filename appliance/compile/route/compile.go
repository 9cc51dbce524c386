package route

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/ipam"
	"weft.network/weft/appliance/model"
)

// Compile returns what this node needs to reach every other node's Pods. It never fails as a whole: what cannot be done is a
// Problem of one peer or a warning, and the rest goes on.
func Compile(snap *model.Snapshot, cfg Config, under Underlay) State {
	c := compiler{cfg: cfg, under: under, self: snap.Node(cfg.NodeName), ranges: map[netip.Prefix]string{}}
	if c.self == nil {
		c.warn("node %q is not known to the cluster yet: no routes to other nodes", cfg.NodeName)
		return c.out
	}
	c.local()
	for _, n := range snap.SortedNodes() {
		if n.Name != cfg.NodeName {
			c.peer(n)
		}
	}
	c.learned()
	c.finish(snap)
	return c.out
}

type compiler struct {
	cfg    Config
	under  Underlay
	self   *model.Node
	link   UnderlayLink // the link that has the node's primary address
	outer  netip.Addr   // the node's own end of the tunnel
	tunnel *Tunnel
	ranges map[netip.Prefix]string // of the peers so far, with their names
	out    State
}

func (c *compiler) warn(format string, args ...any) {
	c.out.Warnings = append(c.out.Warnings, fmt.Sprintf(format, args...))
}

// local works out the node's own side: underlay link, MTU, addresses in the Pod network.
func (c *compiler) local() {
	for _, a := range c.self.Addresses {
		if l, ok := c.linkOf(a); ok {
			c.outer, c.link = a, l
			break
		}
	}
	if !c.outer.IsValid() {
		c.warn("none of the node's addresses %v is on a link of this machine: set nodeAddresses in weft.yaml or kubelet's --node-ip", c.self.Addresses)
	}
	c.out.PodRanges = c.self.PodCIDRs
	for _, p := range c.self.PodCIDRs {
		if hit, why := c.overlaps(p); hit {
			c.warn("the node's Pod range %s overlaps %s: Pods and machines need ranges of their own", p, why)
		}
		if !sameFamily(c.self.Addresses, p.Addr()).IsValid() {
			c.warn("the node has Pod range %s, but no address of that family (%v): its Pods reach other nodes only through the tunnel, "+
				"and nothing outside of the cluster; give the node such an address or take the range away", p, c.self.Addresses)
		}
		c.out.HostNet.NodeAddresses = append(c.out.HostNet.NodeAddresses, ipam.NodeAddress(p))
		c.out.HostNet.Blackholes = append(c.out.HostNet.Blackholes, p)
	}
	c.out.PodMTU = c.podMTU()
}

// overlaps says whether a Pod range collides with a subnet of an underlay link.
func (c *compiler) overlaps(p netip.Prefix) (bool, string) {
	for _, l := range c.under.Links {
		for _, a := range l.Addresses {
			if a.Masked().Overlaps(p) && a.Bits() > 0 {
				return true, fmt.Sprintf("the subnet %s of link %s", a.Masked(), l.Name)
			}
		}
	}
	return false, ""
}

// podMTU is the underlay's, less the tunnel's overhead unless no packet can ever be tunnelled.
func (c *compiler) podMTU() int {
	mtu := c.link.MTU
	if mtu == 0 {
		mtu = 1500
	}
	if c.cfg.Mode != ModeNative {
		mtu -= c.overhead()
	}
	if c.cfg.MTU == 0 {
		return mtu
	}
	if c.cfg.MTU > mtu {
		c.warn("fabric.mtu %d is more than link %s can carry (%d): large packets will be lost", c.cfg.MTU, c.link.Name, mtu)
	}
	return c.cfg.MTU
}

func (c *compiler) overhead() int {
	if c.outer.Is6() {
		return Overhead6
	}
	return Overhead4
}

// linkOf finds the link that has exactly this address.
func (c *compiler) linkOf(a netip.Addr) (UnderlayLink, bool) {
	for _, l := range c.under.Links {
		for _, p := range l.Addresses {
			if p.Addr() == a {
				return l, true
			}
		}
	}
	return UnderlayLink{}, false
}

// adjacent finds the link whose subnet covers the address: the peer is one hop away.
func (c *compiler) adjacent(a netip.Addr) (string, bool) {
	for _, l := range c.under.Links {
		for _, p := range l.Addresses {
			if p.Masked().Contains(a) && !p.IsSingleIP() {
				return l.Name, true
			}
		}
	}
	return "", false
}

// peer adds what is needed for one other node.
func (c *compiler) peer(n *model.Node) {
	p := Peer{Node: n.Name, PodCIDRs: n.PodCIDRs, Mode: ModeNative}
	for _, r := range n.PodCIDRs {
		p.Inner = append(p.Inner, ipam.NodeAddress(r))
	}
	if len(n.PodCIDRs) == 0 {
		p.Problem = "it has no Pod range yet (node.spec.podCIDRs is empty)"
	} else if why := c.clash(n); why != "" {
		p.Problem = why
	} else {
		for _, r := range n.PodCIDRs {
			c.ranges[r] = n.Name
		}
		c.reach(n, &p)
	}
	if p.Problem != "" {
		c.warn("node %s: %s", n.Name, p.Problem)
	}
	c.out.Peers = append(c.out.Peers, p)
}

// clash refuses a peer's range that overlaps our own or the underlay: its route would cut off local Pods or machines. A range that two
// peers have belongs to the first of them by name, on every node alike.
func (c *compiler) clash(n *model.Node) string {
	for _, a := range n.Addresses {
		_, here := c.linkOf(a)
		if here || slices.Contains(c.self.Addresses, a) {
			return fmt.Sprintf("it claims this node's own address %s: delete the Node that is gone", a)
		}
	}
	for _, r := range n.PodCIDRs {
		for _, own := range c.self.PodCIDRs {
			if r.Overlaps(own) {
				return fmt.Sprintf("its Pod range %s overlaps this node's %s: give each node a range of its own", r, own)
			}
		}
		if hit, why := c.overlaps(r); hit {
			return fmt.Sprintf("its Pod range %s overlaps %s", r, why)
		}
		if other, ok := c.ranges[r]; ok {
			return fmt.Sprintf("node %s has its Pod range %s too, and traffic to that goes there: give each node a range of its own, or delete the Node that is gone", other, r)
		}
	}
	return ""
}

// reach chooses the way to one peer.
func (c *compiler) reach(n *model.Node, p *Peer) {
	if !c.outer.IsValid() {
		p.Problem = "this node has no usable address of its own"
		return
	}
	if c.cfg.Mode != ModeVXLAN && c.native(n, p) {
		return
	}
	if c.cfg.Mode == ModeNative {
		p.Outer = sameFamily(n.Addresses, c.outer)
		if !p.Outer.IsValid() && len(n.Addresses) > 0 {
			p.Outer = n.Addresses[0]
		}
		// Not on our subnet: BGP or a router in between must know the way. Without a learned route the default route serves.
		p.Routed = true
		return
	}
	c.vxlan(n, p)
}

// native adds plain routes if the peer is on one of our subnets in each family that its Pod ranges need.
func (c *compiler) native(n *model.Node, p *Peer) bool {
	var routes []Route
	for _, dst := range n.PodCIDRs {
		via, link, ok := c.hop(n, dst.Addr().Is4())
		if !ok {
			return false
		}
		routes = append(routes, Route{Dst: dst, Via: via, Link: link})
		if !p.Outer.IsValid() {
			p.Outer = via
		}
	}
	c.out.HostNet.Routes = append(c.out.HostNet.Routes, routes...)
	return true
}

// hop finds an adjacent address of the node for a destination family. IPv4 Pods may go by an IPv6 next hop (RFC 5549), but
// only as a last resort and only IPv4 by IPv6: the kernel knows no IPv6 route with an IPv4 gateway.
func (c *compiler) hop(n *model.Node, want4 bool) (netip.Addr, string, bool) {
	for _, a := range n.Addresses {
		if link, ok := c.adjacent(a); ok && a.Is4() == want4 {
			return a, link, true
		}
	}
	return netip.Addr{}, "", false
}

// vxlan adds the peer to the tunnel.
func (c *compiler) vxlan(n *model.Node, p *Peer) {
	p.Mode = ModeVXLAN
	p.Outer = sameFamily(n.Addresses, c.outer)
	if !p.Outer.IsValid() {
		p.Problem = fmt.Sprintf("it has no address of the family of %s, which this node's tunnel uses", c.outer)
		return
	}
	if c.tunnel == nil {
		c.tunnel = &Tunnel{
			VNI: c.cfg.VNI, Port: c.cfg.Port, Local: c.outer, Link: c.link.Name,
			MAC: TunnelMAC(c.self.Name), MTU: c.link.MTU - c.overhead(),
		}
	}
	peer := TunnelPeer{Node: n.Name, Outer: p.Outer, MAC: TunnelMAC(n.Name)}
	for i, dst := range n.PodCIDRs {
		peer.NextHops = append(peer.NextHops, p.Inner[i])
		c.out.HostNet.Routes = append(c.out.HostNet.Routes, Route{
			Dst: dst, Via: p.Inner[i], Link: TunnelLink, Src: c.ownInner(dst.Addr().Is4()), OnLink: true,
		})
	}
	c.tunnel.Peers = append(c.tunnel.Peers, peer)
	c.out.TunnelSources = append(c.out.TunnelSources, p.Outer)
}

// ownInner is this node's own address in the Pod network, in one family; zero when it has none.
func (c *compiler) ownInner(want4 bool) netip.Addr {
	for _, a := range c.out.HostNet.NodeAddresses {
		if a.Is4() == want4 {
			return a
		}
	}
	return netip.Addr{}
}

// TunnelMAC derives a node's tunnel end from its name: every node computes the same one, so nothing is negotiated and a node
// that returns after years has the same identity.
func TunnelMAC(node string) model.MAC {
	sum := sha256.Sum256([]byte("weft tunnel " + node))
	m := model.MAC(sum[:6])
	m[0] = m[0]&^1 | 2 // unicast, locally administered
	return m
}

func sameFamily(addrs []netip.Addr, as netip.Addr) netip.Addr {
	for _, a := range addrs {
		if a.Is4() == as.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// finish sorts, and gathers the destinations that see a Pod's own address.
func (c *compiler) finish(snap *model.Snapshot) {
	c.out.HostNet.Tunnel = c.tunnel
	if c.tunnel != nil && c.cfg.MTU > 0 && c.cfg.MTU < c.tunnel.MTU {
		c.tunnel.MTU = c.cfg.MTU
	}
	slices.SortFunc(c.out.TunnelSources, netip.Addr.Compare)
	keep := append(slices.Clone(c.cfg.NoMasquerade), c.self.PodCIDRs...)
	for _, p := range c.out.Peers {
		if p.Problem == "" {
			keep = append(keep, p.PodCIDRs...)
		}
		// A native peer has a route back to our Pods; behind a tunnel the answer would take another way than the question,
		// and the underlay may drop Pod addresses, so the node's address is used there.
		if p.Mode == ModeNative && p.Outer.IsValid() && p.Problem == "" {
			for _, a := range snap.Node(p.Node).Addresses {
				keep = append(keep, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	c.out.NoMasquerade = Disjoint(keep)
}

// Disjoint sorts prefixes and drops those that another one covers: kernel interval sets refuse or corrupt overlaps.
func Disjoint(in []netip.Prefix) []netip.Prefix {
	sorted := make([]netip.Prefix, 0, len(in))
	for _, p := range in {
		sorted = append(sorted, p.Masked())
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []netip.Prefix
	for _, p := range sorted {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}
