// Package netnstest gives tests network namespaces to throw away.
package netnstest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// NS is a network namespace that ends with the test. Its loopback link is up.
type NS struct {
	t    testing.TB
	file *os.File
}

// New makes a network namespace. Without root it skips the test, or fails it if WEFT_TEST_MUST_RUN is 1.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("WEFT_TEST_MUST_RUN") == "1" {
			t.Fatal("this test needs root to make a network namespace")
		}
		t.Skip("needs root to make a network namespace")
	}
	n := &NS{t: t}
	err := onOwnThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// The namespace ends with its last descriptor and last process: nothing has to be deleted, also if the test is killed.
	t.Cleanup(func() { n.file.Close() })
	n.Run("ip", "link", "set", "lo", "up")
	return n
}

// onOwnThread runs f on a thread that ends with it: a thread whose namespace was changed must never be used again, and the
// runtime throws it away when its goroutine ends locked.
func onOwnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		err := fmt.Errorf("the function did not return")
		defer func() { result <- err }()
		runtime.LockOSThread()
		err = f()
	}()
	return <-result
}

// FD returns a descriptor of the namespace; it is valid until the test ends.
func (n *NS) FD() int { return int(n.file.Fd()) }

// Path returns a path of the namespace, for `ip link ... netns PATH`.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD()) }

// Do runs f in the namespace, on a thread of its own. Goroutines that f starts are elsewhere; sockets that it opens stay in.
func (n *NS) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the network namespace: %w", err)
		}
		return f()
	})
}

// Command prepares a command and start runs it in the namespace: start must be called instead of cmd.Start.
func (n *NS) Command(name string, args ...string) (cmd *exec.Cmd, start func() error) {
	cmd = exec.Command(name, args...)
	return cmd, func() error { return n.Do(cmd.Start) }
}

// Try runs a command in the namespace and returns what it printed.
func (n *NS) Try(name string, args ...string) (string, error) {
	var out []byte
	err := n.Do(func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	return string(out), err
}

// Run runs a command in the namespace and returns what it printed; an error ends the test.
func (n *NS) Run(name string, args ...string) string {
	n.t.Helper()
	out, err := n.Try(name, args...)
	if err != nil {
		n.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// IP runs several ip(8) commands, one a line.
func (n *NS) IP(lines string) {
	n.t.Helper()
	for line := range strings.Lines(lines) {
		if f := strings.Fields(line); len(f) > 0 {
			n.Run("ip", f...)
		}
	}
}

// Veth joins two namespaces with a pair of links, both up.
func Veth(a *NS, nameA string, b *NS, nameB string) {
	a.t.Helper()
	a.Run("ip", "link", "add", nameA, "type", "veth", "peer", "name", nameB, "netns", b.Path())
	a.Run("ip", "link", "set", nameA, "up")
	b.Run("ip", "link", "set", nameB, "up")
}

// Sysctl writes a value under /proc/sys/net, in which every thread sees its own namespace.
func (n *NS) Sysctl(path, value string) {
	n.t.Helper()
	err := n.Do(func() error { return os.WriteFile("/proc/sys/net/"+path, []byte(value), 0) })
	if err != nil {
		n.t.Fatal(err)
	}
}
