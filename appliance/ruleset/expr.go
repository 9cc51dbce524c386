package ruleset

import (
	"fmt"
	"strings"
)

// Expr is something that has a value when a packet passes: a field of the packet, what the kernel knows of it, a lookup.
type Expr interface {
	// Text prints the expression as nft(8) does.
	Text() string
	// Type is the type of the value, or 0 if it has none that sets can hold.
	Type() Type
}

// Field is a field of a packet's header. The backend adds the check that the packet has such a header, as nft(8) does, and
// nft(8) does not print that check.
type Field uint8

// The header fields in use.
const (
	IPSaddr Field = iota + 1
	IPDaddr
	IP6Saddr
	IP6Daddr
	THSport // the source port of whatever transport protocol the packet has
	THDport
	TCPSport
	TCPDport
	UDPSport
	UDPDport
)

var fieldNames = [...]string{
	IPSaddr: "ip saddr", IPDaddr: "ip daddr", IP6Saddr: "ip6 saddr", IP6Daddr: "ip6 daddr",
	THSport: "th sport", THDport: "th dport", TCPSport: "tcp sport", TCPDport: "tcp dport", UDPSport: "udp sport", UDPDport: "udp dport",
}

// Text implements Expr.
func (f Field) Text() string { return fieldNames[f] }

// Type implements Expr.
func (f Field) Type() Type {
	switch f {
	case IPSaddr, IPDaddr:
		return TypeIPv4Addr
	case IP6Saddr, IP6Daddr:
		return TypeIPv6Addr
	}
	return TypeInetService
}

// Meta is what the kernel knows of a packet besides its bytes.
type Meta uint8

// The keys in use.
const (
	MetaIIFName Meta = iota + 1
	MetaOIFName
	MetaMark
	MetaL4Proto
	MetaNFProto
	MetaPriority // also used as a scratch register of 32 bits, which is why it has the type of what was put into it
	MetaPktType
)

var metaNames = [...]string{
	MetaIIFName: "iifname", MetaOIFName: "oifname", MetaMark: "meta mark", MetaL4Proto: "meta l4proto",
	MetaNFProto: "meta nfproto", MetaPriority: "meta priority", MetaPktType: "meta pkttype",
}

// Text implements Expr.
func (m Meta) Text() string { return metaNames[m] }

// Type implements Expr.
func (m Meta) Type() Type {
	switch m {
	case MetaIIFName, MetaOIFName:
		return TypeIfName
	case MetaMark:
		return TypeMark
	case MetaL4Proto:
		return TypeInetProto
	case MetaPriority:
		return TypeIPv4Addr
	}
	return 0
}

// Ct is what connection tracking knows of a packet's connection.
type Ct uint8

// The keys in use.
const (
	CtState Ct = iota + 1
	CtStatus
	CtMark
	CtDirection
)

var ctNames = [...]string{CtState: "ct state", CtStatus: "ct status", CtMark: "ct mark", CtDirection: "ct direction"}

// Text implements Expr.
func (c Ct) Text() string { return ctNames[c] }

// Type implements Expr.
func (c Ct) Type() Type {
	if c == CtMark {
		return TypeMark
	}
	return 0
}

// Bits of CtState and CtStatus (linux/netfilter/nf_conntrack_common.h), for HasAny.
const (
	StateInvalid     uint32 = 1
	StateEstablished uint32 = 2
	StateRelated     uint32 = 4
	StateNew         uint32 = 8
	StateUntracked   uint32 = 64
	StatusSNAT       uint32 = 16
	StatusDNAT       uint32 = 32
)

// Fib asks the routing table.
type Fib uint8

// The questions in use.
const (
	FibSaddrIif  Fib = iota + 1 // would a packet to the source go out where this one came in? 1 yes, 0 no.
	FibDaddrType                // the type of the destination (linux/rtnetlink.h)
)

// Text implements Expr.
func (f Fib) Text() string {
	if f == FibSaddrIif {
		return "fib saddr . iif oif"
	}
	return "fib daddr type"
}

// Type implements Expr.
func (f Fib) Type() Type { return 0 }

// Numgen is a random number from 0 to Mod-1.
type Numgen struct{ Mod uint32 }

// Text implements Expr.
func (n Numgen) Text() string { return fmt.Sprintf("numgen random mod %d", n.Mod) }

// Type implements Expr.
func (n Numgen) Type() Type { return TypeMark }

// Jhash is a hash of Of from 0 to Mod-1: the same packets get the same number. Seed must not be 0, or each kernel draws its own.
type Jhash struct {
	Of   Expr
	Mod  uint32
	Seed uint32
}

// Text implements Expr.
func (j Jhash) Text() string {
	return fmt.Sprintf("jhash %s mod %d seed 0x%x", j.Of.Text(), j.Mod, j.Seed)
}

// Type implements Expr.
func (j Jhash) Type() Type { return TypeMark }

// Concat is several expressions side by side, the key of a set with several fields.
type Concat []Expr

// Text implements Expr.
func (c Concat) Text() string {
	parts := make([]string, len(c))
	for i, e := range c {
		parts[i] = e.Text()
	}
	return strings.Join(parts, " . ")
}

// Type implements Expr.
func (c Concat) Type() Type { return 0 }

// MapOf is the data that the map of that name has for Key; where it has none, the rule does not match.
type MapOf struct {
	Key Expr
	Map string
}

// Text implements Expr.
func (m MapOf) Text() string { return m.Key.Text() + " map @" + m.Map }

// Type implements Expr.
func (m MapOf) Type() Type { return 0 }
