package iface

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/model"
)

// pair is two nodes on one subnet, each with one Pod.
type pair struct {
	nodes [3]*node // 1 and 2
	pods  [3]*os.File
}

func newPair(t testing.TB) *pair {
	t.Helper()
	p := &pair{}
	for i := 1; i <= 2; i++ {
		p.nodes[i], p.pods[i] = newNode(t), newNS(t)
	}
	p.nodes[1].run(fmt.Sprintf("ip link add eth0 type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), p.nodes[2].ns.Fd()))
	for i := 1; i <= 2; i++ {
		n := p.nodes[i]
		n.run(fmt.Sprintf("ip addr add 192.168.50.%d/24 dev eth0", i))
		n.run(fmt.Sprintf("ip addr add fd00:50::%d/64 dev eth0 nodad", i))
		// The link-local address must be usable at once: it is the source of neighbour solicitations for forwarded packets.
		n.run("sysctl -qw net.ipv6.conf.eth0.accept_dad=0")
		n.run("ip link set eth0 up")
		n.add(p.pods[i], attachment(i, 0, "46"))
	}
	for i := 1; i <= 2; i++ {
		p.nodes[i].awaitAddress(fmt.Sprintf("fd00:50::%d", i))
		eventually(t, "the link-local address is ready", func() bool {
			out := p.nodes[i].run("ip -6 addr show dev eth0 scope link")
			return strings.Contains(out, "fe80") && !strings.Contains(out, "tentative")
		})
	}
	return p
}

// hostNet is what compile/route would say to node i of the pair.
func hostNet(i int, mode route.Mode) route.HostNet {
	peer := 3 - i
	addr := func(format string, n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, n)) }
	mac := func(n int) model.MAC { return model.MAC{0x0e, 0, 0, 0, 0, byte(n)} }
	h := route.HostNet{
		NodeAddresses: []netip.Addr{addr("10.244.%d.1", i), addr("fd00:244:%d::1", i)},
		Blackholes:    []netip.Prefix{netip.PrefixFrom(addr("10.244.%d.0", i), 24), netip.PrefixFrom(addr("fd00:244:%d::", i), 64)},
		Routes: []route.Route{
			{Dst: netip.PrefixFrom(addr("10.244.%d.0", peer), 24), Via: addr("192.168.50.%d", peer), Link: "eth0", Src: addr("10.244.%d.1", i)},
			{Dst: netip.PrefixFrom(addr("fd00:244:%d::", peer), 64), Via: addr("fd00:50::%d", peer), Link: "eth0", Src: addr("fd00:244:%d::1", i)},
		},
	}
	if mode != route.ModeVXLAN {
		return h
	}
	hops := []netip.Addr{addr("10.244.%d.1", peer), addr("fd00:244:%d::1", peer)}
	for j := range h.Routes {
		h.Routes[j].Via, h.Routes[j].Link, h.Routes[j].OnLink = hops[j], route.TunnelLink, true
	}
	h.Tunnel = &route.Tunnel{
		VNI: 4096, Port: 8472, Local: addr("192.168.50.%d", i), Link: "eth0", MAC: mac(i), MTU: 1450,
		Peers: []route.TunnelPeer{{Node: fmt.Sprint(peer), Outer: addr("192.168.50.%d", peer), MAC: mac(peer), NextHops: hops}},
	}
	return h
}

// apply applies, and applies again: the second time nothing may change.
func (n *node) apply(h route.HostNet) []string {
	n.t.Helper()
	changes, err := n.ApplyHost(n.t.Context(), h)
	if err != nil {
		n.t.Fatal(err)
	}
	if again, err := n.ApplyHost(n.t.Context(), h); err != nil || len(again) != 0 {
		n.t.Fatalf("the second ApplyHost changes %q, error %v", again, err)
	}
	return changes
}

func (p *pair) apply(mode route.Mode) {
	for i := 1; i <= 2; i++ {
		p.nodes[i].apply(hostNet(i, mode))
	}
}

// ping sends from Pod to Pod and from node to Pod, both ways and families.
func (p *pair) ping(t *testing.T, when string) {
	t.Helper()
	for i := 1; i <= 2; i++ {
		for _, to := range attachment(3-i, 0, "46").Addresses {
			for _, from := range []*os.File{p.pods[i], p.nodes[i].ns} {
				if out, err := try(from, "ping -c1 -W2 "+to.String()); err != nil {
					t.Errorf("%s: %s does not answer node %d: %v\n%s", when, to, i, err, out)
				}
			}
		}
	}
}

func TestApplyHostModes(t *testing.T) {
	p := newPair(t)
	for _, mode := range []route.Mode{route.ModeVXLAN, route.ModeNative, route.ModeVXLAN, route.ModeNative} {
		p.apply(mode)
		p.ping(t, string(mode))
	}
}

// TestApplyHostUnderTraffic changes the mode of both nodes while one Pod pings the other 200 times a second.
func TestApplyHostUnderTraffic(t *testing.T) {
	p := newPair(t)
	p.apply(route.ModeVXLAN)
	p.ping(t, "before")
	for _, to := range attachment(2, 0, "46").Addresses {
		for _, mode := range []route.Mode{route.ModeNative, route.ModeVXLAN} {
			done := make(chan string)
			go func() {
				out, _ := try(p.pods[1], "ping -q -i 0.005 -c 200 -W 1 "+to.String())
				done <- out
			}()
			start := time.Now()
			p.apply(mode)
			between := time.Since(start) // the nodes do not agree: on a busy machine this is long
			out := <-done
			var sent, received int
			line := out[strings.Index(out, "200 packets"):]
			if _, err := fmt.Sscanf(line, "%d packets transmitted, %d received", &sent, &received); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("to %s, change to %s: %d of %d lost", to, mode, sent-received, sent)
			if most := 40 + int(between/(5*time.Millisecond)); sent-received > most {
				t.Errorf("to %s, change to %s: %d packets of %d are lost, want at most %d", to, mode, sent-received, sent, most)
			}
		}
	}
}

// TestApplyHostZero takes everything away and leaves the Pods.
func TestApplyHostZero(t *testing.T) {
	p := newPair(t)
	n := p.nodes[1]
	before := state(t, n.ns)
	n.apply(hostNet(1, route.ModeVXLAN))
	n.apply(route.HostNet{})
	if after := state(t, n.ns); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	if err := n.CheckPod(t.Context(), int(p.pods[1].Fd()), attachment(1, 0, "46")); err != nil {
		t.Error(err)
	}
}

func TestHostText(t *testing.T) {
	p := newPair(t)
	n := p.nodes[1]
	var text []string
	for _, mode := range []route.Mode{route.ModeVXLAN, route.ModeNative} {
		changes := n.apply(hostNet(1, mode))
		slices.Sort(changes)
		text = append(text, "## "+string(mode), strings.Join(changes, "\n")+"\n")
		for _, c := range []string{"ip -br addr show dev weft0", "ip route", "ip -6 route show proto 87"} {
			text = append(text, "# "+c, stable(n.run(c)))
		}
		if mode == route.ModeVXLAN {
			for _, c := range []string{"ip -d link show dev weft.vx", "ip neigh show dev weft.vx", "ip -6 neigh show dev weft.vx", "bridge fdb show dev weft.vx"} {
				text = append(text, "# "+c, stable(n.run(c)))
			}
		}
	}
	golden(t, "host.txt", strings.Join(text, "\n"))
}

// TestApplyHostRepairs breaks one thing at a time, as a foreign tool would.
func TestApplyHostRepairs(t *testing.T) {
	p := newPair(t)
	p.apply(route.ModeVXLAN)
	n := p.nodes[1]
	want := hostNet(1, route.ModeVXLAN)
	for _, c := range []struct {
		commands []string
		changes  int // at least
	}{
		{[]string{"ip route flush proto 87"}, 2},
		{[]string{"ip -6 route flush proto 87"}, 2},
		{[]string{"ip route change 10.244.2.0/24 dev eth0 proto 87"}, 1},
		{[]string{"ip route add 10.99.0.0/16 dev eth0 proto 87"}, 1},
		{[]string{"ip -6 route add unreachable fd00:99::/64 proto 87"}, 1},
		{[]string{"ip link del weft.vx"}, 7},
		{[]string{"ip link del weft0"}, 3},
		{[]string{"ip link set weft.vx down"}, 2},
		{[]string{"ip link set weft0 down"}, 1},
		{[]string{"ip link set weft.vx mtu 1400"}, 1},
		{[]string{"ip link set weft.vx address 0e:00:00:00:00:99"}, 1},
		{[]string{"ip addr flush dev weft0"}, 2},
		{[]string{"ip addr add 10.244.1.77/32 dev weft0"}, 1},
		{[]string{"ip neigh del 10.244.2.1 dev weft.vx"}, 1},
		{[]string{"ip neigh replace 10.244.2.1 lladdr 0e:00:00:00:00:98 dev weft.vx nud permanent"}, 1},
		{[]string{"ip -6 neigh add fd00:244:9::1 lladdr 0e:00:00:00:00:98 dev weft.vx nud permanent"}, 1},
		{[]string{"bridge fdb del 0e:00:00:00:00:02 dev weft.vx"}, 1},
		{[]string{"bridge fdb replace 0e:00:00:00:00:02 dev weft.vx dst 192.168.50.99"}, 1},
		{[]string{"bridge fdb add 0e:00:00:00:00:97 dev weft.vx dst 192.168.50.99"}, 1},
		{[]string{"ip link del weft.vx", "ip link add weft.vx group 8702 type vxlan id 5 dstport 8472 local 192.168.50.1 dev eth0"}, 8},
	} {
		for _, command := range c.commands {
			n.run(command)
		}
		if strings.Contains(c.commands[0], "route flush") {
			n.add(p.pods[1], attachment(1, 0, "46")) // the routes of Pods are not ApplyHost's
		}
		if changes := n.apply(want); len(changes) < c.changes {
			t.Errorf("%q: repaired with %q", c.commands, changes)
		}
		p.ping(t, strings.Join(c.commands, "; "))
	}
}

// TestApplyHostTunnelMoves changes each attribute of the tunnel.
func TestApplyHostTunnelMoves(t *testing.T) {
	p := newPair(t)
	p.nodes[1].run("ip addr add 192.168.50.11/24 dev eth0")
	for i := 1; i <= 2; i++ {
		p.nodes[i].apply(hostNet(i, route.ModeVXLAN))
	}
	for name, change := range map[string]func(i int, h *route.HostNet){
		"vni":    func(i int, h *route.HostNet) { h.Tunnel.VNI = 77 },
		"port":   func(i int, h *route.HostNet) { h.Tunnel.Port = 4789 },
		"mtu":    func(i int, h *route.HostNet) { h.Tunnel.MTU = 1400 },
		"no mac": func(i int, h *route.HostNet) { h.Tunnel.Peers[0].MAC[1], h.Tunnel.MAC[1] = 7, 7 },
		"local": func(i int, h *route.HostNet) {
			if i == 1 {
				h.Tunnel.Local = netip.MustParseAddr("192.168.50.11")
			} else {
				h.Tunnel.Peers[0].Outer = netip.MustParseAddr("192.168.50.11")
			}
		},
		"outer IPv6": func(i int, h *route.HostNet) {
			h.Tunnel.Local = netip.MustParseAddr(fmt.Sprintf("fd00:50::%d", i))
			h.Tunnel.Peers[0].Outer = netip.MustParseAddr(fmt.Sprintf("fd00:50::%d", 3-i))
			h.Tunnel.MTU = 1430
		},
	} {
		for i := 1; i <= 2; i++ {
			h := hostNet(i, route.ModeVXLAN)
			change(i, &h)
			p.nodes[i].apply(h)
		}
		p.ping(t, name)
	}
}

// TestApplyHostAlienNodeLink: without its own link a node has no gateway for its Pods.
func TestApplyHostAlienNodeLink(t *testing.T) {
	n := newPair(t).nodes[1]
	n.run("ip link add weft0 type veth peer name clash0")
	if _, err := n.ApplyHost(t.Context(), hostNet(1, route.ModeNative)); !errors.Is(err, route.ErrNodeLink) || !errors.Is(err, ErrNameTaken) {
		t.Errorf("error %v", err)
	}
	n.run("ip link del weft0")
	n.apply(hostNet(1, route.ModeNative))
}

func TestApplyHostAlien(t *testing.T) {
	p := newPair(t)
	n := p.nodes[1]
	n.run("ip link add weft.vx type bridge")
	n.run("ip route add 10.244.2.0/24 via 192.168.50.2 proto static")
	_, err := n.ApplyHost(t.Context(), hostNet(1, route.ModeVXLAN))
	if !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), "link weft.vx (bridge) is on the node already") {
		t.Errorf("alien link: error %v", err)
	}
	if errors.Is(err, route.ErrNodeLink) {
		t.Errorf("a tunnel that cannot be made counts as the node's own link: %v", err)
	}
	if out := n.run("ip -br addr show dev weft0"); !strings.Contains(out, "10.244.1.1/32") {
		t.Errorf("the alien link held up the rest: %s", out)
	}
	n.run("ip link del weft.vx")
	_, err = n.ApplyHost(t.Context(), hostNet(1, route.ModeNative))
	if err == nil || !strings.Contains(err.Error(), "another program has set a route to 10.244.2.0/24 (10.244.2.0/24 via 192.168.50.2 dev eth0 proto static)") {
		t.Errorf("alien route: error %v", err)
	}
	n.run("ip link add weft9 type bridge")
	n.run("ip route del 10.244.2.0/24")
	n.apply(hostNet(1, route.ModeNative))
	n.apply(route.HostNet{})
	n.run("ip link show weft9") // only a name like ours: it stays
}

func TestApplyHostMissingLink(t *testing.T) {
	n := newNode(t)
	h := hostNet(1, route.ModeNative)
	_, err := n.ApplyHost(t.Context(), h)
	if err == nil || strings.Count(err.Error(), "eth0") != 1 {
		t.Errorf("want one error about eth0, got %v", err)
	}
	if out := n.run("ip route show proto 87"); !strings.Contains(out, "unreachable 10.244.1.0/24") {
		t.Errorf("the missing link held up the rest: %s", out)
	}
}

func TestUnderlay(t *testing.T) {
	p := newPair(t)
	p.apply(route.ModeVXLAN)
	n := p.nodes[1]
	n.run("ip link set eth0 mtu 1400")
	n.run("ip link add down0 type bridge")
	n.run("ip addr add 172.16.0.1/24 dev down0")
	u, err := n.Underlay(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%+v", u.Links)
	if want := "[{Name:eth0 MTU:1400 Addresses:[192.168.50.1/24 fd00:50::1/64]}]"; got != want {
		t.Errorf("Underlay is %s\nwant %s", got, want)
	}
}

// TestUnderlayOfDHCPv6: an address without a subnet is in the one that a router advertised, and in none that somebody else made up.
func TestUnderlayOfDHCPv6(t *testing.T) {
	n := newPair(t).nodes[1]
	for i, r := range []string{"fd00:71::/64 dev eth0 proto ra", "fd00:72::/64 dev eth0 proto static", "fd00:73::/64 via fd00:50::9 proto ra", "default dev eth0 proto ra"} {
		n.run(fmt.Sprintf("ip addr add fd00:7%d::5/128 dev eth0 nodad", i+1))
		n.run("ip -6 route add " + r)
	}
	n.run("ip addr add 192.168.60.1/32 dev eth0")
	u, err := n.Underlay(t.Context())
	if err != nil || len(u.Links) != 1 {
		t.Fatal(u, err)
	}
	var got []string
	for _, p := range u.Links[0].Addresses {
		got = append(got, p.String())
	}
	slices.Sort(got)
	want := "192.168.50.1/24 192.168.60.1/32 fd00:50::1/64 fd00:71::5/64 fd00:72::5/128 fd00:73::5/128 fd00:74::5/128"
	if strings.Join(got, " ") != want {
		t.Errorf("addresses are %v\nwant %s", got, want)
	}
}

// TestHops asks for the way to addresses behind a router, on the subnet, and nowhere; and installs a learned route.
func TestHops(t *testing.T) {
	p := newPair(t)
	p.apply(route.ModeNative)
	n := p.nodes[1]
	n.run("ip route add 172.20.0.0/16 via 192.168.50.9")
	n.run("ip -6 route add fd00:99::/32 via fd00:50::9")
	n.run("ip route add unreachable 172.21.0.0/16")
	ask := []netip.Addr{
		netip.MustParseAddr("172.20.0.1"), netip.MustParseAddr("fd00:99::1"), netip.MustParseAddr("192.168.50.2"), netip.MustParseAddr("172.21.0.1"),
		netip.MustParseAddr("192.168.50.1"),
	}
	got := n.Hops(ask)
	if len(got) != 2 || got[ask[0]] != (route.Hop{Via: netip.MustParseAddr("192.168.50.9"), Link: "eth0"}) || got[ask[1]].Via != netip.MustParseAddr("fd00:50::9") {
		t.Errorf("Hops are %v", got)
	}
	want := hostNet(1, route.ModeNative)
	want.Routes = append(want.Routes,
		route.Route{Dst: netip.MustParsePrefix("10.250.0.0/24"), Via: got[ask[0]].Via, Link: "eth0"},
		route.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: got[ask[0]].Via, Link: "eth0", Metric: route.ImportMetric},
		route.Route{Dst: netip.MustParsePrefix("fd00:250::/48"), Via: got[ask[1]].Via, Link: "eth0", Metric: route.ImportMetric})
	for i := range 2 {
		changes, err := n.ApplyHost(t.Context(), want)
		if err != nil || len(changes) != 3*(1-i) {
			t.Errorf("applying learned routes for the %d. time: %q %v", i+1, changes, err)
		}
	}
	if out := n.run("ip route show proto 87"); !strings.Contains(out, "default via 192.168.50.9 dev eth0 metric 4200") || !strings.Contains(out, "10.250.0.0/24 via 192.168.50.9 dev eth0") {
		t.Errorf("routes are %s", out)
	}
}

func BenchmarkApplyHostNoChange(b *testing.B) {
	p := newPair(b)
	h := hostNet(1, route.ModeVXLAN)
	for i := 3; i < 200; i++ {
		hop := netip.AddrFrom4([4]byte{10, 245, byte(i), 1})
		mac := model.MAC{0x0e, 0, 0, 0, 1, byte(i)}
		h.Tunnel.Peers = append(h.Tunnel.Peers, route.TunnelPeer{Outer: netip.AddrFrom4([4]byte{192, 168, 50, byte(i)}), MAC: mac, NextHops: []netip.Addr{hop}})
		h.Routes = append(h.Routes, route.Route{Dst: netip.PrefixFrom(hop, 24).Masked(), Via: hop, Link: route.TunnelLink, OnLink: true})
	}
	cold := microseconds(func() { p.nodes[1].apply(h) })
	for b.Loop() {
		if changes, err := p.nodes[1].ApplyHost(b.Context(), h); err != nil || len(changes) != 0 {
			b.Fatal(changes, err)
		}
	}
	b.ReportMetric(cold/1000, "cold+again-ms")
}
