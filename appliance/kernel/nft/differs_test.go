package nft

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/ruleset"
)

// Differs counts what somebody else changed, and changes nothing itself.
func TestDiffers(t *testing.T) {
	ns := netnstest.New(t)
	b, err := Open(Options{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	table, _ := ruleset.Fabric(ruleset.FabricInput{PodRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Masquerade: true})
	want := []ruleset.Table{table}
	if _, err := b.Apply(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		command string
		differs bool
	}{
		{"nft list ruleset", false},
		{"nft flush chain inet weft from_pod", true},
		{"nft list ruleset", true}, // still: nothing was repaired
	} {
		ns.Run("sh", "-c", tc.command)
		n, err := b.Differs(want)
		if err != nil || (n > 0) != tc.differs {
			t.Errorf("after %q: %d messages, %v; want a difference: %t", tc.command, n, err, tc.differs)
		}
	}
}

// A table that somebody has switched off is found, told, and switched on again.
func TestDormant(t *testing.T) {
	ns, b := open(t)
	table, _ := ruleset.Fabric(ruleset.FabricInput{PodRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Masquerade: true})
	want := []ruleset.Table{table}
	apply := func() Stats {
		t.Helper()
		stats, err := b.Apply(context.Background(), want)
		if err != nil {
			t.Fatal(err)
		}
		return stats
	}
	apply()
	ns.Run("nft", "add table inet weft { flags dormant; }")
	if _, differ, err := b.ReadBack(table); err != nil || len(differ) != 1 || !strings.Contains(differ[0], "dormant") {
		t.Errorf("read back: %v %v", differ, err)
	}
	b.Invalidate()
	if apply(); strings.Contains(ns.Run("nft", "list", "table", "inet", "weft"), "dormant") {
		t.Error("the table still sleeps")
	}
	b.Invalidate()
	if stats := apply(); stats.Messages != 0 {
		t.Errorf("awake, and again %d messages", stats.Messages)
	}
}
