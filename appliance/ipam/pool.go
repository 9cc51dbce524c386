// Package ipam decides which address comes next, from the ranges, the leases and what was released when.
package ipam

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// Pool is the bookkeeping of one network's addresses. It does no input or output, knows no clock and is not safe for
// concurrent use: its owner guards it and writes what it decided to the store.
type Pool struct {
	coolOff  int64
	held     map[netip.Addr]model.AttachmentKey
	released map[netip.Addr]model.Release
	cursor   map[netip.Addr]netip.Addr // first address of a range -> the address given last
}

// Request is what an attachment wants.
type Request struct {
	Key model.AttachmentKey
	Pod model.PodRef
	// Ranges, one set per address wanted: the address comes from the first range of the set that has one.
	Ranges [][]Range
	// Want are addresses asked for by name; each must lie in a set of Ranges, and takes the place of a chosen one.
	Want []netip.Addr
	// Now is in seconds since 1970.
	Now int64
	// InUse says who uses an address although no lease covers it; empty when nobody does. May be nil.
	InUse func(netip.Addr) string
}

// NewPool starts with nothing held. coolOff is how long, in seconds, a released address is kept from other Pods while
// there are others to give.
func NewPool(coolOff int64) *Pool {
	return &Pool{
		coolOff: coolOff, held: map[netip.Addr]model.AttachmentKey{},
		released: map[netip.Addr]model.Release{}, cursor: map[netip.Addr]netip.Addr{},
	}
}

// Hold records that the attachment has the address, as when leases are read from the store.
// It is an error when another attachment has it.
func (p *Pool) Hold(a netip.Addr, key model.AttachmentKey) error {
	if owner, ok := p.held[a]; ok && owner != key {
		return fmt.Errorf("address %s is held by %s already", a, owner)
	}
	p.held[a] = key
	delete(p.released, a)
	return nil
}

// Release gives an address back and remembers the Pod that had it.
func (p *Pool) Release(a netip.Addr, r model.Release) {
	delete(p.held, a)
	p.released[a] = r
}

// Forget drops the memory of a released address, so that it may be given at once.
func (p *Pool) Forget(a netip.Addr) { delete(p.released, a) }

// Trim forgets the addresses released longest ago until at most keep are remembered, and returns those it forgot.
func (p *Pool) Trim(keep int) []netip.Addr {
	if len(p.released) <= keep {
		return nil
	}
	all := slices.SortedFunc(maps.Keys(p.released), func(a, b netip.Addr) int {
		return cmp.Or(cmp.Compare(p.released[a].At, p.released[b].At), a.Compare(b))
	})
	old := all[:len(all)-keep]
	for _, a := range old {
		delete(p.released, a)
	}
	return old
}

// Owner returns the attachment that holds the address.
func (p *Pool) Owner(a netip.Addr) (model.AttachmentKey, bool) {
	key, ok := p.held[a]
	return key, ok
}

// Pick chooses one address per set of ranges and holds them for the attachment. In this order: the address asked for; the one
// that this incarnation of the Pod had before; the next never or longest unused one after the address given last. Nothing is
// held when it returns an error: *ExhaustedError or *UnavailableError.
func (p *Pool) Pick(req Request) (got []netip.Addr, err error) {
	defer func() {
		if err != nil {
			for _, a := range got {
				delete(p.held, a)
			}
			got = nil
		}
	}()
	want := slices.Clone(req.Want)
	for _, w := range want {
		if !slices.ContainsFunc(req.Ranges, func(set []Range) bool { return inSet(set, w) }) {
			return nil, &UnavailableError{Addr: w, Why: "it is in none of this node's ranges " + describe(req.Ranges)}
		}
	}
	for _, set := range req.Ranges {
		var a netip.Addr
		if i := slices.IndexFunc(want, func(w netip.Addr) bool { return inSet(set, w) }); i >= 0 {
			a = want[i]
			want = slices.Delete(want, i, i+1)
			if err := p.available(a, set, req); err != nil {
				return got, err
			}
		} else if a, err = p.choose(set, req); err != nil {
			return got, err
		}
		p.held[a] = req.Key
		got = append(got, a)
	}
	if len(want) > 0 {
		return got, &UnavailableError{Addr: want[0], Why: "another address was requested from the same range; one per family is possible"}
	}
	for _, a := range got {
		delete(p.released, a)
	}
	return got, nil
}

func inSet(set []Range, a netip.Addr) bool {
	return slices.ContainsFunc(set, func(r Range) bool { return r.Contains(a) })
}

// available says whether an address asked for by name can be had.
func (p *Pool) available(a netip.Addr, set []Range, req Request) error {
	for _, r := range set {
		if slices.Contains(r.Reserved, a) {
			return &UnavailableError{Addr: a, Why: "it is reserved (the node's own address or a gateway)"}
		}
	}
	if owner, ok := p.held[a]; ok {
		return &UnavailableError{Addr: a, Why: "it is held by " + owner.String(), Held: true}
	}
	if req.InUse != nil {
		if who := req.InUse(a); who != "" {
			return &UnavailableError{Addr: a, Why: "it is in use: " + who}
		}
	}
	return nil
}

// choose finds a free address of the set.
func (p *Pool) choose(set []Range, req Request) (netip.Addr, error) {
	if a, ok := p.sticky(set, req); ok {
		return a, nil
	}
	var foreign int
	cooling := netip.Addr{}
	for _, r := range set {
		a, skipped, coolest := p.next(r, req)
		foreign += skipped
		if a.IsValid() {
			p.cursor[r.First] = a
			return a, nil
		}
		if coolest.IsValid() && (!cooling.IsValid() || p.released[coolest].At < p.released[cooling].At) {
			cooling = coolest
		}
	}
	// Cooling off is a preference: an address that is free beats an error.
	if cooling.IsValid() {
		return cooling, nil
	}
	return netip.Addr{}, p.exhausted(set, foreign)
}

// sticky finds the address that this incarnation of the Pod had before (same UID), lowest first.
func (p *Pool) sticky(set []Range, req Request) (best netip.Addr, ok bool) {
	if req.Pod.UID == "" {
		return best, false
	}
	for a, rel := range p.released {
		if rel.Pod == req.Pod && (!ok || a.Less(best)) && inSet(set, a) && p.available(a, set, req) == nil {
			best, ok = a, true
		}
	}
	return best, ok
}

// maxSteps bounds the walk through a range: in a larger range an address is free long before.
const maxSteps = 1 << 20

// next walks once around the range from the address given last. It returns a free one, or how many were in use by others and
// the one that has cooled longest.
func (p *Pool) next(r Range, req Request) (free netip.Addr, foreign int, coolest netip.Addr) {
	start, ok := p.cursor[r.First]
	if !ok || !r.Contains(start) {
		start = r.Last
	}
	a := start
	for range maxSteps {
		if a = a.Next(); !r.Contains(a) {
			a = r.First
		}
		if _, held := p.held[a]; !held && !slices.Contains(r.Reserved, a) {
			rel, cooling := p.released[a]
			switch {
			case req.InUse != nil && req.InUse(a) != "":
				foreign++
			case !cooling || req.Now-rel.At >= p.coolOff || req.Now < rel.At:
				return a, foreign, coolest
			case !coolest.IsValid() || rel.At < p.released[coolest].At:
				coolest = a
			}
		}
		if a == start {
			break
		}
	}
	return netip.Addr{}, foreign, coolest
}

// Usage counts one set of ranges: addresses that can be given at all, held, and cooling off at the given time.
func (p *Pool) Usage(set []Range, now int64) (total, held, cooling int) {
	for _, r := range set {
		total += r.size()
	}
	for a := range p.held {
		if inSet(set, a) {
			held++
		}
	}
	for a, rel := range p.released {
		if now-rel.At < p.coolOff && inSet(set, a) {
			cooling++
		}
	}
	return total, held, cooling
}

func (p *Pool) exhausted(set []Range, foreign int) error {
	total, held, _ := p.Usage(set, 0)
	return &ExhaustedError{Ranges: describe([][]Range{set}), Total: total, Held: held, Foreign: foreign}
}
