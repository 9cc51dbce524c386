package nft

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/ruleset"
)

// plan is the way from what the kernel holds to what is wanted, for one table: a batch, and what is true once it was taken.
//
// The order within the batch: rules go first, so that what they name is free; then elements, sets and chains that are not
// wanted any more. Then chains without a hook, sets and elements come, then rules, and last the chains that the kernel
// calls. Hence a table that is filled for the first time may be cut into several transactions before the last part:
// nothing of it is in force yet, and no packet waits for one long transaction.
type plan struct {
	batch
	table    *ruleset.Table
	have     *state // never nil
	ours     map[string]bool
	next     *state // nil: the table is gone
	overlays []*overlay
	chains   []*chainDiff
	sets     []*setDiff
	stats    Stats
	// filled is the number of messages at the start of the batch that may go in transactions of their own.
	filled int
}

// chainDiff is what has to happen to one chain.
type chainDiff struct {
	name    string
	want    *ruleset.Chain // nil: delete
	have    *chainState    // nil: add
	replace bool           // delete and add
	refill  bool           // flush and add the rules
	rules   []rule
}

// setDiff is what has to happen to one set.
type setDiff struct {
	name     string
	want     *ruleset.Set // nil: delete
	have     *setState    // nil: add
	replace  bool         // delete and add
	del, add []*ruleset.Element
}

// planTable compares a table. have is nil if the kernel has no such table; ours are the names of what we put there.
func planTable(have *state, want *ruleset.Table, ours map[string]bool) (*plan, error) {
	p := &plan{table: want, have: have, ours: ours}
	if have == nil {
		p.have = &state{}
	}
	if want.Empty() && !want.Partial {
		if have != nil {
			p.deleteTable(want)
		}
		return p, nil
	}
	p.next = p.have.clone()
	if have == nil || have.dormant && !want.Partial {
		p.addTable(want) // with its flags, so that a table that sleeps wakes up
	}
	if err := p.diffChains(); err != nil {
		return nil, err
	}
	if err := p.diffSets(); err != nil {
		return nil, err
	}
	if err := p.widen(); err != nil {
		return nil, err
	}
	p.take()
	p.give()
	return p, nil
}

// foreign reports whether an object that is not wanted must stay: in a partial table only those go that we put there.
func (p *plan) foreign(name string) bool { return p.table.Partial && !p.ours[name] }

func (p *plan) diffChains() error {
	wanted := map[string]bool{}
	for _, c := range p.table.Chains {
		wanted[c.Name] = true
		d := &chainDiff{name: c.Name, want: c, have: p.have.chains[c.Name]}
		p.chains = append(p.chains, d)
		if d.have != nil && d.have.desired == c {
			continue
		}
		if err := d.encode(p.table.Family); err != nil {
			return err
		}
		next := &chainState{desired: c, spec: chainSpec(c), base: c.Base != nil}
		for _, r := range d.rules {
			next.rules = append(next.rules, r.hash)
		}
		d.replace = d.have != nil && d.have.spec != next.spec
		d.refill = d.have == nil || d.replace || !slices.Equal(d.have.rules, next.rules)
		p.next.chains[c.Name] = next
	}
	for name, have := range p.have.chains {
		if !wanted[name] && !p.foreign(name) {
			p.chains = append(p.chains, &chainDiff{name: name, have: have})
			delete(p.next.chains, name)
		}
	}
	return nil
}

// encode compiles the rules, unless they are.
func (d *chainDiff) encode(f ruleset.Family) error {
	if d.rules != nil {
		return nil
	}
	d.rules = make([]rule, 0, len(d.want.Rules))
	for i := range d.want.Rules {
		r, err := encodeRule(f, &d.want.Rules[i])
		if err != nil {
			return err
		}
		d.rules = append(d.rules, r)
	}
	return nil
}

func (p *plan) diffSets() error {
	// Deleting a chain takes its goto out of the verdict maps, and elements cannot change their verdict in place.
	replaced := slices.ContainsFunc(p.chains, func(d *chainDiff) bool { return d.replace && d.want.Base == nil })
	wanted := map[string]bool{}
	for _, s := range p.table.Sets {
		wanted[s.Name] = true
		d := &setDiff{name: s.Name, want: s, have: p.have.sets[s.Name]}
		p.sets = append(p.sets, d)
		// A set whose elements were not read is one that was not named until now, in a partial table.
		d.replace = d.have != nil && (d.have.head != headOf(s) || d.have.index == nil || replaced && s.Verdicts)
		base := d.have
		if d.have == nil || d.replace {
			base = &setState{index: map[string]slot{}}
		}
		o, err := diffSet(base, s)
		if err != nil {
			return err
		}
		d.del, d.add = o.changes()
		p.overlays = append(p.overlays, o)
		p.next.sets[s.Name] = &setState{desired: s, head: headOf(s), index: o.base}
	}
	for name, have := range p.have.sets {
		if !wanted[name] && !p.foreign(name) {
			p.sets = append(p.sets, &setDiff{name: name, have: have})
			delete(p.next.sets, name)
		}
	}
	return nil
}

// widen makes every chain let go of what must be replaced; the rules come back in the same transaction.
func (p *plan) widen() error {
	if !slices.ContainsFunc(p.chains, func(d *chainDiff) bool { return d.replace }) &&
		!slices.ContainsFunc(p.sets, func(d *setDiff) bool { return d.replace }) {
		return nil
	}
	for _, d := range p.chains {
		if d.want == nil {
			continue
		}
		d.refill = true
		if err := d.encode(p.table.Family); err != nil {
			return err
		}
	}
	return nil
}

// take writes the part of the batch that removes.
func (p *plan) take() {
	for _, d := range p.chains {
		if d.have != nil && len(d.have.rules) > 0 && (d.want == nil || d.refill) {
			p.flushChain(p.table, d.name)
		}
	}
	for _, d := range p.sets {
		if d.want != nil && len(d.del) > 0 {
			sortElements(d.del)
			p.elements(unix.NFT_MSG_DELSETELEM, p.table, d.want, d.del)
			p.stats.ElementsDeleted += len(d.del)
		}
	}
	for _, d := range p.sets {
		if d.have != nil && (d.want == nil || d.replace) {
			p.deleteSet(p.table, d.name)
		}
	}
	for _, d := range p.chains {
		if d.have != nil && (d.want == nil || d.replace) {
			p.deleteChain(p.table, d.name)
		}
	}
}

// give writes the part of the batch that adds.
func (p *plan) give() {
	p.giveChains(false)
	for i, d := range p.sets {
		if d.want == nil {
			continue
		}
		if d.have == nil || d.replace {
			p.addSet(p.table, d.want, uint32(i+1))
		}
	}
	for _, d := range p.sets {
		if d.want == nil || len(d.add) == 0 {
			continue
		}
		sortElements(d.add)
		p.stats.ElementsAdded += len(d.add)
		p.elements(unix.NFT_MSG_NEWSETELEM, p.table, d.want, d.add)
	}
	if !p.have.hooked() {
		p.filled = p.len()
	}
	p.giveRules(false)
	p.giveChains(true)
	p.giveRules(true)
}

func (p *plan) giveChains(base bool) {
	for _, d := range p.chains {
		if d.want != nil && (d.have == nil || d.replace) && (d.want.Base != nil) == base {
			p.addChain(p.table, d.want)
		}
	}
}

func (p *plan) giveRules(base bool) {
	for _, d := range p.chains {
		if d.want == nil || !d.refill || (d.want.Base != nil) != base {
			continue
		}
		p.stats.Chains++
		for i := range d.rules {
			p.addRule(p.table, d.name, &d.rules[i])
		}
	}
}

// sortElements brings the elements in the order of their keys, so that a batch and what nft(8) lists do not depend on chance.
func sortElements(es []*ruleset.Element) {
	slices.SortFunc(es, func(a, b *ruleset.Element) int { return strings.Compare(a.ID(), b.ID()) })
}
