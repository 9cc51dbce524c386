package nft

import (
	"maps"

	"weft.network/weft/appliance/ruleset"
)

// state is what the kernel holds of one table: what was committed last, or what was read back.
type state struct {
	// dormant says that somebody has switched the table off: it is there, and no packet meets it.
	dormant bool
	chains  map[string]*chainState
	sets    map[string]*setState
}

// hooked reports whether the kernel calls any chain of the table.
func (s *state) hooked() bool {
	for _, c := range s.chains {
		if c.base {
			return true
		}
	}
	return false
}

// clone copies the two maps, so that a plan can be thrown away.
func (s *state) clone() *state {
	out := &state{chains: map[string]*chainState{}, sets: map[string]*setState{}}
	maps.Copy(out.chains, s.chains)
	maps.Copy(out.sets, s.sets)
	return out
}

// chainState is a chain in the kernel. It does not change once made.
type chainState struct {
	// desired is what it was made from; nil if it was read back.
	desired *ruleset.Chain
	spec    string
	base    bool
	rules   []uint64 // the hashes
}

// setState is a set in the kernel. Only index changes once made, and only by the overlay's commit.
type setState struct {
	desired *ruleset.Set // nil if it was read back
	head    setHead
	index   map[string]slot
}

// slot is one element in the kernel and how many blocks want it.
type slot struct {
	element *ruleset.Element
	wanted  int
}

// adopt takes what was read back.
func (s *setState) adopt(set *ruleset.Set, entries []entry) {
	s.index = make(map[string]slot, len(entries))
	for i := range entries {
		if e := &entries[i].Element; !entries[i].end {
			if !set.Interval {
				e.End = ""
			}
			s.index[e.ID()] = slot{element: e}
		}
	}
}

// overlay is the change of one set: what differs from its index.
type overlay struct {
	set     *ruleset.Set
	base    map[string]slot
	touched map[string]slot
}

func (o *overlay) get(id string) slot {
	if s, ok := o.touched[id]; ok {
		return s
	}
	return o.base[id]
}

func (o *overlay) release(b *ruleset.Block) {
	for i := range b.Elements {
		id := b.Elements[i].ID()
		s := o.get(id)
		s.wanted--
		o.touched[id] = s
	}
}

func (o *overlay) acquire(owner string, b *ruleset.Block) error {
	for i := range b.Elements {
		e := &b.Elements[i]
		if err := o.set.Check(e); err != nil {
			return err
		}
		id := e.ID()
		s := o.get(id)
		if s.wanted > 0 && o.set.IsMap() {
			return o.set.Conflict(e, owner, o.otherOwner(owner, id))
		}
		if s.wanted <= 0 {
			s.element = e
		}
		s.wanted++
		o.touched[id] = s
	}
	return nil
}

// otherOwner finds who else has an element. It looks everywhere, but only for the text of an error.
func (o *overlay) otherOwner(owner, id string) string {
	for other, b := range o.set.Blocks {
		for i := range b.Elements {
			if other != owner && b.Elements[i].ID() == id {
				return other
			}
		}
	}
	return owner
}

// changes returns what must be deleted and added: an element whose data differs is both.
func (o *overlay) changes() (del, add []*ruleset.Element) {
	for id, now := range o.touched {
		old := o.base[id]
		switch {
		case now.wanted <= 0:
			if old.element != nil {
				del = append(del, old.element)
			}
		case old.element == nil:
			add = append(add, now.element)
		case !same(old.element, now.element, now.wanted > 1):
			del = append(del, old.element)
			add = append(add, now.element)
		}
	}
	return del, add
}

// same compares two elements with the same key. A shared one may have the comment of any owner.
func same(a, b *ruleset.Element, shared bool) bool {
	return a.Data == b.Data && a.Verdict == b.Verdict && (shared || a.Comment == b.Comment)
}

// commit writes the change into the index.
func (o *overlay) commit() {
	for id, s := range o.touched {
		if s.wanted <= 0 {
			delete(o.base, id)
		} else {
			o.base[id] = s
		}
	}
}

// diffSet compares the blocks of a set with what the kernel holds. The cost is one comparison of pointers per owner, and
// the elements of those owners that changed.
func diffSet(have *setState, want *ruleset.Set) (*overlay, error) {
	o := &overlay{set: want, base: have.index, touched: map[string]slot{}}
	if have.desired == nil {
		return o, o.diffAll()
	}
	if have.desired == want {
		return o, nil
	}
	old := have.desired.Blocks
	kept := 0
	var changed []string
	for owner, b := range want.Blocks {
		was, ok := old[owner]
		if ok {
			kept++
		}
		if was != b {
			changed = append(changed, owner)
			if ok {
				o.release(was)
			}
		}
	}
	if kept != len(old) {
		for owner, b := range old {
			if _, ok := want.Blocks[owner]; !ok {
				o.release(b)
			}
		}
	}
	for _, owner := range changed {
		if err := o.acquire(owner, want.Blocks[owner]); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// diffAll compares everything with what was read back, where nothing has an owner yet.
func (o *overlay) diffAll() error {
	for owner, b := range o.set.Blocks {
		if err := o.acquire(owner, b); err != nil {
			return err
		}
	}
	for id := range o.base {
		if _, ok := o.touched[id]; !ok {
			o.touched[id] = slot{}
		}
	}
	return nil
}
