package probe

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/kernel/iface"
	"weft.network/weft/appliance/prober"
)

// These tests run the prober of one node against the real kernel: its verdicts are only as good as what the kernel and
// routers really answer.

// podNetwork gives two hosts addresses in the Pod network, 10.244.N.1 and fd00:N::1, and the responder to the second.
func podNetwork(a, b *host, outerB string) {
	for h, n := range map[*host]string{a: "1", b: "2"} {
		h.run("ip link add weft0 type bridge\nip link set weft0 up\nip addr add 10.244." + n + ".1/32 dev weft0\nip addr add fd00:" + n + "::1/128 dev weft0 nodad")
	}
	b.listen("10.244.2.1", "fd00:2::1", outerB)
}

// tunnel joins the Pod networks of two hosts by VXLAN.
func tunnel(a, b *host, outerA, outerB string) {
	for _, end := range []struct {
		h                          *host
		local, remote, mac, peer   string
		inner, theirs, theirSubnet string
	}{
		{a, outerA, outerB, "02:00:00:00:00:01", "02:00:00:00:00:02", "1", "2", "2"},
		{b, outerB, outerA, "02:00:00:00:00:02", "02:00:00:00:00:01", "2", "1", "1"},
	} {
		end.h.run("ip link add weft.vx address " + end.mac + " mtu 1450 type vxlan id 22342 dstport 4789 local " + end.local + " dev eth0 nolearning\n" +
			"ip link set weft.vx up\n" +
			"bridge fdb append " + end.peer + " dev weft.vx dst " + end.remote + "\n" +
			"ip neigh add 10.244." + end.theirs + ".1 lladdr " + end.peer + " dev weft.vx\n" +
			"ip neigh add fd00:" + end.theirs + "::1 lladdr " + end.peer + " dev weft.vx\n" +
			"ip route add 10.244." + end.theirs + ".0/24 via 10.244." + end.theirs + ".1 dev weft.vx onlink src 10.244." + end.inner + ".1\n" +
			"ip -6 route add fd00:" + end.theirs + "::/64 via fd00:" + end.theirs + "::1 dev weft.vx onlink src fd00:" + end.inner + "::1")
	}
}

// probing runs a prober on a host until the test ends.
func probing(a *host, mode route.Mode, outerA, outerB string, podMTU int, set func(ctx context.Context, on bool) error) *prober.Prober {
	p := prober.New(prober.Options{Interval: time.Second, Port: testPort, Send: a.sender(), SetTxChecksum: set, OnChange: func(_, now prober.PeerStatus) {
		a.t.Logf("IPv%d up=%v mtu=%d rtt=%s %s", now.Family, now.Up, now.MTU, now.RTT, now.Finding)
	}})
	p.Update(prober.View{
		Peers: []route.Peer{{Node: "b", Mode: mode, Outer: netip.MustParseAddr(outerB), Inner: parse([]string{"10.244.2.1", "fd00:2::1"})}},
		Inner: parse([]string{"10.244.1.1", "fd00:1::1"}), Outer: parse([]string{outerA}), PodMTU: podMTU, TunnelPort: 4789,
	})
	ctx, cancel := context.WithCancel(a.t.Context())
	ended := make(chan struct{})
	go func() { p.Run(ctx); close(ended) }()
	a.t.Cleanup(func() { cancel(); <-ended })
	return p
}

// shows waits until both families have a status with that MTU and a finding that contains the text; an empty text means none.
func shows(t *testing.T, p *prober.Prober, up bool, mtu int, text string) {
	t.Helper()
	eventually(t, 40*time.Second, fmt.Sprintf("up=%v MTU %d %q", up, mtu, text), func() bool {
		results := p.Results()
		for _, s := range results {
			if s.Up != up || s.MTU != mtu || !strings.Contains(s.Finding, text) || (text == "") != (s.Finding == "") {
				return false
			}
		}
		return len(results) == 2
	})
}

func TestPathMTUOfRoutes(t *testing.T) {
	t.Parallel()
	a, r, b := routed(t, "1500")
	podNetwork(a, b, "192.168.2.2")
	a.run("ip route add 10.244.2.0/24 via 192.168.1.254\nip -6 route add fd00:2::/64 via fd01::fe")
	b.run("ip route add 10.244.1.0/24 via 192.168.2.254\nip -6 route add fd00:1::/64 via fd02::fe")
	r.run("ip route add 10.244.1.0/24 via 192.168.1.1\nip -6 route add fd00:1::/64 via fd01::1\nip route add 10.244.2.0/24 via 192.168.2.2\nip -6 route add fd00:2::/64 via fd02::2")
	p := probing(a, route.ModeNative, "192.168.1.1", "192.168.2.2", 1450, nil)
	shows(t, p, true, 1450, "")
	r.run("ip link set right mtu 1400")
	shows(t, p, true, 1400, "path MTU to node b is 1400, Pods use 1450: set fabric.mtu: 1400")
	for _, s := range p.Results() {
		if !strings.Contains(s.Finding, "says so") || strings.Contains(s.Finding, "ICMP is blocked") {
			t.Errorf("the router is not named: %s", s.Finding)
		}
	}
	// A black hole, and of another size, so that nothing known helps.
	r.run("nft add table inet t\nnft add chain inet t c { type filter hook output priority 0 ; }\n" +
		"nft add rule inet t c icmp type destination-unreachable drop\nnft add rule inet t c icmpv6 type packet-too-big drop\nip link set right mtu 1337")
	shows(t, p, true, 1337, "ICMP is blocked on the way")
	r.run("ip link set right mtu 1500")
	shows(t, p, true, 1450, "")
	// The way back is cut.
	r.run("ip route del 10.244.1.0/24\nip -6 route del fd00:1::/64")
	shows(t, p, false, 0, "node b answers at 192.168.2.2, but not at")
}

func TestPathMTUOfTunnel(t *testing.T) {
	t.Parallel()
	a, r, b := routed(t, "1500")
	podNetwork(a, b, "192.168.2.2")
	tunnel(a, b, "192.168.1.1", "192.168.2.2")
	p := probing(a, route.ModeVXLAN, "192.168.1.1", "192.168.2.2", 1450, nil)
	shows(t, p, true, 1450, "")
	// The kernel fragments tunnel packets at the router: they arrive, but should not need to.
	r.run("ip link set right mtu 1400")
	shows(t, p, true, 1350, "path MTU to node b is 1350, Pods use 1450: set fabric.mtu: 1350 or fix the underlay; larger packets are fragmented")
	// Now fragments are lost as well.
	b.run("nft add table inet t\nnft add chain inet t c { type filter hook prerouting priority -500 ; }\nnft add rule inet t c ip frag-off & 0x3fff != 0 drop")
	shows(t, p, true, 1350, "packets larger than 1350 are lost")
}

// offload returns a switch for the tunnel's tx checksum offload, and whether it is on.
func offload(h *host) (set func(ctx context.Context, on bool) error, isOn func() bool) {
	h.t.Helper()
	b, err := iface.Open(iface.Options{NetNS: int(h.ns.Fd())})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = b.Close() })
	return func(ctx context.Context, on bool) error { return b.SetTxChecksum(ctx, route.TunnelLink, on) },
		func() bool { return strings.Contains(h.run("ethtool -k weft.vx"), "tx-checksumming: on") }
}

// dropTunnel makes a host deaf for VXLAN.
const dropTunnel = "nft add table inet vx\nnft add chain inet vx c { type filter hook prerouting priority -300 ; }\nnft add rule inet vx c udp dport 4789 drop"

func TestBrokenOffload(t *testing.T) {
	t.Parallel()
	a, b := pairOf(t)
	podNetwork(a, b, "192.168.1.2")
	tunnel(a, b, "192.168.1.1", "192.168.1.2")
	// The receiver drops what comes through the tunnel while the sender's offload is on, as it would drop wrong checksums.
	b.run(dropTunnel)
	set, isOn := offload(a)
	p := probing(a, route.ModeVXLAN, "192.168.1.1", "192.168.1.2", 1450, func(ctx context.Context, on bool) error {
		b.run("nft flush chain inet vx c")
		if on {
			b.run("nft add rule inet vx c udp dport 4789 drop")
		}
		return set(ctx, on)
	})
	shows(t, p, true, 1450, "broken checksum offload on the way to node b, worked around")
	if isOn() {
		t.Error("offload is on")
	}
	// Somebody makes the device anew: the kernel gives a new one offload.
	a.run("ip link del weft.vx\nip route flush cache")
	b.run("ip link del weft.vx\nnft add rule inet vx c udp dport 4789 drop")
	tunnel(a, b, "192.168.1.1", "192.168.1.2")
	eventually(t, 20*time.Second, "offload is off again", func() bool { return !isOn() })
	shows(t, p, true, 1450, "worked around")
}

func TestBlockedTunnel(t *testing.T) {
	t.Parallel()
	a, b := pairOf(t)
	podNetwork(a, b, "192.168.1.2")
	tunnel(a, b, "192.168.1.1", "192.168.1.2")
	b.run(dropTunnel)
	var sets atomic.Int32
	set, isOn := offload(a)
	p := probing(a, route.ModeVXLAN, "192.168.1.1", "192.168.1.2", 1450, func(ctx context.Context, on bool) error {
		sets.Add(1)
		return set(ctx, on)
	})
	shows(t, p, false, 0, "VXLAN (udp/4789) from or to node b does not get through, although the node answers at 192.168.1.2")
	eventually(t, 30*time.Second, "offload is on again", func() bool { return sets.Load() == 2 && isOn() })
	b.run("nft delete table inet vx")
	shows(t, p, true, 1450, "")
	a.run("ip link set eth0 down")
	shows(t, p, false, 0, "node b does not answer")
	if n := sets.Load(); n != 2 {
		t.Errorf("offload was set %d times, want off and on", n)
	}
}
