package iface

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// quiet is how long nothing may happen before an Event is sent, and patience is how long one waits at most for quiet.
	quiet    = 30 * time.Millisecond
	patience = 200 * time.Millisecond
	// watchBuffer holds the messages of a few thousand changes; when it overflows all the same, the Event says Resync.
	watchBuffer = 4 << 20
)

// Event says that somebody else, or the kernel, changed something. It is a hint to look: ApplyHost and CheckPod decide what differs.
type Event struct {
	// Ours says what happened to weft's links, addresses, routes and neighbours: "route 10.244.2.0/24 deleted".
	Ours []string
	// Underlay is set when a link that Underlay reports changed its addresses, MTU or state.
	Underlay bool
	// Resync is set when messages were lost: anything may have happened.
	Resync bool
}

func (e *Event) empty() bool { return len(e.Ours) == 0 && !e.Underlay && !e.Resync }

// Watch reports changes of links, addresses, routes and neighbours, gathered for a short moment, until the context ends; then
// the channel is closed. A reader that is slow gets fewer, fuller events. What ApplyHost, AddPod and DelPod do is not reported,
// save for rare hints that turn out to be nothing.
func (b *Backend) Watch(ctx context.Context) (<-chan Event, error) {
	w := &watcher{b: b, out: make(chan Event, 1)}
	if err := w.subscribe(ctx); err != nil {
		return nil, err
	}
	go w.loop(ctx)
	return w.out, nil
}

// watcher is one Watch. All of it belongs to the goroutine of loop.
type watcher struct {
	b      *Backend
	out    chan Event
	sock   *nl.NetlinkSocket
	hangUp func() bool // cancels the closing of sock at the end of the context
	view   view
}

// subscribe opens a socket, and then learns the present state, so that nothing can happen in between.
func (w *watcher) subscribe(ctx context.Context) error {
	sock, err := nl.SubscribeAt(w.b.ns, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return fmt.Errorf("subscribing to changes of links and routes: %w", err)
	}
	if sock.SetReceiveBufferSize(watchBuffer, true) != nil {
		// Without CAP_NET_ADMIN in the initial user namespace the limit of net.core.rmem_max holds; a smaller buffer works too.
		_ = sock.SetReceiveBufferSize(watchBuffer, false)
	}
	v, err := w.b.look()
	if err != nil {
		sock.Close()
		return err
	}
	w.sock, w.view = sock, v
	w.hangUp = context.AfterFunc(ctx, sock.Close)
	return nil
}

// look reads the links and addresses that later messages are compared with.
func (b *Backend) look() (view, error) {
	links, err := dump("links", b.links.LinkList)
	if err != nil {
		return view{}, err
	}
	addrs, err := dump("addresses", func() ([]netlink.Addr, error) { return b.links.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return view{}, err
	}
	return newView(links, addrs), nil
}

// loop reads messages, gathers them, and hands over what they mean.
func (w *watcher) loop(ctx context.Context) {
	defer close(w.out)
	defer func() { w.sock.Close() }()
	var pending Event
	var since time.Time
	for {
		timeout := unix.NsecToTimeval(quiet.Nanoseconds())
		if pending.empty() {
			timeout = unix.Timeval{}
		}
		_ = w.sock.SetReceiveTimeout(&timeout) // never fails
		idle, err := w.receive(&pending)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if !w.resubscribe(ctx) {
				return
			}
			pending.Resync = true
		}
		switch {
		case pending.empty():
			since = time.Time{}
			continue
		case since.IsZero():
			since = time.Now()
		}
		if idle || time.Since(since) > patience {
			select {
			case w.out <- pending:
				pending, since = Event{}, time.Time{}
			default: // the reader is busy; go on gathering
			}
		}
	}
}

// receive reads one datagram and adds its meaning to the event; idle is true when there was none for a moment.
func (w *watcher) receive(pending *Event) (idle bool, err error) {
	msgs, from, err := w.sock.Receive()
	switch {
	case errors.Is(err, unix.EAGAIN):
		return true, nil
	case err != nil:
		return false, err
	case from.Pid != nl.PidKernel:
		return false, nil
	}
	for i := range msgs {
		w.view.note(pending, &msgs[i], w.b)
	}
	return false, nil
}

// resubscribe begins anew after messages were lost (ENOBUFS). It tries until it works or the context ends.
func (w *watcher) resubscribe(ctx context.Context) bool {
	w.hangUp()
	w.sock.Close()
	for {
		if w.subscribe(ctx) == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(time.Second):
		}
	}
}
