package conntrack

import (
	"context"
	"net/netip"

	"weft.network/weft/appliance/model"
)

// Seen is a UDP connection of the table.
type Seen struct {
	// Src and Dst are the ends of the first packet, Backend is who answers.
	Src, Dst, Backend netip.AddrPort
	flow              flow
}

// FindUDP returns the UDP connections for which match says so. It reads the whole table.
func (t *Table) FindUDP(ctx context.Context, match func(Seen) bool) ([]Seen, error) {
	var out []Seen
	_, err := t.find(ctx, []Filter{{Proto: model.UDP}}, func(f *flow) bool {
		if f.orig.proto != uint8(model.UDP) {
			return false
		}
		s := Seen{
			Src: netip.AddrPortFrom(f.orig.src, f.orig.sport), Dst: netip.AddrPortFrom(f.orig.dst, f.orig.dport),
			Backend: netip.AddrPortFrom(f.reply.src, f.reply.sport), flow: *f,
		}
		if match(s) {
			out = append(out, s)
		}
		return false
	})
	return out, err
}

// Each calls f for every connection of the table, of whatever protocol.
func (t *Table) Each(ctx context.Context, f func(model.Protocol, Seen)) error {
	_, err := t.find(ctx, []Filter{{}}, func(e *flow) bool {
		f(model.Protocol(e.orig.proto), Seen{
			Src: netip.AddrPortFrom(e.orig.src, e.orig.sport), Dst: netip.AddrPortFrom(e.orig.dst, e.orig.dport),
			Backend: netip.AddrPortFrom(e.reply.src, e.reply.sport), flow: *e,
		})
		return false
	})
	return err
}

// Remove forgets connections that were found, unless others have taken their places, and returns how many there were.
func (t *Table) Remove(ctx context.Context, found []Seen) (int, error) {
	flows := make([]flow, len(found))
	for i := range found {
		flows[i] = found[i].flow
	}
	return t.remove(ctx, flows)
}
