package prober

import (
	"fmt"
	"net/netip"
	"time"

	"weft.network/weft/appliance/compile/route"
)

// fate is what became of a probe.
type fate int

const (
	lost        fate = iota // nothing came back
	passed                  // answered
	tooBig                  // a link on the way does not carry the size, and somebody said so
	refused                 // the other machine says that nobody listens on the port
	unreachable             // this node or somebody on the way refused the packet
)

// outcome is the fate of a probe and what is known about it.
type outcome struct {
	fate fate
	rtt  time.Duration
	// mtu is what the link carries that was too small; 0 when nobody said.
	mtu int
	// by is the router that refused the packet; invalid when it was this node, or nobody spoke.
	by netip.Addr
	// detail is the error for the fates unreachable and lost.
	detail string
}

// measured is the largest packet that passed, in bytes, and the outcome of one that did not. mtu is 0 when nothing was measured.
type measured struct {
	mtu    int
	reason outcome
}

// offloadState is how far the suspicion has gone that the link's checksum offload is broken.
type offloadState int

const (
	offloadTrusted offloadState = iota
	offloadOnTrial              // switched off to see whether that helps
	offloadBroken               // it did help: it stays off
	offloadCleared              // it did not help: it is on again
)

// facts are what one check found out about one peer in one family.
type facts struct {
	peer      route.Peer
	to        netip.Addr // the peer's address in the Pod network
	podMTU    int
	tunnel    uint16 // VXLAN port
	probePort uint16

	small outcome // a small probe through the Pod network
	// outer is a small probe from node address to node address; asked only when small did not pass.
	outer outcome
	// inner is the largest packet through the Pod network, at most podMTU.
	inner measured
	// underlay is the largest packet between the node addresses, at most what a full packet needs in the tunnel; measured
	// only in mode vxlan and when the underlay answers probes.
	underlay measured

	offload      offloadState
	offloadError string
}

// verdict says whether the peer's Pods can be reached, the largest packet in bytes that Pods can send there (0 when it is not
// known) and, in one sentence with the fix, what is wrong; empty when nothing is.
func verdict(f facts) (up bool, mtu int, finding string) {
	switch f.small.fate {
	case passed:
		mtu, finding = sizeVerdict(f)
		if finding == "" && f.offload == offloadBroken {
			finding = fmt.Sprintf("broken checksum offload on the way to node %s, worked around: packets get through the tunnel since tx checksum offload of %s is off", f.peer.Node, route.TunnelLink)
		}
		return true, mtu, finding
	case refused:
		return true, 0, fmt.Sprintf("node %s is there, but nothing answers probes at %s udp/%d: is weftd running there, with the same fabric.probe.port?", f.peer.Node, f.to, f.probePort)
	case lost, tooBig, unreachable:
	}
	return false, 0, silenceVerdict(f)
}

// sizeVerdict judges the path MTU.
func sizeVerdict(f facts) (mtu int, finding string) {
	if f.inner.mtu == 0 { // it went silent in the middle of the check: the next one tells
		return 0, ""
	}
	// What the underlay cannot carry whole, the kernel fragments: large packets may get through all the same, slowly, until
	// something on the way drops fragments.
	over, fits, reason := overhead(f.peer), f.inner.mtu, f.inner.reason
	if f.underlay.mtu != 0 && f.underlay.mtu-over <= fits {
		fits, reason = f.underlay.mtu-over, f.underlay.reason
	}
	if fits >= f.podMTU {
		return f.podMTU, ""
	}
	finding = fmt.Sprintf("path MTU to node %s is %d, Pods use %d: %s; ", f.peer.Node, fits, f.podMTU, advice(fits))
	if f.inner.mtu < f.podMTU {
		return fits, finding + fmt.Sprintf("packets larger than %d are lost (%s)", f.inner.mtu, whoSays(reason))
	}
	return fits, finding + fmt.Sprintf("larger packets are fragmented in the tunnel, because the underlay carries %d bytes and they need %d (%s)",
		f.underlay.mtu, f.podMTU+over, whoSays(reason))
}

// minMTU is the least MTU that IPv6 allows (RFC 8200 section 5), and so the least fabric.mtu.
const minMTU = 1280

func advice(mtu int) string {
	if mtu < minMTU {
		return fmt.Sprintf("fix the underlay (fabric.mtu cannot be less than %d)", minMTU)
	}
	return fmt.Sprintf("set fabric.mtu: %d or fix the underlay", mtu)
}

func whoSays(o outcome) string {
	switch {
	case o.fate == tooBig && o.by.IsValid():
		return fmt.Sprintf("router %s says so", o.by)
	case o.fate == tooBig:
		return "a link of this node carries no more"
	}
	return "no router says so: ICMP is blocked on the way"
}

// silenceVerdict judges why nothing came back through the Pod network.
func silenceVerdict(f facts) string {
	node, outer := f.peer.Node, f.peer.Outer.String()
	if !f.peer.Outer.IsValid() {
		outer = "(it has none)"
	}
	switch {
	case f.outer.fate == refused:
		return fmt.Sprintf("node %s is up, but weftd does not answer there: udp/%d at %s is closed", node, f.probePort, outer)
	case f.outer.fate != passed:
		return fmt.Sprintf("node %s does not answer, neither at %s through the Pod network%s nor at its own address %s%s: is it down, or is udp/%d blocked?",
			node, f.to, because(f.small), outer, because(f.outer), f.probePort)
	case f.peer.Mode == route.ModeVXLAN && f.small.fate == lost:
		finding := fmt.Sprintf("VXLAN (udp/%d) from or to node %s does not get through, although the node answers at %s: is the port blocked by a firewall, or in use by something else there?",
			f.tunnel, node, outer)
		if f.offloadError != "" {
			finding += " Whether checksum offload is broken could not be tried: " + f.offloadError
		}
		return finding
	}
	finding := fmt.Sprintf("node %s answers at %s, but not at %s in the Pod network%s: a route to it, or its route back, is missing or filtered",
		node, outer, f.to, because(f.small))
	if f.peer.Mode == route.ModeNative {
		finding += " (in native mode every router between the nodes must know all Pod ranges)"
	}
	return finding
}

func because(o outcome) string {
	if o.detail == "" {
		return ""
	}
	return " (" + o.detail + ")"
}

// overhead is what the tunnel adds to a packet to the peer, in bytes.
func overhead(p route.Peer) int {
	switch {
	case p.Mode != route.ModeVXLAN:
		return 0
	case p.Outer.Is6():
		return route.Overhead6
	}
	return route.Overhead4
}
