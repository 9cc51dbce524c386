package iface

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/model"
)

// tunnelLink makes TunnelLink what it should be and returns its index, or 0. Only what the kernel cannot change in a VXLAN
// device makes a new one; that takes the routes and neighbours on it along, and they are set again in the same run.
func (a *hostApply) tunnelLink() int {
	t := a.want.Tunnel
	if t == nil {
		return 0
	}
	link, err := a.find(route.TunnelLink, "vxlan")
	if err != nil {
		a.errs = append(a.errs, err)
		return 0
	}
	under, err := a.b.links.LinkByName(t.Link)
	if err != nil {
		a.fail("making link %s: looking up its underlay link %s: %w", route.TunnelLink, t.Link, err)
		return 0
	}
	if link != nil {
		if why := recreate(link.(*netlink.Vxlan), t, under.Attrs().Index); why != "" {
			if err := a.b.remover.removeNow(route.TunnelLink, link.Attrs().Index); err != nil {
				a.errs = append(a.errs, err)
				return 0
			}
			a.changes = append(a.changes, fmt.Sprintf("link %s removed to be made anew: %s", route.TunnelLink, why))
			link = nil
		}
	}
	if link == nil {
		if link, err = a.create(newTunnel(t, under.Attrs().Index)); err != nil {
			a.errs = append(a.errs, err)
			return 0
		}
	}
	a.adjustTunnel(link, t)
	a.setUp(link)
	return link.Attrs().Index
}

// newTunnel describes the device. Learning is off: every peer is known, and what a stranger sends must not change the table.
func newTunnel(t *route.Tunnel, under int) *netlink.Vxlan {
	return &netlink.Vxlan{
		LinkAttrs:    netlink.LinkAttrs{Name: route.TunnelLink, MTU: t.MTU, HardwareAddr: t.MAC[:]},
		VxlanId:      int(t.VNI),
		Port:         int(t.Port),
		SrcAddr:      t.Local.AsSlice(),
		VtepDevIndex: under,
		Learning:     false,
	}
}

// recreate says which attribute of the device differs that cannot be changed; empty when none does.
func recreate(have *netlink.Vxlan, t *route.Tunnel, under int) string {
	switch {
	case have.VxlanId != int(t.VNI):
		return fmt.Sprintf("VNI %d becomes %d", have.VxlanId, t.VNI)
	case have.Port != int(t.Port):
		return fmt.Sprintf("port %d becomes %d", have.Port, t.Port)
	case addrOf(have.SrcAddr) != t.Local:
		return fmt.Sprintf("local address %s becomes %s", addrOf(have.SrcAddr), t.Local)
	case have.VtepDevIndex != under:
		return fmt.Sprintf("underlay link becomes %s", t.Link)
	case have.Learning:
		return "learning was on"
	}
	return ""
}

// adjustTunnel sets what can be changed in a device that is in use.
func (a *hostApply) adjustTunnel(link netlink.Link, t *route.Tunnel) {
	at := link.Attrs()
	if at.MTU != t.MTU {
		a.do(setLink(fmt.Sprintf("setting the MTU of %s to %d", route.TunnelLink, t.MTU), at.Index, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(t.MTU)))).
			noting("link %s: MTU %d becomes %d", route.TunnelLink, at.MTU, t.MTU))
	}
	if !slices.Equal(at.HardwareAddr, t.MAC[:]) {
		a.do(setLink(fmt.Sprintf("setting the MAC address of %s to %s", route.TunnelLink, t.MAC), at.Index, nl.NewRtAttr(unix.IFLA_ADDRESS, t.MAC[:])).
			noting("link %s: MAC address %s becomes %s", route.TunnelLink, at.HardwareAddr, t.MAC))
	}
}

// tunnelPeers sets neighbours and forwarding entries that are missing or differ, and returns the removal of those that no peer
// has any more, to be sent when the routes through them are gone.
func (a *hostApply) tunnelPeers(index int) (stale []*request) {
	wantNeighbors, wantForwarding := map[netip.Addr]model.MAC{}, map[forwarding]bool{}
	for _, p := range a.want.Tunnel.Peers {
		wantForwarding[forwarding{p.MAC, p.Outer}] = true
		for _, hop := range p.NextHops {
			wantNeighbors[hop] = p.MAC
		}
	}
	haveNeighbors, err := listNeighbors(a.b.links, index)
	if err != nil {
		a.errs = append(a.errs, err)
		return nil
	}
	haveForwarding, err := listForwarding(a.b.links, index)
	if err != nil {
		a.errs = append(a.errs, err)
		return nil
	}
	var add []*request
	outerOf := map[model.MAC]bool{} // a MAC has one outer address, so a new entry takes the place of the old one
	for f := range wantForwarding {
		if outerOf[f.mac] = true; !haveForwarding[f] {
			add = append(add, forwardingRequest("adding "+f.text(), unix.RTM_NEWNEIGH, index, f.outer, f.mac).noting("%s added", f.text()))
		}
	}
	for f := range haveForwarding {
		if !wantForwarding[f] && !outerOf[f.mac] {
			stale = append(stale, gone(forwardingRequest("removing "+f.text(), unix.RTM_DELNEIGH, index, f.outer, f.mac)).noting("%s removed", f.text()))
		}
	}
	for addr, mac := range wantNeighbors {
		if text := neighborText(addr, mac); haveNeighbors[addr] != mac {
			add = append(add, neighborRequest("adding "+text, unix.RTM_NEWNEIGH, index, addr, mac).noting("%s added", text))
		}
	}
	for addr, mac := range haveNeighbors {
		if _, wanted := wantNeighbors[addr]; !wanted {
			text := neighborText(addr, mac)
			stale = append(stale, gone(neighborRequest("removing "+text, unix.RTM_DELNEIGH, index, addr, mac)).noting("%s removed", text))
		}
	}
	a.do(add...)
	return stale
}

// gone lets a removal succeed when somebody else was faster.
func gone(r *request) *request {
	r.fine = []error{unix.ENOENT, unix.ESRCH}
	return r
}

// forwarding is one entry of the VXLAN device: behind which outer address a MAC is.
type forwarding struct {
	mac   model.MAC
	outer netip.Addr
}

func (f forwarding) text() string {
	return fmt.Sprintf("forwarding entry %s dst %s dev %s", f.mac, f.outer, route.TunnelLink)
}

func neighborText(addr netip.Addr, mac model.MAC) string {
	return fmt.Sprintf("neighbour %s lladdr %s dev %s", addr, mac, route.TunnelLink)
}

// listForwarding returns the permanent forwarding entries of a VXLAN device.
func listForwarding(h *netlink.Handle, index int) (map[forwarding]bool, error) {
	list, err := dump("forwarding entries", func() ([]netlink.Neigh, error) { return h.NeighList(index, unix.AF_BRIDGE) })
	if err != nil {
		return nil, err
	}
	m := map[forwarding]bool{}
	for _, n := range list {
		if n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 {
			m[forwarding{model.MAC(n.HardwareAddr), addrOf(n.IP)}] = true
		}
	}
	return m, nil
}
