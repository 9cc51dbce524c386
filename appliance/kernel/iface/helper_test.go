package iface

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/model"
)

// needRoot skips a kernel test without root, or fails it where a skip is not allowed.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("WEFT_TEST_MUST_RUN") == "1" {
		t.Fatal("needs root, and WEFT_TEST_MUST_RUN=1 forbids skipping")
	}
	t.Skip("needs root")
}

// newNS makes a network namespace that lives as long as the returned file is open: it has no name and no mount, so nothing can stay behind.
func newNS(t testing.TB) *os.File {
	t.Helper()
	needRoot(t)
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		done <- result{f, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.f.Close() })
	return r.f
}

// node is one pretended node: a namespace, and a Backend in it.
type node struct {
	t  testing.TB
	ns *os.File
	*Backend
}

func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{t: t, ns: newNS(t)}
	n.run("ip link set lo up")
	n.run("ip addr add 192.0.2.1/32 dev lo")
	n.run("ip addr add 2001:db8::1/128 dev lo")
	n.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	n.awaitAddress("2001:db8::1")
	var err error
	if n.Backend, err = Open(Options{NetNS: int(n.ns.Fd())}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Backend.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// awaitAddress waits until the node's IPv6 address is in use; the kernel does that in a thread of its own.
func (n *node) awaitAddress(addr string) {
	n.t.Helper()
	eventually(n.t, addr+" is in use", func() bool { return strings.HasPrefix(n.run("ip -6 route get "+addr), "local") })
}

func (n *node) run(command string) string { n.t.Helper(); return run(n.t, n.ns, command) }

// run runs a command in a namespace and returns what it printed; a failing command fails the test.
func run(t testing.TB, ns *os.File, command string) string {
	t.Helper()
	out, err := try(ns, command)
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// try runs a command in a namespace. The child is forked from a thread that has entered it.
func try(ns *os.File, command string) (string, error) {
	var out bytes.Buffer
	err := inNS(int(ns.Fd()), func() error {
		args := strings.Fields(command)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdout, cmd.Stderr = &out, &out
		return cmd.Run()
	})
	return out.String(), err
}

// eventually waits until the condition holds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		if condition() {
			tick.Stop()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: did not happen within 10 seconds", what)
		}
	}
}

// attachment returns the i-th Pod of the node-th node, as podnet.Compile would make it; families is "4", "6" or "46".
func attachment(node, i int, families string) podnet.Attachment {
	l := &model.Lease{
		AttachmentKey: model.AttachmentKey{Network: "weft", ContainerID: fmt.Sprintf("c%d-%d", node, i), IfName: "eth0"},
		Pod:           model.PodRef{Namespace: "default", Name: fmt.Sprintf("p%d", i), UID: "u"},
		MTU:           1450,
	}
	if strings.Contains(families, "4") {
		l.Addresses = append(l.Addresses, netip.AddrFrom4([4]byte{10, 244, byte(node), byte(i + 2)}))
	}
	if strings.Contains(families, "6") {
		l.Addresses = append(l.Addresses, netip.MustParseAddr(fmt.Sprintf("fd00:244:%d::%x", node, i+2)))
	}
	l.HostIf, l.MAC = podnet.HostIfName(l.AttachmentKey), podnet.MACFor(l.Addresses)
	return podnet.Compile(l)
}

// state is everything that a failed or undone call must leave as it was: links, addresses, routes and neighbours of a namespace.
func state(t testing.TB, ns *os.File) string {
	t.Helper()
	var all []string
	for _, c := range []string{"ip -br link", "ip -br addr", "ip route show table all", "ip -6 route show table all", "ip neigh", "ip -6 neigh"} {
		all = append(all, "# "+c, run(t, ns, c))
	}
	return strings.Join(all, "\n")
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") == "1" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (UPDATE_GOLDEN=1 rewrites it)\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

func microseconds(f func()) float64 {
	start := time.Now()
	f()
	return float64(time.Since(start).Nanoseconds()) / 1000
}
