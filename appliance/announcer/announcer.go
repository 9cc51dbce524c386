// Package announcer answers for load-balancer addresses on the node's links, as far as an election on each segment gives them to this node.
package announcer

import (
	"cmp"
	"context"
	"net/netip"
	"path"
	"slices"
	"sync"
	"time"

	"weft.network/weft/appliance/compile/announce"
	"weft.network/weft/appliance/compile/lb"
	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/model"
)

// Port is one link of the node.
type Port interface {
	MAC() model.MAC
	// Stale reports whether the link is another one by now than the one that was opened.
	Stale() bool
	Events() <-chan announce.Heard
	// Set says which addresses are answered for, and which are looked out for.
	Set(held, watched []netip.Addr) error
	Probe(netip.Addr) error
	Announce(netip.Addr) error
	Hello(payload []byte) error
	// Answered counts the questions that were answered.
	Answered() uint64
	Close()
}

// Options are what an Announcer uses to touch the world.
type Options struct {
	Settings announce.Settings
	Open     func(link string) (Port, error)
	// Resume are the addresses that the process before held, by link.
	Resume map[string][]netip.Addr
	// Keep is told what is held now, by link, after each change.
	Keep func(map[string][]netip.Addr)
	// Report is told what happened; it may be called by several goroutines at once.
	Report func(Report)
}

// Report is one thing that happened on a link. Kind is announce.Took, Released, Conflict or Namesake, or Failed.
type Report struct {
	Kind announce.Kind
	Link string
	Addr netip.Addr
	MAC  model.MAC
	From string
	Why  string
	Err  error
}

// Failed is the Kind of a Report about a link that cannot be used; Err says why.
const Failed announce.Kind = 255

// View is what should be announced from where.
type View struct {
	Links         []route.UnderlayLink
	Announcements []lb.Announcement
	// Passive makes this node give up everything: its administrator drains it.
	Passive bool
}

// Status is one address on one link.
type Status struct {
	Addr netip.Addr `json:"address"`
	Link string     `json:"link"`
	// Node answers for it; empty while nobody is known to.
	Node  string    `json:"node,omitempty"`
	Self  bool      `json:"self,omitempty"`
	Since time.Time `json:"since,omitzero"`
	// Culprit is a machine that is no node and uses the address too.
	Culprit   string `json:"conflictingMAC,omitempty"`
	Conflicts int    `json:"conflicts,omitempty"`
	Probing   bool   `json:"probing,omitempty"`
}

// LinkStatus is one link that takes part.
type LinkStatus struct {
	Link     string       `json:"link"`
	MAC      model.MAC    `json:"mac"`
	Peers    []PeerStatus `json:"peers"`
	Answered uint64       `json:"answered"`
	Error    string       `json:"error,omitempty"`
}

// PeerStatus is another node on the link's segment.
type PeerStatus struct {
	Node  string    `json:"node"`
	MAC   model.MAC `json:"mac"`
	Heard time.Time `json:"heard"`
	Alive bool      `json:"alive"`
}

// Announcer runs an election on each link that has candidates.
type Announcer struct {
	o     Options
	epoch time.Time
	kick  chan struct{}

	mu       sync.Mutex
	view     View
	segments map[string]*segment
	held     map[string][]netip.Addr
	// told is why a link could not be opened, by link.
	told map[string]string
}

// New returns an Announcer that does nothing before Run.
func New(o Options) *Announcer {
	return &Announcer{o: o, epoch: time.Now(), kick: make(chan struct{}, 1), segments: map[string]*segment{}, held: map[string][]netip.Addr{}, told: map[string]string{}}
}

// Update takes the newest view, which the caller must not change any more.
func (a *Announcer) Update(v View) {
	a.mu.Lock()
	a.view = v
	a.mu.Unlock()
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// retry is how long a link rests that could not be opened.
const retry = 5 * time.Second

// Run works until ctx ends. Nothing is said at the end: a daemon that is restarted goes on where it was, and a node that dies is
// missed soon enough.
func (a *Announcer) Run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	ticker := time.NewTicker(retry)
	defer ticker.Stop()
	for {
		a.align(ctx, &work)
		select {
		case <-ctx.Done():
			return
		case <-a.kick:
		case <-ticker.C:
		}
	}
}

// align starts, tells and stops segments as the view asks.
func (a *Announcer) align(ctx context.Context, work *sync.WaitGroup) {
	a.mu.Lock()
	defer a.mu.Unlock()
	want := candidates(a.view)
	for name, s := range a.segments {
		if want[name] == nil || s.outdated() {
			s.stop()
			delete(a.segments, name)
			if want[name] == nil && len(a.held[name]) > 0 {
				delete(a.held, name)
				a.keep()
			}
		}
	}
	for name, list := range want {
		s := a.segments[name]
		if s == nil {
			s = a.start(ctx, name, work)
			a.segments[name] = s
		}
		s.tell(wants{list, a.view.Passive})
	}
}

// start opens a link and runs its election.
func (a *Announcer) start(ctx context.Context, name string, work *sync.WaitGroup) *segment {
	port, err := a.o.Open(name)
	ctx, cancel := context.WithCancel(ctx)
	s := &segment{a: a, name: name, port: port, cancel: cancel, wants: make(chan wants, 1), opened: time.Now()}
	if err != nil {
		s.port, s.err = nil, err
		if a.told[name] != err.Error() { // once, however often it is tried
			a.told[name] = err.Error()
			a.o.Report(Report{Kind: Failed, Link: name, Err: err})
		}
		return s
	}
	delete(a.told, name)
	s.election = announce.New(a.o.Settings, a.now(), a.o.Resume[name])
	delete(a.o.Resume, name)
	work.Go(func() { s.run(ctx) })
	return s
}

func (a *Announcer) now() int64 { return time.Since(a.epoch).Milliseconds() }

func (a *Announcer) at(ms int64) time.Time { return a.epoch.Add(time.Duration(ms) * time.Millisecond) }

// keep tells what is held. The caller holds the lock.
func (a *Announcer) keep() {
	out := map[string][]netip.Addr{}
	for name, list := range a.held {
		if len(list) > 0 {
			out[name] = list
		}
	}
	a.o.Keep(out)
}

// candidates says which addresses are for which link: those in its subnets, or those whose pool names it. Of several links in one subnet
// the first answers: they are on one segment, and two hardware addresses for one address confuse its hosts.
func candidates(v View) map[string][]announce.Candidate {
	type place struct {
		addr   netip.Addr
		subnet netip.Prefix
	}
	taken := map[place]bool{}
	out := map[string][]announce.Candidate{}
	for _, l := range v.Links {
		for _, an := range v.Announcements {
			subnet, ok := suits(&l, &an)
			at := place{an.Addr, subnet}
			if !an.L2 || !ok || subnet.IsValid() && taken[at] {
				continue
			}
			taken[at] = true
			out[l.Name] = append(out[l.Name], announce.Candidate{Addr: an.Addr, Nodes: an.Nodes})
		}
	}
	return out
}

// suits reports whether an address is to be answered for on a link, and the subnet because of which it is, if that is why.
func suits(l *route.UnderlayLink, an *lb.Announcement) (subnet netip.Prefix, ok bool) {
	if len(an.Interfaces) == 0 {
		for _, p := range l.Addresses {
			if p.Contains(an.Addr) {
				return p.Masked(), true
			}
		}
		return netip.Prefix{}, false
	}
	return netip.Prefix{}, slices.ContainsFunc(an.Interfaces, func(pattern string) bool {
		ok, err := path.Match(pattern, l.Name)
		return err == nil && ok
	})
}

// own reports whether a hardware address is that of a link on which this node answers. Two of them may be on one segment, and are no
// reason to accuse each other.
func (a *Announcer) own(mac model.MAC) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.segments {
		if s.port != nil && s.port.MAC() == mac {
			return true
		}
	}
	return false
}

// Status returns every address on every link, sorted.
func (a *Announcer) Status() []Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := []Status{}
	for name, s := range a.segments {
		for _, h := range s.holders() {
			st := Status{Addr: h.Addr, Link: name, Node: h.Node, Self: h.Self, Conflicts: h.Conflicts, Probing: h.Probing}
			if h.Node != "" {
				st.Since = a.at(h.Since)
			}
			if !h.Culprit.IsZero() {
				st.Culprit = h.Culprit.String()
			}
			out = append(out, st)
		}
	}
	slices.SortFunc(out, func(x, y Status) int { return cmp.Or(x.Addr.Compare(y.Addr), cmp.Compare(x.Link, y.Link)) })
	return out
}

// Links returns the links that take part, sorted.
func (a *Announcer) Links() []LinkStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := []LinkStatus{}
	for name, s := range a.segments {
		l := LinkStatus{Link: name, Peers: []PeerStatus{}}
		peers, err := s.peers()
		if err != nil {
			l.Error = err.Error()
		}
		if s.port != nil {
			l.MAC, l.Answered = s.port.MAC(), s.port.Answered()
		}
		for _, p := range peers {
			l.Peers = append(l.Peers, PeerStatus{Node: p.Node, MAC: p.MAC, Heard: a.at(p.Heard), Alive: p.Alive})
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(x, y LinkStatus) int { return cmp.Compare(x.Link, y.Link) })
	return out
}
