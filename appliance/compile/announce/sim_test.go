package announce

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"weft.network/weft/appliance/model"
)

// sim is a segment in memory: nodes, frames under way, and a clock.
type sim struct {
	t     testing.TB
	now   int64
	rand  *rand.Rand
	nodes map[string]*simNode
	boots uint64
	// loss is the share of frames that get lost, in percent.
	loss int
	// cut says which nodes do not hear each other; nil means that all do.
	cut func(a, b string) bool
	// strangers use addresses without being nodes.
	strangers map[netip.Addr]model.MAC
	queue     []frame
	log       []string
	// cache is where the segment's hosts send packets for an address: the last that told.
	cache map[netip.Addr]string
}

type simNode struct {
	name   string
	e      *Election
	want   []Candidate
	paused bool
	inbox  []frame
}

type frame struct {
	at       int64
	from, to string
	hello    Hello
	addr     netip.Addr
	mac      model.MAC
}

func macOf(name string) model.MAC {
	m := model.MAC{2, 0xaa}
	copy(m[2:], name)
	return m
}

func newSim(t testing.TB, seed uint64) *sim {
	return &sim{
		t: t, now: 1_000_000, rand: rand.New(rand.NewPCG(seed, 1)), nodes: map[string]*simNode{},
		strangers: map[netip.Addr]model.MAC{}, cache: map[netip.Addr]string{},
	}
}

func (s *sim) start(name string, want []Candidate, resume ...netip.Addr) *simNode {
	s.boots++
	n := &simNode{name: name, e: New(Settings{Node: name, Boot: s.boots}, s.now, resume), want: want}
	s.nodes[name] = n
	s.do(n, n.e.Want(s.now, want))
	return n
}

func (s *sim) want(list []Candidate) {
	for _, name := range s.names() {
		n := s.nodes[name]
		n.want = list
		s.do(n, n.e.Want(s.now, list))
	}
}

func (s *sim) names() []string {
	var out []string
	for name := range s.nodes {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// do carries out what an Election asked for.
func (s *sim) do(n *simNode, actions []Action) {
	for _, a := range actions {
		switch a.Kind {
		case SayHello:
			b, err := a.Hello.MarshalBinary()
			if err != nil {
				s.t.Fatal(err)
			}
			h, err := ParseHello(append(b, 0, 0, 0))
			if err != nil {
				s.t.Fatal(err)
			}
			s.send(frame{from: n.name, hello: h, mac: macOf(n.name)})
		case Announce:
			s.cache[a.Addr] = n.name
			s.send(frame{from: n.name, addr: a.Addr, mac: macOf(n.name)})
		case Probe:
			if mac, ok := s.strangers[a.Addr]; ok {
				s.queue = append(s.queue, frame{at: s.now + 1, to: n.name, addr: a.Addr, mac: mac})
			}
		case Took, Released, Conflict, Namesake: // for the log only
			s.log = append(s.log, fmt.Sprintf("%d %s kind %d %s %s %s", s.now, n.name, a.Kind, a.Addr, a.From, a.Why))
		}
	}
}

func (s *sim) send(f frame) {
	for name := range s.nodes {
		if name == f.from || s.cut != nil && s.cut(f.from, name) || s.rand.IntN(100) < s.loss {
			continue
		}
		f.to, f.at = name, s.now+1+s.rand.Int64N(3)
		s.queue = append(s.queue, f)
	}
}

// next is when the next thing happens, at most end.
func (s *sim) next(end int64) int64 {
	next := end
	for _, f := range s.queue {
		next = min(next, f.at)
	}
	for _, n := range s.nodes {
		if !n.paused {
			next = min(next, n.e.Next(s.now))
		}
		if len(n.inbox) > 0 && !n.paused {
			return s.now + 1
		}
	}
	return max(next, s.now+1)
}

// run lets time go by.
func (s *sim) run(ms int64) {
	for end := s.now + ms; s.now < end; {
		s.now = s.next(end)
		slices.SortStableFunc(s.queue, func(a, b frame) int { return int(a.at - b.at) })
		for len(s.queue) > 0 && s.queue[0].at <= s.now {
			f := s.queue[0]
			s.queue = s.queue[1:]
			if n := s.nodes[f.to]; n != nil {
				n.inbox = append(n.inbox, f)
			}
		}
		for _, name := range s.names() {
			n := s.nodes[name]
			if n.paused {
				continue
			}
			// The timer may be served before what came in meanwhile.
			if s.now >= n.e.Next(s.now-1) {
				s.do(n, n.e.Tick(s.now))
			}
			inbox := n.inbox
			n.inbox = nil
			for _, f := range inbox {
				if f.hello.Node != "" {
					s.do(n, n.e.Hear(s.now, f.hello, f.mac))
				} else {
					s.do(n, n.e.Seen(s.now, f.addr, f.mac))
				}
			}
		}
	}
}

// owners returns who holds an address.
func (s *sim) owners(addr netip.Addr) (out []string) {
	for _, name := range s.names() {
		if s.nodes[name].e.Owns(addr) {
			out = append(out, name)
		}
	}
	return out
}

// sole fails unless one node holds each address, and the segment's hosts know it there. It returns who.
func (s *sim) sole(addrs ...netip.Addr) map[netip.Addr]string {
	s.t.Helper()
	out := map[netip.Addr]string{}
	for _, a := range addrs {
		o := s.owners(a)
		if len(o) != 1 || s.cache[a] != o[0] {
			s.t.Fatalf("at %d: %s is held by %v, and the segment sends to %s; log:\n%v", s.now, a, o, s.cache[a], s.log)
		}
		out[a] = o[0]
	}
	return out
}

func addrs(n int) (out []netip.Addr) {
	for i := range n {
		out = append(out, netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}))
		if i%2 == 1 {
			out[i] = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i)})
		}
	}
	return out
}

func candidates(list []netip.Addr, nodes ...string) (out []Candidate) {
	for _, a := range list {
		out = append(out, Candidate{Addr: a, Nodes: nodes})
	}
	return out
}
