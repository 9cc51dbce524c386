// Package dnssocket opens the sockets of the DNS server and moves many packets with each system call.
package dnssocket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// buffer is how many bytes of packets wait while the daemon is restarted or busy. It is a limit, not a reservation.
const buffer = 16 << 20

// UDP is a socket for packets.
type UDP struct {
	*net.UDPConn
	raw  syscall.RawConn
	addr netip.AddrPort
}

// ListenUDP opens a socket at an address that the node may get later.
func ListenUDP(addr netip.AddrPort) (*UDP, error) {
	lc := net.ListenConfig{Control: prepare}
	c, err := lc.ListenPacket(context.Background(), network("udp", addr), addr.String())
	if err != nil {
		return nil, fmt.Errorf("listening at %s/udp: %w", addr, err)
	}
	return newUDP(c)
}

// AdoptUDP takes a socket that another process has opened. The file is closed.
func AdoptUDP(f *os.File) (*UDP, error) {
	c, err := net.FilePacketConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("taking over socket %s: %w", f.Name(), err)
	}
	return newUDP(c)
}

func newUDP(c net.PacketConn) (*UDP, error) {
	u, ok := c.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("socket %s is not for UDP", c.LocalAddr()), c.Close())
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &UDP{UDPConn: u, raw: raw, addr: unmapped(u.LocalAddr())}, nil
}

// Addr is where the socket listens.
func (u *UDP) Addr() netip.AddrPort { return u.addr }

// ListenTCP opens a listener at an address that the node may get later.
func ListenTCP(addr netip.AddrPort) (*net.TCPListener, error) {
	lc := net.ListenConfig{Control: prepare}
	l, err := lc.Listen(context.Background(), network("tcp", addr), addr.String())
	if err != nil {
		return nil, fmt.Errorf("listening at %s/tcp: %w", addr, err)
	}
	return l.(*net.TCPListener), nil
}

// AdoptTCP takes a listener that another process has opened. The file is closed.
func AdoptTCP(f *os.File) (*net.TCPListener, error) {
	l, err := net.FileListener(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("taking over socket %s: %w", f.Name(), err)
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("socket %s is not for TCP", l.Addr()), l.Close())
	}
	return t, nil
}

func network(kind string, addr netip.AddrPort) string {
	if addr.Addr().Is4() {
		return kind + "4"
	}
	return kind + "6"
}

func unmapped(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.UDPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	case *net.TCPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// prepare sets what must be set before bind: an address that is not there yet is fine, since the server must be able to answer
// before packets come its way; and so is a second process at the same address, for the change from one to the other.
func prepare(network, _ string, c syscall.RawConn) error {
	var errs []error
	err := c.Control(func(p uintptr) {
		fd := int(p)
		freebind := func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1) }
		if network[len(network)-1] == '6' {
			freebind = func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1) }
		}
		errs = append(errs, freebind(), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		if network[:3] == "udp" && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
			// Without CAP_NET_ADMIN in the initial user namespace the limit of net.core.rmem_max holds.
			errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer))
		}
	})
	return errors.Join(append(errs, err)...)
}
