package announcer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/announce"
	"weft.network/weft/appliance/compile/lb"
	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/model"
)

// patience is far more than anything here takes.
const patience = 20 * time.Second

// wire is a segment in memory.
type wire struct {
	mu    sync.Mutex
	ports map[model.MAC]*fakePort
	// told is where the segment's hosts send packets for an address.
	told map[netip.Addr]model.MAC
}

type fakePort struct {
	w      *wire
	mac    model.MAC
	events chan announce.Heard
	held   []netip.Addr
	stale  bool
	broken bool
	closed bool
}

func newWire() *wire {
	return &wire{ports: map[model.MAC]*fakePort{}, told: map[netip.Addr]model.MAC{}}
}

func (w *wire) plug(mac model.MAC) *fakePort {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := &fakePort{w: w, mac: mac, events: make(chan announce.Heard, 64)}
	w.ports[mac] = p
	return p
}

// send gives a frame to all others. The caller holds the lock.
func (p *fakePort) send(h announce.Heard) error {
	if p.closed || p.broken {
		return errors.New("the link is down")
	}
	h.From = p.mac
	for _, o := range p.w.ports {
		if o != p && !o.closed {
			select {
			case o.events <- h:
			default:
			}
		}
	}
	return nil
}

func (p *fakePort) MAC() model.MAC                { return p.mac }
func (p *fakePort) Events() <-chan announce.Heard { return p.events }
func (p *fakePort) Answered() uint64              { return 0 }
func (p *fakePort) Probe(netip.Addr) error        { return nil }

func (p *fakePort) Stale() bool {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return p.stale
}

func (p *fakePort) Set(held, _ []netip.Addr) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.held = held
	return nil
}

func (p *fakePort) Announce(a netip.Addr) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if !slices.Contains(p.held, a) {
		return fmt.Errorf("%s is announced before it is held", a)
	}
	p.w.told[a] = p.mac
	return p.send(announce.Heard{Addr: a})
}

func (p *fakePort) Hello(b []byte) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return p.send(announce.Heard{Hello: b})
}

func (p *fakePort) Close() {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if !p.closed {
		p.closed = true
		close(p.events)
	}
}

// node is an announcer under test, with what it told.
type node struct {
	*Announcer
	mac     model.MAC
	stop    context.CancelFunc
	mu      sync.Mutex
	reports []Report
	kept    map[string][]netip.Addr
	opened  int
	refuse  error
}

func (n *node) report(r Report) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reports = append(n.reports, r)
}

func (n *node) count(kind announce.Kind) (c int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.reports {
		if r.Kind == kind {
			c++
		}
	}
	return c
}

func start(t *testing.T, w *wire, name string, resume map[string][]netip.Addr) *node {
	n := &node{mac: model.MAC{2, 0, 0, 0, 0, name[0]}}
	n.Announcer = New(Options{
		Settings: announce.Settings{Node: name, Boot: uint64(name[0])}, Resume: resume, Report: n.report,
		Open: func(string) (Port, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.opened++; n.refuse != nil {
				return nil, n.refuse
			}
			return w.plug(n.mac), nil
		},
		Keep: func(held map[string][]netip.Addr) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.kept = held
		},
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx)
	}()
	n.stop = func() { stop(); <-done }
	t.Cleanup(n.stop)
	return n
}

func view(nodes ...string) View {
	return View{
		Links: []route.UnderlayLink{{Name: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}, {Name: "eth1"}},
		Announcements: []lb.Announcement{
			{Addr: netip.MustParseAddr("192.0.2.80"), L2: true, Nodes: nodes},
			{Addr: netip.MustParseAddr("192.0.2.81"), L2: false, Nodes: nodes},
			{Addr: netip.MustParseAddr("198.51.100.80"), L2: true, Nodes: nodes},
		},
	}
}

func eventually(t *testing.T, what string, done func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !done() {
		if time.Since(began) > patience {
			t.Fatalf("%s did not happen", what)
		}
		<-time.After(5 * time.Millisecond)
	}
	return time.Since(began)
}

var vip = netip.MustParseAddr("192.0.2.80")

// at reports whether the segment's hosts send to that node.
func (w *wire) at(n *node) func() bool {
	return func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.told[vip] == n.mac
	}
}

// TestTakeover: one of two answers; when its process ends without a word, the other one does; when it comes back, it goes on.
func TestTakeover(t *testing.T) {
	w := newWire()
	nodes := map[string]*node{"a": start(t, w, "a", nil), "b": start(t, w, "b", nil)}
	for _, n := range nodes {
		n.Update(view("a", "b"))
	}
	first := lb.Ranking(vip, []string{"a", "b"})
	owner, other := nodes[first[0]], nodes[first[1]]
	eventually(t, "the owner answers", w.at(owner))
	eventually(t, "both know", func() bool {
		x, y := owner.Status(), other.Status()
		return len(x) == 1 && len(y) == 1 && x[0].Self && y[0].Node == first[0] && !y[0].Self
	})
	if links := owner.Links(); len(links) != 1 || links[0].Link != "eth0" || len(links[0].Peers) != 1 || !links[0].Peers[0].Alive {
		t.Errorf("links %+v", links)
	}
	owner.stop()
	owner.mu.Lock()
	kept := owner.kept
	owner.mu.Unlock()
	if !slices.Equal(kept["eth0"], []netip.Addr{vip}) {
		t.Errorf("kept %v for the next process", kept)
	}
	t.Logf("taken over after %v", eventually(t, "the other one answers", w.at(other)))

	again := start(t, w, first[0], kept)
	again.Update(view("a", "b"))
	t.Logf("back after %v", eventually(t, "the owner answers again", func() bool { return w.at(again)() && len(other.Status()) == 1 && !other.Status()[0].Self }))

	again.Update(View{})
	eventually(t, "nothing is held without candidates", func() bool { return len(again.Status()) == 0 && w.at(other)() })
}

// TestLinks: a link that cannot be opened is told once and tried again; one that was made anew is opened anew.
func TestLinks(t *testing.T) {
	w := newWire()
	n := start(t, w, "a", nil)
	n.mu.Lock()
	n.refuse = errors.New("no such link")
	n.mu.Unlock()
	n.Update(view("a"))
	eventually(t, "the failure is told", func() bool { return n.count(Failed) == 1 })
	for range 10 {
		n.Update(view("a"))
	}
	if links := n.Links(); len(links) != 1 || links[0].Error != "no such link" {
		t.Errorf("links %+v", links)
	}
	n.mu.Lock()
	n.refuse = nil
	n.mu.Unlock()
	eventually(t, "it answers once the link can be opened", w.at(n))
	if told := n.count(Failed); told > 1 {
		t.Errorf("told %d times", told)
	}

	w.mu.Lock()
	w.ports[n.mac].stale = true
	delete(w.told, vip)
	w.mu.Unlock()
	n.Update(view("a"))
	eventually(t, "it answers on the new link", w.at(n))

	w.mu.Lock()
	w.ports[n.mac].broken = true
	w.mu.Unlock()
	before := n.count(Failed)
	eventually(t, "a link that is down is told", func() bool { return n.count(Failed) > before })
}

// TestStranger: a machine that is no node is reported, and the address defended.
func TestStranger(t *testing.T) {
	w := newWire()
	n := start(t, w, "a", nil)
	n.Update(view("a"))
	eventually(t, "it answers", w.at(n))
	stranger := w.plug(model.MAC{2, 9})
	w.mu.Lock()
	w.told[vip] = stranger.mac
	_ = stranger.send(announce.Heard{Addr: vip})
	_ = stranger.send(announce.Heard{Hello: []byte("somebody else's frame")})
	w.mu.Unlock()
	eventually(t, "the address is defended", w.at(n))
	eventually(t, "the stranger is named", func() bool {
		st := n.Status()
		return n.count(announce.Conflict) == 1 && st[0].Culprit == stranger.mac.String() && st[0].Conflicts == 1
	})
}

// TestTwoLinks: two links of a node on one segment. Of those in one subnet the first answers; where the pool names both they do not
// accuse each other.
func TestTwoLinks(t *testing.T) {
	subnet := netip.MustParsePrefix("192.0.2.1/24")
	links := []route.UnderlayLink{
		{Name: "eth0", Addresses: []netip.Prefix{subnet}},
		{Name: "wlan0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}},
		{Name: "eth1", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.0.1/16")}},
	}
	an := lb.Announcement{Addr: vip, L2: true, Nodes: []string{"a"}}
	if got := candidates(View{Links: links, Announcements: []lb.Announcement{an}}); len(got) != 2 || len(got["eth0"]) != 1 || len(got["eth1"]) != 1 {
		t.Errorf("candidates %v", got)
	}

	w := newWire()
	macs := map[string]model.MAC{"eth0": {2, 1}, "wlan0": {2, 2}}
	n := &node{}
	n.Announcer = New(Options{
		Settings: announce.Settings{Node: "a", Boot: 1}, Report: n.report, Keep: func(map[string][]netip.Addr) {},
		Open: func(link string) (Port, error) { return w.plug(macs[link]), nil },
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx)
	}()
	t.Cleanup(func() { stop(); <-done })
	an.Interfaces = []string{"eth0", "wlan0"}
	n.Update(View{Links: links, Announcements: []lb.Announcement{an}})
	eventually(t, "both links answer", func() bool {
		st := n.Status()
		return len(st) == 2 && st[0].Self && st[1].Self
	})
	stranger := w.plug(model.MAC{2, 9})
	w.mu.Lock()
	_ = w.ports[macs["eth0"]].send(announce.Heard{Addr: vip})
	_ = w.ports[macs["wlan0"]].send(announce.Heard{Addr: vip})
	_ = stranger.send(announce.Heard{Addr: vip}) // heard after those
	w.mu.Unlock()
	eventually(t, "the stranger is named on both links", func() bool {
		st := n.Status()
		return st[0].Culprit == stranger.mac.String() && st[1].Culprit == stranger.mac.String()
	})
	if got := n.count(announce.Conflict); got != 2 {
		t.Errorf("%d conflicts, of which the links accuse each other in %d", got, got-2)
	}
}

// TestSuits: which link an address is for.
func TestSuits(t *testing.T) {
	l := route.UnderlayLink{Name: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}}
	for _, tc := range []struct {
		addr       string
		interfaces []string
		want       bool
	}{
		{"192.0.2.9", nil, true},
		{"192.0.3.9", nil, false},
		{"2001:db8::9", nil, true},
		{"192.0.3.9", []string{"eth*"}, true},
		{"192.0.2.9", []string{"eth1"}, false},
		{"192.0.3.9", []string{"eth1", "eth0"}, true},
	} {
		an := lb.Announcement{Addr: netip.MustParseAddr(tc.addr), Interfaces: tc.interfaces}
		if _, got := suits(&l, &an); got != tc.want {
			t.Errorf("%s %v: %v", tc.addr, tc.interfaces, got)
		}
	}
}
