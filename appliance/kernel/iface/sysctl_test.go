package iface

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/route"
)

func TestHostSysctls(t *testing.T) {
	p := newPair(t)
	n := p.nodes[1]
	n.apply(hostNet(1, route.ModeVXLAN))
	n.run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.ipv4.conf.all.rp_filter=1")
	n.run("ip link add uplink0 type bridge")
	n.run("ip link add cont0 type veth peer name cont1")
	n.run("ip link set cont0 up")
	n.run("ip link set cont1 up")
	n.run("ip -6 route add default via fe80::9 dev eth0 proto ra")
	want, err := n.HostSysctls(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	changed, problems := n.EnsureSysctls(t.Context(), want)
	got := strings.Join(append(changed, problems...), "\n")
	wantText := strings.Join([]string{
		"sysctl net/ipv6/conf/eth0/accept_ra: 1 becomes 2",
		"sysctl net/ipv6/conf/uplink0/accept_ra: 1 becomes 2",
		"sysctl net/ipv4/ip_forward: 0 becomes 1",
		"sysctl net/ipv6/conf/all/forwarding: 0 becomes 1",
		"sysctl net/ipv4/conf/weft.vx/rp_filter: 0 becomes 2",
	}, "\n")
	if got != wantText {
		t.Errorf("got:\n%s\nwant:\n%s", got, wantText)
	}
	if want, err = n.HostSysctls(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if changed, problems := n.EnsureSysctls(t.Context(), want); len(changed)+len(problems) != 0 {
		t.Errorf("the second time: changed %q, problems %q", changed, problems)
	}
	if out := n.run("sysctl -n net.ipv6.conf.eth0.accept_ra net.ipv6.conf.cont0.accept_ra"); strings.Join(strings.Fields(out), " ") != "2 1" {
		t.Errorf("accept_ra of eth0 and cont0 is %q", out)
	}
}

// TestLateLinks: a link that came after weft had switched forwarding on is born with it. It is not weft's business on a node that
// forwarded before.
func TestLateLinks(t *testing.T) {
	p := newPair(t)
	n := p.nodes[1]
	n.run("sysctl -qw net.ipv6.conf.all.forwarding=1")
	n.run("ip link add late0 type veth peer name late1")
	n.run("ip link add cont0 type veth peer name cont1")
	n.run("ip link add docker0 type bridge")
	n.run("ip link set late0 up")
	n.run("ip link set late1 up")
	n.run("ip -6 route add default via fe80::9 dev late0 proto ra")
	for _, turnedOn := range []bool{false, true} {
		want, err := n.HostSysctls(t.Context(), turnedOn)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range want {
			if strings.HasSuffix(s.Path, "accept_ra") {
				got = append(got, s.Path+"="+s.Value)
			}
		}
		if text := strings.Join(got, " "); turnedOn && text != "net/ipv6/conf/late0/accept_ra=2" || !turnedOn && text != "" {
			t.Errorf("switched on by weft %v: %q", turnedOn, text)
		}
	}
	if on, err := n.Forwards6(); err != nil || !on {
		t.Errorf("the node forwards: %v, %v", on, err)
	}
}

func TestLeadsOut(t *testing.T) {
	at := func(name string, index, master, parent int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Name: name, Index: index, MasterIndex: master, ParentIndex: parent}
	}
	links := []netlink.Link{
		&netlink.Device{LinkAttrs: at("eth0", 2, 0, 0)},
		&netlink.Device{LinkAttrs: at("eth1", 3, 4, 0)},
		&netlink.Bond{LinkAttrs: at("bond0", 4, 5, 0)},
		&netlink.Bridge{LinkAttrs: at("br0", 5, 0, 0)},
		&netlink.Vlan{LinkAttrs: at("br0.7", 6, 0, 5)},
		&netlink.Vlan{LinkAttrs: at("eth0.8", 7, 0, 2)},
		&netlink.Bridge{LinkAttrs: at("docker0", 8, 0, 0)},
		&netlink.Veth{LinkAttrs: at("veth1", 9, 8, 0)},
		&netlink.Tuntap{LinkAttrs: at("tap0", 10, 5, 0)},
		&netlink.Vlan{LinkAttrs: at("docker0.9", 11, 0, 8)},
		&netlink.Bridge{LinkAttrs: at("ring0", 12, 13, 0)},
		&netlink.Bridge{LinkAttrs: at("ring1", 13, 12, 0)},
	}
	var got []string
	for _, l := range links {
		if leadsOut(l, links, 0) {
			got = append(got, l.Attrs().Name)
		}
	}
	if text := strings.Join(got, " "); text != "eth0 eth1 bond0 br0 br0.7 eth0.8" {
		t.Errorf("these lead out: %s", text)
	}
}

// TestEnsureSysctlsReadOnly runs on a thread with a mount namespace of its own, in which /proc/sys cannot be written.
func TestEnsureSysctlsReadOnly(t *testing.T) {
	ns := newNS(t)
	type result struct {
		changed, problems []string
		err               error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := errors.Join(
			unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET),
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
			unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		r := result{err: err}
		if err == nil {
			b := &Backend{ns: -1}
			r.changed, r.problems = b.EnsureSysctls(t.Context(), []Sysctl{
				{"net/ipv4/ip_forward", "1", "Pods reach each other"},
				{"net/ipv4/conf/lo/forwarding", readSysctl("net/ipv4/conf/lo/forwarding"), "it is so already"},
				{"net/ipv4/no_such_thing", "1", "nothing"},
			})
		}
		done <- r
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	want := "sysctl net/ipv4/ip_forward is 0 and must be 1 so that Pods reach each other, but /proc/sys is mounted read-only; " +
		"set it on the host: echo 'net/ipv4/ip_forward = 1' > /etc/sysctl.d/90-weft.conf and sysctl --system"
	if len(r.changed) != 0 || strings.Join(r.problems, "\n") != want {
		t.Errorf("changed %q, problems %q\nwant %q", r.changed, r.problems, want)
	}
}

func TestOpenNS(t *testing.T) {
	ns := newNS(t)
	f, err := OpenNS(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	plain := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{plain, plain + ".missing", "/proc/999999999/ns/net"} {
		if _, err := OpenNS(path); !errors.Is(err, ErrNetNSGone) || !strings.Contains(err.Error(), path) {
			t.Errorf("OpenNS(%s): error %v", path, err)
		}
	}
	if _, err := OpenNS("/proc/self/ns/uts"); err == nil || errors.Is(err, ErrNetNSGone) {
		t.Errorf("OpenNS of a UTS namespace: error %v", err)
	}
}

func TestSetTxChecksum(t *testing.T) {
	n := newNode(t)
	n.run("ip link add eth0 type veth peer name eth1")
	n.run("ip addr add 192.168.50.1/24 dev eth0")
	n.run("ip link set eth0 up")
	if _, err := n.ApplyHost(t.Context(), hostNet(1, route.ModeVXLAN)); err != nil && !strings.Contains(err.Error(), "fd00:50::2") {
		t.Fatal(err)
	}
	for _, on := range []bool{false, true, false} {
		if err := n.SetTxChecksum(t.Context(), route.TunnelLink, on); err != nil {
			t.Fatal(err)
		}
		want := "tx-checksumming: off"
		if on {
			want = "tx-checksumming: on"
		}
		if out := n.run("ethtool -k " + route.TunnelLink); !strings.Contains(out, want) {
			t.Errorf("want %s, got\n%s", want, out)
		}
	}
	if err := n.SetTxChecksum(t.Context(), "nolink", true); !errors.Is(err, unix.ENODEV) {
		t.Errorf("a link that is not there: error %v", err)
	}
}
