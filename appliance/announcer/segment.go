package announcer

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft.network/weft/appliance/compile/announce"
)

// segment is one link with its election.
type segment struct {
	a      *Announcer
	name   string
	port   Port // nil when it could not be opened
	err    error
	opened time.Time
	cancel context.CancelFunc
	wants  chan wants
	// watched are all candidates; only run uses them.
	watched []netip.Addr

	mu       sync.Mutex
	election *announce.Election
	stopped  bool
}

// wants is what the segment is told.
type wants struct {
	list    []announce.Candidate
	passive bool
}

// tell passes the newest candidates on; only the newest count.
func (s *segment) tell(w wants) {
	select {
	case <-s.wants:
	default:
	}
	s.wants <- w
}

// outdated reports whether the link must be opened anew.
func (s *segment) outdated() bool {
	if s.port == nil {
		return time.Since(s.opened) >= retry
	}
	return s.port.Stale()
}

// stop ends the segment: from here on nothing is answered.
func (s *segment) stop() {
	s.cancel()
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	if s.port != nil {
		s.port.Close()
	}
}

// run feeds the election and does what it asks for.
func (s *segment) run(ctx context.Context) {
	defer s.port.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var actions []announce.Action
		changed := false
		select {
		case <-ctx.Done():
			return
		case w := <-s.wants:
			s.watched = s.watched[:0:0]
			for _, c := range w.list {
				s.watched = append(s.watched, c.Addr)
			}
			actions, changed = s.with(func(e *announce.Election, now int64) []announce.Action {
				return append(e.SetPassive(now, w.passive), e.Want(now, w.list)...)
			}), true
		case heard, ok := <-s.port.Events():
			if !ok {
				return
			}
			if heard.Hello != nil || !s.a.own(heard.From) {
				actions = s.with(func(e *announce.Election, now int64) []announce.Action { return hear(e, now, heard) })
			}
		case <-timer.C:
			actions = s.with(func(e *announce.Election, now int64) []announce.Action { return e.Tick(now) })
		}
		s.do(actions, changed)
		s.mu.Lock()
		now := s.a.now()
		next := s.election.Next(now)
		s.mu.Unlock()
		timer.Reset(time.Duration(next-now) * time.Millisecond)
	}
}

func (s *segment) with(f func(*announce.Election, int64) []announce.Action) []announce.Action {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f(s.election, s.a.now())
}

func hear(e *announce.Election, now int64, h announce.Heard) []announce.Action {
	if h.Hello == nil {
		return e.Seen(now, h.Addr, h.From)
	}
	hello, err := announce.ParseHello(h.Hello)
	if err != nil {
		return nil // the EtherType is anybody's
	}
	return e.Hear(now, hello, h.From)
}

// do carries out actions. What is held is set first: an address that is announced must answer.
func (s *segment) do(actions []announce.Action, changed bool) {
	moved := slices.ContainsFunc(actions, func(a announce.Action) bool { return a.Kind == announce.Took || a.Kind == announce.Released })
	if changed || moved {
		s.mu.Lock()
		held := s.election.Held()
		s.mu.Unlock()
		if err := s.port.Set(held, s.watched); err != nil {
			s.a.o.Report(Report{Kind: Failed, Link: s.name, Err: err})
		}
		if moved {
			s.kept(held)
		}
	}
	for _, a := range actions {
		var err error
		switch a.Kind {
		case announce.Probe:
			err = s.port.Probe(a.Addr)
		case announce.Announce:
			err = s.port.Announce(a.Addr)
		case announce.SayHello:
			var b []byte
			if b, err = a.Hello.MarshalBinary(); err == nil {
				err = s.port.Hello(b)
			}
		case announce.Took, announce.Released, announce.Conflict, announce.Namesake:
			s.a.o.Report(Report{Kind: a.Kind, Link: s.name, Addr: a.Addr, MAC: a.MAC, From: a.From, Why: a.Why})
		}
		s.failed(err)
	}
}

// failed tells of an error once; what comes after it on a link that is down is the same again.
func (s *segment) failed(err error) {
	s.mu.Lock()
	news := err != nil && s.err == nil && !s.stopped
	if err != nil || s.err != nil {
		s.err = err
	}
	s.mu.Unlock()
	if news {
		s.a.o.Report(Report{Kind: Failed, Link: s.name, Err: err})
	}
}

func (s *segment) kept(held []netip.Addr) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if s.a.segments[s.name] == s {
		s.a.held[s.name] = held
		s.a.keep()
	}
}

func (s *segment) holders() []announce.Holder {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.election == nil {
		return nil
	}
	return s.election.Holders(s.a.now())
}

func (s *segment) peers() ([]announce.Peer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.election == nil {
		return nil, s.err
	}
	return s.election.Peers(s.a.now()), s.err
}
