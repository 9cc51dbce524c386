package policy

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/policy/policytest"
	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/kernel/nft"
	"weft.network/weft/appliance/ruleset"
)

const generation = 0x00000700

// lines returns the lines of a listing, sorted, without what depends on the order of elements.
func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		for part := range strings.SplitSeq(line, ", ") {
			part = strings.TrimPrefix(strings.TrimSpace(part), "elements = { ")
			if part = strings.TrimRight(part, " },\n"); part != "" {
				out = append(out, part)
			}
		}
	}
	slices.Sort(out)
	return out
}

func open(t *testing.T, ns *netnstest.NS) *nft.Backend {
	t.Helper()
	b, err := nft.Open(nft.Options{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func apply(t *testing.T, b *nft.Backend, tables []ruleset.Table) nft.Stats {
	t.Helper()
	stats, err := b.Apply(context.Background(), tables)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Rebuilt || stats.Retry != nil {
		t.Errorf("the kernel did not take the change as it was meant: %v", stats.Retry)
	}
	return stats
}

// TestKernelHoldsTheTables walks through random clusters: each step is a difference that the kernel takes, nft(8) lists what we
// print, and a daemon that starts anew finds nothing to do and keeps the identities.
func TestKernelHoldsTheTables(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns)
	for seed := range uint64(12) {
		w := policytest.New(seed + 100)
		var c policy.Compiler
		var rules ruleset.Policies
		gen := uint32(generation)
		for step := range 12 {
			gen += ruleset.PolicyStep
			in := ruleset.PolicyInput{Filters: c.Compile(w.Snap, w.In), Generation: gen, Linger: step%2 == 0}
			tables := rules.Tables(in)
			apply(t, b, tables)
			if step%4 == 3 {
				compareListing(t, ns, tables)
				restart(t, ns, w, tables, gen)
			}
			w.Change()
		}
	}
	apply(t, b, nil)
	if text := ns.Run("nft", "list", "ruleset"); strings.TrimSpace(text) != "" {
		t.Errorf("something is left:\n%s", text)
	}
}

func compareListing(t *testing.T, ns *netnstest.NS, tables []ruleset.Table) {
	t.Helper()
	for i := range tables {
		if tables[i].Empty() {
			continue
		}
		got, want := lines(ns.Run("nft", "list", "table", tables[i].Family.String(), tables[i].Name)), lines(tables[i].String())
		for j := range min(len(got), len(want)) {
			if got[j] != want[j] {
				t.Fatalf("nft lists %q, want %q", got[j], want[j])
			}
		}
		if len(got) != len(want) {
			t.Errorf("nft lists %d lines, want %d", len(got), len(want))
		}
	}
}

// restart does what a daemon does that finds the tables in the kernel.
func restart(t *testing.T, ns *netnstest.NS, w *policytest.World, tables []ruleset.Table, gen uint32) {
	t.Helper()
	b := open(t, ns)
	var rules ruleset.Policies
	var found ruleset.Inherited
	for _, shape := range ruleset.PolicyShape() {
		elements, err := b.Elements(shape)
		if err != nil {
			t.Fatal(err)
		}
		rules.Inherit(shape.Family, elements, &found)
	}
	if tables[0].Empty() && tables[1].Empty() {
		return
	}
	if found.Generation != gen {
		t.Errorf("generation %#x, want %#x", found.Generation, gen)
	}
	var c policy.Compiler
	c.Adopt(found.IDs, found.Last)
	in := ruleset.PolicyInput{Filters: c.Compile(w.Snap, w.In), Generation: found.Generation}
	if n, err := b.Differs(rules.Keep(in, nil)); err != nil || n != 0 {
		t.Errorf("what was inherited differs from the kernel in %d messages: %v", n, err)
	}
	held := map[netip.Addr]policy.ID{}
	for _, s := range in.Filters.Peers {
		if s != nil {
			for a, p := range s.Peers {
				held[a] = p.Class.ID
			}
		}
	}
	for a, id := range found.IDs {
		if now, ok := held[a]; ok && now != id {
			t.Errorf("%s has identity %d, and had %d", a, now, id)
		}
	}
}

// TestScale sizes what one node of a large cluster holds.
func TestScale(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns)
	snap, in := policytest.Large(1000, 5000, 110)
	var c policy.Compiler
	var rules ruleset.Policies
	filters := c.Compile(snap, in)
	tables := rules.Tables(ruleset.PolicyInput{Filters: filters, Generation: generation})
	stats := apply(t, b, tables)
	t.Logf("%d own addresses, %d classes, cold: %+v", len(filters.Own), len(filters.Classes), stats)
	if stats.ElementsAdded < 5000 {
		t.Errorf("only %d elements", stats.ElementsAdded)
	}
	if stats := apply(t, b, rules.Tables(ruleset.PolicyInput{Filters: c.Compile(snap, in), Generation: generation})); stats.Messages != 0 {
		t.Errorf("the second time changed something: %+v", stats)
	}
	if text, err := ns.Try("nft", "list", "ruleset"); err != nil {
		t.Errorf("nft cannot list it: %v: %.200s", err, text)
	}
}
