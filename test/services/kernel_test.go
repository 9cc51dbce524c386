package services

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/kernel/nft"
	"weft.network/weft/appliance/ruleset"
)

// lines returns the lines of a listing, sorted, without what depends on the order of elements: nft(8) lists ranges over
// several fields in the kernel's order.
func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		line = strings.TrimPrefix(line, "elements = { ")
		out = append(out, strings.TrimRight(line, " },\n"))
	}
	slices.Sort(out)
	return out
}

// TestKernelHoldsTheMatrix applies the table of all features, again, after a restart, and back to nothing.
func TestKernelHoldsTheMatrix(t *testing.T) {
	ns, b := openKernel(t)
	snap, _ := generate()
	table := compileAll(t, snap)
	ctx := context.Background()
	apply := func(b *nft.Backend, tables ...ruleset.Table) nft.Stats {
		t.Helper()
		stats, err := b.Apply(ctx, tables)
		if err != nil {
			t.Fatal(err)
		}
		return stats
	}
	t.Logf("cold: %+v", apply(b, table))
	if stats := apply(b, compileAll(t, snap)); stats.Messages != 0 {
		t.Errorf("the second time changed something: %+v", stats)
	}
	got, want := lines(ns.Run("nft", "list", "table", "inet", ruleset.ServiceTable)), lines(table.String())
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("nft lists %q, want %q", got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Errorf("nft lists %d lines, want %d", len(got), len(want))
	}

	restarted, err := nft.Open(nft.Options{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer restarted.Close()
	if stats := apply(restarted, compileAll(t, snap)); stats.Messages != 0 || !stats.Read {
		t.Errorf("a restart changed something: %+v", stats)
	}
	// The last Service of each kind takes its sets and chains along.
	var c service.Compiler
	var rules ruleset.Services
	for n := len(snap.Services); n > 0; {
		next := *snap
		next.Services = maps.Clone(snap.Services)
		for name := range next.Services {
			if delete(next.Services, name); len(next.Services) < 10 || len(next.Services)%50 == 0 {
				break
			}
		}
		snap, n = &next, len(next.Services)
		table = rules.Table(ruleset.ServicesInput{Frontends: c.Compile(snap, this).Frontends, PodRanges: podRanges})
		apply(restarted, table)
		if n == 100 {
			restarted.Invalidate()
			if stats := apply(restarted, table); stats.Messages != 0 {
				t.Errorf("what was read back differs: %+v", stats)
			}
		}
	}
	if out, err := ns.Try("nft", "list", "table", "inet", ruleset.ServiceTable); err == nil {
		t.Errorf("after the last Service the table is still there:\n%s", out)
	}
}
