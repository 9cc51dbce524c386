package trace

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// clientPort is the source port of the pretend packet; no rule of weft asks for it.
const clientPort = 40000

// maxDraws bounds how many numbers are tried where a rule draws one; a Service of so many endpoints is sampled.
const maxDraws = 20000

// maxNodes bounds how many machines a packet passes, in case their routes form a ring.
const maxNodes = 4

// Trace answers what becomes of a connection.
func (w *World) Trace(from, to string, proto model.Protocol) (Report, error) {
	r := Report{Protocol: proto}
	var err error
	if w.Snapshot == nil {
		w.Snapshot = &model.Snapshot{}
	}
	if r.From, err = w.source(from); err != nil {
		return r, err
	}
	if r.To, err = w.destination(to, proto); err != nil {
		return r, err
	}
	start := cmp.Or(r.From.Node, w.This)
	node := w.Node(start)
	if node == nil {
		return r, fmt.Errorf("nothing is known of node %q, where %s is", start, from)
	}
	for _, dst := range r.To.Addresses {
		src := sameFamily(r.From.Addresses, dst)
		if r.From.Kind == kindNode && len(r.From.Addresses) > 1 { // the node's own packets get the address that its routes say
			if own := node.Route(dst).Src; own.IsValid() {
				src = own
			}
		}
		if !src.IsValid() {
			continue
		}
		r.Paths = append(r.Paths, w.path(node, r.From.host, src, netip.AddrPortFrom(dst, r.To.Port), proto))
	}
	if len(r.Paths) == 0 {
		return r, errors.New("the two have no address family in common: " + from + " has " + fmt.Sprint(r.From.Addresses) + ", " + to + " has " + fmt.Sprint(r.To.Addresses))
	}
	return r, nil
}

func sameFamily(list []netip.Addr, as netip.Addr) netip.Addr {
	for _, a := range list {
		if a.Is4() == as.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// journey is one packet's way through all machines, for one number drawn.
type journey struct {
	hops    []Hop
	packet  ruleset.Packet
	chosen  int // how many hops there were when the destination was translated; -1 if it never was
	end     string
	works   bool
	backend netip.AddrPort
	masq    string // the rule that changed the source
}

// path follows the connection once for each number that a rule may draw, and gathers what is the same.
func (w *World) path(node *Node, own bool, src netip.Addr, dst netip.AddrPort, proto model.Protocol) Path {
	out := Path{Source: src, Destination: dst, Service: w.serviceAt(dst, proto)}
	p := ruleset.Packet{Src: src, Dst: dst.Addr(), Sport: clientPort, Dport: dst.Port(), Proto: proto, CtState: ruleset.StateNew}
	if !own {
		p.IIf = node.Arrives(src)
	}
	var draw, mod uint32
	tr := map[string]*ruleset.Tracer{}
	random := func(n uint32) uint32 {
		mod = n
		return draw % n
	}
	j := w.follow(tr, random, node, own, p)
	if j.chosen < 0 {
		out.Hops, out.Verdict, out.Works = j.hops, j.end, j.works
		if w.Policy != nil {
			out.Policy = w.Policy(src, dst, proto)
		}
		return out
	}
	out.Hops = j.hops[:j.chosen]
	count := map[netip.AddrPort]int{}
	total := int(min(max(mod, 1), maxDraws))
	for i := range total {
		if draw = uint32(i); i > 0 {
			j = w.follow(tr, random, node, own, p)
		}
		if count[j.backend]++; count[j.backend] == 1 {
			out.Endpoints = append(out.Endpoints, w.endpoint(j, src, proto))
		}
	}
	for i := range out.Endpoints {
		e := &out.Endpoints[i]
		e.Share = float64(count[e.Address]) / float64(total)
	}
	slices.SortFunc(out.Endpoints, func(a, b Endpoint) int { return a.Address.Compare(b.Address) })
	out.summarise()
	return out
}

// summarise says whether all endpoints fare alike.
func (p *Path) summarise() {
	works := 0
	for _, e := range p.Endpoints {
		if e.Works {
			works++
		}
	}
	switch n := len(p.Endpoints); {
	case works == n && n == 1:
		p.Verdict, p.Works = p.Endpoints[0].Verdict, true
	case works == n:
		p.Verdict, p.Works = fmt.Sprintf("reaches one of %d endpoints", n), true
	case works == 0:
		p.Verdict = p.Endpoints[0].Verdict
	default:
		p.Verdict = fmt.Sprintf("reaches %d of %d endpoints; connections to the others fail", works, n)
	}
}

func (w *World) endpoint(j journey, src netip.Addr, proto model.Protocol) Endpoint {
	e := Endpoint{Address: j.backend, Source: j.packet.Src, Masqueraded: j.packet.Src != src, MasqueradeBy: j.masq, Hops: j.hops[j.chosen:], Verdict: j.end, Works: j.works}
	e.Pod, e.Node = w.owner(j.backend.Addr())
	if w.Policy != nil {
		e.Policy = w.Policy(src, j.backend, proto)
	}
	return e
}

// follow sends one packet from machine to machine until it arrives or ends.
func (w *World) follow(tracers map[string]*ruleset.Tracer, random func(uint32) uint32, node *Node, own bool, p ruleset.Packet) journey {
	j := journey{chosen: -1, packet: p}
	for range maxNodes {
		tr := tracers[node.Name]
		if tr == nil {
			tr = ruleset.NewTracer(node.Tables, ruleset.Facts{
				Local: func(a netip.Addr) bool { return node.Route(a).Local }, Returns: node.Returns, Random: random,
				Own: func(to netip.Addr) netip.Addr { return node.Route(to).Src },
			})
			tracers[node.Name] = tr
		}
		walk := tr.Walk(j.packet, own, func(to netip.Addr) ruleset.Way { return node.Route(to).Way })
		j.add(node, walk)
		j.packet = walk.Packet
		_, at := w.owner(j.packet.Dst)
		var next *Node
		if walk.End == ruleset.Forwarded && at != "" && at != node.Name {
			next = w.Node(at)
		}
		if next == nil {
			j.finish(w, node, walk)
			return j
		}
		j.packet.OIf, j.packet.CtStatus, j.packet.CtMark, j.packet.Mark, j.packet.Priority = "", 0, 0, 0, 0
		j.packet.IIf, own, node = next.Arrives(j.packet.Src), false, next
	}
	j.end = fmt.Sprintf("still on its way after %d nodes: the routes form a ring", maxNodes)
	return j
}

// add takes over the hops of one machine.
func (j *journey) add(node *Node, walk ruleset.Walk) {
	for _, leg := range walk.Legs {
		h := Hop{Node: node.Name, Hook: leg.Hook.String()}
		for _, s := range leg.Steps {
			h.Rules = append(h.Rules, Rule{s.Table, s.Chain, s.Text})
		}
		if leg.Hook == ruleset.Postrouting || leg.Hook == ruleset.Forward {
			h.Route = routeText(leg.Packet.OIf, node.Route(leg.Packet.Dst).Via)
		}
		if leg.Packet.CtStatus&ruleset.StatusSNAT != 0 && j.masq == "" && len(h.Rules) > 0 {
			j.masq = h.Rules[len(h.Rules)-1].Text
		}
		j.hops = append(j.hops, h)
		if j.chosen < 0 && leg.Packet.CtStatus&ruleset.StatusDNAT != 0 {
			j.chosen, j.backend = len(j.hops), netip.AddrPortFrom(leg.Packet.Dst, leg.Packet.Dport)
		}
	}
}

func routeText(link string, via netip.Addr) string {
	if via.IsValid() {
		return fmt.Sprintf("via %s dev %s", via, link)
	}
	return "dev " + link
}

// finish says where the packet ended.
func (j *journey) finish(w *World, node *Node, walk ruleset.Walk) {
	at := netip.AddrPortFrom(walk.Packet.Dst, walk.Packet.Dport)
	pod, owner := w.owner(at.Addr())
	switch {
	case walk.End == ruleset.NoRoute:
		j.end = fmt.Sprintf("no way from %s to %s: %s", node.Name, at.Addr(), walk.Refused)
	case walk.End == ruleset.Dropped, walk.End == ruleset.Rejected:
		last := walk.Legs[len(walk.Legs)-1]
		h := j.hops[len(j.hops)-1]
		rule := "policy of the chain"
		if len(h.Rules) > 0 {
			r := h.Rules[len(h.Rules)-1]
			rule = fmt.Sprintf("%s %s: %s", r.Table, r.Chain, r.Text)
		}
		verb := map[ruleset.End]string{ruleset.Dropped: "dropped", ruleset.Rejected: "refused, and the client is told,"}[walk.End]
		j.end = fmt.Sprintf("%s on %s in %s by %s", verb, node.Name, last.Hook, rule)
	case walk.End == ruleset.Delivered:
		j.end, j.works = fmt.Sprintf("reaches a process of node %s at %s", node.Name, at), true
	case pod != "":
		j.end, j.works = fmt.Sprintf("reaches Pod %s at %s", pod, at), true
	case owner == node.Name:
		j.end, j.works = fmt.Sprintf("goes to %s over %s, where no Pod is known", at, walk.Packet.OIf), true
	default:
		j.end, j.works = fmt.Sprintf("leaves node %s over %s to %s", node.Name, walk.Packet.OIf, at), true
	}
}
