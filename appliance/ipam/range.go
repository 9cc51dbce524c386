package ipam

import (
	"fmt"
	"net/netip"
)

// Range is a run of addresses of one family that may be given out, both ends included.
type Range struct {
	// Prefix is the subnet the run lies in; its length is what IPAM plugins report with each address.
	Prefix      netip.Prefix
	First, Last netip.Addr
	// Reserved are never given out although they lie in the run: the node's own address, gateways.
	Reserved []netip.Addr
}

// NodeRange is the range of a node's Pod prefix. The first host address is the node's own (see NodeAddress); the network
// address, which is the subnet-router anycast address in IPv6 (RFC 4291 section 2.6.1), and the IPv4 broadcast address are left out.
func NodeRange(p netip.Prefix) (Range, error) {
	r, err := NewRange(p, netip.Addr{}, netip.Addr{})
	if err != nil {
		return Range{}, err
	}
	r.Reserved = []netip.Addr{NodeAddress(p)}
	return r, nil
}

// NodeAddress is the address of the node itself in its Pod prefix: the first host address.
func NodeAddress(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// NewRange checks and completes a range: a zero first or last means the first or last host address of the subnet.
func NewRange(p netip.Prefix, first, last netip.Addr) (Range, error) {
	if !p.IsValid() {
		return Range{}, fmt.Errorf("subnet %s is not a prefix like 10.0.0.0/24", p)
	}
	p = p.Masked()
	if p.Addr().BitLen()-p.Bits() < 2 {
		return Range{}, fmt.Errorf("subnet %s is too small: it needs at least four addresses (/30 or /126)", p)
	}
	end := LastOf(p)
	if p.Addr().Is4() {
		end = end.Prev() // the broadcast address
	}
	if !first.IsValid() {
		first = p.Addr().Next()
	}
	if !last.IsValid() {
		last = end
	}
	for _, a := range []netip.Addr{first, last} {
		if !p.Contains(a) {
			return Range{}, fmt.Errorf("rangeStart or rangeEnd %s is outside the subnet %s", a, p)
		}
	}
	if last.Less(first) {
		return Range{}, fmt.Errorf("rangeStart %s comes after rangeEnd %s", first, last)
	}
	return Range{Prefix: p, First: first, Last: last}, nil
}

// Contains reports whether the address lies between the ends.
func (r Range) Contains(a netip.Addr) bool { return !a.Less(r.First) && !r.Last.Less(a) }

// LastOf returns the highest address of a prefix.
func LastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// size counts the addresses that can be given out, up to a million: beyond that nobody runs out on one node.
func (r Range) size() int {
	const most = 1 << 20
	f, l := r.First.As16(), r.Last.As16()
	diff := 0
	for i := range f {
		diff = diff<<8 + int(l[i]) - int(f[i])
		if diff > most {
			return most
		}
	}
	n := diff + 1
	for _, a := range r.Reserved {
		if r.Contains(a) {
			n--
		}
	}
	return n
}
