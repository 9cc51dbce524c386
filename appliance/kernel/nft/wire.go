package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	headerLen = unix.SizeofNlMsghdr + 4 // struct nlmsghdr and struct nfgenmsg
	// maxNested keeps the list of elements of one message under the 64 KiB that the length of an attribute can say. Past
	// that the kernel silently sees fewer elements.
	maxNested = 60 << 10
)

// batch is one transaction in the making: netlink messages back to back in one buffer.
type batch struct {
	buf  []byte
	at   []int    // where each message starts
	what []string // what each message does, for errors
}

func (b *batch) len() int { return len(b.what) }

// begin starts a message of nftables.
func (b *batch) begin(kind, flags uint16, family byte, what string) {
	b.header(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, family, 0, what)
}

func (b *batch) header(kind, flags uint16, family byte, resID uint16, what string) {
	b.at = append(b.at, len(b.buf))
	b.what = append(b.what, what)
	var h [headerLen]byte
	binary.NativeEndian.PutUint16(h[4:], kind)
	binary.NativeEndian.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	h[16] = family
	binary.BigEndian.PutUint16(h[18:], resID)
	b.buf = append(b.buf, h[:]...)
}

// end completes the message that begin started.
func (b *batch) end() {
	start := b.at[len(b.at)-1]
	binary.NativeEndian.PutUint32(b.buf[start:], uint32(len(b.buf)-start))
}

// cut splits the batch before message n.
func (b *batch) cut(n int) (before, after batch) {
	offset := len(b.buf)
	if n < b.len() {
		offset = b.at[n]
	}
	before = batch{buf: b.buf[:offset:offset], at: b.at[:n:n], what: b.what[:n:n]}
	after = batch{buf: b.buf[offset:], what: b.what[n:]}
	for _, at := range b.at[n:] {
		after.at = append(after.at, at-offset)
	}
	return before, after
}

// join appends the messages of another batch.
func (b *batch) join(o *batch) {
	offset := len(b.buf)
	b.buf = append(b.buf, o.buf...)
	b.what = append(b.what, o.what...)
	for _, at := range o.at {
		b.at = append(b.at, at+offset)
	}
}

// attr appends one attribute.
func (b *batch) attr(kind uint16, data []byte) {
	at := b.open(kind)
	b.buf = append(b.buf, data...)
	b.close(at)
}

func (b *batch) attrString(kind uint16, s string) {
	at := b.open(kind)
	b.buf = append(b.buf, s...)
	b.buf = append(b.buf, 0)
	b.close(at)
}

// attrValue appends bytes that are kept in a string, without a copy.
func (b *batch) attrValue(kind uint16, s string) {
	at := b.open(kind)
	b.buf = append(b.buf, s...)
	b.close(at)
}

func (b *batch) attrUint32(kind uint16, v uint32) {
	b.attr(kind, binary.BigEndian.AppendUint32(nil, v))
}

// open starts an attribute whose data is appended next; close completes it.
func (b *batch) open(kind uint16) (at int) {
	at = len(b.buf)
	b.buf = append(b.buf, 0, 0, 0, 0)
	binary.NativeEndian.PutUint16(b.buf[at+2:], kind)
	return at
}

func (b *batch) nest(kind uint16) (at int) { return b.open(kind | unix.NLA_F_NESTED) }

func (b *batch) close(at int) {
	binary.NativeEndian.PutUint16(b.buf[at:], uint16(len(b.buf)-at))
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
}

// attributes calls f for each attribute in b. It stops at the first one that is malformed.
func attributes(b []byte, f func(kind uint16, data []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// tlv appends one entry of a user data area, the form of libnftnl's udata.
func tlv(b []byte, kind byte, data string) []byte {
	b = append(b, kind, byte(len(data)))
	return append(b, data...)
}

// eachTLV calls f for each entry of a user data area.
func eachTLV(b []byte, f func(kind byte, data []byte)) {
	for len(b) >= 2 && int(b[1]) <= len(b)-2 {
		f(b[0], b[2:2+b[1]])
		b = b[2+int(b[1]):]
	}
}

// Error is a batch that the kernel did not take.
type Error struct {
	Err syscall.Errno
	// Message is what failed, as far as the kernel said, with the kernel's own words if it had any.
	Message string
	// Batch describes every message of the batch.
	Batch []string
}

// Error names the message that failed and lists the batch, cut to a readable length.
func (e *Error) Error() string {
	const most = 30
	list := e.Batch
	if len(list) > most {
		list = append(append([]string{}, list[:most]...), fmt.Sprintf("and %d more", len(e.Batch)-most))
	}
	return fmt.Sprintf("nftables: %s: %v (batch: %s)", e.Message, e.Err, strings.Join(list, "; "))
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Err }

// errUnknown is the end of a transaction of which the kernel said nothing.
const errUnknown = unix.ENOBUFS

// sender owns the socket over which batches go.
type sender struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	// sndbuf is the send buffer in bytes: a batch must fit.
	sndbuf int
}

func newSender(netns int) (*sender, error) {
	conn, err := dial(netns, 8<<20)
	if err != nil {
		return nil, err
	}
	// Replies then carry the kernel's words and not our own messages.
	_ = conn.SetOption(netlink.CapAcknowledge, true)
	_ = conn.SetOption(netlink.ExtendedAcknowledge, true)
	raw, err := conn.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("opening the nftables socket: %w", err)
	}
	return &sender{conn: conn, raw: raw}, nil
}

// dial opens a socket to nftables with a receive buffer of that many bytes.
func dial(netns, rcvbuf int) (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, fmt.Errorf("opening the nftables socket: %w", err)
	}
	_ = conn.SetReadBuffer(rcvbuf) // tries SO_RCVBUFFORCE first; a smaller one still works
	return conn, nil
}

// send carries out one transaction: all messages of the batch or none. With dry it only asks whether the kernel would:
// a batch without an end is checked and taken back.
func (s *sender) send(b *batch, dry bool) error {
	var w batch
	w.buf = make([]byte, 0, len(b.buf)+2*headerLen)
	w.header(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES, "begin")
	w.end()
	w.join(b)
	if !dry {
		w.header(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES, "commit")
		w.end()
	}
	for i, at := range w.at { // sequence numbers are positions, so that an error says which message it was
		binary.NativeEndian.PutUint32(w.buf[at+8:], uint32(i))
	}
	// The acknowledgement of the last message comes after the commit, so it stands for the whole.
	flags := w.buf[w.at[b.len()]+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	if want := 2*len(w.buf) + 64<<10; s.sndbuf < want {
		if err := s.conn.SetWriteBuffer(want); err == nil {
			s.sndbuf = want
		}
	}
	var failed *Error
	if err := s.raw.Control(func(fd uintptr) { failed = exchange(int(fd), &w, uint32(b.len())) }); err != nil {
		return fmt.Errorf("nftables socket: %w", err)
	}
	if failed == nil {
		return nil
	}
	failed.Batch = b.what
	return failed
}

// exchange sends buf and reads the replies. The kernel works through a batch inside the system call, so that all replies
// are there when it returns.
func exchange(fd int, b *batch, last uint32) *Error {
	reply := make([]byte, 64<<10)
	for err := error(nil); err == nil || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR); {
		_, _, err = unix.Recvfrom(fd, reply, unix.MSG_DONTWAIT) // leftovers of a transaction whose replies did not fit
	}
	if err := unix.Sendto(fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return &Error{Err: errnoOf(err), Message: fmt.Sprintf("sending %d bytes", len(b.buf))}
	}
	var failed *Error
	acked := false
	for {
		n, _, err := unix.Recvfrom(fd, reply, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return &Error{Err: errnoOf(err), Message: "reading the answer"}
		}
		eachMessage(reply[:n], func(h, data []byte) {
			if binary.NativeEndian.Uint16(h[4:]) != unix.NLMSG_ERROR || len(data) < 4 {
				return
			}
			seq := binary.NativeEndian.Uint32(h[8:])
			errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(data)))
			if errno == 0 {
				acked = acked || seq == last
			} else if failed == nil {
				failed = &Error{Err: errno, Message: kernelWords(h, data)}
				if int(seq) < b.len() {
					failed.Message = b.what[seq] + ": " + failed.Message
				}
			}
		})
	}
	if failed == nil && !acked {
		return &Error{Err: errUnknown, Message: "no answer"}
	}
	return failed
}

// eachMessage calls f for each netlink message in b.
func eachMessage(b []byte, f func(header, data []byte)) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return
		}
		f(b[:unix.SizeofNlMsghdr], b[unix.SizeofNlMsghdr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// kernelWords returns the text of an extended acknowledgement (NLMSGERR_ATTR_MSG), or "refused".
func kernelWords(h, data []byte) string {
	words := "refused"
	if binary.NativeEndian.Uint16(h[6:])&unix.NLM_F_ACK_TLVS != 0 && len(data) > 20 {
		attributes(data[20:], func(kind uint16, v []byte) {
			if kind == unix.NLMSGERR_ATTR_MSG {
				words = strings.TrimRight(string(v), "\x00")
			}
		})
	}
	return words
}

// errnoOf finds the error number of a system call.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}
