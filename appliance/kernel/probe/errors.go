package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ErrTimeout means that nothing came back: no answer and no complaint. Its method Timeout returns true.
var ErrTimeout error = timeoutError{}

type timeoutError struct{}

func (timeoutError) Error() string { return "no answer" }

func (timeoutError) Timeout() bool { return true }

// TooBigError means that a link on the way does not carry packets of that size.
type TooBigError struct {
	// MTU is the size in bytes that the link carries; 0 when nobody said.
	MTU int
	// From is the router that said so; invalid when it is a link of this node.
	From netip.Addr
}

func (e *TooBigError) Error() string {
	if !e.From.IsValid() {
		return fmt.Sprintf("too big for a link of this node, which carries %d bytes", e.MTU)
	}
	return fmt.Sprintf("too big: %s says that the next link carries %d bytes", e.From, e.MTU)
}

// PathMTU returns the size in bytes that the link carries (0 when nobody said), and who said so (invalid: this node).
func (e *TooBigError) PathMTU() (int, netip.Addr) { return e.MTU, e.From }

// UnreachableError means that the packet was refused: by the kernel of this node (no route, no such source address, a
// firewall rule), or by a machine on the way or at the end that reported it by ICMP.
type UnreachableError struct {
	// From is who reported it; invalid when it is this node.
	From netip.Addr
	// Err is the kernel's error number for it, e.g. EHOSTUNREACH; ECONNREFUSED means that nobody listens on the port.
	Err error
}

func (e *UnreachableError) Error() string {
	if !e.From.IsValid() {
		return fmt.Sprintf("refused by this node: %v", e.Err)
	}
	return fmt.Sprintf("refused by %s: %v", e.From, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// Refused reports whether the machine at the end was reached, and nobody listens there.
func (e *UnreachableError) Refused() bool { return errors.Is(e.Err, unix.ECONNREFUSED) }

// explain finds out who caused an error of a socket, and why, from the socket's error queue.
func explain(conn *net.UDPConn, err error) error {
	var number unix.Errno
	if !errors.As(err, &number) {
		return err
	}
	if told := readErrorQueue(conn); told != nil {
		return told
	}
	return refusal(err)
}

// refusal makes an error of this node's kernel one of ours.
func refusal(err error) error {
	var number unix.Errno
	switch {
	case !errors.As(err, &number):
		return err
	case number == unix.EMSGSIZE:
		return &TooBigError{}
	}
	return &UnreachableError{Err: number}
}

// readErrorQueue returns the first error in the queue, or nil when it is empty.
func readErrorQueue(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	var told error
	// The reason that the call failed for is all there is to tell: a queue that cannot be read says nothing more.
	_ = raw.Control(func(fd uintptr) {
		control := make([]byte, 256)
		_, n, _, _, err := unix.Recvmsg(int(fd), nil, control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		messages, err := unix.ParseSocketControlMessage(control[:n])
		if err != nil {
			return
		}
		for _, m := range messages {
			v4 := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR
			v6 := m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
			if v4 || v6 {
				told = parseExtendedError(m.Data)
			}
		}
	})
	return told
}

// extendedErrorSize is that of struct sock_extended_err (linux/errqueue.h); the address of who reported it follows.
const extendedErrorSize = 16

// parseExtendedError reads struct sock_extended_err and the struct sockaddr_in or sockaddr_in6 behind it.
func parseExtendedError(b []byte) error {
	if len(b) < extendedErrorSize {
		return nil
	}
	number, info := unix.Errno(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[8:])
	var from netip.Addr
	if origin := b[4]; origin == unix.SO_EE_ORIGIN_ICMP || origin == unix.SO_EE_ORIGIN_ICMP6 {
		from = parseSockaddr(b[extendedErrorSize:])
	}
	if number == unix.EMSGSIZE {
		return &TooBigError{MTU: int(info), From: from}
	}
	return &UnreachableError{From: from, Err: number}
}

func parseSockaddr(b []byte) netip.Addr {
	if len(b) < 8 {
		return netip.Addr{}
	}
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET:
		return netip.AddrFrom4([4]byte(b[4:8]))
	case family == unix.AF_INET6 && len(b) >= 24:
		return netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	}
	return netip.Addr{}
}
