package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Netns is a network namespace without a name: it ends with the last process in it and the last descriptor of it, also when
// this program is killed.
type Netns struct {
	file   *os.File
	closed chan struct{}
	links  *netlink.Handle
}

func newNetns() (*Netns, error) {
	n := &Netns{closed: make(chan struct{})}
	err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	if n.links, err = netlink.NewHandleAt(netns.NsHandle(n.fd()), unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("opening netlink in a namespace: %w", err)
	}
	return n, nil
}

func (n *Netns) close() {
	close(n.closed)
	n.links.Close()
	_ = n.file.Close()
}

func (n *Netns) fd() int { return int(n.file.Fd()) }

// path is valid for every process until the namespace is closed.
func (n *Netns) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd()) }

// onThread runs f on a thread that ends with it: whatever f does to its thread's namespaces nobody else ever runs there.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- f()
	}()
	return <-result
}

func (n *Netns) enter() error {
	if err := unix.Setns(n.fd(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering a network namespace: %w", err)
	}
	return nil
}

// do runs f in the namespace, on a thread of its own. Programs that f starts are in it too; goroutines are not.
func (n *Netns) do(f func() error) error {
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return f()
	})
}

// start starts a program in the namespace that is killed when the namespace is closed or this program ends, however it ends.
// An interrupt at the terminal does not reach it.
func (n *Netns) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	result := make(chan error, 1)
	go func() {
		// The signal is sent when the thread that started the program ends (prctl(2)), so it must live as long as it.
		runtime.LockOSThread()
		err := n.enter()
		if err == nil {
			err = cmd.Start()
		}
		result <- err
		<-n.closed
	}()
	return <-result
}

// run runs commands in the namespace, one a line; every word "@NAME" is replaced by the path of that namespace.
func (n *Netns) run(ctx context.Context, lines string, names map[string]*Netns) error {
	return n.do(func() error {
		for line := range strings.Lines(lines) {
			words := strings.Fields(line)
			if len(words) == 0 {
				continue
			}
			for i, w := range words {
				if other := names[strings.TrimPrefix(w, "@")]; other != nil && w[0] == '@' {
					words[i] = other.path()
				}
			}
			if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", strings.TrimSpace(line), err, strings.TrimSpace(string(out)))
			}
		}
		return nil
	})
}

// hasLink reports whether a link of that name is in the namespace.
func (n *Netns) hasLink(name string) bool {
	_, err := n.links.LinkByName(name)
	return err == nil
}

// answers reports whether whoever has the address answers within seconds: nothing listens on the port, so what comes is a
// refusal, from the kernel of the address's owner.
func (n *Netns) answers(addr netip.Addr) error {
	return n.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening a socket: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
		to := &unix.SockaddrInet4{Port: 1, Addr: addr.As4()}
		// It gives up after the second try. A time to send (SO_SNDTIMEO) would do too, but then every signal of the Go runtime
		// ends the call (signal(7)).
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1); err != nil {
			return fmt.Errorf("limiting the tries to connect: %w", err)
		}
		err = unix.Connect(fd, to)
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			return nil
		case err == nil:
			err = errors.New("somebody listens where nobody should")
		}
		return fmt.Errorf("connecting to %s: %w, want a refusal", addr, err)
	})
}

// poll asks until the answer is yes.
func poll(ctx context.Context, every, most time.Duration, what string, yes func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for !yes() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-ticker.C:
		}
	}
	return nil
}

// pause lets the kernel finish what it does in the background.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
