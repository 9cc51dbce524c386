package dnssocket

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// message is struct mmsghdr of recvmmsg(2).
type message struct {
	header unix.Msghdr
	length uint32
}

// Batch is room for the packets of one system call and for their replies. One goroutine uses it at a time.
type Batch struct {
	u       *UDP
	in, out []message
	from    []unix.RawSockaddrInet6
	vectors []unix.Iovec
	replies []unix.Iovec
	size    int
	packets []byte
	answers []byte
	queued  int
	n       int
	err     syscall.Errno
	receive func(uintptr) bool
	send    func(uintptr) bool
}

// NewBatch returns a batch of n packets; they and their replies have at most size bytes.
func (u *UDP) NewBatch(n, size int) *Batch {
	b := &Batch{
		u: u, size: size, in: make([]message, n), out: make([]message, n), from: make([]unix.RawSockaddrInet6, n),
		vectors: make([]unix.Iovec, n), replies: make([]unix.Iovec, n), packets: make([]byte, n*size), answers: make([]byte, n*size),
	}
	for i := range b.in {
		b.vectors[i].Base = &b.packets[i*size]
		b.vectors[i].SetLen(size)
		h := &b.in[i].header
		h.Name, h.Iov = (*byte)(unsafe.Pointer(&b.from[i])), &b.vectors[i]
		h.SetIovlen(1)
	}
	b.receive = func(fd uintptr) bool {
		for i := range b.in {
			b.in[i].header.Namelen = unix.SizeofSockaddrInet6
		}
		got, _, errno := syscall.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), uintptr(len(b.in)), unix.MSG_DONTWAIT, 0, 0)
		b.n, b.err = int(got), errno
		return errno != unix.EAGAIN && errno != unix.EINTR
	}
	b.send = func(fd uintptr) bool {
		for b.n < b.queued {
			sent, _, errno := syscall.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.out[b.n])), uintptr(b.queued-b.n), unix.MSG_DONTWAIT, 0, 0)
			switch {
			case errno == unix.EAGAIN:
				return false
			case errno == unix.EINTR:
			case errno != 0: // this one cannot be sent: the client is gone, or has no way back
				b.n, b.err = b.n+1, errno
			default:
				b.n += int(sent)
			}
		}
		return true
	}
	return b
}

// Read waits for packets and returns how many there are; it fails when the socket is closed.
func (b *Batch) Read() (int, error) {
	if err := b.u.raw.Read(b.receive); err != nil {
		return 0, err
	}
	if b.err != 0 {
		if b.err == unix.ECONNREFUSED || b.err == unix.ENOMEM || b.err == unix.ENOBUFS {
			return 0, nil
		}
		return 0, b.err
	}
	return b.n, nil
}

// Packet returns a packet of the last Read.
func (b *Batch) Packet(i int) []byte { return b.packets[i*b.size : i*b.size+int(b.in[i].length)] }

// From returns who sent it.
func (b *Batch) From(i int) netip.AddrPort {
	a := &b.from[i]
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&a.Port))[:])
	if a.Family == unix.AF_INET {
		a4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return netip.AddrPortFrom(netip.AddrFrom4(a4.Addr), port)
	}
	addr := netip.AddrFrom16(a.Addr)
	if a.Scope_id != 0 {
		// The number is enough of a name to send an answer back.
		addr = addr.WithZone(zone(a.Scope_id))
	}
	return netip.AddrPortFrom(addr, port)
}

func zone(index uint32) string {
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		return i.Name
	}
	return ""
}

// Room returns where the reply to a packet may be written.
func (b *Batch) Room(i int) []byte { return b.answers[i*b.size : i*b.size : (i+1)*b.size] }

// Reply queues a reply, which was written into Room, to the sender of a packet.
func (b *Batch) Reply(i int, p []byte) {
	v := &b.replies[b.queued]
	v.Base = &p[0]
	v.SetLen(len(p))
	h := &b.out[b.queued].header
	h.Name, h.Namelen, h.Iov = b.in[i].header.Name, b.in[i].header.Namelen, v
	h.SetIovlen(1)
	b.queued++
}

// Flush sends the replies. An error of a single one, whose client may be gone, is returned after all others were sent.
func (b *Batch) Flush() error {
	if b.queued == 0 {
		return nil
	}
	b.n, b.err = 0, 0
	err := b.u.raw.Write(b.send)
	b.queued = 0
	if err == nil && b.err != 0 {
		err = b.err
	}
	return err
}

// IsClosed reports whether an error means that the socket was closed.
func IsClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
