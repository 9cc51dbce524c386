// Package podnet turns a Lease into an Attachment: the veth pair, addresses, routes and neighbours of one Pod.
package podnet

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"

	"weft.network/weft/appliance/model"
)

// The next hops that every Pod sees. No interface owns them: a permanent neighbour entry in the Pod points at the host end
// of its veth pair, so neither ARP nor neighbour discovery is needed (the layout of RFC 3927 / RFC 4291 link-local gateways).
var (
	Gateway4 = netip.MustParseAddr("169.254.1.1")
	Gateway6 = netip.MustParseAddr("fe80::1")
	// HostMAC is the address of the host end of every veth pair: the links share no segment, so it may repeat.
	HostMAC = model.MAC{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
)

// HostIfPrefix starts the name of every host end; nothing else on the node may be called like that.
const HostIfPrefix = "weftp"

// Attachment is everything the kernel must hold for one Pod interface.
type Attachment struct {
	HostIf  string
	PodIf   string
	HostMAC model.MAC
	PodMAC  model.MAC
	MTU     int
	// Addresses are set on the Pod's end as host prefixes (/32, /128).
	Addresses []netip.Addr
	// Gateways are the default next hops of the Pod, one per family in use.
	Gateways []netip.Addr
	// Alias is the interface alias of the host end: it names the Pod for people, and lets a lost store be rebuilt.
	Alias string
}

// Compile returns the Attachment of a lease.
func Compile(l *model.Lease) Attachment {
	a := Attachment{
		HostIf: l.HostIf, PodIf: l.IfName, HostMAC: HostMAC, PodMAC: l.MAC, MTU: l.MTU,
		Addresses: l.Addresses, Alias: Alias(l),
	}
	var has4, has6 bool
	for _, addr := range l.Addresses {
		has4, has6 = has4 || addr.Is4(), has6 || addr.Is6()
	}
	if has4 {
		a.Gateways = append(a.Gateways, Gateway4)
	}
	if has6 {
		a.Gateways = append(a.Gateways, Gateway6)
	}
	return a
}

// HostIfName derives the name of the host end from the attachment: 5 + 10 characters, the most that the kernel allows (IFNAMSIZ).
func HostIfName(k model.AttachmentKey) string {
	sum := sha256.Sum256([]byte(k.String()))
	return HostIfPrefix + hex.EncodeToString(sum[:5])
}

// MACFor derives a locally administered address for the Pod's end from its first address, so that the same address always
// comes with the same MAC and neighbours need not learn anew after a reboot.
func MACFor(addrs []netip.Addr) model.MAC {
	mac := model.MAC{0x0a, 0x58}
	if len(addrs) == 0 {
		return mac
	}
	if b := addrs[0].AsSlice(); addrs[0].Is4() {
		copy(mac[2:], b)
	} else {
		sum := sha256.Sum256(b)
		copy(mac[2:], sum[:4])
	}
	return mac
}
