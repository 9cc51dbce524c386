package announce

import (
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// Hear takes a hello from another node, which came from that hardware address.
func (e *Election) Hear(now int64, h Hello, from model.MAC) []Action {
	e.wake(now)
	if h.Cluster != e.s.Cluster {
		return nil
	}
	if h.Node == e.s.Node {
		if h.Boot != e.s.Boot && now-e.namesake > blockedFor {
			e.namesake = now
			return []Action{{Kind: Namesake, MAC: from}}
		}
		return nil
	}
	p := e.peers[h.Node]
	if p == nil && len(e.peers) >= mostPeers {
		return nil
	}
	if p == nil {
		p = &peer{claims: map[netip.Addr]int64{}, yields: map[netip.Addr]bool{}}
		p.forgive()
		e.peers[h.Node] = p
		e.urgent = true // so that a new one need not wait to know us
	}
	if p.boot != h.Boot || !e.alive(p, now) {
		p.forgive()
	}
	if p.boot != h.Boot || p.parts == 0 || p.seq != h.Seq {
		p.boot, p.seq, p.parts, p.gathered = h.Boot, h.Seq, int(h.Parts), Hello{}
	}
	if !e.alive(p, now) {
		clear(p.yields) // what it gave up before is no news of what happened since
	}
	p.mac, p.heard, p.starting, p.passive = from, now, h.Starting, h.Passive
	p.dead = deadAfter * min(int64(max(h.Interval, 1)), mostInterval)
	p.gathered.Claims = append(p.gathered.Claims, h.Claims...)
	p.gathered.Yields = append(p.gathered.Yields, h.Yields...)
	if p.parts--; p.parts > 0 {
		return nil
	}
	claims := make(map[netip.Addr]int64, len(p.gathered.Claims))
	for _, addr := range p.gathered.Claims {
		claims[addr] = now
		if since, ok := p.claims[addr]; ok {
			claims[addr] = since
		}
		delete(p.waited, addr)
		delete(p.reluctant, addr)
	}
	yields := make(map[netip.Addr]bool, len(p.gathered.Yields))
	for _, addr := range p.gathered.Yields {
		yields[addr] = true
		// It had the address a moment ago, and may have told the segment after us: the claim itself may have been lost.
		if a := e.addresses[addr]; a != nil && a.held && !p.yields[addr] {
			a.contested = true
		}
	}
	p.claims, p.yields = claims, yields
	p.gathered, p.parts = Hello{}, 0
	e.rivals(now, h.Node, p)
	return e.Tick(now)
}

// forgive forgets what a node did not do in another life.
func (p *peer) forgive() { p.waited, p.reluctant = map[netip.Addr]int64{}, map[netip.Addr]bool{} }

// rivals settles, for each address that a peer claims and this node holds, who keeps it.
func (e *Election) rivals(now int64, name string, p *peer) {
	for addr := range p.claims {
		a := e.addresses[addr]
		switch {
		case a == nil || !a.held:
		case higher(name, e.s.Node, addr) || a.yielding != 0:
			e.release(addr, a, name+" answers for it")
			a.yielded = now
		default: // it will let go once it hears us
			a.contested, e.urgent = true, true
		}
	}
}

// Seen takes note that somebody with that hardware address uses a candidate's address.
func (e *Election) Seen(now int64, addr netip.Addr, mac model.MAC) []Action {
	e.wake(now)
	a := e.addresses[addr]
	if a == nil {
		return nil
	}
	for _, p := range e.peers {
		if p.mac == mac {
			a.contested = a.held
			return e.Tick(now)
		}
	}
	news := a.culprit != mac || now-a.seen >= defendInterval
	a.culprit, a.seen = mac, now
	switch {
	case a.held:
		if a.defended == 0 || now-a.defended >= defendInterval {
			a.defended = now
			e.out = append(e.out, Action{Kind: Announce, Addr: addr})
		}
	case a.probing:
		a.probing, a.blocked = false, now+blockedFor
	case a.blocked > now:
		a.blocked = now + blockedFor
	default:
		news = false // not ours to look after
	}
	if news {
		a.count++
		e.out = append(e.out, Action{Kind: Conflict, Addr: addr, MAC: mac})
	}
	return e.flush()
}

// wake forgives the silence of peers for as long as this process itself was not running: a machine that was suspended, or too
// busy, hears nothing either, and must not conclude that everybody else has died.
func (e *Election) wake(now int64) {
	if slept := now - e.ticked - 2*e.interval(); slept > 0 {
		for _, p := range e.peers {
			p.heard += slept
		}
	}
	e.ticked = now
}

// interval is the time between two hellos.
func (e *Election) interval() int64 { return helloInterval * max(1, int64(len(e.peers))/crowd) }

// Tick does what is due and returns it. It must be called again before Next.
func (e *Election) Tick(now int64) []Action {
	e.wake(now)
	for name, p := range e.peers {
		if now-p.heard > 10*p.dead {
			delete(e.peers, name)
		}
	}
	if !e.started && e.knowsAll(now) {
		e.started, e.urgent = true, true
	}
	for _, addr := range e.sorted() {
		e.decide(now, addr, e.addresses[addr])
	}
	if e.urgent || now-e.said >= e.interval() {
		e.hello(now)
	}
	return e.flush()
}

// Next is when Tick is due at the latest.
func (e *Election) Next(now int64) int64 {
	next := e.said + e.interval()
	for _, a := range e.addresses {
		switch {
		case a.probing:
			next = min(next, a.since+int64(a.probed)*probeInterval)
		case a.held && a.told < len(announceAt):
			next = min(next, a.since+announceAt[a.told])
		case a.held:
			next = min(next, a.refresh)
		}
		if a.held && a.contested {
			next = min(next, a.insisted+insistInterval)
		}
	}
	for _, p := range e.peers {
		if e.alive(p, now) {
			next = min(next, p.heard+p.dead)
		}
	}
	return max(next, now+1)
}

func (e *Election) sorted() []netip.Addr {
	out := make([]netip.Addr, 0, len(e.addresses))
	for addr := range e.addresses {
		out = append(out, addr)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// knowsAll reports whether a node that has just started has listened long enough to take addresses.
func (e *Election) knowsAll(now int64) bool {
	if now-e.began >= deadAfter*helloInterval {
		return true
	}
	if len(e.addresses) == 0 {
		return false
	}
	for _, a := range e.addresses {
		for _, n := range a.nodes {
			if p := e.peers[n]; n != e.s.Node && (p == nil || !e.alive(p, now)) {
				return false
			}
		}
	}
	return true
}

// decide moves one address on.
func (e *Election) decide(now int64, addr netip.Addr, a *address) {
	entitled := !e.passive && slices.Contains(a.nodes, e.s.Node)
	switch {
	case a.held && !entitled:
		e.yield(now, addr, a)
	case a.held:
		a.yielding = 0
		for a.told < len(announceAt) && now >= a.since+announceAt[a.told] {
			a.told++
			a.refresh = now + refreshInterval
			e.out = append(e.out, Action{Kind: Announce, Addr: addr})
		}
		if a.told == len(announceAt) && now >= a.refresh {
			a.refresh = now + refreshInterval
			e.out = append(e.out, Action{Kind: Announce, Addr: addr})
		}
		if a.contested && now-a.insisted >= insistInterval {
			a.contested, a.insisted = false, now
			e.out = append(e.out, Action{Kind: Announce, Addr: addr})
		}
	case !entitled || !e.started || a.blocked > now || e.other(now, addr, a):
		a.probing = false
	case a.probing:
		e.probe(now, addr, a)
	default:
		a.yielded = 0
		if from, known := e.before(addr); known {
			e.take(now, addr, a, from)
			return
		}
		a.probing, a.since, a.probed = true, now, 0
		e.probe(now, addr, a)
	}
}

// yield holds an address that this node may no longer have until the heir is heard, for a moment.
func (e *Election) yield(now int64, addr netip.Addr, a *address) {
	if a.yielding == 0 {
		a.yielding, a.yielded, e.urgent = now, now, true
	}
	for _, p := range e.peers {
		if _, claims := p.claims[addr]; claims && e.alive(p, now) {
			e.release(addr, a, "this node may no longer have it")
			return
		}
	}
	if now-a.yielding >= yieldGrace {
		e.release(addr, a, "this node may no longer have it, and nobody else took it")
	}
}

// other reports whether another node has a better right to the address, or holds it with a higher rank.
func (e *Election) other(now int64, addr netip.Addr, a *address) bool {
	for name, p := range e.peers {
		if !e.alive(p, now) || p.yields[addr] || !higher(name, e.s.Node, addr) {
			continue
		}
		if _, claims := p.claims[addr]; claims {
			return true
		}
		if !p.starting && !p.passive && slices.Contains(a.nodes, name) && p.expected(now, addr) {
			return true
		}
	}
	return false
}

// expected reports whether a peer may still be about to take an address that is its to take.
func (p *peer) expected(now int64, addr netip.Addr) bool {
	if p.reluctant[addr] {
		return false
	}
	since, waited := p.waited[addr]
	if !waited {
		since, p.waited[addr] = now, now
	}
	p.reluctant[addr] = now-since >= rivalPatience
	return !p.reluctant[addr]
}

// before names the peer that claimed the address last. Then it is the cluster's, and asking who uses it would only cost time.
func (e *Election) before(addr netip.Addr) (string, bool) {
	best, latest := "", int64(-1)
	for name, p := range e.peers {
		if _, claims := p.claims[addr]; (claims || p.yields[addr]) && p.heard > latest {
			best, latest = name, p.heard
		}
	}
	return best, best != ""
}

func (e *Election) probe(now int64, addr netip.Addr, a *address) {
	for a.probed <= probes && now >= a.since+int64(a.probed)*probeInterval {
		if a.probed++; a.probed > probes {
			e.take(now, addr, a, "")
			return
		}
		e.out = append(e.out, Action{Kind: Probe, Addr: addr})
	}
}

func (e *Election) take(now int64, addr netip.Addr, a *address, from string) {
	a.held, a.probing, a.since, a.told, a.yielding, a.yielded = true, false, now, 1, 0, 0
	e.urgent = true
	e.out = append(e.out, Action{Kind: Took, Addr: addr, From: from}, Action{Kind: Announce, Addr: addr})
}

func (e *Election) release(addr netip.Addr, a *address, why string) {
	a.held, a.told, a.yielding, a.contested = false, 0, 0, false
	e.urgent = true
	e.out = append(e.out, Action{Kind: Released, Addr: addr, Why: why})
}

// hello says who this node is and what it holds.
func (e *Election) hello(now int64) {
	e.said, e.urgent = now, false
	e.seq++
	var claims, yields []netip.Addr
	for _, addr := range e.sorted() {
		switch a := e.addresses[addr]; {
		case a.yielded != 0 && now-a.yielded < yieldTold:
			yields = append(yields, addr)
		case a.held && a.yielding == 0:
			claims = append(claims, addr)
		}
	}
	all := Hello{
		Cluster: e.s.Cluster, Boot: e.s.Boot, Node: e.s.Node, Seq: e.seq, Interval: uint16(min(e.interval(), 60_000)), Starting: !e.started, Passive: e.passive,
	}
	for _, h := range split(all, claims, yields) {
		e.out = append(e.out, Action{Kind: SayHello, Hello: h})
	}
}

func (e *Election) flush() []Action {
	out := e.out
	e.out = nil
	return out
}
