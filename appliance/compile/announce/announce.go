// Package announce decides which node answers for a load-balancer address on one network segment, from what the nodes there tell each other.
package announce

import (
	"hash/fnv"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// Candidate is an address that some node of the segment should answer for.
type Candidate struct {
	Addr netip.Addr
	// Nodes may have it, as the cluster's objects say. Who of them lives on this segment is known from their hellos.
	Nodes []string
}

// Heard is something that was heard on the segment. Either Hello or Addr is set.
type Heard struct {
	// Hello is the payload of a hello, as it came.
	Hello []byte
	// Addr is a candidate's address that somebody with the hardware address From uses.
	Addr netip.Addr
	From model.MAC
}

// Settings of an Election. All times here and below are in milliseconds of a clock that never jumps.
type Settings struct {
	Node string
	// Cluster keeps clusters apart that share a segment.
	Cluster uint64
	// Boot is a number that no other process has: two machines of one name are told apart by it.
	Boot uint64
}

// The pace. A node that is not heard for deadAfter of its own intervals is dead: 1.4 s, and its addresses answer again a moment
// later. Of every tenth frame lost, one live node in a hundred thousand would look dead for a moment each minute. Nodes on crowded
// segments say hello less often, which bounds the segment's load to a thousand small frames a second.
const (
	helloInterval = 200
	deadAfter     = 7
	crowd         = 100
	// Anybody on the segment can make hellos up: what they can cost is bounded.
	mostPeers    = 1_000
	mostInterval = 5_000
	// A new address is asked for this often before it is used (RFC 5227 section 2.1, only faster: the watch goes on afterwards).
	probes        = 3
	probeInterval = 200
	// blockedFor is how long an address rests that somebody else was seen to use.
	blockedFor = 30_000
	// defendInterval bounds how often a held address is defended (RFC 5227 section 1.1, DEFEND_INTERVAL).
	defendInterval = 10_000
	// insistInterval bounds how often a node says again that an address is its own when another node of the cluster thought so too.
	insistInterval = 500
	// refreshInterval is when a held address is announced again, for hosts that heard of another place and missed the correction.
	refreshInterval = 30_000
	// rivalPatience is how long a node waits for one of higher rank to take an address. That one may know of no link for it, or
	// be told something else by the cluster.
	rivalPatience = 3_000
	// yieldGrace is how long a node that may no longer have an address goes on answering until its heir is heard, and yieldTold
	// how long it tells that it does not want it.
	yieldGrace = 1_000
	yieldTold  = 10_000
)

// announceAt is when after taking an address its new place is told to the segment: the first may be lost, and some machines
// ignore a second one that comes at once.
var announceAt = [...]int64{0, 200, 1_000, 2_000, 5_000}

// Kind is what an Action does.
type Kind uint8

// The kinds of Action.
const (
	Probe    Kind = iota // ask whether anybody uses Addr
	Announce             // tell everybody that Addr is here
	SayHello             // send Hello
	Took                 // Addr is held from now on; From names the peer that had it, if one did
	Released             // Addr is no longer held; Why says so
	Conflict             // MAC, which is no node of the cluster, uses Addr
	Namesake             // somebody else with this node's name, MAC, is on the segment
)

// Action is one thing to do or to tell.
type Action struct {
	Kind  Kind
	Addr  netip.Addr
	Hello Hello
	MAC   model.MAC
	From  string
	Why   string
}

// Holder is who answers for an address, as this node knows it.
type Holder struct {
	Addr netip.Addr
	// Node is empty when nobody is known to.
	Node string
	Self bool
	// Since is when that was first known.
	Since int64
	// Culprit is who else uses the address, if anybody was seen to lately, and Conflicts how often anybody was.
	Culprit   model.MAC
	Conflicts int
	// Probing is true while this node asks before it takes the address.
	Probing bool
}

// Peer is another node on the segment.
type Peer struct {
	Node  string
	MAC   model.MAC
	Heard int64
	Alive bool
}

// peer is what is known of another node.
type peer struct {
	mac      model.MAC
	boot     uint64
	heard    int64
	dead     int64 // silence that kills it
	starting bool
	passive  bool
	claims   map[netip.Addr]int64 // since when
	yields   map[netip.Addr]bool
	// waited is since when it is expected to take an address, reluctant are those that it did not take in time.
	waited    map[netip.Addr]int64
	reluctant map[netip.Addr]bool
	seq       uint32
	parts     int
	gathered  Hello
}

// address is what is known of a candidate.
type address struct {
	nodes     []string
	held      bool
	since     int64 // held or probing since
	probing   bool
	probed    int
	told      int   // announcements made of announceAt
	refresh   int64 // when the next one is due after these
	yielding  int64 // since when it is held only until an heir is heard; 0 if it is wanted
	yielded   int64 // when it was given up for want of a right to it; 0 if never
	contested bool  // another node of the cluster told the segment that it has the address
	insisted  int64
	defended  int64
	blocked   int64 // until when it rests
	culprit   model.MAC
	seen      int64 // when the culprit was
	count     int
}

// Election is one segment as one node sees it. It is given the time, and is not for several goroutines at once.
//
// Every node works out the same owner from the same peers: the one with the highest rank among those that live and may have the
// address. Peers are heard or not heard on the segment itself, so the cluster's API has no part in it. Where two nodes differ in
// what they know, both may claim; then the higher rank keeps the address, whatever else is said, and the other lets go. On a
// segment that is cut in two, each half has an owner for its own hosts, and the halves agree again once they hear each other.
type Election struct {
	s         Settings
	peers     map[string]*peer
	addresses map[netip.Addr]*address
	resumed   map[netip.Addr]bool
	began     int64
	started   bool
	passive   bool
	ticked    int64
	said      int64
	urgent    bool
	seq       uint32
	namesake  int64
	out       []Action
}

// New begins at the given time. resume are addresses that this node held a moment ago, before its daemon was restarted.
func New(s Settings, now int64, resume []netip.Addr) *Election {
	e := &Election{
		s: s, peers: map[string]*peer{}, addresses: map[netip.Addr]*address{}, resumed: map[netip.Addr]bool{},
		began: now, ticked: now, said: now - helloInterval,
	}
	for _, a := range resume {
		e.resumed[a] = true
	}
	return e
}

// Rank orders the nodes for an address (rendezvous hashing: when a node goes, only its own addresses move).
func Rank(node string, addr netip.Addr) uint64 {
	h := fnv.New64a()
	b := addr.As16()
	h.Write(b[:])
	h.Write([]byte(node))
	x := h.Sum64() // FNV of few bytes leaves the upper bits alike; the finalizer of MurmurHash3 spreads them
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// higher reports whether node a goes before node b for an address.
func higher(a, b string, addr netip.Addr) bool {
	x, y := Rank(a, addr), Rank(b, addr)
	return x > y || x == y && a > b
}

// Want replaces the candidates.
func (e *Election) Want(now int64, list []Candidate) []Action {
	known := map[netip.Addr]bool{}
	for _, c := range list {
		known[c.Addr] = true
		a := e.addresses[c.Addr]
		if a == nil {
			a = &address{}
			e.addresses[c.Addr] = a
			if e.resumed[c.Addr] && slices.Contains(c.Nodes, e.s.Node) {
				a.held, a.since = true, now
				e.urgent = true
				e.out = append(e.out, Action{Kind: Took, Addr: c.Addr, From: e.s.Node})
			}
			delete(e.resumed, c.Addr)
		}
		a.nodes = c.Nodes
	}
	for addr, a := range e.addresses {
		if !known[addr] {
			if a.held {
				e.release(addr, a, "no Service has the address any more")
			}
			delete(e.addresses, addr)
		}
	}
	return e.Tick(now)
}

// SetPassive makes this node give up everything and take nothing, or takes that back.
func (e *Election) SetPassive(now int64, passive bool) []Action {
	if e.passive == passive {
		return nil
	}
	e.passive, e.urgent = passive, true
	return e.Tick(now)
}

// Owns reports whether this node answers for the address.
func (e *Election) Owns(addr netip.Addr) bool {
	a := e.addresses[addr]
	return a != nil && a.held
}

// Held returns the addresses that this node answers for, sorted.
func (e *Election) Held() []netip.Addr {
	var out []netip.Addr
	for addr, a := range e.addresses {
		if a.held {
			out = append(out, addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Holders tells what is known of every candidate, sorted by address.
func (e *Election) Holders(now int64) []Holder {
	out := make([]Holder, 0, len(e.addresses))
	for addr, a := range e.addresses {
		h := Holder{Addr: addr, Conflicts: a.count, Probing: a.probing}
		if a.culprit != (model.MAC{}) && now-a.seen < blockedFor {
			h.Culprit = a.culprit
		}
		if a.held {
			h.Node, h.Self, h.Since = e.s.Node, true, a.since
		} else {
			for name, p := range e.peers {
				since, claims := p.claims[addr]
				if claims && e.alive(p, now) && (h.Node == "" || higher(name, h.Node, addr)) {
					h.Node, h.Since = name, since
				}
			}
		}
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b Holder) int { return a.Addr.Compare(b.Addr) })
	return out
}

// Peers returns the other nodes that were heard, sorted by name.
func (e *Election) Peers(now int64) []Peer {
	out := make([]Peer, 0, len(e.peers))
	for name, p := range e.peers {
		out = append(out, Peer{Node: name, MAC: p.mac, Heard: p.heard, Alive: e.alive(p, now)})
	}
	slices.SortFunc(out, func(a, b Peer) int {
		if a.Node < b.Node {
			return -1
		}
		return 1
	})
	return out
}

func (e *Election) alive(p *peer, now int64) bool { return now-p.heard < p.dead }
