package prober

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"weft.network/weft/appliance/compile/route"
)

// View is what the prober needs to know of the cluster; it follows from route.State and the addresses of this node.
type View struct {
	Peers []route.Peer
	// Inner are this node's own addresses in the Pod network, at most one per family.
	Inner []netip.Addr
	// Outer are this node's own addresses in the underlay; where a family has none, the kernel chooses the source.
	Outer []netip.Addr
	// PodMTU is what Pods use, in bytes.
	PodMTU int
	// TunnelPort is the UDP port of VXLAN.
	TunnelPort uint16
}

// PeerStatus is what is known of one peer in one family of its Pod addresses.
type PeerStatus struct {
	Node string     `json:"node"`
	Mode route.Mode `json:"mode"`
	// Family is 4 or 6; 0 when there is no address to probe.
	Family int `json:"family,omitempty"`
	// Address is the peer's own in the Pod network.
	Address netip.Addr `json:"address,omitzero"`
	// Up is true while the peer can be reached through the Pod network.
	Up  bool          `json:"up"`
	RTT time.Duration `json:"rtt,omitempty"`
	// MTU is the largest packet in bytes that Pods can send there without loss or fragments; 0 when it is not known.
	MTU int `json:"mtu,omitempty"`
	// LastSeen is when it was last reached; zero when it never was.
	LastSeen time.Time `json:"lastSeen,omitzero"`
	// Finding says what is wrong and how to fix it; empty when nothing is.
	Finding string `json:"finding,omitempty"`
}

// pair is a peer's address in one family, with this node's own.
type pair struct {
	family   int
	from, to netip.Addr
}

// pairs returns the ways to a peer through the Pod network: one per family that both nodes have.
func pairs(own []netip.Addr, p route.Peer) []pair {
	var out []pair
	for _, to := range p.Inner {
		if from := sameFamily(own, to); from.IsValid() {
			out = append(out, pair{family(to), from, to})
		}
	}
	slices.SortFunc(out, func(a, b pair) int { return cmp.Compare(a.family, b.family) })
	return out
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

func sameFamily(addrs []netip.Addr, as netip.Addr) netip.Addr {
	for _, a := range addrs {
		if a.Is4() == as.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// unprobed is the status of a peer to which no probe can be sent, or the zero value when one can.
func unprobed(own []netip.Addr, p route.Peer) PeerStatus {
	s := PeerStatus{Node: p.Node, Mode: p.Mode, Finding: p.Problem}
	if p.Problem == "" && len(pairs(own, p)) == 0 {
		s.Finding = "it has no Pod range of a family that this node has one of: give both nodes ranges of the same families"
	}
	if s.Finding == "" {
		return PeerStatus{}
	}
	return s
}

// worse reports whether a peer that was fine no longer is.
func worse(before, now []PeerStatus) bool {
	for _, n := range now {
		for _, b := range before {
			if b.Family == n.Family && b.Finding == "" && n.Finding != "" {
				return true
			}
		}
	}
	return false
}
