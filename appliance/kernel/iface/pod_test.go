package iface

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/compile/route"
)

func (n *node) add(ns *os.File, a podnet.Attachment) {
	n.t.Helper()
	if err := n.AddPod(context.Background(), int(ns.Fd()), a); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) del(a podnet.Attachment) {
	n.t.Helper()
	if err := n.DelPod(context.Background(), a); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) flush() {
	n.t.Helper()
	if err := n.Flush(context.Background()); err != nil {
		n.t.Fatal(err)
	}
}

func TestAddPodTwiceCheckDelTwice(t *testing.T) {
	for _, families := range []string{"4", "6", "46"} {
		t.Run(families, func(t *testing.T) {
			n, pod := newNode(t), newNS(t)
			a := attachment(1, 0, families)
			before := state(t, n.ns)
			n.add(pod, a)
			index := strings.Fields(n.run("ip -o link show " + a.HostIf))[0]
			n.add(pod, a)
			if again := strings.Fields(n.run("ip -o link show " + a.HostIf))[0]; again != index {
				t.Errorf("the second AddPod made a new link: index %s, was %s", again, index)
			}
			if err := n.CheckPod(t.Context(), int(pod.Fd()), a); err != nil {
				t.Error(err)
			}
			for _, addr := range a.Addresses {
				n.run("ping -c1 -W1 -i0.2 " + addr.String()) // the first packet arrives
			}
			n.del(a)
			if out := n.run("ip route") + n.run("ip -6 route"); strings.Contains(out, a.HostIf) {
				t.Errorf("after DelPod there are routes to the Pod:\n%s", out)
			}
			n.del(a)
			n.flush()
			n.del(a)
			if after := state(t, n.ns); after != before {
				t.Errorf("after DelPod something is left:\n%s\nbefore:\n%s", after, before)
			}
			if out := run(t, pod, "ip -br link"); strings.Contains(out, "eth0") {
				t.Errorf("eth0 is left in the Pod:\n%s", out)
			}
		})
	}
}

func TestPodText(t *testing.T) {
	n, pod := newNode(t), newNS(t)
	a := attachment(1, 0, "46")
	n.add(pod, a)
	var text []string
	for _, c := range []string{"ip addr show dev eth0", "ip route", "ip -6 route", "ip neigh show nud permanent"} {
		text = append(text, "pod# "+c, stable(run(t, pod, c)))
	}
	for _, c := range []string{"ip -d addr show dev " + a.HostIf, "ip route", "ip -6 route show proto 87", "ip neigh show nud permanent"} {
		text = append(text, "node# "+c, stable(n.run(c)))
	}
	golden(t, "pod.txt", strings.Join(text, "\n"))
}

// stable takes out of the text of ip(8) what differs between two runs or two kernels.
func stable(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		line = strings.TrimRight(line, " \n")
		if strings.Contains(line, "fe80::") && !strings.Contains(line, "fe80::1") || strings.Contains(line, "valid_lft") {
			continue // the Pod's own link-local address may or may not be ready
		}
		fields := strings.Fields(line)
		fields = slices.DeleteFunc(fields, func(f string) bool { return strings.HasPrefix(f, "if") })
		for i, f := range fields {
			if f == "link-netnsid" || strings.HasSuffix(f, "_max_size") || strings.HasSuffix(f, "_max_segs") {
				fields[i], fields[i+1] = "", ""
			}
		}
		lines = append(lines, strings.Join(strings.Fields(strings.Join(fields, " ")), " "))
	}
	return strings.Join(lines, "\n") + "\n"
}

// TestAddPodEachStepFails fails every step in turn: nothing may be left, and the next try must succeed.
func TestAddPodEachStepFails(t *testing.T) {
	n, pod := newNode(t), newNS(t)
	a := attachment(1, 0, "46")
	before := state(t, n.ns)
	boom := errors.New("boom")
	for i := 0; ; i++ {
		count, failed := 0, ""
		n.hook = func(step string) error {
			if count++; count == i+1 {
				failed = step
				return boom
			}
			return nil
		}
		err := n.AddPod(t.Context(), int(pod.Fd()), a)
		if failed == "" {
			if err != nil || i < 20 {
				t.Fatalf("after %d steps: error %v", i, err)
			}
			break
		}
		if !errors.Is(err, boom) {
			t.Fatalf("step %d (%s): error %v", i, failed, err)
		}
		if after := state(t, n.ns); after != before {
			t.Errorf("step %d (%s) leaves on the node:\n%s\nbefore:\n%s", i, failed, after, before)
		}
		if out := run(t, pod, "ip -br link"); strings.Contains(out, "eth0") {
			t.Errorf("step %d (%s) leaves in the Pod:\n%s", i, failed, out)
		}
	}
	if err := n.CheckPod(t.Context(), int(pod.Fd()), a); err != nil {
		t.Error(err)
	}
}

func TestAddPodRefused(t *testing.T) {
	b := &Backend{}
	for want, change := range map[string]func(a *podnet.Attachment){
		`host end "eth0"`:            func(a *podnet.Attachment) { a.HostIf = "eth0" },
		"shorter than 16 characters": func(a *podnet.Attachment) { a.HostIf = "weftp12345678901" },
		`interface name "a/b"`:       func(a *podnet.Attachment) { a.PodIf = "a/b" },
		"not between 68 and 65535":   func(a *podnet.Attachment) { a.MTU = 0 },
		"1280 that IPv6 needs":       func(a *podnet.Attachment) { a.MTU = 1279 },
		"has no MAC addresses":       func(a *podnet.Attachment) { a.PodMAC = [6]byte{} },
		"has no addresses":           func(a *podnet.Attachment) { a.Addresses = nil },
	} {
		a := attachment(1, 0, "46")
		change(&a)
		if err := b.AddPod(t.Context(), -1, a); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestAddPodNameClash(t *testing.T) {
	n, pod := newNode(t), newNS(t)
	a := attachment(1, 0, "4")
	run(t, pod, "ip link add eth0 type bridge")
	before := state(t, n.ns)
	err := n.AddPod(t.Context(), int(pod.Fd()), a)
	if !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), "eth0 is in the Pod's namespace already") {
		t.Errorf("eth0 is taken in the Pod: error %v", err)
	}
	if after := state(t, n.ns); after != before {
		t.Errorf("left after a clash:\n%s", after)
	}
	run(t, pod, "ip link del eth0")

	n.run("ip link add " + a.HostIf + " type bridge")
	if err = n.AddPod(t.Context(), int(pod.Fd()), a); !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), a.HostIf+" (bridge)") {
		t.Errorf("the name of the host end is taken: error %v", err)
	}
	n.del(a) // must leave the alien link alone
	n.flush()
	n.run("ip link del " + a.HostIf)
	n.add(pod, a)
}

// TestAddPodLeftover makes anew what an ADD that was cut short left behind.
func TestAddPodLeftover(t *testing.T) {
	ctx := context.Background()
	a := attachment(1, 0, "46")
	for name, spoil := range map[string]func(t *testing.T, n *node, pod *os.File){
		"host end without its routes": func(t *testing.T, n *node, pod *os.File) { n.run("ip route flush proto 87") },
		"deleting has begun":          func(t *testing.T, n *node, pod *os.File) { n.run("ip link set " + a.HostIf + " group 8701") },
		"address missing in the Pod":  func(t *testing.T, n *node, pod *os.File) { run(t, pod, "ip addr del 10.244.1.2/32 dev eth0") },
		"Pod end is in another sandbox": func(t *testing.T, n *node, pod *os.File) {
			n.del(a)
			n.flush()
			n.add(newNS(t), a)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, pod := newNode(t), newNS(t)
			n.add(pod, a)
			spoil(t, n, pod)
			if err := n.CheckPod(ctx, int(pod.Fd()), a); err == nil {
				t.Error("CheckPod finds nothing wrong")
			}
			n.add(pod, a)
			if err := n.CheckPod(ctx, int(pod.Fd()), a); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCheckPodNames breaks one thing at a time; CheckPod must say which.
func TestCheckPodNames(t *testing.T) {
	n, pod := newNode(t), newNS(t)
	a := attachment(1, 0, "46")
	for _, c := range []struct{ where, command, want string }{
		{"pod", "ip link set eth0 mtu 1400", "MTU of eth0 in the Pod's namespace is 1400, want 1450"},
		{"pod", "ip link set eth0 address 0a:58:0a:f4:01:99", "MAC address of eth0 in the Pod's namespace is 0a:58:0a:f4:01:99"},
		{"pod", "ip addr del fd00:244:1::2/128 dev eth0", "address fd00:244:1::2/128 on eth0 in the Pod's namespace is missing"},
		{"pod", "ip route del default", "route 0.0.0.0/0 via 169.254.1.1 dev eth0 onlink in the Pod's namespace is missing"},
		{"pod", "ip -6 route del default", "route ::/0 via fe80::1 dev eth0 onlink in the Pod's namespace is missing"},
		{"pod", "ip neigh del 169.254.1.1 dev eth0", "neighbour 169.254.1.1 on eth0 in the Pod's namespace is missing"},
		{"pod", "ip link set eth0 down", "eth0 in the Pod's namespace is down"},
		{"pod", "ip link del eth0", "link " + a.HostIf},
		{"node", "ip link set " + a.HostIf + " down", a.HostIf + " is down"},
		{"node", "ip link set " + a.HostIf + " mtu 1300", "MTU of " + a.HostIf + " is 1300, want 1450"},
		{"node", "ip link set " + a.HostIf + " alias x", "alias of " + a.HostIf + ` is "x"`},
		{"node", "ip route del 10.244.1.2", "route 10.244.1.2/32 dev " + a.HostIf + " is missing"},
		{"node", "ip -6 neigh replace fd00:244:1::2 lladdr 0a:58:0a:f4:01:99 dev " + a.HostIf + " nud permanent", "neighbour fd00:244:1::2 on " + a.HostIf + " has MAC address 0a:58:0a:f4:01:99, want 0a:58:0a:f4:01:02"},
	} {
		n.add(pod, a) // makes it whole again
		ns := pod
		if c.where == "node" {
			ns = n.ns
		}
		run(t, ns, c.command)
		if err := n.CheckPod(t.Context(), int(pod.Fd()), a); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v\nwant %s", c.command, err, c.want)
		}
	}
}

func TestPodNamespaceVanishes(t *testing.T) {
	n := newNode(t)
	before := state(t, n.ns)
	a, b := attachment(1, 0, "46"), attachment(1, 1, "46")
	for _, x := range []podnet.Attachment{a, b} {
		pod := newNS(t)
		n.add(pod, x)
		pod.Close()
	}
	n.del(a) // races with the kernel, which removes the link by itself
	n.flush()
	eventually(t, "the kernel removes the links", func() bool { return state(t, n.ns) == before })
	n.del(b)
	n.flush()
}

func TestIPv6DisabledInPod(t *testing.T) {
	n, pod := newNode(t), newNS(t)
	run(t, pod, "sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1")
	n.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
	a := attachment(1, 0, "46")
	n.add(pod, a)
	if err := n.CheckPod(t.Context(), int(pod.Fd()), a); err != nil {
		t.Error(err)
	}
	n.run("ping -c1 -W1 fd00:244:1::2")
}

// TestNoIPv6 keeps every word of IPv6 out of the messages, as on a kernel that was started with ipv6.disable=1.
func TestNoIPv6(t *testing.T) {
	n, pod := newNode(t), newNS(t)
	n.ipv6 = false
	a := attachment(1, 0, "4")
	n.add(pod, a)
	if err := n.CheckPod(t.Context(), int(pod.Fd()), a); err != nil {
		t.Error(err)
	}
	if out := n.run("ip -d link show " + a.HostIf); strings.Contains(out, "addrgenmode none") {
		t.Errorf("addrgenmode was set:\n%s", out)
	}
	h := hostNet(1, route.ModeNative)
	h.NodeAddresses, h.Blackholes, h.Routes = h.NodeAddresses[:1], h.Blackholes[:1], nil
	n.apply(h)
}

// TestReadyAtOnce sends the moment AddPod returns, both ways; nothing may be lost.
func TestReadyAtOnce(t *testing.T) {
	n := newNode(t)
	open := func(ns *os.File, address string) *net.UDPConn {
		t.Helper()
		var c *net.UDPConn
		err := inNS(int(ns.Fd()), func() (err error) {
			c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	pod := newNS(t)
	atNode, inPod := open(n.ns, "[::]:7000"), open(pod, "[::]:7000")
	buf, late := make([]byte, 10), 0
	for i := range 50 {
		a := attachment(1, i, "46")
		a.PodIf = fmt.Sprintf("e%d", i)
		n.add(pod, a)
		for j, addr := range a.Addresses {
			node := []string{"192.0.2.1", "2001:db8::1"}[j]
			for _, c := range []struct {
				from, to *net.UDPConn
				dst      netip.Addr
			}{{atNode, inPod, addr}, {inPod, atNode, netip.MustParseAddr(node)}} {
				if _, err := c.from.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(c.dst, 7000)); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				c.to.SetReadDeadline(start.Add(20 * time.Second))
				if _, _, err := c.to.ReadFromUDPAddrPort(buf); err != nil {
					t.Errorf("Pod %d: the first packet to %s: %v", i, c.dst, err)
				}
				if time.Since(start) > 900*time.Millisecond {
					late++
				}
			}
		}
		n.del(a)
		n.flush()
	}
	if late > 5 { // of 200: a machine may stop at times, but a packet that waits for a neighbour does so for a second
		t.Errorf("%d first packets came late", late)
	}
}

func TestPodToPodSameNode(t *testing.T) {
	n, one, two := newNode(t), newNS(t), newNS(t)
	a, b := attachment(1, 0, "46"), attachment(1, 1, "46")
	n.add(one, a)
	n.add(two, b)
	for _, addr := range b.Addresses {
		run(t, one, "ping -c1 -W1 "+addr.String())
	}
	b.MTU = 1300
	if err := n.SetPodMTU(t.Context(), int(two.Fd()), b); err != nil {
		t.Fatal(err)
	}
	if err := n.CheckPod(t.Context(), int(two.Fd()), b); err != nil {
		t.Error(err)
	}
	if out, err := try(one, "ping -c1 -W1 -M do -s 1273 10.244.1.3"); err == nil {
		t.Errorf("a packet of 1301 bytes passes a link of 1300:\n%s", out)
	}
	run(t, one, "ping -c1 -W1 -M do -s 1272 10.244.1.3")
}

// TestBurst adds 50 Pods in parallel, looks at them as a restarted daemon would, and deletes them all.
func TestBurst(t *testing.T) {
	const pods = 50
	n := newNode(t)
	before := state(t, n.ns)
	spaces := make([]*os.File, pods)
	for i := range spaces {
		spaces[i] = newNS(t)
	}
	each := func(f func(i int) error) {
		var wg sync.WaitGroup
		for i := range pods {
			wg.Go(func() {
				if err := f(i); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	add := microseconds(func() {
		each(func(i int) error {
			return n.AddPod(t.Context(), int(spaces[i].Fd()), attachment(1, i, "46"))
		})
	})
	each(func(i int) error { return n.CheckPod(t.Context(), int(spaces[i].Fd()), attachment(1, i, "46")) })
	list, err := n.ListPods(t.Context())
	if err != nil || len(list) != pods {
		t.Fatalf("ListPods: %d Pods, error %v", len(list), err)
	}
	for _, l := range list {
		key, _, ok := podnet.ParseAlias(l.Alias)
		if !ok || podnet.HostIfName(key) != l.HostIf || len(l.Addresses) != 2 || !l.Up || l.MTU != 1450 {
			t.Errorf("ListPods: %+v", l)
		}
	}
	del := microseconds(func() {
		each(func(i int) error {
			return n.DelPod(t.Context(), podnet.Attachment{HostIf: attachment(1, i, "46").HostIf})
		})
	})
	if list, err = n.ListPods(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("ListPods after DelPod: %+v, error %v", list, err)
	}
	flush := microseconds(n.flush)
	t.Logf("%d Pods in parallel: add %.1f ms, delete %.1f ms, and until the links are gone %.1f ms", pods, add/1000, del/1000, flush/1000)
	if after := state(t, n.ns); after != before {
		t.Errorf("left after the burst:\n%s", after)
	}
}

func TestInUse(t *testing.T) {
	n, pod := newNode(t), newNS(t)
	n.add(pod, attachment(1, 0, "46"))
	n.run("ip link add up0 type veth peer name up1")
	n.run("ip addr add 10.244.1.200/24 dev up0")
	n.run("ip addr add fd00:244:1::200/64 dev up0 nodad")
	n.run("ip link set up0 up")
	n.run("ip link set up1 up")
	n.run("ip route add 10.244.1.201/32 dev up1 proto static")
	n.run("ip neigh add 10.244.1.202 lladdr 02:00:00:00:00:01 dev up0 nud reachable")
	for addr, want := range map[string]string{
		"10.244.1.2":      "",
		"10.244.1.3":      "",
		"10.244.1.200":    "address of interface up0 on this node",
		"fd00:244:1::200": "address of interface up0 on this node",
		"fd00:244:1::201": "",
		"10.244.1.201":    "there is a route 10.244.1.201/32 dev up1 proto static",
		"10.244.1.202":    "a neighbour on up0 answers for it",
		"10.99.0.1":       "",
		"fd00:99::1":      "",
		"127.0.0.1":       "address of interface lo on this node",
	} {
		got, err := n.InUse(t.Context(), netip.MustParseAddr(addr))
		if err != nil || got != want {
			t.Errorf("InUse(%s) = %q, %v; want %q", addr, got, err, want)
		}
	}
}

func BenchmarkAddPod(b *testing.B) {
	for _, families := range []string{"4", "46"} {
		b.Run(families, func(b *testing.B) {
			n, pod := newNode(b), newNS(b)
			var adds, dels []float64
			for i := 0; b.Loop(); i++ {
				a := attachment(1, 0, families)
				a.HostIf = fmt.Sprintf("weftp%d", i)
				a.PodIf = fmt.Sprintf("e%d", i)
				adds = append(adds, microseconds(func() { n.add(pod, a) }))
				dels = append(dels, microseconds(func() { n.del(a) }))
				b.StopTimer()
				n.flush()
				b.StartTimer()
			}
			slices.Sort(adds)
			slices.Sort(dels)
			b.ReportMetric(adds[len(adds)/2], "add-p50-us")
			b.ReportMetric(adds[len(adds)*9/10], "add-p90-us")
			b.ReportMetric(dels[len(dels)/2], "del-p50-us")
		})
	}
}
