package probe

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const testPort = 9466

// host is one network namespace. It has no name and no mount: it is gone when its file is closed.
type host struct {
	t  testing.TB
	ns *os.File
}

// inThread runs f on a thread that ends afterwards, so that no other goroutine can find itself in the wrong namespace.
func inThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

func newHost(t testing.TB) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("WEFT_TEST_MUST_RUN") == "1" {
			t.Fatal("needs root, and WEFT_TEST_MUST_RUN=1 forbids skipping")
		}
		t.Skip("needs root")
	}
	h := &host{t: t}
	var err error
	inThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			h.ns, err = os.Open("/proc/thread-self/ns/net")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.ns.Close() })
	h.run("ip link set lo up")
	return h
}

// in runs f in the namespace.
func (h *host) in(f func()) {
	h.t.Helper()
	var err error
	inThread(func() {
		if err = unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err == nil {
			f()
		}
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// run runs commands, one a line, and returns what they print.
func (h *host) run(commands string) string {
	h.t.Helper()
	var out bytes.Buffer
	for line := range strings.Lines(commands) {
		args := strings.Fields(line)
		if len(args) == 0 {
			continue
		}
		var err error
		h.in(func() {
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Stdout, cmd.Stderr = &out, &out
			err = cmd.Run()
		})
		if err != nil {
			h.t.Fatalf("%s: %v\n%s", strings.TrimSpace(line), err, out.String())
		}
	}
	return out.String()
}

// wire joins two hosts by a veth pair whose ends have the given names. Addresses need no detection: they work at once.
func wire(a, b *host, nameA, nameB string, mtu string) {
	a.t.Helper()
	peer := "/proc/self/fd/3"
	var err error
	var out []byte
	a.in(func() {
		cmd := exec.Command("ip", "link", "add", nameA, "mtu", mtu, "type", "veth", "peer", "name", nameB, "mtu", mtu, "netns", peer)
		cmd.ExtraFiles = []*os.File{b.ns}
		out, err = cmd.CombinedOutput()
	})
	if err != nil {
		a.t.Fatalf("%v: %s", err, out)
	}
	for h, name := range map[*host]string{a: nameA, b: nameB} {
		h.run("sysctl -qw net.ipv6.conf." + name + ".accept_dad=0 net.ipv6.conf." + name + ".router_solicitations=0\nip link set " + name + " up")
	}
}

// pairOf returns two hosts on one link: 192.168.1.1 and fd01::1, 192.168.1.2 and fd01::2.
func pairOf(t *testing.T) (a, b *host) {
	t.Helper()
	a, b = newHost(t), newHost(t)
	wire(a, b, "eth0", "eth0", "1500")
	a.run("ip addr add 192.168.1.1/24 dev eth0\nip addr add fd01::1/64 dev eth0 nodad")
	b.run("ip addr add 192.168.1.2/24 dev eth0\nip addr add fd01::2/64 dev eth0 nodad")
	return a, b
}

// routed returns two hosts with a router between: 192.168.1.1 - .254, 192.168.2.254 - 192.168.2.2, and fd01::, fd02::. The
// link behind the router has a smaller MTU on the router's side only, which the second host does not know.
func routed(t *testing.T, mtu string) (a, r, b *host) {
	t.Helper()
	a, r, b = newHost(t), newHost(t), newHost(t)
	wire(a, r, "eth0", "left", "1500")
	wire(r, b, "right", "eth0", "1500")
	a.run("ip addr add 192.168.1.1/24 dev eth0\nip addr add fd01::1/64 dev eth0 nodad\nip route add default via 192.168.1.254\nip -6 route add default via fd01::fe")
	r.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1\n" +
		"ip addr add 192.168.1.254/24 dev left\nip addr add fd01::fe/64 dev left nodad\n" +
		"ip addr add 192.168.2.254/24 dev right\nip addr add fd02::fe/64 dev right nodad\nip link set right mtu " + mtu)
	b.run("ip addr add 192.168.2.2/24 dev eth0\nip addr add fd02::2/64 dev eth0 nodad\nip route add default via 192.168.2.254\nip -6 route add default via fd02::fe")
	return a, r, b
}

// listen answers probes on a host until the test ends.
func (h *host) listen(addrs ...string) *Responder {
	h.t.Helper()
	var r *Responder
	var err error
	h.in(func() { r, err = Listen(h.t.Context(), Options{Port: testPort, Addrs: parse(addrs)}) })
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(r.Close)
	return r
}

func parse(addrs []string) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// patience is what a probe waits for an answer, on a machine that may stop for seconds.
const patience = 10 * time.Second

// send sends a probe from a host; an empty from leaves the source to the kernel.
func (h *host) send(from, to string, size int) (reply Reply, err error) {
	h.t.Helper()
	var source netip.Addr
	if from != "" {
		source = netip.MustParseAddr(from)
	}
	h.in(func() { reply, err = Send(h.t.Context(), source, netip.MustParseAddr(to), testPort, size, patience) })
	return reply, err
}

// sender returns what prober.Options.Send needs.
func (h *host) sender() func(ctx context.Context, from, to netip.Addr, size int, timeout time.Duration) (time.Duration, error) {
	return func(ctx context.Context, from, to netip.Addr, size int, timeout time.Duration) (rtt time.Duration, err error) {
		h.in(func() {
			var r Reply
			r, err = Send(ctx, from, to, testPort, size, timeout)
			rtt = r.RTT
		})
		return rtt, err
	}
}

// eventually waits until the condition holds.
func eventually(t testing.TB, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		if condition() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: did not happen within %s", what, limit)
		}
	}
}
