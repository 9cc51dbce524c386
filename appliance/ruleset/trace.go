package ruleset

import (
	"cmp"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// Packet is a pretend packet with what the kernel knows of it. CtState must be set; StateUntracked has no connection.
type Packet struct {
	IIf, OIf     string
	Src, Dst     netip.Addr
	Proto        model.Protocol
	Sport, Dport uint16

	Mark, Priority uint32
	// PktType is that of linux/if_packet.h; 0 is a packet for this machine.
	PktType byte

	CtState, CtStatus, CtMark uint32
	// Reply says that the packet goes against the direction of its connection.
	Reply bool
}

// Facts are what the tracer cannot know from the tables. A function that is nil answers with the zero value.
type Facts struct {
	// Local reports whether an address belongs to this machine.
	Local func(netip.Addr) bool
	// Returns reports whether a packet to an address would leave over the interface.
	Returns func(to netip.Addr, link string) bool
	// Own is the address that a packet to an address gets when it is masqueraded.
	Own func(to netip.Addr) netip.Addr
	// Random draws a number from 0 to mod-1.
	Random func(mod uint32) uint32
	// Remembers makes the tracer keep what packets put into dynamic maps, as the kernel does; otherwise each packet is the first.
	Remembers bool
}

// Step is a rule that carried out all of its statements, or the policy of a base chain, which has index -1.
type Step struct {
	Table, Chain string
	Index        int
	Text         string
}

// Outcome is where a packet got.
type Outcome struct {
	Accepted bool
	// Rejected says that the sender of a packet that was not accepted is told.
	Rejected bool
	// Packet is the packet as it leaves the hook.
	Packet Packet
	// Steps are the rules that had a say, in order; the last one decided.
	Steps []Step
}

// Tracer sends pretend packets through tables. It is not for several goroutines at once.
type Tracer struct {
	tables []Table
	facts  Facts
	index  map[*Set]map[string]*Element
	// memory is what packets put into dynamic maps.
	memory map[memoryKey]*Element
}

// memoryKey names an element of a dynamic map.
type memoryKey struct {
	table, set string
	key        Value
}

// NewTracer returns a tracer of the tables.
func NewTracer(tables []Table, facts Facts) *Tracer {
	return &Tracer{tables: tables, facts: facts, index: map[*Set]map[string]*Element{}, memory: map[memoryKey]*Element{}}
}

// Trace sends a packet through the base chains of one hook, in the order of their priorities. As in the kernel, accepting
// ends a base chain but not the hook, chains of type nat see the first packet of a connection only, and the first of them
// that translates is the last.
func (tr *Tracer) Trace(hook Hook, p Packet) Outcome {
	type base struct {
		table *Table
		chain *Chain
	}
	var chains []base
	for i := range tr.tables {
		for _, c := range tr.tables[i].Chains {
			if c.Base != nil && c.Base.Hook == hook && tr.tables[i].carries(p.Dst) {
				chains = append(chains, base{&tr.tables[i], c})
			}
		}
	}
	slices.SortStableFunc(chains, func(a, b base) int { return cmp.Compare(a.chain.Base.Priority, b.chain.Base.Priority) })
	r := &run{tracer: tr, out: Outcome{Accepted: true, Packet: p}}
	for _, b := range chains {
		if b.chain.Base.Type == NATing && (r.out.Packet.CtState&StateNew == 0 || r.translated) {
			continue
		}
		r.table = b.table
		end := r.chain(b.chain)
		if end == next && b.chain.Base.Drop {
			r.step(b.chain, -1, "policy drop")
			end = VerdictDrop
		}
		if end == VerdictDrop {
			r.out.Accepted = false
			break
		}
	}
	return r.out
}

func (t *Table) carries(a netip.Addr) bool {
	return t.Family == INet || a.Is4() == (t.Family == IPv4)
}

// Ends of a chain or rule, besides VerdictAccept and VerdictDrop.
const (
	next    VerdictKind = 0   // the chain came to its end, or returned
	noMatch VerdictKind = 255 // a condition of the rule was false
	fell    VerdictKind = 254 // the rule ended without a verdict
)

// run is one packet on its way.
type run struct {
	tracer     *Tracer
	table      *Table
	out        Outcome
	translated bool
}

func (r *run) step(c *Chain, index int, text string) {
	r.out.Steps = append(r.out.Steps, Step{r.table.ID(), c.Name, index, text})
}

// chain runs a chain and returns accept, drop, or next for a packet that goes on in the caller.
func (r *run) chain(c *Chain) VerdictKind {
	for i := range c.Rules {
		mark := len(r.out.Steps)
		r.step(c, i, c.Rules[i].Text())
		verdict := fell
		for _, s := range c.Rules[i].Statements {
			if verdict = r.statement(s); verdict != fell {
				break
			}
		}
		switch verdict {
		case noMatch:
			r.out.Steps = r.out.Steps[:mark]
		case fell:
		case VerdictReturn:
			return next
		default:
			return verdict
		}
	}
	return next
}

// verdict carries out a verdict within a rule.
func (r *run) verdict(v Verdict) VerdictKind {
	switch v.Kind {
	case VerdictJump, VerdictGoto:
		end := next
		if c := r.table.Chain(v.Chain); c != nil {
			end = r.chain(c)
		}
		if end == next && v.Kind == VerdictJump {
			return fell
		}
		return end // next: a goto does not come back, so the calling chain is over, too
	}
	return v.Kind
}

func (r *run) statement(s Statement) VerdictKind {
	p := &r.out.Packet
	switch s := s.(type) {
	case Match:
		return match(r.match(s))
	case HasAny:
		v, ok := r.eval(s.Left)
		return match(ok && v.uint32()&s.Bits != 0)
	case Lookup:
		v, ok := r.eval(s.Key)
		return match(ok && (r.find(s.Set, v) != nil) != s.Not)
	case Vmap:
		if v, ok := r.eval(s.Key); ok {
			if e := r.find(s.Map, v); e != nil {
				return r.verdict(e.Verdict)
			}
		}
		return noMatch
	case Assign:
		return r.assign(s)
	case NAT:
		return r.nat(s)
	case Masquerade:
		if r.tracer.facts.Own != nil {
			p.Src = r.tracer.facts.Own(p.Dst)
		}
		p.CtStatus |= StatusSNAT
	case Redirect:
		if p.CtStatus |= StatusDNAT; s.Port != 0 {
			p.Dport = s.Port
		}
	case Reject:
		r.out.Rejected = true
		return VerdictDrop
	case Notrack:
		p.CtState = StateUntracked
		return fell
	case Remember:
		return r.remember(s)
	case Forget:
		if key, ok := r.eval(s.Key); ok {
			delete(r.tracer.memory, memoryKey{r.table.ID(), s.Map, key})
			return fell
		}
		return noMatch
	case Verdict:
		return r.verdict(s)
	default: // counters, limits and logs let packets pass
		return fell
	}
	r.translated = true
	return VerdictAccept
}

func (r *run) remember(s Remember) VerdictKind {
	key, ok := r.eval(s.Key)
	data, ok2 := r.eval(s.Data)
	if !ok || !ok2 {
		return noMatch
	}
	k := memoryKey{r.table.ID(), s.Map, key}
	if r.tracer.facts.Remembers && r.tracer.memory[k] == nil {
		r.tracer.memory[k] = &Element{Key: key, Data: data}
	}
	return fell
}

func match(ok bool) VerdictKind {
	if ok {
		return fell
	}
	return noMatch
}

func (r *run) match(m Match) bool {
	left, ok := r.eval(m.Left)
	if !ok || len(left) < len(m.Right) {
		return false
	}
	left = left[:len(m.Right)] // shorter if only the start of a name is compared
	if m.Mask != "" {
		masked := []byte(left)
		for i := range masked {
			masked[i] &= m.Mask[i]
		}
		left = Value(masked)
	}
	return (left == m.Right) != m.Not
}

func (r *run) assign(a Assign) VerdictKind {
	value := a.Value
	from := a.From
	if from == nil && a.Keep != 0 {
		from = a.Target
	}
	if from != nil {
		v, ok := r.eval(from)
		if !ok {
			return noMatch
		}
		if value = v.uint32(); a.From == nil {
			value = value&a.Keep | a.Value
		}
	}
	p := &r.out.Packet
	switch a.Target {
	case MetaMark:
		p.Mark = value
	case MetaPriority:
		p.Priority = value
	case CtMark:
		if p.CtState&StateUntracked != 0 {
			return noMatch
		}
		p.CtMark = value
	}
	return fell
}

func (r *run) nat(n NAT) VerdictKind {
	p := &r.out.Packet
	var v Value
	if n.From != nil {
		var ok bool
		if v, ok = r.eval(*n.From); !ok {
			return noMatch
		}
	}
	if p.Dst.Is4() != (n.Family == IPv4) {
		return fell
	}
	addr, port := n.Addr, n.Port
	if n.From != nil {
		size := TypeIPv4Addr.Bytes()
		if n.Family == IPv6 {
			size = TypeIPv6Addr.Bytes()
		}
		if addr = v[:size].addr(); n.WithPort {
			port = v[size:].port()
		}
	}
	if n.Source {
		p.Src, p.CtStatus = addr, p.CtStatus|StatusSNAT
		p.Sport = cmp.Or(port, p.Sport)
	} else {
		p.Dst, p.CtStatus = addr, p.CtStatus|StatusDNAT
		p.Dport = cmp.Or(port, p.Dport)
	}
	r.translated = true
	return VerdictAccept
}

// eval computes an expression; ok is false where the kernel leaves the rule, for instance because the packet has no such field.
func (r *run) eval(e Expr) (v Value, ok bool) {
	p := &r.out.Packet
	switch e := e.(type) {
	case Field:
		return p.field(e)
	case Meta:
		return p.meta(e), true
	case Ct:
		return p.ct(e)
	case Fib:
		if facts := r.tracer.facts; e == FibSaddrIif {
			returns := facts.Returns != nil && facts.Returns(p.Src, p.IIf)
			return Mark(map[bool]uint32{true: 1}[returns]), true
		} else if facts.Local != nil && facts.Local(p.Dst) {
			return Mark(rtnLocal), true
		}
		return Mark(1), true // RTN_UNICAST
	case Numgen:
		if r.tracer.facts.Random == nil {
			return Mark(0), true
		}
		return Mark(r.tracer.facts.Random(e.Mod)), true
	case Jhash:
		v, ok := r.eval(e.Of)
		return Mark(uint32(uint64(jhash([]byte(v), e.Seed)) * uint64(e.Mod) >> 32)), ok
	case Concat:
		for _, part := range e {
			w, ok := r.eval(part)
			if !ok {
				return "", false
			}
			v += w
		}
		return v, true
	case MapOf:
		key, ok := r.eval(e.Key)
		if !ok {
			return "", false
		}
		if found := r.find(e.Map, key); found != nil {
			return found.Data, true
		}
	}
	return "", false
}

func (p *Packet) field(f Field) (Value, bool) {
	tcp, udp := p.Proto == model.TCP, p.Proto == model.UDP
	switch f {
	case IPSaddr, IP6Saddr:
		return Addr(p.Src), p.Src.Is4() == (f == IPSaddr)
	case IPDaddr, IP6Daddr:
		return Addr(p.Dst), p.Dst.Is4() == (f == IPDaddr)
	case THSport, TCPSport, UDPSport:
		return Port(p.Sport), f == THSport || f == TCPSport && tcp || f == UDPSport && udp
	}
	return Port(p.Dport), f == THDport || f == TCPDport && tcp || f == UDPDport && udp
}

func (p *Packet) meta(m Meta) Value {
	switch m {
	case MetaIIFName:
		return IfName(p.IIf)
	case MetaOIFName:
		return IfName(p.OIf)
	case MetaMark:
		return Mark(p.Mark)
	case MetaL4Proto:
		return Proto(p.Proto)
	case MetaPriority:
		return Mark(p.Priority)
	case MetaPktType:
		return Value([]byte{p.PktType})
	}
	if p.Dst.Is4() {
		return NFProto(IPv4).Right
	}
	return NFProto(IPv6).Right
}

func (p *Packet) ct(c Ct) (Value, bool) {
	tracked := p.CtState&StateUntracked == 0
	switch c {
	case CtState:
		return Mark(p.CtState), true
	case CtStatus:
		return Mark(p.CtStatus), tracked
	case CtMark:
		return Mark(p.CtMark), tracked
	}
	if p.Reply {
		return "\x01", tracked
	}
	return "\x00", tracked
}

// find returns the element of a set that has the key.
func (r *run) find(name string, key Value) *Element {
	s := r.table.Set(name)
	if s == nil {
		return nil
	}
	if e := r.tracer.memory[memoryKey{r.table.ID(), name, key}]; e != nil {
		return e
	}
	index, ok := r.tracer.index[s]
	if !ok {
		index = map[string]*Element{}
		for _, b := range s.Blocks {
			for i := range b.Elements {
				index[b.Elements[i].ID()] = &b.Elements[i]
			}
		}
		r.tracer.index[s] = index
	}
	if !s.Interval {
		return index[string(key)]
	}
	for _, e := range index {
		if s.covers(e, key) {
			return e
		}
	}
	return nil
}

// covers reports whether each field of the key lies in the range of the element.
func (s *Set) covers(e *Element, key Value) bool {
	at := 0
	for _, t := range s.Key {
		end := at + t.padded()
		if end > len(key) || key[at:end] < e.Key[at:end] || key[at:end] > e.End[at:end] {
			return false
		}
		at = end
	}
	return true
}
