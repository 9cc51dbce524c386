package iface

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Options say where a Backend works.
type Options struct {
	// NetNS is a file descriptor of the node's network namespace; 0 means the namespace of the calling process. The
	// descriptor is duplicated and stays the caller's.
	NetNS int
	// ReadOnly is for tools that only look: links that an earlier process was to remove are left to the daemon.
	ReadOnly bool
}

// Backend holds the netlink sockets of the node's network namespace. Its methods may be called from several goroutines.
type Backend struct {
	ns netns.NsHandle // netns.None() for the namespace of the process
	// pods is the socket of AddPod and DelPod: it never waits for a link to be removed.
	pods *conn
	// links reads links, addresses and neighbours, and makes the node's own links.
	links *netlink.Handle
	// routes lets the kernel filter route dumps (NETLINK_GET_STRICT_CHK); the other dumps of the library are not strict.
	routes *netlink.Handle
	// ipv6 is false on a kernel that was started without IPv6: it refuses messages that mention it.
	ipv6 bool
	// remover owns the socket that removes links.
	remover *remover

	// applying serialises ApplyHost.
	applying sync.Mutex
	expect   expectation

	// hook is called before each step of AddPod and may make it fail; tests only.
	hook func(step string) error
}

// Open opens the sockets. Links that an earlier process left in GroupDeleting are removed in the background.
func Open(o Options) (_ *Backend, err error) {
	_, noIPv6 := os.Stat("/proc/sys/net/ipv6")
	b := &Backend{ns: netns.None(), ipv6: noIPv6 == nil}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	if o.NetNS != 0 {
		fd, err := unix.FcntlInt(uintptr(o.NetNS), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("duplicating the network namespace's file descriptor: %w", err)
		}
		b.ns = netns.NsHandle(fd)
	}
	if b.pods, err = dial(b.ns); err != nil {
		return nil, err
	}
	if b.links, err = netlink.NewHandleAt(b.ns, unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	if b.routes, err = netlink.NewHandleAt(b.ns, unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	if err = b.routes.SetStrictCheck(true); err != nil {
		return nil, fmt.Errorf("asking the kernel to filter route dumps (needs Linux 4.20): %w", err)
	}
	removal, err := dial(b.ns)
	if err != nil {
		return nil, err
	}
	b.remover = startRemover(removal)
	if !o.ReadOnly {
		b.remover.enqueue()
	}
	return b, nil
}

// Close waits until the queued links are removed and closes the sockets; it leaves everything else in the kernel as it is.
func (b *Backend) Close() error {
	var err error
	if b.remover != nil {
		err = b.remover.close()
	}
	if b.pods != nil {
		b.pods.close()
	}
	if b.links != nil {
		b.links.Close()
	}
	if b.routes != nil {
		b.routes.Close()
	}
	if b.ns.IsOpen() {
		err = errors.Join(err, b.ns.Close())
	}
	return err
}
