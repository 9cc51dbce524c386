package gobgp

import (
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// sockets calls f with each TCP socket of this process that has the port at its own end; listening says of which kind it is.
func sockets(port uint16, f func(fd int, listening bool)) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil || port == 0 {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || protocol != unix.IPPROTO_TCP {
			continue
		}
		name, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		own := 0
		switch a := name.(type) {
		case *unix.SockaddrInet4:
			own = a.Port
		case *unix.SockaddrInet6:
			own = a.Port
		}
		if own == int(port) {
			listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
			f(fd, err == nil && listening == 1)
		}
	}
}

// clearMD5 takes the TCP-MD5 key of a peer off the listening sockets. gobgp's DeletePeer means to, but looks for the password in a
// neighbour that it has just made without one.
func clearMD5(port uint16, peer netip.Addr) {
	sockets(port, func(fd int, listening bool) {
		if !listening {
			return
		}
		key := unix.TCPMD5Sig{}
		if peer.Is4() {
			key.Addr.Family = unix.AF_INET
			copy(key.Addr.Data[2:], peer.AsSlice())
		} else {
			key.Addr.Family = unix.AF_INET6
			copy(key.Addr.Data[6:], peer.AsSlice())
		}
		_ = unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &key) // fails on the socket of the other family
	})
}

// shutdownSockets ends what listens on the port and the sessions that came in by it, and returns how many there were.
func shutdownSockets(port uint16) (n int) {
	sockets(port, func(fd int, _ bool) {
		if unix.Shutdown(fd, unix.SHUT_RDWR) == nil {
			n++
		}
	})
	return n
}
