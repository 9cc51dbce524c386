package iface

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/route"
)

// procSys is where the kernel's settings are files.
const procSys = "/proc/sys"

// Sysctl is one wanted kernel setting.
type Sysctl struct {
	// Path below /proc/sys, with slashes, since link names may contain dots: "net/ipv4/ip_forward".
	Path  string
	Value string
	// Why ends the sentence "… must be 1 so that …".
	Why string
}

// HostSysctls returns what the node must have set, in the order in which it must be set. Call it after ApplyHost, so that the
// tunnel is there. Not in it, since they are not needed: src_valid_mark (no mark is used for routing), rp_filter of host ends
// (a Pod's packets come from where its route leads), bridge-nf-call-iptables (no Pod is on a bridge), route_localnet (see
// SetRouteLocalnet). turnedOn says that weft itself made this node forward IPv6, in this boot.
func (b *Backend) HostSysctls(ctx context.Context, turnedOn bool) ([]Sysctl, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	want, err := b.keepRouterAdvertisements(turnedOn)
	if err != nil {
		return nil, err
	}
	want = append(want,
		Sysctl{"net/ipv4/ip_forward", "1", "packets are forwarded between Pods, nodes and the outside"},
		Sysctl{"net/ipv6/conf/all/forwarding", "1", "IPv6 packets are forwarded between Pods, nodes and the outside"})
	err = b.inHostNS(func() error {
		all, own := readSysctl("net/ipv4/conf/all/rp_filter"), readSysctl("net/ipv4/conf/"+route.TunnelLink+"/rp_filter")
		// The kernel takes the larger of both. 1 drops a packet that comes through the tunnel from a node to which this one
		// sends directly, as happens while two nodes change from one mode to the other; 2 only asks for some route back.
		if own != "" && max(all, own) == "1" {
			want = append(want, Sysctl{"net/ipv4/conf/" + route.TunnelLink + "/rp_filter", "2", "the way through the tunnel may differ from the way back"})
		}
		return nil
	})
	return want, err
}

// keepRouterAdvertisements finds the links that take their address or default route from router advertisements: once the node
// forwards, the kernel ignores advertisements unless accept_ra is 2, and the node would lose its way out minutes later. Links
// of Pods and containers are left alone unless they have such a route, or any container could become the node's router.
// A link that comes later is born with forwarding on. If that is weft's doing, what leads out of the machine is treated the same;
// of a node that forwarded before weft, its administrator has decided.
func (b *Backend) keepRouterAdvertisements(turnedOn bool) ([]Sysctl, error) {
	links, err := dump("links", b.links.LinkList)
	if err != nil {
		return nil, err
	}
	routes, err := b.listRoutes(b.routes, netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, err
	}
	advertised := map[int]bool{}
	for _, r := range routes {
		advertised[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			advertised[hop.LinkIndex] = true
		}
	}
	var want []Sysctl
	err = b.inHostNS(func() error {
		for _, l := range links {
			at := l.Attrs()
			if at.Index == loopbackIndex || isOwnName(at.Name) || l.Type() == "veth" && !advertised[at.Index] {
				continue
			}
			conf := "net/ipv6/conf/" + at.Name
			late := turnedOn && (advertised[at.Index] || leadsOut(l, links, 0))
			if readSysctl(conf+"/accept_ra") == "1" && (late || readSysctl(conf+"/forwarding") == "0") {
				want = append(want, Sysctl{conf + "/accept_ra", "2", "the node keeps its address and default route from router advertisements although it forwards"})
			}
		}
		return nil
	})
	return want, err
}

// leadsOut reports whether a link is hardware or stands on it: neither a container nor a virtual machine is at its other end.
func leadsOut(l netlink.Link, links []netlink.Link, depth int) bool {
	const deepest = 3 // a VLAN of a bridge above a bond
	if depth > deepest {
		return false
	}
	return l.Type() == "device" || slices.ContainsFunc(links, func(below netlink.Link) bool {
		switch l.Type() {
		case "bond", "team", "bridge":
			return below.Attrs().MasterIndex == l.Attrs().Index && leadsOut(below, links, depth+1)
		case "vlan":
			return below.Attrs().Index == l.Attrs().ParentIndex && leadsOut(below, links, depth+1)
		}
		return false
	})
}

// Forwards6 reports whether the node forwards IPv6, or has none that could be switched on.
func (b *Backend) Forwards6() (on bool, err error) {
	err = b.inHostNS(func() error {
		on = readSysctl("net/ipv6/conf/all/forwarding") != "0"
		return nil
	})
	return on, err
}

// EnsureSysctls sets what differs, in order, and says what it changed. A setting that the kernel does not have is left out (no
// IPv6). One that cannot be set, as where /proc/sys is mounted read-only, is a problem with the remedy in its text, not an error.
func (b *Backend) EnsureSysctls(ctx context.Context, want []Sysctl) (changed, problems []string) {
	err := b.inHostNS(func() error {
		for _, s := range want {
			if err := ctx.Err(); err != nil {
				return err
			}
			before := readSysctl(s.Path)
			if before == "" || before == s.Value {
				continue
			}
			if err := os.WriteFile(filepath.Join(procSys, s.Path), []byte(s.Value), 0); err != nil {
				problems = append(problems, sysctlProblem(s, before, err))
				continue
			}
			changed = append(changed, fmt.Sprintf("sysctl %s: %s becomes %s", s.Path, before, s.Value))
		}
		return nil
	})
	if err != nil {
		problems = append(problems, fmt.Sprintf("setting sysctls: %v", err))
	}
	return changed, problems
}

// sysctlProblem says what is wrong and what to do.
func sysctlProblem(s Sysctl, before string, err error) string {
	why := err.Error()
	if errors.Is(err, unix.EROFS) {
		why = "/proc/sys is mounted read-only"
	}
	return fmt.Sprintf("sysctl %s is %s and must be %s so that %s, but %s; set it on the host: echo '%s = %s' > /etc/sysctl.d/90-weft.conf and sysctl --system",
		s.Path, before, s.Value, s.Why, why, s.Path, s.Value)
}

// readSysctl returns the value of a setting in the thread's namespace; empty when there is none.
func readSysctl(path string) string {
	v, err := os.ReadFile(filepath.Join(procSys, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(v))
}

// clearLinkSysctl sets one of a link's IPv6 settings (net/ipv6/conf/LINK/KEY) to 0 in the thread's namespace. That the kernel
// has no IPv6 is fine, and so is a /proc/sys mounted read-only that holds the value already.
func clearLinkSysctl(link, key string) error {
	path := "net/ipv6/conf/" + link + "/" + key
	err := os.WriteFile(filepath.Join(procSys, path), []byte("0"), 0)
	if err == nil || errors.Is(err, fs.ErrNotExist) || readSysctl(path) == "0" {
		return nil
	}
	return fmt.Errorf("setting sysctl %s to 0: %w", path, err)
}
