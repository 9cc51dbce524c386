package model

import (
	"fmt"
	"net/netip"
)

// LoadBalancerPool is addresses that Services of type LoadBalancer may get.
type LoadBalancerPool struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
	// Blocks are the addresses, in the order in which they are given out; they do not overlap.
	Blocks []AddressBlock `json:"blocks,omitempty"`
	// NodeAddresses gives out the addresses of the nodes themselves instead of Blocks.
	NodeAddresses bool `json:"nodeAddresses,omitempty"`
	// OnRequest keeps the pool for Services that ask for it or for one of its addresses (autoAssign: false).
	OnRequest bool `json:"onRequest,omitempty"`
	// AvoidEdges leaves out IPv4 addresses that end in .0 or .255, which some old devices cannot talk to.
	AvoidEdges bool `json:"avoidEdges,omitempty"`
	// Priority: pools with a higher one are tried first.
	Priority int `json:"priority,omitempty"`
	// Services and Namespaces say who may use the pool; nil means everybody.
	Services   *Selector `json:"services,omitempty"`
	Namespaces *Selector `json:"namespaces,omitempty"`
	// Nodes may announce the addresses, or give theirs; nil means all.
	Nodes *Selector `json:"nodes,omitempty"`
	// NoL2 leaves the addresses to BGP: nobody answers for them on a segment.
	NoL2 bool `json:"noL2,omitempty"`
	// Interfaces are names or patterns such as "eth*" of links on which the addresses are answered for. Without any, it is
	// the links in whose subnet an address is.
	Interfaces []string `json:"interfaces,omitempty"`
	// Created is creationTimestamp in seconds since 1970: the older pool wins a conflict.
	Created int64 `json:"created,omitempty"`
}

// AddressBlock is all addresses from First to Last, of one family.
type AddressBlock struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
}

// String prints a block as a person would write it.
func (b AddressBlock) String() string {
	if b.First == b.Last {
		return b.First.String()
	}
	for bits := b.First.BitLen() - 1; bits >= 0; bits-- {
		p := netip.PrefixFrom(b.First, bits)
		if p.Masked().Addr() != b.First {
			break
		}
		if BlockOf(p).Last == b.Last {
			return p.String()
		}
	}
	return fmt.Sprintf("%s-%s", b.First, b.Last)
}

// Contains reports whether the address is in the block.
func (b AddressBlock) Contains(a netip.Addr) bool {
	return a.Is4() == b.First.Is4() && b.First.Compare(a) <= 0 && a.Compare(b.Last) <= 0
}

// Overlaps reports whether the blocks have an address in common.
func (b AddressBlock) Overlaps(o AddressBlock) bool {
	return b.First.Is4() == o.First.Is4() && b.First.Compare(o.Last) <= 0 && o.First.Compare(b.Last) <= 0
}

// BlockOf returns the addresses of a prefix.
func BlockOf(p netip.Prefix) AddressBlock {
	p = p.Masked()
	last := p.Addr().AsSlice()
	for i := range last {
		keep := min(max(p.Bits()-8*i, 0), 8)
		last[i] |= byte(0xff) >> keep
	}
	addr, _ := netip.AddrFromSlice(last) // of the same length as an address
	return AddressBlock{First: p.Addr(), Last: addr}
}

// ReasonNode is the Reason of an Allocation whose addresses are those of nodes.
const ReasonNode = "NodeAddress"

// Allocation is what weft has told the users of a Service about its load-balancer addresses (a condition in its status).
type Allocation struct {
	OK      bool   `json:"ok"`
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}
