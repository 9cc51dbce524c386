package iface

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/model"
)

// PodLink is the host end of one Pod's veth pair as the kernel has it.
type PodLink struct {
	HostIf string
	// Alias is what podnet.Alias wrote; empty for a link whose AddPod was cut short.
	Alias string
	Index int
	MTU   int
	Up    bool
	// MAC is the address of the Pod's end, zero if the node's neighbour entry is gone.
	MAC model.MAC
	// Addresses are those that weft's routes send to the link, in no particular order.
	Addresses []netip.Addr
}

// ListPods returns the host ends of all Pods on the node, except for those that are being removed.
func (b *Backend) ListPods(ctx context.Context) ([]PodLink, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	links, err := dump("links", b.links.LinkList)
	if err != nil {
		return nil, err
	}
	routes, err := b.listRoutes(b.routes, netlink.Route{Protocol: ProtoWeft}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, err
	}
	addresses := map[int][]netip.Addr{}
	for _, r := range routes {
		if p := prefixOf(r.Dst); p.IsValid() && p.IsSingleIP() {
			addresses[r.LinkIndex] = append(addresses[r.LinkIndex], p.Addr())
		}
	}
	neighbors, err := b.permanentNeighbors()
	if err != nil {
		return nil, err
	}
	var pods []PodLink
	for _, l := range links {
		at := l.Attrs()
		if isPodLink(l) && at.Group == GroupPods {
			pod := PodLink{HostIf: at.Name, Alias: at.Alias, Index: at.Index, MTU: at.MTU, Up: at.Flags&net.FlagUp != 0, Addresses: addresses[at.Index]}
			for _, a := range pod.Addresses {
				pod.MAC = neighbors[neighborKey{at.Index, a}]
			}
			pods = append(pods, pod)
		}
	}
	return pods, nil
}

// InUse says who else on this node has an address that weft is about to give to a Pod: one of the node's own interfaces, a
// host route that is not weft's, or a neighbour that answers. An empty reason means nobody.
func (b *Backend) InUse(ctx context.Context, addr netip.Addr) (reason string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	routes, err := b.links.RouteGetWithOptions(addr.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) {
		return "", nil // the unreachable route of our own range, or no route at all
	}
	if err != nil {
		return "", fmt.Errorf("asking for the route to %s: %w", addr, err)
	}
	for _, r := range routes {
		if r.Protocol == ProtoWeft {
			continue
		}
		name := b.linkName(r.LinkIndex)
		if r.Type == unix.RTN_LOCAL {
			return fmt.Sprintf("address of interface %s on this node", name), nil
		}
		if prefixOf(r.Dst) == host(addr) {
			return fmt.Sprintf("there is a route %s dev %s proto %s", host(addr), name, r.Protocol), nil
		}
		if r.Gw != nil || r.LinkIndex == 0 {
			continue
		}
		answers, err := b.answers(r.LinkIndex, addr)
		if err != nil {
			return "", err
		}
		if answers {
			return fmt.Sprintf("a neighbour on %s answers for it", name), nil
		}
	}
	return "", nil
}

// answers reports whether a neighbour on the link was heard of lately, or is set by hand.
func (b *Backend) answers(index int, addr netip.Addr) (bool, error) {
	list, err := dump("neighbours", func() ([]netlink.Neigh, error) { return b.links.NeighList(index, int(family(addr))) })
	if err != nil {
		return false, err
	}
	for _, n := range list {
		if addrOf(n.IP) == addr && n.State&(netlink.NUD_REACHABLE|netlink.NUD_DELAY|netlink.NUD_PERMANENT) != 0 {
			return true, nil
		}
	}
	return false, nil
}

// linkName returns the name of a link for a text.
func (b *Backend) linkName(index int) string {
	l, err := b.links.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("with index %d", index)
	}
	return l.Attrs().Name
}
