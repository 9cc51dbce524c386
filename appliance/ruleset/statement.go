package ruleset

import (
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"weft.network/weft/appliance/model"
)

// Statement is one step of a rule: a condition or an action.
type Statement interface {
	// Text prints the statement as nft(8) does.
	Text() string
}

// Match compares an expression with a value.
type Match struct {
	Left Expr
	Not  bool
	// Mask is applied to Left first; empty means all bits.
	Mask  Value
	Right Value
}

// Eq is the condition left == right.
func Eq(left Expr, right Value) Match { return Match{Left: left, Right: right} }

// Ne is the condition left != right.
func Ne(left Expr, right Value) Match { return Match{Left: left, Not: true, Right: right} }

// Within is the condition that an address lies in a prefix.
func Within(left Field, p netip.Prefix) Match {
	p = p.Masked()
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return Match{Left: left, Mask: Value(mask), Right: Addr(p.Addr())}
}

// Masked is the condition left & mask == right.
func Masked(left Expr, mask, right uint32) Match {
	return Match{Left: left, Mask: Mark(mask), Right: Mark(right)}
}

// Iif is the condition that the packet came in over an interface; a star at the end of the name stands for any rest.
func Iif(name string) Match { return Eq(MetaIIFName, IfName(name)) }

// Oif is the same for the interface over which the packet leaves.
func Oif(name string) Match { return Eq(MetaOIFName, IfName(name)) }

// L4 is the condition that the packet has that transport protocol.
func L4(p model.Protocol) Match { return Eq(MetaL4Proto, Proto(p)) }

// NFProto is the condition that the packet is of that family. It is for rules that look at no address: the fields of a
// header bring the check with them.
func NFProto(f Family) Match { return Eq(MetaNFProto, Value([]byte{familyNumber(f)})) }

func familyNumber(f Family) byte { return [...]byte{INet: 1, IPv4: 2, IPv6: 10}[f] }

// The conditions on the routing table and on the direction of a connection that are in use.
var (
	ReturnRoute = Eq(FibSaddrIif, Mark(1))
	ToLocal     = Eq(FibDaddrType, Mark(rtnLocal))
	ReplyPacket = Eq(CtDirection, "\x01")
	Unicast     = Eq(MetaPktType, "\x00")
)

const rtnLocal = 2 // RTN_LOCAL, linux/rtnetlink.h

// Text implements Statement.
func (m Match) Text() string {
	op := ""
	if m.Not {
		op = "!= "
	}
	if m.Mask == "" {
		return m.Left.Text() + " " + op + m.valueText()
	}
	// nft(8) prints a mask of leading ones as a prefix, whatever the type.
	if n, ok := m.maskLen(); ok {
		return fmt.Sprintf("%s %s%s/%d", m.Left.Text(), op, m.valueText(), n)
	}
	if op == "" {
		op = "== "
	}
	return fmt.Sprintf("%s & %s %s%s", m.Left.Text(), m.Left.Type().text(m.Mask), op, m.valueText())
}

// maskLen returns the number of leading ones of the mask if all others are zero.
func (m Match) maskLen() (int, bool) {
	if m.Left.Type() == TypeMark {
		v := m.Mask.uint32()
		return bits.LeadingZeros32(^v), ^v&(^v+1) == 0
	}
	n := 0
	for n < len(m.Mask)*8 && m.Mask[n/8]&(0x80>>(n%8)) != 0 {
		n++
	}
	for i := n; i < len(m.Mask)*8; i++ {
		if m.Mask[i/8]&(0x80>>(i%8)) != 0 {
			return 0, false
		}
	}
	return n, true
}

func (m Match) valueText() string {
	switch m.Left {
	case FibSaddrIif:
		return pick(byte(m.Right.uint32()), map[byte]string{0: "missing", 1: "exists"})
	case FibDaddrType:
		return pick(byte(m.Right.uint32()), map[byte]string{1: "unicast", rtnLocal: "local", 3: "broadcast", 5: "multicast"})
	case CtDirection:
		return pick(m.Right[0], map[byte]string{0: "original", 1: "reply"})
	case MetaNFProto:
		return pick(m.Right[0], map[byte]string{2: "ipv4", 10: "ipv6"})
	case MetaPriority:
		if m.Right == "\x00\x00\x00\x00" {
			return "none"
		}
	case MetaPktType:
		return pick(m.Right[0], map[byte]string{0: "host", 1: "broadcast", 2: "multicast", 3: "other"})
	}
	return m.Left.Type().text(m.Right)
}

func pick(b byte, names map[byte]string) string {
	if s, ok := names[b]; ok {
		return s
	}
	return fmt.Sprint(b)
}

// HasAny is the condition that CtState or CtStatus has at least one of the bits.
type HasAny struct {
	Left Ct
	Bits uint32
}

// Text implements Statement.
func (h HasAny) Text() string {
	names := map[uint32]string{
		StateInvalid: "invalid", StateEstablished: "established", StateRelated: "related", StateNew: "new", StateUntracked: "untracked",
	}
	if h.Left == CtStatus {
		names = map[uint32]string{StatusSNAT: "snat", StatusDNAT: "dnat"}
	}
	var out []string
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if h.Bits&bit != 0 {
			out = append(out, names[bit])
		}
	}
	return h.Left.Text() + " " + strings.Join(out, ",")
}

// Lookup is the condition that a set has the key, or has it not.
type Lookup struct {
	Key Expr
	Not bool
	Set string
}

// In is the condition that the set has the concatenation of the expressions.
func In(set string, key ...Expr) Lookup { return Lookup{Key: concat(key), Set: set} }

// NotIn is the condition that the set does not have it.
func NotIn(set string, key ...Expr) Lookup { return Lookup{Key: concat(key), Not: true, Set: set} }

func concat(key []Expr) Expr {
	if len(key) == 1 {
		return key[0]
	}
	return Concat(key)
}

// Text implements Statement.
func (l Lookup) Text() string {
	if l.Not {
		return l.Key.Text() + " != @" + l.Set
	}
	return l.Key.Text() + " @" + l.Set
}

// Vmap carries out the verdict that a verdict map has for the key; where it has none, the rule does not match.
type Vmap struct {
	Key Expr
	Map string
}

// Text implements Statement.
func (v Vmap) Text() string { return v.Key.Text() + " vmap @" + v.Map }

// Assign writes to MetaMark, MetaPriority or CtMark: From if it is set, otherwise (old & Keep) | Value.
type Assign struct {
	Target Expr
	From   Expr
	Keep   uint32
	Value  uint32
}

// Text implements Statement.
func (a Assign) Text() string {
	s := a.Target.Text() + " set "
	switch {
	case a.From != nil:
		return s + a.From.Text()
	case a.Keep == 0 && a.Target == MetaPriority:
		if a.Value == 0 {
			return s + "none"
		}
		return s + fmt.Sprintf("%x:%x", a.Value>>16, a.Value&0xffff)
	case a.Keep == 0:
		return s + fmt.Sprintf("0x%08x", a.Value)
	}
	// nft(8) prints the bits that are set as kept, too, since that makes no difference.
	if mask := a.Keep | a.Value; mask != ^uint32(0) {
		s += fmt.Sprintf("%s & 0x%08x", a.Target.Text(), mask)
	} else {
		s += a.Target.Text()
	}
	if a.Value != 0 {
		s += fmt.Sprintf(" | 0x%08x", a.Value)
	}
	return s
}

// NAT rewrites the destination, or the source, of a connection. The new address and port come from a map (data: address,
// or address . port) or are given.
type NAT struct {
	Source bool
	Family Family // IPv4 or IPv6
	From   *MapOf
	// WithPort says that the data of From has a port.
	WithPort bool
	Addr     netip.Addr
	Port     uint16
}

// Text implements Statement.
func (n NAT) Text() string {
	s := "dnat "
	if n.Source {
		s = "snat "
	}
	s += n.Family.String() + " to "
	switch {
	case n.From != nil:
		return s + n.From.Text()
	case n.Port != 0:
		return s + netip.AddrPortFrom(n.Addr, n.Port).String()
	}
	return s + n.Addr.String()
}

// DNATMap sends connections to the address and port that a map has for the key.
func DNATMap(f Family, set string, key ...Expr) NAT {
	return NAT{Family: f, From: &MapOf{Key: concat(key), Map: set}, WithPort: true}
}

// Remember puts the key with the data into a dynamic map, for Timeout seconds from now. A key that is there keeps its data, and
// its time begins anew. Where the map is full, the rule does not match.
type Remember struct {
	Map     string
	Key     Expr
	Data    Expr
	Timeout uint32
}

// Text implements Statement.
func (r Remember) Text() string {
	return fmt.Sprintf("update @%s { %s timeout %s : %s }", r.Map, r.Key.Text(), seconds(r.Timeout), r.Data.Text())
}

// Forget takes the key out of a dynamic map; it is no condition. The kernel wants some data named.
type Forget struct {
	Map  string
	Key  Expr
	Data Expr
}

// Text implements Statement.
func (f Forget) Text() string {
	return fmt.Sprintf("delete @%s { %s : %s }", f.Map, f.Key.Text(), f.Data.Text())
}

// seconds prints a length of time as nft(8) does.
func seconds(n uint32) (out string) {
	for _, u := range []struct {
		name string
		size uint32
	}{{"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}} {
		if n >= u.size {
			out += fmt.Sprint(n/u.size) + u.name
			n %= u.size
		}
	}
	return out
}

// Masquerade gives a connection the address of the interface over which it leaves.
type Masquerade struct {
	// FullyRandom chooses the port at random, which avoids the insertion race that drops one of two simultaneous queries.
	FullyRandom bool
}

// Text implements Statement.
func (m Masquerade) Text() string {
	if m.FullyRandom {
		return "masquerade fully-random"
	}
	return "masquerade"
}

// Redirect sends connections to this machine, to Port unless that is 0.
type Redirect struct{ Port uint16 }

// Text implements Statement.
func (r Redirect) Text() string {
	if r.Port == 0 {
		return "redirect"
	}
	return fmt.Sprintf("redirect to :%d", r.Port)
}

// Counter counts packets and bytes that came so far.
type Counter struct{}

// Text implements Statement.
func (Counter) Text() string { return "counter packets 0 bytes 0" }

// Limit is a condition that is true for Rate packets per unit, after a burst.
type Limit struct {
	Rate  uint32
	Per   Unit
	Burst uint32
}

// Unit is a length of time in seconds.
type Unit uint32

// The units that nft(8) prints.
const (
	Second Unit = 1
	Minute Unit = 60
	Hour   Unit = 3600
)

// defaultBurst is what nft(8) sends, and does not print, when none is given.
const defaultBurst = 5

// Text implements Statement.
func (l Limit) Text() string {
	s := fmt.Sprintf("limit rate %d/%s", l.Rate, map[Unit]string{Second: "second", Minute: "minute", Hour: "hour"}[l.Per])
	if l.Burst != defaultBurst {
		s += fmt.Sprintf(" burst %d packets", l.Burst)
	}
	return s
}

// Log sends the packet's first Snaplen bytes to the listeners of an nflog group.
type Log struct {
	Group   uint16
	Prefix  string // at most 127 bytes
	Snaplen uint32
}

// Text implements Statement.
func (l Log) Text() string {
	s := fmt.Sprintf("log prefix %q group %d", l.Prefix, l.Group)
	if l.Snaplen != 0 {
		s += fmt.Sprintf(" snaplen %d", l.Snaplen)
	}
	return s
}

// Reject drops the packet and tells the sender.
type Reject uint8

// How the sender is told.
const (
	RejectPort  Reject = iota // port unreachable
	RejectReset               // TCP reset; the packet must be TCP
)

// Text implements Statement.
func (r Reject) Text() string {
	return [...]string{"reject", "reject with tcp reset"}[r]
}

// Notrack keeps the packet out of connection tracking; it works in raw chains only.
type Notrack struct{}

// Text implements Statement.
func (Notrack) Text() string { return "notrack" }

// Verdict ends a rule.
type Verdict struct {
	Kind  VerdictKind
	Chain string
}

// VerdictKind is what happens to the packet.
type VerdictKind uint8

// The verdicts; 0 means none.
const (
	VerdictAccept VerdictKind = iota + 1
	VerdictDrop
	VerdictReturn
	VerdictJump
	VerdictGoto
)

// Verdicts without a chain.
var (
	Accept = Verdict{Kind: VerdictAccept}
	Drop   = Verdict{Kind: VerdictDrop}
	Return = Verdict{Kind: VerdictReturn}
)

// Jump goes on in another chain and comes back.
func Jump(chain string) Verdict { return Verdict{VerdictJump, chain} }

// Goto goes on in another chain and does not come back.
func Goto(chain string) Verdict { return Verdict{VerdictGoto, chain} }

// Text implements Statement.
func (v Verdict) Text() string {
	switch v.Kind {
	case VerdictJump:
		return "jump " + v.Chain
	case VerdictGoto:
		return "goto " + v.Chain
	}
	return [...]string{"", "accept", "drop", "return"}[v.Kind]
}
