// Package policy turns NetworkPolicies into what each Pod of this node may exchange with whom: data for fixed rules, and, apart from that, the verdict on one packet.
package policy

import (
	"net/netip"

	"weft.network/weft/appliance/model"
)

// Direction is one side of a connection, as its Pod sees it.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota
	Egress
)

// String names the direction.
func (d Direction) String() string { return [...]string{"ingress", "egress"}[d] }

// Input is what the filters depend on besides the Snapshot.
type Input struct {
	NodeName string
	// Attached are the Pods of this node with the addresses that weft gave them; they count before the cluster knows them.
	Attached []Attached
	// DNS are the addresses and ports at which this node itself answers for the cluster DNS.
	DNS []netip.AddrPort
}

// Attached is one Pod and its addresses.
type Attached struct {
	Pod       model.PodRef
	Addresses []netip.Addr
}

// dnsPorts are the named ports of the usual DNS.
var dnsPorts = []model.NamedPort{
	{Name: "dns", Protocol: model.UDP, Port: model.DNSPort}, {Name: "dns-tcp", Protocol: model.TCP, Port: model.DNSPort}, {Name: "metrics", Protocol: model.TCP, Port: model.DNSMetricsPort},
}

// The Pod for which the node's own DNS stands: what policies say about the Pods of the usual DNS is true for it, too.
const (
	dnsNamespace = "kube-system"
	dnsName      = "the DNS of this node"
	dnsLabel     = "k8s-app"
	dnsValue     = "kube-dns"
)

// ID is the identity of all Pods that no policy in force here tells apart. Numbers are given in order and never anew while
// the kernel may hold the old ones; 0 is nobody.
type ID uint32

// firstID is 0.1.0.0, so that nft(8), which prints identities like addresses, shows what cannot be mistaken for an address.
const firstID ID = 1 << 16

// Filters is what the kernel needs to know. Filters, shards and classes never change: what stays the same keeps its pointer.
type Filters struct {
	// Own are the addresses of this node's Pods that some policy selects.
	Own map[netip.Addr]*Filter
	// Attached are all addresses of this node's Pods, and whose they are.
	Attached map[netip.Addr]model.PodRef
	// Peers say who the Pods of the cluster are, as far as some filter asks for it.
	Peers [Shards]*Shard
	// Classes are the identities in use.
	Classes []*Class
	DNS     []netip.AddrPort
	// Problems are policies that do not do what their author may think.
	Problems []Problem

	left left
}

// Shards is how many groups the peers are in: a change copies one group.
const Shards = 128

// Shard is one group of peers, by address.
type Shard struct{ Peers map[netip.Addr]Peer }

// Peer is one address of a Pod.
type Peer struct {
	Pod   model.PodKey
	Class *Class
}

// Class is the Pods that no filter tells apart.
type Class struct {
	ID ID
	// Text says what they have in common.
	Text string

	attributes []int32 // sorted
	named      map[portName]uint16
}

// Filter is what one address of a Pod of this node may exchange. A nil direction is not isolated.
type Filter struct {
	Pod  model.PodRef
	Addr netip.Addr
	// Directions are by Direction.
	Directions [2]*Allowed
}

// Allowed is all that may pass in one direction.
type Allowed struct {
	// Audit says that what is not allowed here is told and passes all the same.
	Audit bool
	// Policies isolate the Pod.
	Policies []model.PolicyKey
	// Pods allows all traffic with every Pod, PodPorts some of it.
	Pods     bool
	PodPorts []Ports
	// Any are peers with whom everything is allowed, Ports others with some of it.
	Any   []ID
	Ports []PeerPorts
	// Nets are ranges of addresses with which everything is allowed, Blocks those with some of it. No two of all these overlap.
	Nets   []Range
	Blocks []RangePorts
}

// Ports are the ports of one protocol from First to Last.
type Ports struct {
	Protocol    model.Protocol
	First, Last uint16
}

// PeerPorts are ports of a peer, or for a peer.
type PeerPorts struct {
	Peer ID
	Ports
}

// Range is the addresses From to To.
type Range struct{ From, To netip.Addr }

// RangePorts are ports of a range.
type RangePorts struct {
	Range
	Ports
}

// Problem is a policy that does not do what its author may think.
type Problem struct {
	Policy model.PolicyKey
	Text   string
}
