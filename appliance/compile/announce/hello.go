package announce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Hello is what a node tells the segment about itself. A long one goes in several parts with one Seq.
type Hello struct {
	Cluster uint64
	Boot    uint64
	Node    string
	Seq     uint32
	Parts   uint8
	// Interval in milliseconds until the next one.
	Interval uint16
	// Starting is true while the node listens and takes no addresses yet.
	Starting bool
	// Passive is true while it takes none at all.
	Passive bool
	// Claims are the addresses that it answers for, Yields those that it has just given up and does not want.
	Claims, Yields []netip.Addr
}

// The form on the wire: magic, version, flags, parts, length of the name, interval, sequence, boot, cluster, name, number of
// claims and of yields, and the addresses, each with its length before it. Numbers are in network order.
const (
	magic       = "weft"
	version     = 1
	headLen     = 4 + 1 + 1 + 1 + 1 + 2 + 4 + 8 + 8
	maxName     = 253
	flagStarts  = 1
	flagPassive = 2
	// perPart addresses of 17 bytes and the longest name fit the smallest link that IPv6 may use (1,280 bytes).
	perPart = 56
)

var errHello = errors.New("not a hello of weft")

// MarshalBinary prints one part.
func (h Hello) MarshalBinary() ([]byte, error) {
	if h.Node == "" || len(h.Node) > maxName || len(h.Claims)+len(h.Yields) > perPart {
		return nil, fmt.Errorf("hello of %q with %d addresses does not fit a frame", h.Node, len(h.Claims)+len(h.Yields))
	}
	b := make([]byte, 0, headLen+len(h.Node)+2+17*(len(h.Claims)+len(h.Yields)))
	b = append(b, magic...)
	var flags byte
	if h.Starting {
		flags |= flagStarts
	}
	if h.Passive {
		flags |= flagPassive
	}
	b = append(b, version, flags, h.Parts, byte(len(h.Node)))
	b = binary.BigEndian.AppendUint16(b, h.Interval)
	b = binary.BigEndian.AppendUint32(b, h.Seq)
	b = binary.BigEndian.AppendUint64(b, h.Boot)
	b = binary.BigEndian.AppendUint64(b, h.Cluster)
	b = append(b, h.Node...)
	b = append(b, byte(len(h.Claims)), byte(len(h.Yields)))
	for _, list := range [][]netip.Addr{h.Claims, h.Yields} {
		for _, a := range list {
			s := a.AsSlice()
			b = append(append(b, byte(len(s))), s...)
		}
	}
	return b, nil
}

// ParseHello reads one part. A frame may be padded at its end.
func ParseHello(b []byte) (Hello, error) {
	if len(b) < headLen || string(b[:4]) != magic || b[4] != version {
		return Hello{}, errHello
	}
	h := Hello{
		Starting: b[5]&flagStarts != 0, Passive: b[5]&flagPassive != 0, Parts: b[6], Interval: binary.BigEndian.Uint16(b[8:]), Seq: binary.BigEndian.Uint32(b[10:]),
		Boot: binary.BigEndian.Uint64(b[14:]), Cluster: binary.BigEndian.Uint64(b[22:]),
	}
	name := int(b[7])
	b = b[headLen:]
	if name == 0 || len(b) < name+2 || h.Parts == 0 || h.Interval == 0 {
		return Hello{}, errHello
	}
	h.Node = string(b[:name])
	claims, yields := int(b[name]), int(b[name+1])
	b = b[name+2:]
	for i := range claims + yields {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return Hello{}, errHello
		}
		addr, ok := netip.AddrFromSlice(b[1 : 1+b[0]])
		if !ok {
			return Hello{}, errHello
		}
		b = b[1+b[0]:]
		if i < claims {
			h.Claims = append(h.Claims, addr)
		} else {
			h.Yields = append(h.Yields, addr)
		}
	}
	return h, nil
}

// split shares the addresses out over as many parts as they need.
func split(h Hello, claims, yields []netip.Addr) []Hello {
	const mostParts = 255
	parts := min(max(1, (len(claims)+len(yields)+perPart-1)/perPart), mostParts)
	h.Parts = uint8(parts)
	out := make([]Hello, 0, parts)
	for range parts {
		n := min(perPart, len(claims))
		m := min(perPart-n, len(yields))
		h.Claims, h.Yields = claims[:n:n], yields[:m:m]
		claims, yields = claims[n:], yields[m:]
		out = append(out, h)
	}
	return out
}
