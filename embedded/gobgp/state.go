package gobgp

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
)

// Route is a best route that a neighbour told us.
type Route struct {
	Prefix    netip.Prefix `json:"prefix"`
	NextHop   netip.Addr   `json:"nextHop"`
	Neighbour netip.Addr   `json:"neighbour"`
}

// state is what gobgp tells of its own accord. Its callbacks must not wait for anybody, so they only write here.
type state struct {
	onChange func()
	changed  chan struct{}
	// over is set when a session has ended because its peer told too many routes.
	over atomic.Bool

	mu      sync.Mutex
	failure string        // what went wrong inside gobgp; empty while nothing did
	failed  chan struct{} // closed with the failure
	learned map[netip.Prefix]Route
	// errors are the last thing that went wrong with each neighbour.
	errors map[netip.Addr]string
	ended  map[netip.Addr]uint64 // sessions that ended, by neighbour
}

func (s *state) init(onChange func()) {
	if onChange == nil {
		onChange = func() {}
	}
	s.onChange, s.changed = onChange, make(chan struct{}, 1)
	s.ended = map[netip.Addr]uint64{}
	s.reset()
}

// reset forgets what an earlier server said.
func (s *state) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure, s.failed = "", make(chan struct{})
	s.learned, s.errors = map[netip.Prefix]Route{}, map[netip.Addr]string{}
}

// forget drops the routes of a server that was stopped.
func (s *state) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.learned) > 0 {
		s.learned = map[netip.Prefix]Route{}
		s.touch()
	}
}

func (s *state) touch() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// fail notes that gobgp is not to be trusted any more.
func (s *state) fail(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == "" {
		s.failure = why
		close(s.failed)
	}
	s.touch()
}

func (s *state) broken() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

func (s *state) breaks() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *state) add(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errors[a] = ""
}

func (s *state) remove(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.errors, a)
	delete(s.ended, a)
}

// note keeps what is known about why a session is not there.
func (s *state) note(neighbour, text string) {
	a, err := netip.ParseAddr(neighbour)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ours := s.errors[a]; ours {
		s.errors[a] = text
	}
}

// explained reports whether it is known why the session of a neighbour ended.
func (s *state) explained(neighbour string) bool {
	a, err := netip.ParseAddr(neighbour)
	text, _ := s.of(a)
	return err == nil && text != ""
}

func (s *state) down(neighbour string) {
	if a, err := netip.ParseAddr(neighbour); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended[a]++
	}
}

// of returns the last error of a neighbour and how often its session has ended.
func (s *state) of(a netip.Addr) (string, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errors[a], s.ended[a]
}

// gather is how long changes are gathered before OnChange is called.
const gather = 10 * time.Millisecond

// follow watches a server until ctx ends. close is called, before OnChange, when peers have told too many routes.
func (s *state) follow(ctx context.Context, bgp *server.BgpServer, close func()) error {
	go s.notify(ctx, close)
	best := &api.WatchEventRequest_Table{Filters: []*api.WatchEventRequest_Table_Filter{{Type: api.WatchEventRequest_Table_Filter_BEST, Init: true}}}
	err := bgp.WatchEvent(ctx, &api.WatchEventRequest{Table: best, BatchSize: 1000}, func(r *api.WatchEventResponse) {
		if t := r.GetTable(); t != nil {
			s.learn(t.Paths)
		}
	})
	if err != nil {
		return err
	}
	return bgp.WatchEvent(ctx, &api.WatchEventRequest{Peer: &api.WatchEventRequest_Peer{}}, func(r *api.WatchEventResponse) {
		if tooMany(r.GetPeer().GetPeer()) {
			s.over.Store(true)
		}
		s.touch()
	})
}

// tooMany reports whether the session of a peer is over because it told too many routes.
func tooMany(p *api.Peer) bool {
	return p.GetState().GetAdminState() == api.PeerState_PFX_CT && p.GetState().GetSessionState() != api.PeerState_ESTABLISHED
}

// notify calls OnChange when something has changed.
func (s *state) notify(ctx context.Context, close func()) {
	timer := time.NewTimer(gather)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
		}
		timer.Reset(gather)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if s.over.Swap(false) {
			close()
		}
		s.onChange()
	}
}

// learn takes changes of best routes. A best route of our own takes the place of a neighbour's.
func (s *state) learn(paths []*api.Path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for _, p := range paths {
		d, ok := readPath(p)
		if !ok {
			continue
		}
		old, had := s.learned[d.Prefix]
		if p.IsWithdraw || !d.Neighbour.IsValid() {
			delete(s.learned, d.Prefix)
			changed = changed || had
			continue
		}
		r := Route{Prefix: d.Prefix, NextHop: d.NextHop, Neighbour: d.Neighbour}
		s.learned[d.Prefix] = r
		changed = changed || !had || old != r
	}
	if changed {
		s.touch()
	}
}
