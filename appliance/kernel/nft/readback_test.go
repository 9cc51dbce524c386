package nft

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"weft.network/weft/appliance/ruleset"
)

// What is read back is what was applied, and what somebody did to it is named; nothing is repaired.
func TestReadBack(t *testing.T) {
	ns, b := open(t)
	table, _ := ruleset.Fabric(ruleset.FabricInput{PodRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Masquerade: true})
	have, differ, err := b.ReadBack(table)
	if err != nil || !have.Empty() || len(differ) != 1 || !strings.Contains(differ[0], "not in the kernel") {
		t.Fatalf("before: %v %v %v", have, differ, err)
	}
	if _, err := b.Apply(context.Background(), []ruleset.Table{table}); err != nil {
		t.Fatal(err)
	}
	if have, differ, err = b.ReadBack(table); err != nil || differ != nil || have.String() != table.String() {
		t.Errorf("after: %v %v, read back\n%s", differ, err, have.String())
	}
	for _, tc := range []struct{ command, want string }{
		{"nft add element inet weft pod_ranges4 '{ 10.9.0.0/24 }'", "set pod_ranges4 has too much: 10.9.0.0/24"},
		{"nft delete element inet weft pod_ranges4 '{ 10.0.0.0/24 }'", "set pod_ranges4 lacks 10.0.0.0/24"},
		{"nft flush chain inet weft from_pod", "chain from_pod has other rules (0) than weft's"},
		{"nft insert rule inet weft guard accept", "chain guard has other rules"},
		{"nft add chain inet weft mine", "chain mine is not one of weft's"},
		{"nft add set inet weft theirs '{ type mark; }'", "set theirs is not one of weft's"},
		{"nft delete chain inet weft postrouting", "chain postrouting is missing"},
	} {
		ns.Run("sh", "-c", tc.command)
		have, differ, err := b.ReadBack(table)
		if text := strings.Join(differ, "\n"); err != nil || !strings.Contains(text, tc.want) {
			t.Errorf("after %q: %v, %s, want %q", tc.command, err, text, tc.want)
		}
		if c := have.Chain("from_pod"); strings.Contains(tc.command, "flush") && (c == nil || len(c.Rules) != 0) {
			t.Errorf("the copy has rules that the kernel has not: %+v", c)
		}
	}
}
