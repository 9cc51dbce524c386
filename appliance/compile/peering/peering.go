// Package peering turns the picture of the cluster into what one node's BGP speaker is: its neighbours, what each of them is told, and what is taken from them.
package peering

import (
	"net/netip"

	"weft.network/weft/appliance/model"
)

// Labels of nodes that decide about BGP.
const (
	// DrainLabel takes the addresses of Services off a node before maintenance; its value is of no importance, except for "false".
	DrainLabel = "weft.network/drain"
	// ExcludeLabel is what Kubernetes calls the same (KEP-1143).
	ExcludeLabel = "node.kubernetes.io/exclude-from-external-load-balancers"
	// ReflectorLabel makes a node a route reflector of the mesh; an IPv4 address as value is its cluster ID.
	ReflectorLabel = "weft.network/route-reflector"
	// ASNLabel gives a node an AS number of its own.
	ASNLabel = "weft.network/bgp-asn"
)

// ourClass is how spec.loadBalancerClass names us; Services of other classes are announced by their own controllers.
const ourClass = "weft.network/"

// DefaultASN is the first AS number for private use (RFC 6996).
const DefaultASN = 64512

// Config is what the administrator may set for one node, and what the rest of the daemon knows.
type Config struct {
	NodeName string
	// ASN and RouterID are of this node; zero values choose.
	ASN      uint32
	RouterID netip.Addr
	Port     uint16
	Listen   bool
	// Mesh asks for sessions between all nodes, and MeshLimit says for how many nodes at most.
	Mesh      bool
	MeshLimit int
	// MeshSecret and MeshFile say where the password of those sessions is; nil and empty mean none.
	MeshSecret *model.SecretRef
	MeshFile   string
	// Native is true when Pods of other nodes are reached without a tunnel, so that their ranges are worth telling.
	Native bool
	// Advertise are the defaults of all peers.
	Advertise model.BGPAdvertise
	// Aggregate are ranges that are told instead of the single addresses of Services in them.
	Aggregate []netip.Prefix
	// Peers are those of weft.yaml, in addition to the cluster's.
	Peers           []*model.BGPPeer
	SecretNamespace string
	// Files are the contents of password files, by path.
	Files map[string]Password
	// Drained is true when somebody has drained this node by hand.
	Drained bool
	// Subnets are those of the node's links.
	Subnets []netip.Prefix
}

// Password is what was found in a file.
type Password struct {
	Text string
	// Problem says why there is none.
	Problem string
}

// Speaker is the whole desired state of a node's BGP speaker. Without neighbours there is no speaker and no open port.
type Speaker struct {
	ASN      uint32
	RouterID netip.Addr
	// Port is where it listens; 0 means nowhere.
	Port uint16
	// Neighbours are sorted by address, Groups by name, Paths by prefix.
	Neighbours []Neighbour
	Groups     []Group
	Paths      []Path
	// Refused are peers without a session, and why.
	Refused []Refused
	// Drained says why no address of a Service is told; empty when that is not so.
	Drained  string
	Problems []string
}

// Neighbour is one session.
type Neighbour struct {
	// Name is that of the BGPPeer, or of the node for a session of the mesh.
	Name string
	Mesh bool

	Address  netip.Addr
	ASN      uint32
	LocalASN uint32
	Port     uint16
	Source   netip.Addr
	Passive  bool

	MultihopTTL     uint8
	TTLSecurityHops uint8

	HoldSeconds         uint32
	KeepaliveSeconds    uint32
	ConnectRetrySeconds uint32
	RestartSeconds      uint32

	Password    string
	IPv4, IPv6  bool
	MaxPrefixes uint32
	// ReflectorClient gets routes of other internal neighbours, ClusterID marks them; the zero address is the router ID.
	ReflectorClient bool
	ClusterID       netip.Addr

	// Group decides what is told, Import what is taken.
	Group  string
	Import []model.PrefixRule
}

// Internal reports whether both ends are in one AS.
func (n *Neighbour) Internal() bool { return n.ASN == n.LocalASN }

// Group is a set of neighbours that are told the same. Its name follows from what it says, so it stays while neighbours come and go.
type Group struct {
	Name string
	// IPv6 is the family of the sessions: the next hop of routes of that family is the session's own address.
	IPv6             bool
	Communities      []model.Community
	LargeCommunities []model.LargeCommunity
	LocalPreference  *uint32
	MED              *uint32
	// Reflect passes on what internal neighbours said.
	Reflect bool
}

// Path is one route that this node tells.
type Path struct {
	Prefix netip.Prefix
	// NextHop is for sessions of the other family.
	NextHop netip.Addr
	// Groups are told, sorted.
	Groups []string
	// Why names the range or the Services that the path stands for, Services has all of these, in no order.
	Why      string
	Services []model.ServiceKey `json:"-"`
}

// Refused is a peer that a node must not or cannot have a session with.
type Refused struct {
	Name    string
	Address netip.Addr
	ASN     uint32
	Why     string
}
