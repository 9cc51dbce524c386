package nft

import (
	"fmt"
	"slices"

	"weft.network/weft/appliance/ruleset"
)

// ReadBack returns the table as the kernel has it, for tools that want to know what packets meet, and what differs from the one
// that is wanted; nothing is changed. Rules are known by their hash: a chain whose rules are not those that are wanted is
// named among the differences and has none in the copy. A table that the kernel does not have comes back empty.
func (b *Backend) ReadBack(want ruleset.Table) (ruleset.Table, []string, error) {
	k := known{}
	if err := b.read(&k, &want); err != nil {
		return ruleset.Table{}, nil, err
	}
	have := ruleset.Table{Family: want.Family, Name: want.Name, Comment: want.Comment}
	if k.state == nil {
		if want.Empty() {
			return have, nil, nil
		}
		return have, []string{fmt.Sprintf("table %s is not in the kernel", want.ID())}, nil
	}
	var differ []string
	note := func(format string, a ...any) {
		differ = append(differ, fmt.Sprintf("table %s: ", want.ID())+fmt.Sprintf(format, a...))
	}
	if k.state.dormant {
		note("it is dormant, so no packet meets it")
	}
	for _, c := range want.Chains {
		is, err := readChain(want.Family, c, k.state.chains[c.Name], note)
		if err != nil {
			return have, nil, err
		}
		if is != nil {
			have.Chains = append(have.Chains, is)
		}
	}
	for _, name := range sortedNames(k.state.chains) {
		if want.Chain(name) == nil && !want.Partial {
			note("chain %s is not one of weft's", name)
		}
	}
	for _, s := range want.Sets {
		if is := readSet(s, k.state.sets[s.Name], note); is != nil {
			have.Sets = append(have.Sets, is)
		}
	}
	for _, name := range sortedNames(k.state.sets) {
		if want.Set(name) == nil && !want.Partial {
			note("set %s is not one of weft's", name)
		}
	}
	return have, differ, nil
}

func readChain(f ruleset.Family, want *ruleset.Chain, have *chainState, note func(string, ...any)) (*ruleset.Chain, error) {
	if have == nil {
		note("chain %s is missing", want.Name)
		return nil, nil
	}
	d := chainDiff{want: want}
	if err := d.encode(f); err != nil {
		return nil, err
	}
	same := have.spec == chainSpec(want) && slices.EqualFunc(d.rules, have.rules, func(r rule, hash uint64) bool { return r.hash == hash })
	if same {
		return want, nil
	}
	note("chain %s has other rules (%d) than weft's (%d)", want.Name, len(have.rules), len(want.Rules))
	is := *want
	is.Rules = nil
	return &is, nil
}

// maxDifferences is how many elements of one set are named.
const maxDifferences = 5

func readSet(want *ruleset.Set, have *setState, note func(string, ...any)) *ruleset.Set {
	if have == nil || have.head != headOf(want) {
		note("set %s is missing, or of another kind", want.Name)
		return nil
	}
	is := *want
	elements := make([]ruleset.Element, 0, len(have.index))
	for _, s := range have.index {
		elements = append(elements, *s.element)
	}
	is.Blocks = ruleset.Single(elements...)
	wanted := map[string]bool{}
	var missing, foreign []string
	for _, e := range want.Sorted() {
		wanted[e.ID()] = true
		switch s := have.index[e.ID()]; {
		case s.element == nil:
			missing = append(missing, want.ElementText(e))
		case s.element.Data != e.Data || s.element.Verdict != e.Verdict:
			missing = append(missing, want.ElementText(e))
			foreign = append(foreign, want.ElementText(s.element))
		}
	}
	for id, s := range have.index {
		if !wanted[id] {
			foreign = append(foreign, want.ElementText(s.element))
		}
	}
	slices.Sort(foreign)
	report := func(what string, list []string) {
		for i, text := range list {
			if i == maxDifferences {
				note("set %s %s %d more", want.Name, what, len(list)-i)
				return
			}
			note("set %s %s %s", want.Name, what, text)
		}
	}
	report("lacks", missing)
	report("has too much:", foreign)
	return &is
}

func sortedNames[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
