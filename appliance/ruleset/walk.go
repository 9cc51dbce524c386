package ruleset

import "net/netip"

// Way is what the routing table does with a packet.
type Way struct {
	// Link is the way out.
	Link string
	// Local says that the address is one of this machine.
	Local bool
	// Refused says why there is no way; empty where there is one.
	Refused string
}

// Leg is a packet at one hook.
type Leg struct {
	Hook Hook
	Outcome
}

// End is where a walk ended.
type End uint8

// The ends.
const (
	Delivered End = iota // to a process of this machine
	Forwarded            // it left over Packet.OIf
	Dropped
	Rejected
	NoRoute
)

// String prints the end in a word or two.
func (e End) String() string {
	return [...]string{"delivered to this node", "forwarded", "dropped", "rejected", "no route"}[e]
}

// Walk is the way of a packet through one machine.
type Walk struct {
	Legs []Leg
	End  End
	// Packet is how it left.
	Packet Packet
	// Refused is why the routing table has no way.
	Refused string
}

// Walk sends a connection's first packet through all hooks of the machine: from a link, or, with own, from a process of it.
func (tr *Tracer) Walk(p Packet, own bool, way func(to netip.Addr) Way) Walk {
	w := Walk{Packet: p}
	pass := func(h Hook) bool {
		out := tr.Trace(h, w.Packet)
		w.Legs = append(w.Legs, Leg{h, out})
		w.Packet = out.Packet
		switch {
		case out.Rejected:
			w.End = Rejected
		case !out.Accepted:
			w.End = Dropped
		}
		return out.Accepted
	}
	if own {
		w.Packet.IIf, w.Packet.OIf = "", way(p.Dst).Link
		if !pass(Output) {
			return w
		}
	} else if !pass(Prerouting) {
		return w
	}
	next := way(w.Packet.Dst)
	w.Packet.OIf = next.Link
	switch {
	case next.Refused != "":
		w.End, w.Refused = NoRoute, next.Refused
		return w
	case next.Local && !own:
		w.Packet.OIf = ""
		if pass(Input) {
			w.End = Delivered
		}
		return w
	}
	if !own && !pass(Forward) || !pass(Postrouting) {
		return w
	}
	w.End = Forwarded
	if next.Local { // over the loopback, and in again
		w.Packet.IIf, w.Packet.OIf = next.Link, ""
		if pass(Input) {
			w.End = Delivered
		}
	}
	return w
}
