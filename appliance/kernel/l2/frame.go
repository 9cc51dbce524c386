package l2

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/model"
)

// Lengths of headers, in bytes.
const (
	etherLen = 14
	arpLen   = 28
	ipv6Len  = 40
	ndpLen   = 24 // ICMPv6 header, flags and target
)

// The operations of ARP, and the types of Neighbour Discovery.
const (
	arpRequest        = 1
	arpReply          = 2
	typeSolicitation  = 135
	typeAdvertisement = 136
	optionSource      = 1
	optionTarget      = 2
	flagSolicited     = 0x40
	flagOverride      = 0x20
)

var (
	broadcast   = model.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = groupMAC(allNodes)
)

// ethernet prints a frame; the kernel pads it.
func ethernet(to, from model.MAC, protocol uint16, payload []byte) []byte {
	b := make([]byte, 0, etherLen+len(payload))
	b = append(append(b, to[:]...), from[:]...)
	b = binary.BigEndian.AppendUint16(b, protocol)
	return append(b, payload...)
}

// arp is a message of ARP for IPv4 over Ethernet.
type arp struct {
	op             uint16
	fromMAC, toMAC model.MAC
	from, to       netip.Addr
}

func arpFrame(to model.MAC, a arp) []byte {
	b := make([]byte, 0, arpLen)
	b = append(b, 0, 1, 8, 0, 6, 4) // Ethernet, IPv4, and the lengths of their addresses
	b = binary.BigEndian.AppendUint16(b, a.op)
	from, target := a.from.As4(), a.to.As4()
	b = append(append(b, a.fromMAC[:]...), from[:]...)
	b = append(append(b, a.toMAC[:]...), target[:]...)
	return ethernet(to, a.fromMAC, unix.ETH_P_ARP, b)
}

// parseARP reads a frame; ok is false for anything but ARP for IPv4 over Ethernet.
func parseARP(frame []byte) (a arp, ok bool) {
	if len(frame) < etherLen+arpLen {
		return a, false
	}
	b := frame[etherLen:]
	if string(b[:6]) != "\x00\x01\x08\x00\x06\x04" {
		return a, false
	}
	a = arp{
		op: binary.BigEndian.Uint16(b[6:]), fromMAC: model.MAC(b[8:14]), from: netip.AddrFrom4([4]byte(b[14:18])),
		toMAC: model.MAC(b[18:24]), to: netip.AddrFrom4([4]byte(b[24:28])),
	}
	return a, a.op == arpRequest || a.op == arpReply
}

// neighbour is a solicitation or an advertisement.
type neighbour struct {
	advertises bool
	from       netip.Addr
	fromMAC    model.MAC // of the frame
	target     netip.Addr
	mac        model.MAC // that an advertisement names, or that of the frame
}

// parseNeighbour reads a frame; ok is false for what RFC 4861 section 7.1 says to ignore. Who sends with a hop limit of 255 is on this segment.
func parseNeighbour(frame []byte) (n neighbour, ok bool) {
	if len(frame) < etherLen+ipv6Len+ndpLen {
		return n, false
	}
	ip, icmp := frame[etherLen:], frame[etherLen+ipv6Len:]
	if ip[0]>>4 != 6 || ip[6] != unix.IPPROTO_ICMPV6 || ip[7] != 255 {
		return n, false
	}
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if length < ndpLen || length > len(icmp) {
		return n, false
	}
	icmp = icmp[:length]
	if icmp[0] != typeSolicitation && icmp[0] != typeAdvertisement || icmp[1] != 0 {
		return n, false
	}
	from, to := netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	if checksum(from, to, icmp) != 0 {
		return n, false
	}
	n = neighbour{
		advertises: icmp[0] == typeAdvertisement, from: from, fromMAC: model.MAC(frame[6:12]),
		target: netip.AddrFrom16([16]byte(icmp[8:24])), mac: model.MAC(frame[6:12]),
	}
	for o := icmp[ndpLen:]; len(o) >= 8; {
		size := 8 * int(o[1])
		if size == 0 || size > len(o) {
			return n, false
		}
		if n.advertises && o[0] == optionTarget && size == 8 {
			n.mac = model.MAC(o[2:8])
		}
		o = o[size:]
	}
	return n, !n.target.IsMulticast()
}

// solicitation asks for an address as one that is about to use it does: from nowhere.
func solicitation(mac model.MAC, target netip.Addr) []byte {
	to := solicitedNode(target)
	return ndpFrame(groupMAC(to), mac, netip.IPv6Unspecified(), to, typeSolicitation, 0, target, nil)
}

// advertisement says that the address is at the MAC. Its source is the address itself: a link need not have another.
func advertisement(mac, toMAC model.MAC, target, to netip.Addr, solicited bool) []byte {
	flags := byte(flagOverride)
	if solicited {
		flags |= flagSolicited
	}
	option := append([]byte{optionTarget, 1}, mac[:]...)
	return ndpFrame(toMAC, mac, target, to, typeAdvertisement, flags, target, option)
}

func ndpFrame(toMAC, mac model.MAC, from, to netip.Addr, kind, flags byte, target netip.Addr, option []byte) []byte {
	icmp := make([]byte, 0, ndpLen+len(option))
	icmp = append(icmp, kind, 0, 0, 0, flags, 0, 0, 0)
	t := target.As16()
	icmp = append(append(icmp, t[:]...), option...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(from, to, icmp))
	ip := make([]byte, 0, ipv6Len+len(icmp))
	ip = append(ip, 0x60, 0, 0, 0)
	ip = binary.BigEndian.AppendUint16(ip, uint16(len(icmp)))
	ip = append(ip, unix.IPPROTO_ICMPV6, 255)
	f, d := from.As16(), to.As16()
	ip = append(append(ip, f[:]...), d[:]...)
	return ethernet(toMAC, mac, unix.ETH_P_IPV6, append(ip, icmp...))
}

// checksum is that of ICMPv6, over the pseudo-header too (RFC 4443 section 2.3). Over a message with a right one it is 0.
func checksum(from, to netip.Addr, icmp []byte) uint16 {
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	f, t := from.As16(), to.As16()
	add(f[:])
	add(t[:])
	sum += uint32(len(icmp)) + unix.IPPROTO_ICMPV6
	add(icmp)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// solicitedNode returns the group to which questions about an address are sent (RFC 4291 section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// groupMAC is the hardware address of an IPv6 group (RFC 2464 section 7).
func groupMAC(a netip.Addr) model.MAC {
	b := a.As16()
	return model.MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}
