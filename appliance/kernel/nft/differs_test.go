package nft

import (
	"context"
	"net/netip"
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
