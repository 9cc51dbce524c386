package iface

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/model"
)

// IPv4 settings of one interface as IFLA_INET_CONF numbers them (enum in include/uapi/linux/ip.h): the netlink way to the
// files in /proc/sys/net/ipv4/conf/NAME.
const (
	devconfForwarding    = 1
	devconfRouteLocalnet = 26
)

// family returns AF_INET or AF_INET6.
func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// host returns the /32 or /128 of an address.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func newRequest(what string, kind, flags int, header nl.NetlinkRequestData, attrs ...*nl.RtAttr) *request {
	r := &request{what: what, msg: nl.NewNetlinkRequest(kind, flags)}
	r.msg.AddData(header)
	for _, a := range attrs {
		r.msg.AddData(a)
	}
	return r
}

// noting sets the text of the change.
func (r *request) noting(format string, args ...any) *request {
	r.change = fmt.Sprintf(format, args...)
	return r
}

// getLink asks for a link by name; ENODEV is left to the caller.
func getLink(name string, found func(netlink.Link)) *request {
	r := newRequest("looking up link "+name, unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	r.reply = func(b []byte) {
		if l, err := netlink.LinkDeserialize(nil, b); err == nil {
			found(l)
		}
	}
	return r
}

// newVeth makes a veth pair whose peer is born in the Pod's namespace: moving it there later would cost an RCU wait of 19 ms.
// Both ends are down. One queue each: there is no queueing discipline to spread, and every further queue costs memory.
func newVeth(a podnet.Attachment, nsFD int) *request {
	one := nl.Uint32Attr(1)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.PodIf))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(a.MTU)))
	peer.AddRtAttr(unix.IFLA_ADDRESS, a.PodMAC[:])
	peer.AddRtAttr(unix.IFLA_NUM_TX_QUEUES, one)
	peer.AddRtAttr(unix.IFLA_NUM_RX_QUEUES, one)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(nsFD)))
	return newRequest(fmt.Sprintf("making veth pair %s and %s", a.HostIf, a.PodIf), unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.HostIf)),
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(a.MTU))),
		nl.NewRtAttr(unix.IFLA_ADDRESS, a.HostMAC[:]),
		nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(GroupPods)),
		nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, one),
		nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, one),
		info)
}

// setLink changes attributes of a link.
func setLink(what string, index int, attrs ...*nl.RtAttr) *request {
	h := nl.NewIfInfomsg(unix.AF_UNSPEC)
	h.Index = int32(index)
	return newRequest(what, unix.RTM_SETLINK, 0, h, attrs...)
}

// linkUp sets a link up.
func linkUp(what string, index int) *request {
	h := nl.NewIfInfomsg(unix.AF_UNSPEC)
	h.Index, h.Flags, h.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	return newRequest(what, unix.RTM_SETLINK, 0, h)
}

// delLink removes one link.
func delLink(name string, index int) *request {
	h := nl.NewIfInfomsg(unix.AF_UNSPEC)
	h.Index = int32(index)
	r := newRequest("removing link "+name, unix.RTM_DELLINK, 0, h)
	r.fine = []error{unix.ENODEV}
	return r
}

// quietLink is the IFLA_AF_SPEC that keeps a link from making up IPv6 addresses of its own (no link-local address, so no
// duplicate address detection and no router solicitation) and sets IPv4 settings, a devconf number each.
func (b *Backend) quietLink(devconf map[int]uint32) *nl.RtAttr {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	const addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE
	if b.ipv6 {
		spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(addrGenModeNone))
	}
	if len(devconf) > 0 {
		conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(unix.IFLA_INET_CONF, nil)
		for id, value := range devconf {
			conf.AddRtAttr(id, nl.Uint32Attr(value))
		}
	}
	return spec
}

// addressRequest adds or removes (kind RTM_NEWADDR, RTM_DELADDR) a host prefix on a link. IPv6 addresses skip duplicate
// address detection, or they would be unusable for a second.
func addressRequest(what string, kind int, index int, a netip.Addr) *request {
	h := nl.NewIfAddrmsg(int(family(a)))
	h.Index, h.Prefixlen = uint32(index), uint8(a.BitLen())
	attrs := []*nl.RtAttr{nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()), nl.NewRtAttr(unix.IFA_ADDRESS, a.AsSlice())}
	flags := 0
	if kind == unix.RTM_NEWADDR {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
		if a.Is6() {
			h.IfAddrmsg.Flags = unix.IFA_F_NODAD
			// Without its own /128 route an IPv6 address is still local; the route would only be one more thing to compare.
			attrs = append(attrs, nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE)))
		}
	}
	return newRequest(what, kind, flags, h, attrs...)
}

// neighborRequest adds, replaces or removes the permanent entry that says which MAC an address has on a link.
func neighborRequest(what string, kind int, index int, a netip.Addr, mac model.MAC) *request {
	h := &netlink.Ndmsg{Family: family(a), Index: uint32(index), State: netlink.NUD_PERMANENT}
	flags := 0
	if kind == unix.RTM_NEWNEIGH {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return newRequest(what, kind, flags, h, nl.NewRtAttr(netlink.NDA_DST, a.AsSlice()), nl.NewRtAttr(netlink.NDA_LLADDR, mac[:]))
}

// forwardingRequest adds, replaces or removes the entry of a VXLAN device that says behind which outer address a MAC is.
func forwardingRequest(what string, kind int, index int, outer netip.Addr, mac model.MAC) *request {
	h := &netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(index), State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF}
	flags := 0
	if kind == unix.RTM_NEWNEIGH {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return newRequest(what, kind, flags, h, nl.NewRtAttr(netlink.NDA_DST, outer.AsSlice()), nl.NewRtAttr(netlink.NDA_LLADDR, mac[:]))
}
