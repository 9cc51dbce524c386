package iface

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// maxBatch is how many requests go into one message: the errors of a whole batch must fit the socket's receive buffer.
	maxBatch = 64
	// maxDumps is how often a list is asked for that other changes keep interrupting.
	maxDumps = 10
)

// conn is an rtnetlink socket in one network namespace that sends several requests in one system call: the kernel answers
// while the call runs, and only the last request asks for an acknowledgement, so a batch costs two calls whatever its length.
type conn struct {
	mu   sync.Mutex
	sock *nl.NetlinkSocket
	seq  uint32
	buf  []byte
	port uint32
}

// dial opens a conn in a namespace; netns.None() means the namespace of the process.
func dial(ns netns.NsHandle) (*conn, error) {
	sock, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	c := &conn{sock: sock, buf: make([]byte, 64<<10)}
	if err := sock.SetExtAck(true); err != nil {
		sock.Close()
		return nil, fmt.Errorf("asking netlink for error messages: %w", err)
	}
	if c.port, err = sock.GetPid(); err != nil {
		sock.Close()
		return nil, fmt.Errorf("asking for the netlink port: %w", err)
	}
	return c, nil
}

func (c *conn) close() { c.sock.Close() }

// request is one rtnetlink message.
type request struct {
	// what says in words what it does, for the error text: "adding route …".
	what string
	// change says what is different afterwards, for ApplyHost: "route … added".
	change string
	msg    *nl.NetlinkRequest
	// reply receives the payload of the answer, for requests that have one.
	reply func(payload []byte)
	// fine are errors that mean that nothing was left to do.
	fine []error
	// sent and err are the outcome.
	sent bool
	err  error
}

// do sends the requests in order and returns every error, joined. Like the kernel it goes on after a request that failed.
func (c *conn) do(requests ...*request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for chunk := range slices.Chunk(requests, maxBatch) {
		if err := c.exchange(chunk); err != nil {
			return err
		}
	}
	var errs []error
	for _, r := range requests {
		if r.err != nil && !slices.ContainsFunc(r.fine, func(e error) bool { return errors.Is(r.err, e) }) {
			errs = append(errs, fmt.Errorf("%s: %w", r.what, r.err))
		}
	}
	return errors.Join(errs...)
}

// exchange sends at most maxBatch requests and reads until the last one is acknowledged.
func (c *conn) exchange(requests []*request) error {
	var out []byte
	first := c.seq + 1
	for i, r := range requests {
		c.seq++
		r.msg.Seq = c.seq
		if i == len(requests)-1 {
			r.msg.Flags |= unix.NLM_F_ACK
		}
		out = append(out, r.msg.Serialize()...)
	}
	if err := unix.Sendto(c.sock.GetFd(), out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("sending to netlink: %w", err)
	}
	for _, r := range requests {
		r.sent = true
	}
	for {
		msgs, err := c.receive()
		if err != nil {
			return err
		}
		for _, m := range msgs {
			i := int(m.Header.Seq - first)
			if i < 0 || i >= len(requests) {
				continue // the tail of an exchange that failed
			}
			if m.Header.Type != unix.NLMSG_ERROR {
				if requests[i].reply != nil {
					requests[i].reply(m.Data)
				}
				continue
			}
			requests[i].err = ackError(m)
			if i == len(requests)-1 {
				return nil
			}
		}
	}
}

// receive reads one datagram. The answers are there when the send returns; poll is for the kernel that does it otherwise.
func (c *conn) receive() ([]syscall.NetlinkMessage, error) {
	for {
		n, _, err := unix.Recvfrom(c.sock.GetFd(), c.buf, 0)
		switch {
		case err == nil:
			msgs, err := syscall.ParseNetlinkMessage(slices.Clone(c.buf[:n]))
			if err != nil {
				return nil, fmt.Errorf("reading the answer of netlink: %w", err)
			}
			return msgs, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.sock.GetFd()), Events: unix.POLLIN}}, 10_000)
			if err == nil && n == 0 {
				return nil, errors.New("netlink did not answer within 10 seconds")
			}
		default:
			return nil, fmt.Errorf("reading from netlink: %w", err)
		}
	}
}

// ackError turns an NLMSG_ERROR into nil or the error number, with the kernel's own words when it sent some (struct nlmsgerr
// and NLMSGERR_ATTR_MSG in include/uapi/linux/netlink.h).
func ackError(m syscall.NetlinkMessage) error {
	errno := int32(binary.NativeEndian.Uint32(m.Data))
	if errno == 0 {
		return nil
	}
	err := error(syscall.Errno(-errno))
	if m.Header.Flags&unix.NLM_F_ACK_TLVS == 0 {
		return err
	}
	skip := 4 + unix.SizeofNlMsghdr
	if m.Header.Flags&unix.NLM_F_CAPPED == 0 {
		skip = 4 + (int(binary.NativeEndian.Uint32(m.Data[4:]))+3)&^3
	}
	if skip > len(m.Data) {
		return err
	}
	attrs, _ := nl.ParseRouteAttr(m.Data[skip:])
	for _, a := range attrs {
		if a.Attr.Type == nl.NLMSGERR_ATTR_MSG {
			return fmt.Errorf("%w (%s)", err, unix.ByteSliceToString(a.Value))
		}
	}
	return err
}

// dump repeats a list until no change interrupted it; an interrupted one may lack entries or hold them twice. Every list in
// this package goes through it.
func dump[T any](what string, list func() ([]T, error)) ([]T, error) {
	for range maxDumps {
		items, err := list()
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", what, err)
		}
		return items, nil
	}
	return nil, fmt.Errorf("listing %s: changed under our hands %d times in a row: %w", what, maxDumps, netlink.ErrDumpInterrupted)
}
