package ruleset

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"weft.network/weft/appliance/model"
)

// Type is the type of one field of a key or of a map's data.
type Type uint8

// The types in use. There is no integer on purpose: nft(8) 1.0.6 aborts on an integer in a concatenation, because it has no
// size; TypeMark takes its place.
const (
	TypeIPv4Addr Type = iota + 1
	TypeIPv6Addr
	TypeInetProto
	TypeInetService
	TypeMark
	TypeIfName
)

// typeInfo describes a Type. perLine is how many elements nft(8) prints on one line.
type typeInfo struct {
	name    string
	bytes   int
	perLine int
}

var types = [...]typeInfo{
	TypeIPv4Addr:    {"ipv4_addr", 4, 2},
	TypeIPv6Addr:    {"ipv6_addr", 16, 1},
	TypeInetProto:   {"inet_proto", 1, 5},
	TypeInetService: {"inet_service", 2, 5},
	TypeMark:        {"mark", 4, 5},
	TypeIfName:      {"ifname", 16, 1},
}

// String prints the name that nft(8) uses.
func (t Type) String() string { return types[t].name }

// Bytes is the size of a value in the kernel, without padding.
func (t Type) Bytes() int { return types[t].bytes }

// padded is the size in nftables registers of 32 bits each.
func (t Type) padded() int { return (types[t].bytes + 3) &^ 3 }

func width(ts []Type) int {
	n := 0
	for _, t := range ts {
		n += t.padded()
	}
	return n
}

func typeNames(ts []Type) string {
	names := make([]string, len(ts))
	for i, t := range ts {
		names[i] = t.String()
	}
	return strings.Join(names, " . ")
}

// Value is one field or a concatenation, in the layout of the nftables registers: each field padded to 32 bits, addresses
// and ports in network byte order, marks in the byte order of the machine.
type Value string

// Tuple joins fields to a concatenation.
func Tuple(fields ...Value) Value {
	if len(fields) == 1 {
		return fields[0]
	}
	n := 0
	for _, f := range fields {
		n += len(f)
	}
	b := make([]byte, 0, n)
	for _, f := range fields {
		b = append(b, f...)
	}
	return Value(b)
}

// Addr is an address of either family.
func Addr(a netip.Addr) Value { return Value(a.AsSlice()) }

// Proto is a transport protocol number.
func Proto(p model.Protocol) Value { return Value([]byte{byte(p), 0, 0, 0}) }

// Port is a port number.
func Port(p uint16) Value { return Value([]byte{byte(p >> 8), byte(p), 0, 0}) }

// Mark is a packet or connection mark, or a number in its place.
func Mark(m uint32) Value { return Value(binary.NativeEndian.AppendUint32(nil, m)) }

// IfName is the name of an interface. With a star at the end it stands for all names that start so; that form is for
// comparisons, not for sets.
func IfName(name string) Value {
	if prefix, ok := strings.CutSuffix(name, "*"); ok {
		return Value(prefix)
	}
	b := make([]byte, 16)
	copy(b, name)
	return Value(b)
}

// First and last address of a prefix, as an element of a set of ranges.
func prefixElement(p netip.Prefix, comment string) Element {
	p = p.Masked()
	first, last := p.Addr().AsSlice(), p.Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	return Element{Key: Value(first), End: Value(last), Comment: comment}
}

func (v Value) addr() netip.Addr {
	a, _ := netip.AddrFromSlice([]byte(v))
	return a
}

func (v Value) port() uint16 { return binary.BigEndian.Uint16([]byte(v[:2])) }

func (v Value) uint32() uint32 { return binary.NativeEndian.Uint32([]byte(v[:4])) }

// text prints a single value of type t.
func (t Type) text(v Value) string {
	switch t {
	case TypeIPv4Addr, TypeIPv6Addr:
		return v.addr().String()
	case TypeInetProto:
		return protoName(v[0])
	case TypeInetService:
		return fmt.Sprint(v.port())
	case TypeMark:
		return fmt.Sprintf("0x%08x", v.uint32())
	case TypeIfName:
		if len(v) < 16 {
			return `"` + string(v) + `*"`
		}
		return `"` + strings.TrimRight(string(v), "\x00") + `"`
	}
	return fmt.Sprintf("%x", string(v))
}

// protoName prints a protocol as nft(8) does with a usual /etc/protocols.
func protoName(p byte) string {
	switch p {
	case 1:
		return "icmp"
	case 58:
		return "ipv6-icmp"
	}
	return model.Protocol(p).String()
}

// rangeText prints first-last of type t: as a prefix where it is one and the type has prefixes.
func (t Type) rangeText(first, last Value) string {
	if first == last {
		return t.text(first)
	}
	if t == TypeIPv4Addr || t == TypeIPv6Addr {
		if n, ok := prefixLen(first, last); ok {
			return fmt.Sprintf("%s/%d", t.text(first), n)
		}
	}
	return t.text(first) + "-" + t.text(last)
}

// prefixLen returns the length of the prefix that covers exactly first to last.
func prefixLen(first, last Value) (int, bool) {
	n, done := 0, false
	for i := range len(first) {
		diff := first[i] ^ last[i]
		if done && (diff != 0xff || first[i] != 0) {
			return 0, false
		}
		if done || diff == 0 {
			if !done {
				n += 8
			}
			continue
		}
		// The differing bits must be the low ones, all of them, zero at first and one at last.
		if diff&(diff+1) != 0 || first[i]&diff != 0 {
			return 0, false
		}
		n += bits.LeadingZeros8(diff)
		done = true
	}
	return n, true
}

// tupleText prints a concatenation, or a range of them if last is not empty.
func tupleText(ts []Type, first, last Value) string {
	if last == "" {
		last = first
	}
	var b strings.Builder
	for i, t := range ts {
		if i > 0 {
			b.WriteString(" . ")
		}
		n := t.padded()
		b.WriteString(t.rangeText(first[:n], last[:n]))
		first, last = first[n:], last[n:]
	}
	return b.String()
}
