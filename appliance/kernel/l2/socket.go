package l2

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// socket is a raw socket for one protocol on one link.
type socket struct {
	fd   int
	file *os.File // owns fd, and waits without a thread
	conn syscall.RawConn
	to   unix.SockaddrLinklayer
}

// mostFrame is the longest frame that is looked at; no message that counts here is longer than the smallest MTU of Ethernet.
const mostFrame = 1514

// listen opens a socket. The protocol is given last, with the link: before, frames of other links would be queued.
func listen(index int, protocol uint16, program []unix.SockFilter) (*socket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	if program != nil {
		err = filter(fd, program)
	}
	to := unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: index}
	if err == nil {
		err = unix.Bind(fd, &to)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("binding a packet socket: %w", err)
	}
	s := &socket{fd: fd, file: os.NewFile(uintptr(fd), "packet"), to: to}
	if s.conn, err = s.file.SyscallConn(); err != nil {
		s.close()
		return nil, fmt.Errorf("binding a packet socket: %w", err)
	}
	return s, nil
}

func (s *socket) close() { _ = s.file.Close() }

// run reads frames until the socket is closed.
func (s *socket) run(read func([]byte)) {
	buf := make([]byte, mostFrame)
	for {
		var n int
		var from unix.Sockaddr
		var err error
		waiting := s.conn.Read(func(fd uintptr) bool {
			n, from, err = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(err, unix.EAGAIN)
		})
		if waiting != nil {
			return // closed
		}
		if err != nil {
			continue // the link went down or away; whoever opened the port sees to that
		}
		// Frames for a VLAN that this node has no link for are shown here as somebody else's.
		if at, ok := from.(*unix.SockaddrLinklayer); ok && at.Pkttype == unix.PACKET_OTHERHOST {
			continue
		}
		read(buf[:n])
	}
}

func (s *socket) send(frame []byte) error {
	var err error
	if waiting := s.conn.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), frame, 0, &s.to)
		return !errors.Is(err, unix.EAGAIN)
	}); waiting != nil {
		return waiting
	}
	return err
}
