package nflog

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/model"
)

// Packet is what is known of one packet.
type Packet struct {
	// Prefix is the text of the rule.
	Prefix   string
	Src, Dst netip.Addr
	Proto    model.Protocol
	// Sport and Dport are 0 for protocols without ports.
	Sport, Dport uint16
}

// The sizes of headers, in bytes.
const (
	headerIPv4 = 20
	headerIPv6 = 40
)

// parse reads an IP packet that may be cut short; ok is false when not even the addresses are there.
func (p *Packet) parse(b []byte) (ok bool) {
	switch {
	case len(b) >= headerIPv4 && b[0]>>4 == 4:
		p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		p.Proto = model.Protocol(b[9])
		p.ports(b, 4*int(b[0]&15))
	case len(b) >= headerIPv6 && b[0]>>4 == 6:
		p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		next, at := b[6], headerIPv6
		for extension(next) && len(b) >= at+8 {
			size := 8 * (int(b[at+1]) + 1)
			if next == unix.IPPROTO_FRAGMENT {
				size = 8
			}
			next, at = b[at], at+size
		}
		p.Proto = model.Protocol(next)
		p.ports(b, at)
	default:
		return false
	}
	return true
}

// extension reports whether a header of IPv6 is followed by another one.
func extension(next byte) bool {
	switch next {
	case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_FRAGMENT, unix.IPPROTO_DSTOPTS:
		return true
	}
	return false
}

func (p *Packet) ports(b []byte, at int) {
	if (p.Proto == model.TCP || p.Proto == model.UDP || p.Proto == model.SCTP) && len(b) >= at+4 {
		p.Sport, p.Dport = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
	}
}
