package iface

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/route"
)

// next returns the next event, or the zero Event after half a second of silence.
func next(t *testing.T, events <-chan Event) Event {
	t.Helper()
	select {
	case e, ok := <-events:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return e
	case <-time.After(500 * time.Millisecond):
		return Event{}
	}
}

// gather merges events until the condition holds: a busy watcher hands over late, and in parts.
func gather(t *testing.T, events <-chan Event, what string, enough func(Event) bool) (all Event) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !enough(all) {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatal("the channel is closed")
			}
			all.Ours, all.Underlay, all.Resync = append(all.Ours, e.Ours...), all.Underlay || e.Underlay, all.Resync || e.Resync
		case <-deadline:
			t.Fatalf("%s: no such event, only %+v", what, all)
		}
	}
	return all
}

// settled waits until the links that a test has just made say nothing more.
func settled(t *testing.T, events <-chan Event) {
	t.Helper()
	for e := next(t, events); !e.empty(); e = next(t, events) {
	}
}

func TestWatch(t *testing.T) {
	p := newPair(t)
	p.apply(route.ModeVXLAN)
	n := p.nodes[1]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := n.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	settled(t, events)
	for i, c := range []struct {
		command, ours string
		underlay      bool
	}{
		{"ip route del 10.244.2.0/24", "route 10.244.2.0/24 deleted", false},
		{"ip route add 10.244.2.0/24 dev eth0 proto 87", "", false},
		{"ip route replace 10.244.2.0/24 via 192.168.50.2 proto static", "route 10.244.2.0/24 replaced", false},
		{"ip route del 10.244.2.0/24", "", false},
		{"ip -6 route del fd00:244:2::/64", "route fd00:244:2::/64 deleted", false},
		{"ip route del unreachable 10.244.1.0/24", "route 10.244.1.0/24 deleted", false},
		{"ip route del 10.244.1.2", "route 10.244.1.2/32 deleted", false},
		{"ip neigh del 10.244.1.2 dev " + attachment(1, 0, "46").HostIf, "neighbour 10.244.1.2 on " + attachment(1, 0, "46").HostIf + " deleted", false},
		{"ip addr del 10.244.1.1/32 dev weft0", "address 10.244.1.1/32 on weft0 deleted", false},
		{"ip addr add 10.244.1.9/32 dev weft0", "address 10.244.1.9/32 on weft0 added", false},
		{"ip neigh del 10.244.2.1 dev weft.vx", "neighbour 10.244.2.1 on weft.vx deleted", false},
		{"bridge fdb del 0e:00:00:00:00:02 dev weft.vx", "forwarding entry 0e:00:00:00:00:02 dst 192.168.50.2 deleted", false},
		{"ip link set weft.vx mtu 1300", "link weft.vx changed", false},
		{"ip link set weft.vx down", "link weft.vx set down", false},
		{"ip link del weft.vx", "link weft.vx deleted", false},
		{"ip link del " + attachment(1, 0, "46").HostIf, "link " + attachment(1, 0, "46").HostIf + " deleted", false},
		{"ip link set eth0 mtu 1400", "", true},
		{"ip addr add 192.168.50.77/24 dev eth0", "", true},
		{"ip addr del 192.168.50.77/24 dev eth0", "", true},
		{"ip link add other0 type bridge", "", false},
		{"ip link set eth0 down", "", true},
	} {
		n.run(c.command)
		// What follows is told last, so that nothing is late and taken for the next command's.
		last := fmt.Sprintf("10.244.1.%d/32", 100+i)
		n.run("ip addr add " + last + " dev weft0")
		last = "address " + last + " on weft0 added"
		e := gather(t, events, c.command, func(e Event) bool { return slices.Contains(e.Ours, last) })
		e.Ours = slices.DeleteFunc(e.Ours, func(s string) bool { return s == last })
		if got := strings.Join(e.Ours, "; "); c.ours == "" && got != "" || !strings.Contains(got, c.ours) || e.Underlay != c.underlay || e.Resync {
			t.Errorf("%s: event %+v", c.command, e)
		}
	}
	cancel()
	for range events { // closed in the end
	}
}

// TestWatchOwnActions must stay silent about what this process does.
func TestWatchOwnActions(t *testing.T) {
	p := newPair(t)
	n := p.nodes[1]
	events, err := n.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	settled(t, events)
	said := 0
	silent := func(what string) {
		t.Helper()
		if e := next(t, events); !e.empty() {
			t.Errorf("%s: event %+v", what, e)
		}
		said++ // something else, so that nothing is late
		n.run(fmt.Sprintf("ip addr add 192.168.50.%d/24 dev eth0", 100+said))
		if e := gather(t, events, what, func(e Event) bool { return e.Underlay }); len(e.Ours) > 0 || e.Resync {
			t.Errorf("%s: event %+v", what, e)
		}
	}
	n.apply(hostNet(1, route.ModeVXLAN))
	silent("vxlan")
	n.apply(hostNet(1, route.ModeNative))
	silent("native")
	pod, a := newNS(t), attachment(1, 1, "46")
	n.add(pod, a)
	silent("AddPod")
	n.del(a)
	n.flush()
	silent("DelPod")
	n.apply(route.HostNet{})
	silent("nothing wanted")
}

// TestWatchOverflow loses messages: the reader must be told, and the next change must be seen.
func TestWatchOverflow(t *testing.T) {
	n := newNode(t)
	b := n.Backend
	w := &watcher{b: b, out: make(chan Event, 1)}
	if err := w.subscribe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.sock.SetReceiveBufferSize(1, false); err != nil { // the kernel makes it the smallest there is
		t.Fatal(err)
	}
	for range 50 {
		n.run("ip link add x0 type bridge")
		n.run("ip link del x0")
	}
	go w.loop(t.Context())
	gather(t, w.out, "messages were lost", func(e Event) bool { return e.Resync })
	n.run("ip link add y0 type bridge")
	n.run("ip link set y0 up")
	if e := gather(t, w.out, "after the overflow", func(e Event) bool { return e.Underlay }); e.Resync {
		t.Errorf("after the overflow: event %+v", e)
	}
}
