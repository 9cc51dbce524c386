package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options say where probes are answered.
type Options struct {
	// Port is the UDP port; it must be the same on every node.
	Port uint16
	// Addrs are this node's own addresses: in the Pod network and in the underlay. They need not exist yet.
	Addrs []netip.Addr
}

// Stats counts what arrived since the start.
type Stats struct {
	Answered uint64
	// Ignored were not probes.
	Ignored uint64
	// Limited were probes from sources that had asked too often.
	Limited uint64
}

// Responder answers probes on one socket per address. Each socket holds one buffer of 64 KiB and nothing per source.
type Responder struct {
	port  uint16
	limit *limiter
	work  sync.WaitGroup

	answered, ignored, limited atomic.Uint64

	mu     sync.Mutex
	closed bool
	conns  map[netip.Addr]*net.UDPConn
}

// Listen answers probes until ctx ends or Close is called. Sockets are opened in the network namespace of the calling
// thread. An address on which that fails is an error, and nothing is left open.
func Listen(ctx context.Context, o Options) (*Responder, error) {
	if o.Port == 0 {
		return nil, errors.New("listening for probes: fabric.probe.port is 0: it must be 1 to 65535")
	}
	r := &Responder{port: o.Port, limit: newLimiter(time.Now()), conns: map[netip.Addr]*net.UDPConn{}}
	if err := r.SetAddrs(o.Addrs); err != nil {
		r.Close()
		return nil, err
	}
	context.AfterFunc(ctx, func() { r.Close() })
	return r, nil
}

// SetAddrs makes these the addresses on which probes are answered; those that stay keep their socket. Addresses on which
// listening fails are named in the error, the others work.
func (r *Responder) SetAddrs(addrs []netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("listening for probes: the responder is closed")
	}
	var errs []error
	want := map[netip.Addr]bool{}
	for _, a := range addrs {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() {
			errs = append(errs, fmt.Errorf("listening for probes on %q: not an address of one node", a))
			continue
		}
		want[a] = true
		if r.conns[a] != nil {
			continue
		}
		conn, err := listen(netip.AddrPortFrom(a, r.port))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r.conns[a] = conn
		r.work.Go(func() { r.serve(conn) })
	}
	for a, conn := range r.conns {
		if !want[a] {
			delete(r.conns, a)
			_ = conn.Close() // nothing is lost: a datagram socket has nothing to flush
		}
	}
	return errors.Join(errs...)
}

// Addrs returns the addresses on which probes are answered, sorted.
func (r *Responder) Addrs() []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []netip.Addr
	for a := range r.conns {
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Stats returns what arrived so far.
func (r *Responder) Stats() Stats {
	return Stats{Answered: r.answered.Load(), Ignored: r.ignored.Load(), Limited: r.limited.Load()}
}

// Close closes every socket and returns when nothing reads from them any more. It may be called twice.
func (r *Responder) Close() {
	r.mu.Lock()
	r.closed = true
	for a, conn := range r.conns {
		delete(r.conns, a)
		_ = conn.Close() // as above
	}
	r.mu.Unlock()
	r.work.Wait()
}

// listen opens a socket on an address that the node may get only later (ip(7) IP_FREEBIND). It is bound to that address,
// not to all: the answer then leaves from it, and nobody on other links of the node is served.
func listen(at netip.AddrPort) (*net.UDPConn, error) {
	network, level, option := "udp4", unix.SOL_IP, unix.IP_FREEBIND
	if at.Addr().Is6() {
		network, level, option = "udp6", unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return setOptions(raw, sockopt{level, option, 1})
	}}
	conn, err := lc.ListenPacket(context.Background(), network, at.String())
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("listening for probes on %s: another program has this port: set fabric.probe.port to a free one, the same on every node: %w", at, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listening for probes on %s: %w", at, err)
	}
	return conn.(*net.UDPConn), nil
}

// serve answers until the socket is closed.
func (r *Responder) serve(conn *net.UDPConn) {
	in, out := make([]byte, maxSize), make([]byte, headerSize)
	for {
		n, source, err := conn.ReadFromUDPAddrPort(in)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // memory is short: the same call would fail at once again
			<-time.After(100 * time.Millisecond)
			continue
		}
		switch {
		case !newReply(out, in[:n]):
			r.ignored.Add(1)
		case !r.limit.allow(source.Addr(), time.Now()):
			r.limited.Add(1)
		default:
			// An answer that cannot be sent is a lost packet: the sender notices.
			if _, err := conn.WriteToUDPAddrPort(out, source); err == nil {
				r.answered.Add(1)
			}
		}
	}
}

// sockopt is one integer socket option.
type sockopt struct{ level, name, value int }

func setOptions(raw syscall.RawConn, options ...sockopt) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		for _, o := range options {
			if err := unix.SetsockoptInt(int(fd), o.level, o.name, o.value); err != nil && failed == nil {
				failed = fmt.Errorf("setting socket option %d of level %d: %w", o.name, o.level, err)
			}
		}
	})
	return errors.Join(err, failed)
}
