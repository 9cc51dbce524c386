package policy

import (
	"cmp"
	"maps"
	"slices"
)

// split sorts the endpoints after some selectors came or went: only those that a new one picks, or whose class had an old one,
// change their class. One whose members all change alike keeps its number.
func (c *classes) split(w *who, before []*selector, sel *selectors) {
	added, removed := differ(c.active, before), differ(before, c.active)
	fresh := &classes{active: added, spaces: map[string]*space{}, namespaces: c.namespaces}
	c.spaces = map[string]*space{}
	losing := map[*Class]bool{}
	for _, class := range c.byKey {
		losing[class] = slices.ContainsFunc(removed, func(s *selector) bool { return containsSorted(class.attributes, s.attribute) })
	}
	moves, staying := map[string]*move{}, map[*Class]bool{}
	for e, class := range c.of {
		extra := fresh.picks(e, fresh.space(e.ref.Namespace), sel)
		if len(extra) == 0 && !losing[class] {
			if class != nil {
				staying[class] = true
			}
			continue
		}
		attributes := extra
		if class != nil {
			attributes = append(attributes, class.attributes...)
			attributes = slices.DeleteFunc(attributes, func(a int32) bool {
				return slices.ContainsFunc(removed, func(s *selector) bool { return s.attribute == a })
			})
			slices.Sort(attributes)
		}
		key := attributesKey(attributes)
		if moves[key] == nil {
			moves[key] = &move{attributes: attributes, from: map[*Class]int{}}
		}
		moves[key].members = append(moves[key].members, e)
		if class != nil {
			moves[key].from[class]++
		}
	}
	if len(moves) == 0 {
		return
	}
	c.carryOut(w, moves, staying, sel)
}

// move is endpoints that change to one class together.
type move struct {
	attributes []int32
	members    []*endpoint
	from       map[*Class]int
}

// carryOut gives the endpoints their new classes.
func (c *classes) carryOut(w *who, moves map[string]*move, staying map[*Class]bool, sel *selectors) {
	maps.DeleteFunc(c.byKey, func(_ string, class *Class) bool { return !staying[class] })
	keys := slices.Sorted(maps.Keys(moves))
	type bid struct {
		key string
		id  ID
		n   int
	}
	var bids []bid
	for _, k := range keys {
		for class, n := range moves[k].from {
			if !staying[class] && c.byKey[k] == nil && len(moves[k].attributes) > 0 {
				bids = append(bids, bid{k, class.ID, n})
			}
		}
	}
	slices.SortFunc(bids, func(a, b bid) int {
		return cmp.Or(cmp.Compare(b.n, a.n), cmp.Compare(a.id, b.id), cmp.Compare(a.key, b.key))
	})
	taken, ids := map[ID]bool{}, map[string]ID{}
	for _, b := range bids {
		if ids[b.key] == 0 && !taken[b.id] {
			ids[b.key], taken[b.id] = b.id, true
		}
	}
	for _, k := range keys {
		m := moves[k]
		class := c.byKey[k]
		if class == nil && len(m.attributes) > 0 {
			id := ids[k]
			if id == 0 {
				id = c.next
				c.next++
			}
			class = c.make(m.attributes, id, sel)
			c.byKey[k] = class
		}
		for _, e := range m.members {
			old := c.of[e]
			c.of[e] = class
			c.compare(w, e, map[*endpoint]*Class{e: old})
			for _, a := range e.addr {
				w.touched[a] = true
			}
		}
	}
	c.version++
}

// differ returns what a has and b has not.
func differ(a, b []*selector) (out []*selector) {
	has := make(map[*selector]bool, len(b))
	for _, s := range b {
		has[s] = true
	}
	for _, s := range a {
		if !has[s] {
			out = append(out, s)
		}
	}
	return out
}
