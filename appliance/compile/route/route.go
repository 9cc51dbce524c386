// Package route turns the cluster's nodes into what one node needs to reach their Pods: the tunnel, routes, neighbours, and the traffic that is not masqueraded.
package route

import (
	"errors"
	"net/netip"

	"weft.network/weft/appliance/model"
)

// Mode is how packets reach another node's Pods.
type Mode string

// The modes of fabric.mode.
const (
	ModeAuto   Mode = "auto"   // native to nodes on the same subnet, vxlan to the others
	ModeNative Mode = "native" // routes only
	ModeVXLAN  Mode = "vxlan"  // tunnel to every node
)

// The links that weft owns on a node besides the host ends of Pods.
const (
	// NodeLink carries the node's own address in the Pod network. It is a bridge without ports: the one link type besides
	// veth that even small kernels have and that needs no peer.
	NodeLink = "weft0"
	// TunnelLink is the VXLAN device.
	TunnelLink = "weft.vx"
)

// VXLAN overhead in bytes (RFC 7348 section 5): inner Ethernet 14 + VXLAN 8 + UDP 8 + outer IP 20 or 40.
const (
	Overhead4 = 50
	Overhead6 = 70
)

// Config is what the administrator may set.
type Config struct {
	NodeName string
	Mode     Mode
	// MTU of Pod interfaces in bytes; 0 takes it from the underlay.
	MTU  int
	VNI  uint32
	Port uint16
	// NoMasquerade are further destinations that see the Pod's own address.
	NoMasquerade []netip.Prefix
	Masquerade   bool
	// Learned are the routes that BGP neighbours told this node.
	Learned []model.LearnedRoute
}

// Underlay is what the kernel says of the links that carry traffic between nodes; weft's own links are not in it.
type Underlay struct {
	Links []UnderlayLink
	// Hops say how to get to next hops of learned routes that are on no subnet of the node.
	Hops map[netip.Addr]Hop
}

// Hop is the first step on the way to an address.
type Hop struct {
	Via  netip.Addr
	Link string
}

// UnderlayLink is one link of the node with its addresses.
type UnderlayLink struct {
	Name string
	MTU  int
	// Addresses with the length of their subnet, e.g. 192.168.1.5/24.
	Addresses []netip.Prefix
}

// ErrNodeLink says that the node's own addresses in the Pod network cannot be had: what is missing is the gateway of each Pod.
var ErrNodeLink = errors.New("the node's own link in the Pod network")

// HostNet is the whole desired state of the node's own network, except for Pods: links, addresses, routes, neighbours and
// forwarding entries. Applying it twice changes nothing.
type HostNet struct {
	// NodeAddresses are put on NodeLink as host prefixes: the node's own address in the Pod network, one per family.
	NodeAddresses []netip.Addr
	// Tunnel is nil when no peer needs it: the device is then removed.
	Tunnel *Tunnel
	Routes []Route
	// Blackholes are this node's own Pod ranges: packets to an address that no Pod has are refused at once (unreachable)
	// instead of looping through the default route.
	Blackholes []netip.Prefix
}

// Tunnel is the VXLAN device and its peers.
type Tunnel struct {
	VNI  uint32
	Port uint16
	// Local is the outer source address; Link the underlay link that has it.
	Local netip.Addr
	Link  string
	MAC   model.MAC
	MTU   int
	Peers []TunnelPeer
}

// TunnelPeer is one other end. VTEP identity is derived, not negotiated: the MAC comes from the node's name.
type TunnelPeer struct {
	Node  string
	Outer netip.Addr
	MAC   model.MAC
	// NextHops are the addresses that routes through the tunnel name as gateway, one per family; each gets a permanent neighbour.
	NextHops []netip.Addr
}

// Route is one route to another node's Pod range.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
	// Link is the name of the outgoing link.
	Link string
	// Src is the preferred source for packets of the node itself; zero leaves it to the kernel.
	Src netip.Addr
	// OnLink tells the kernel to accept Via although no address of Link covers it.
	OnLink bool
	// Metric is 0 for the kernel's default; routes with a greater one give way to those of others.
	Metric int
}

// Peer is one other node as the fabric sees it: for probes, the status screen and the firewall.
type Peer struct {
	Node string
	Mode Mode // ModeNative or ModeVXLAN
	// Outer is the node address that is used.
	Outer netip.Addr
	// Inner are the peer's own addresses in the Pod network, one per family; probes go to them.
	Inner    []netip.Addr
	PodCIDRs []netip.Prefix
	// Routed is true for a native peer on another subnet: routers in between, or BGP, must know the way.
	Routed bool
	// Problem says why this peer cannot be reached; empty when it can.
	Problem string
}

// State is the result of Compile.
type State struct {
	HostNet HostNet
	Peers   []Peer
	// PodMTU is for Pod interfaces, in bytes.
	PodMTU int
	// PodRanges are this node's own ranges: sources that are masqueraded on the way out of the cluster.
	PodRanges []netip.Prefix
	// NoMasquerade are destinations that see the Pod's own address, sorted and disjoint.
	NoMasquerade []netip.Prefix
	// TunnelSources are the only outer addresses from which VXLAN packets are accepted.
	TunnelSources []netip.Addr
	// Warnings are for the log and the status screen.
	Warnings []string
}
