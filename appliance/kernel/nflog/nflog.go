// Package nflog reads the packets that rules of the packet filter send to an nflog group.
package nflog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of linux/netfilter/nfnetlink_log.h that golang.org/x/sys does not have.
const (
	messagePacket = 0
	messageConfig = 1

	configCommand = 1 // NFULA_CFG_CMD
	configMode    = 2 // NFULA_CFG_MODE
	configTimeout = 4 // NFULA_CFG_TIMEOUT, in hundredths of a second
	configQueue   = 5 // NFULA_CFG_QTHRESH

	commandBind = 1
	copyPacket  = 2

	attrPayload = 9
	attrPrefix  = 10
)

// The pace of the kernel: it gathers records before it wakes us, but not for long.
const (
	gatherRecords    = 32
	gatherHundredths = 10
	snaplen          = 80
)

// Options say where to listen.
type Options struct {
	// NetNS is an open file descriptor of a network namespace; 0 means that of the calling thread.
	NetNS int
	Group uint16
}

// Listen reports packets until ctx ends; then it closes the channel. Whoever does not read loses packets: they are only told of.
func Listen(ctx context.Context, o Options) (<-chan Packet, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: o.NetNS})
	if err != nil {
		return nil, fmt.Errorf("opening nflog: %w", err)
	}
	if err := configure(conn, o.Group); err != nil {
		_ = conn.Close()
		return nil, err
	}
	out := make(chan Packet, 256)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	go func() {
		defer close(out)
		defer conn.Close()
		defer stop()
		for ctx.Err() == nil {
			msgs, err := conn.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
				return // the deadline, or a socket that does not work any more
			}
			for _, m := range msgs {
				p, ok := decode(m)
				if !ok {
					continue
				}
				select {
				case out <- p:
				default:
				}
			}
		}
	}()
	return out, nil
}

// configure binds the group and asks for the start of each packet.
func configure(conn *netlink.Conn, group uint16) error {
	be32 := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	for _, step := range []struct {
		what string
		kind uint16
		data []byte
	}{
		{"binding the group", configCommand, []byte{commandBind}},
		{"choosing how much of a packet is copied", configMode, append(be32(snaplen), copyPacket, 0)},
		{"choosing when to be woken", configQueue, be32(gatherRecords)},
		{"choosing how long to wait for more", configTimeout, be32(gatherHundredths)},
	} {
		data := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}
		data = binary.BigEndian.AppendUint16(data, group)
		data = binary.NativeEndian.AppendUint16(data, uint16(4+len(step.data)))
		data = binary.NativeEndian.AppendUint16(data, step.kind)
		data = append(data, step.data...)
		for len(data)%4 != 0 {
			data = append(data, 0)
		}
		_, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | messageConfig, Flags: netlink.Request | netlink.Acknowledge},
			Data:   data,
		})
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("nflog group %d: another process reads it already: stop that one: %w", group, err)
		}
		if err != nil {
			return fmt.Errorf("nflog group %d: %s: %w", group, step.what, err)
		}
	}
	return nil
}

// decode reads one message; ok is false when it is none about an IP packet.
func decode(m netlink.Message) (p Packet, ok bool) {
	if m.Header.Type != unix.NFNL_SUBSYS_ULOG<<8|messagePacket || len(m.Data) < 4 {
		return p, false
	}
	for b := m.Data[4:]; len(b) >= 4; {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		switch value := b[4:n]; binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER) {
		case attrPrefix:
			for len(value) > 0 && value[len(value)-1] == 0 {
				value = value[:len(value)-1]
			}
			p.Prefix = string(value)
		case attrPayload:
			ok = p.parse(value)
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return p, ok
}
