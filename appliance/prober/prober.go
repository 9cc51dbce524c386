// Package prober measures the way to every other node again and again, and says what is wrong with it and how to fix it.
package prober

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"weft.network/weft/appliance/compile/route"
)

// Options are the settings of a Prober and what it uses to touch the world.
type Options struct {
	// Interval is the time between two checks of one peer; 0 means 10 s.
	Interval time.Duration
	// Port is the UDP port of probes; it is only named in findings.
	Port uint16
	// MaxInFlight bounds the peers that are checked at the same time; 0 means 32.
	MaxInFlight int
	// Send sends a probe in an IP packet of size bytes that nothing may fragment, and returns the round-trip time. An
	// invalid from leaves the source to the kernel. Its errors are understood by their methods: Timeout() bool when nothing
	// came back; PathMTU() (mtu int, by netip.Addr) when the packet was too big for a link; Refused() bool when the other
	// machine said that nobody listens. Any other error means that the packet was refused on the way.
	Send func(ctx context.Context, from, to netip.Addr, size int, timeout time.Duration) (time.Duration, error)
	// SetTxChecksum switches tx checksum offload of the tunnel's link; nil leaves it alone.
	SetTxChecksum func(ctx context.Context, on bool) error
	// OnChange is told when Up or Finding of a peer changed, from one goroutine; before is zero the first time.
	OnChange func(before, now PeerStatus)
	// OnError is told when offload could not be switched on again, from the same goroutine as OnChange.
	OnError func(error)
}

// The pace of the prober.
const (
	defaultInterval    = 10 * time.Second
	defaultMaxInFlight = 32
	// firstSpread is the time over which the checks of new peers begin.
	firstSpread = time.Second
	// confirmAfter is when a peer that just went bad is checked again before anybody is told: the restart of a daemon is no news.
	confirmAfter = 2 * time.Second
)

// Prober checks every peer once per interval. The checks are spread over it, and a bounded number runs at a time.
type Prober struct {
	o       Options
	offload *offload
	kick    chan struct{}
	done    chan result

	mu       sync.Mutex
	view     View
	targets  map[string]*target
	inFlight int
}

// target is one peer and when it is checked next.
type target struct {
	peer     route.Peer
	due      time.Time
	running  bool
	changed  bool // while a check was running, whose result is then of no use
	checked  bool
	suspect  bool // it just went bad; nobody has been told
	statuses []PeerStatus
	mem      *memory
}

// result is what a check found.
type result struct {
	target   *target
	statuses []PeerStatus
}

// New returns a Prober that knows no peers yet and does nothing before Run.
func New(o Options) *Prober {
	o.Interval = cmp.Or(o.Interval, defaultInterval)
	o.MaxInFlight = cmp.Or(o.MaxInFlight, defaultMaxInFlight)
	return &Prober{
		o: o, offload: &offload{set: o.SetTxChecksum, off: map[string]bool{}},
		kick: make(chan struct{}, 1), done: make(chan result), targets: map[string]*target{},
	}
}

// Update takes the newest view, which the caller must not change any more. Peers that are new or changed are checked at once.
// The same view again changes nothing.
func (p *Prober) Update(v View) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, now := p.view, v
	before.Peers, now.Peers = nil, nil
	all := !reflect.DeepEqual(before, now)
	p.view = v
	var fresh []*target
	known := map[string]bool{}
	for _, peer := range v.Peers {
		known[peer.Node] = true
		t := p.targets[peer.Node]
		switch {
		case t == nil:
			t = &target{mem: &memory{mtus: map[netip.Addr]measured{}}}
			p.targets[peer.Node] = t
		case !all && reflect.DeepEqual(t.peer, peer):
			continue
		}
		t.peer, t.checked, t.suspect, t.changed = peer, false, false, t.running
		fresh = append(fresh, t)
	}
	for node := range p.targets {
		if !known[node] {
			delete(p.targets, node)
		}
	}
	start, spread := time.Now(), min(firstSpread, p.o.Interval)
	for i, t := range fresh {
		t.due = start.Add(spread * time.Duration(i) / time.Duration(len(fresh)))
	}
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Results returns what is known of every peer that has been checked, sorted by node and family.
func (p *Prober) Results() []PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []PeerStatus
	for _, t := range p.targets {
		out = append(out, t.statuses...)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Family, b.Family))
	})
	return out
}

// Run checks peers until ctx ends, and returns when no check runs any more. It may be called once.
func (p *Prober) Run(ctx context.Context) {
	var work sync.WaitGroup
	defer func() {
		work.Wait()
		p.report(p.offload.endTrials(context.WithoutCancel(ctx)))
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
			p.report(p.offload.keepPeers(ctx, p.peers()))
		case r := <-p.done:
			p.finish(r)
		case <-timer.C:
		}
		due, wait := p.next(time.Now())
		for _, c := range due {
			work.Go(func() { p.check(ctx, c) })
		}
		timer.Reset(wait)
	}
}

func (p *Prober) report(err error) {
	if err != nil && p.o.OnError != nil {
		p.o.OnError(err)
	}
}

func (p *Prober) peers() []route.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view.Peers
}

// started is a check that is about to run.
type started struct {
	target *target
	check  check
}

// next marks the checks that are due as running, as many as may run, the longest due first. It returns them and how long to
// wait for the next one.
func (p *Prober) next(now time.Time) (due []started, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var waiting []*target
	for _, t := range p.targets {
		if !t.running {
			waiting = append(waiting, t)
		}
	}
	slices.SortFunc(waiting, func(a, b *target) int {
		return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.peer.Node, b.peer.Node))
	})
	for _, t := range waiting {
		if p.inFlight >= p.o.MaxInFlight {
			break // the end of a check comes back here
		}
		if t.due.After(now) {
			return due, t.due.Sub(now)
		}
		t.running = true
		p.inFlight++
		due = append(due, started{t, p.newCheck(t)})
	}
	return due, p.o.Interval
}

// newCheck decides how a target is checked.
func (p *Prober) newCheck(t *target) check {
	up := func(s PeerStatus) bool { return s.Up }
	c := check{
		o: &p.o, offload: p.offload, view: p.view, peer: t.peer, mem: t.mem, tries: tries,
		sure: t.suspect || !slices.ContainsFunc(t.statuses, up),
	}
	if t.checked && !slices.ContainsFunc(t.statuses, up) {
		c.tries = 1
	}
	return c
}

// check runs one check and hands in its result.
func (p *Prober) check(ctx context.Context, s started) {
	r := result{target: s.target}
	if u := unprobed(s.check.view.Inner, s.check.peer); u.Node != "" {
		r.statuses = []PeerStatus{u}
	} else {
		s.check.ctx = ctx
		r.statuses = s.check.run()
	}
	select {
	case p.done <- r:
	case <-ctx.Done():
	}
}

// finish takes the result of a check, decides when the next one is due, and tells what changed.
func (p *Prober) finish(r result) {
	for _, c := range p.publish(r, time.Now()) {
		if p.o.OnChange != nil {
			p.o.OnChange(c.before, c.now)
		}
	}
}

// change is a status that differs from the last one.
type change struct{ before, now PeerStatus }

func (p *Prober) publish(r result, now time.Time) []change {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := r.target
	p.inFlight--
	t.running = false
	if p.targets[t.peer.Node] != t {
		return nil // no longer a peer
	}
	if t.changed {
		t.changed, t.due = false, now
		return nil
	}
	if !t.suspect && worse(t.statuses, r.statuses) {
		t.suspect, t.due = true, now.Add(min(confirmAfter, p.o.Interval))
		return nil
	}
	// The first check came with those of all other new peers; from here on they drift apart.
	next := t.due.Add(p.o.Interval)
	if !t.checked {
		next = now.Add(rand.N(p.o.Interval))
	}
	if next.Before(now) {
		next = now
	}
	t.due, t.checked, t.suspect = next, true, false
	changes := compare(t.statuses, r.statuses)
	t.statuses = r.statuses
	return changes
}

// compare returns what is worth telling, and takes over when a peer that is silent now was last seen.
func compare(before, now []PeerStatus) []change {
	var out []change
	for i := range now {
		s, old := &now[i], PeerStatus{}
		for _, b := range before {
			if b.Family == s.Family {
				old = b
			}
		}
		if !s.Up {
			s.LastSeen = old.LastSeen
		}
		if old.Node == "" || old.Up != s.Up || old.Finding != s.Finding {
			out = append(out, change{old, *s})
		}
	}
	return out
}
