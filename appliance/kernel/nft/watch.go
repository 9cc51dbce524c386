package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/ruleset"
)

// Event tells that somebody else changed tables that we apply. The picture of them is forgotten already: an Apply repairs.
type Event struct {
	// Tables are the IDs of the tables.
	Tables []string
	// Deleted says that at least one table is gone.
	Deleted bool
	// PID and Process are who did it, as the kernel knows it: the process that sent the change, not who started it.
	PID     uint32
	Process string
	// Lost says that changes were not read, because they came too fast or during a large change of our own; what they were is unknown.
	Lost bool
}

// String says what happened, for the log.
func (e Event) String() string {
	if e.Lost {
		return "nftables changes were missed"
	}
	verb := "changed"
	if e.Deleted {
		verb = "deleted"
	}
	return fmt.Sprintf("%s (pid %d) %s %v", e.Process, e.PID, verb, e.Tables)
}

// Watch tells of changes by others until ctx ends, or until the socket fails; then it closes the channel. Our own changes
// cost little here: the kernel leaves them out, and large ones are made while nobody listens (quietly).
func (b *Backend) Watch(ctx context.Context) (<-chan Event, error) {
	conn, err := dial(b.netns, 16<<20)
	if err != nil {
		return nil, err
	}
	if err := b.subscribe(conn); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("watching nftables: %w", err)
	}
	// Whoever does not read loses nothing that matters: each event says only that an Apply is due.
	events := make(chan Event, 16)
	own := &watch{conn, events}
	b.mu.Lock()
	b.watch = own
	b.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	go func() {
		defer close(events)
		defer conn.Close()
		defer stop()
		defer b.unwatch(own)
		w := watcher{backend: b, touched: map[string]bool{}}
		for ctx.Err() == nil {
			msgs, err := conn.Receive()
			switch {
			case errors.Is(err, unix.ENOBUFS):
				b.Invalidate()
				w.touched = map[string]bool{}
				offer(events, Event{Lost: true})
			case err != nil && !errors.Is(err, unix.EINTR):
				return // the deadline, or a socket that does not work any more
			}
			for _, m := range msgs {
				if e, ok := w.message(m); ok {
					offer(events, e)
				}
			}
		}
	}()
	return events, nil
}

func (b *Backend) unwatch(w *watch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.watch == w {
		b.watch = nil
	}
}

func offer(events chan<- Event, e Event) {
	select {
	case events <- e:
	default:
	}
}

// subscribe joins the group of notifications, without those that our own sender causes.
func (b *Backend) subscribe(conn *netlink.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	// nlmsg_pid is at offset 12 of the first message; all messages that come together have the same. BPF loads it as a
	// number in network byte order.
	own := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, b.send.conn.PID()))
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 12},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: own},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: ^uint32(0)},
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	return conn.JoinGroup(unix.NFNLGRP_NFTABLES)
}

// watcher gathers what one transaction of somebody else touches. The kernel sends its objects first and then who did it.
type watcher struct {
	backend *Backend
	touched map[string]bool
	deleted bool
}

// message takes one notification; ok is true at the end of a transaction that touched a table of ours.
func (w *watcher) message(m netlink.Message) (e Event, ok bool) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 {
		return Event{}, false
	}
	kind := uint16(m.Header.Type & 0xff)
	if kind != unix.NFT_MSG_NEWGEN {
		w.object(kind, m.Data)
		return Event{}, false
	}
	if len(w.touched) == 0 {
		return Event{}, false
	}
	e = Event{Tables: slices.Sorted(maps.Keys(w.touched)), Deleted: w.deleted}
	attributes(m.Data[4:], func(kind uint16, v []byte) {
		switch kind {
		case unix.NFTA_GEN_PROC_PID:
			e.PID = binary.BigEndian.Uint32(v)
		case unix.NFTA_GEN_PROC_NAME:
			e.Process = cString(v)
		}
	})
	w.backend.forget(e.Tables)
	w.touched, w.deleted = map[string]bool{}, false
	return e, true
}

// object notes a changed object. In all messages attribute 1 is the name of the table, and in those of rules and elements
// attribute 2 that of their chain or set; chains have their name in 3 and sets in 2.
func (w *watcher) object(kind uint16, data []byte) {
	var table, name string
	attributes(data[4:], func(attr uint16, v []byte) {
		switch {
		case attr == 1:
			table = cString(v)
		case attr == 3 && (kind == unix.NFT_MSG_NEWCHAIN || kind == unix.NFT_MSG_DELCHAIN):
			name = cString(v)
		case attr == 2 && kind >= unix.NFT_MSG_NEWRULE:
			name = cString(v)
		}
	})
	families := map[byte]ruleset.Family{unix.NFPROTO_INET: ruleset.INet, unix.NFPROTO_IPV4: ruleset.IPv4, unix.NFPROTO_IPV6: ruleset.IPv6}
	family, ok := families[data[0]]
	if !ok {
		return
	}
	t := ruleset.Table{Family: family, Name: table}
	if !w.backend.owns(t.ID(), name) {
		return
	}
	w.touched[t.ID()] = true
	w.deleted = w.deleted || kind == unix.NFT_MSG_DELTABLE
}

// owns reports whether we apply that table and, if it is partial, that object of it.
func (b *Backend) owns(id, name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.tables[id]
	return k != nil && (!k.table.Partial || name == "" || k.ours[name])
}

// forget drops the picture of some tables.
func (b *Backend) forget(ids []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range ids {
		if k := b.tables[id]; k != nil {
			k.state, k.valid = nil, false
		}
	}
}
