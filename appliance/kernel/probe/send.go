package probe

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Reply is what the other node answered.
type Reply struct {
	RTT time.Duration
	// Bytes is the size of the IP packet that arrived there.
	Bytes int
}

// sequence counts the probes of this process.
var sequence atomic.Uint32

// Send sends one probe in an IP packet of exactly size bytes and waits for the answer, at most timeout. The packet carries
// the do-not-fragment flag, and a path MTU that the kernel remembers is not believed (ip(7) IP_PMTUDISC_PROBE). An invalid
// from leaves the source to the kernel. The socket is opened in the network namespace of the calling thread.
//
// Errors: ErrTimeout when nothing came back, *TooBigError when this node's link or a router refused the size,
// *UnreachableError when the kernel or somebody on the way refused the packet, ctx.Err when ctx ended.
func Send(ctx context.Context, from, to netip.Addr, port uint16, size int, timeout time.Duration) (Reply, error) {
	to = to.Unmap()
	if !to.IsValid() {
		return Reply{}, errors.New("probing: no address to probe")
	}
	if size < MinSize(to) || size > maxSize {
		return Reply{}, fmt.Errorf("probing %s: size %d: must be %d to %d bytes", to, size, MinSize(to), maxSize)
	}
	reply, err := send(ctx, from.Unmap(), netip.AddrPortFrom(to, port), size, timeout)
	if err != nil {
		return Reply{}, fmt.Errorf("probing %s with %d bytes: %w", to, size, err)
	}
	return reply, nil
}

func send(ctx context.Context, from netip.Addr, to netip.AddrPort, size int, timeout time.Duration) (Reply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, ErrTimeout)
	defer cancel()
	conn, err := dial(ctx, from, to)
	if err != nil {
		return Reply{}, ended(ctx, refusal(err))
	}
	defer conn.Close()
	// A deadline in the past wakes the reader: the context's end is the only deadline.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	payload, n := newProbe(size-headers(to.Addr()), sequence.Add(1))
	start := time.Now()
	if _, err := conn.Write(payload); err != nil {
		return Reply{}, explain(conn, err)
	}
	buf := make([]byte, headerSize+1)
	for {
		count, err := conn.Read(buf)
		if err != nil {
			return Reply{}, ended(ctx, explain(conn, err))
		}
		rtt := time.Since(start)
		arrived, checksum, ok := parseReply(buf[:count], n)
		if !ok {
			continue // not for this probe: somebody guesses
		}
		if arrived != len(payload) || checksum != crc32.ChecksumIEEE(payload) {
			return Reply{}, fmt.Errorf("the packet arrived changed: %d bytes of payload instead of %d, or other ones", arrived, len(payload))
		}
		return Reply{RTT: rtt, Bytes: arrived + headers(to.Addr())}, nil
	}
}

// ended returns why ctx ended, if it did, else err: what a cancelled call fails with is no news.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// dial opens a socket that may not fragment, ignores the path MTU that the kernel remembers, and keeps the errors that the
// kernel and routers report with their origin (ip(7), ipv6(7)).
func dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.UDPConn, error) {
	network := "udp4"
	options := []sockopt{{unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE}, {unix.SOL_IP, unix.IP_RECVERR, 1}}
	if to.Addr().Is6() {
		network = "udp6"
		options = []sockopt{{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE}, {unix.SOL_IPV6, unix.IPV6_RECVERR, 1}}
	}
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error { return setOptions(raw, options...) }}
	var source netip.AddrPort
	if from.IsValid() {
		source = netip.AddrPortFrom(from, 0)
	}
	return d.DialUDP(ctx, network, source, to)
}
