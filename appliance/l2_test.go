package appliance

import (
	"net/netip"
	"slices"
	"testing"

	"weft.network/weft/appliance/model"
)

// TestGoOn: a node that starts again answers for what it answered for, and for nothing else, whatever an older picture says; and it
// waits for every other node before it believes that it knows all who live.
func TestGoOn(t *testing.T) {
	held := map[string][]netip.Addr{"eth0": {netip.MustParseAddr("192.0.2.10")}, "eth1": {netip.MustParseAddr("192.0.2.13")}}
	snap := &model.Snapshot{Nodes: map[string]*model.Node{"c": {Name: "c"}, "b": {Name: "b"}}}
	got := goOn(held, snap, "b")
	if len(got) != 2 {
		t.Fatalf("announced %+v", got)
	}
	for _, an := range got {
		if !an.L2 || len(an.Interfaces) != 1 || !slices.Equal(held[an.Interfaces[0]], []netip.Addr{an.Addr}) || !slices.Equal(an.Nodes, []string{"b", "c"}) {
			t.Errorf("%s is announced as %+v", an.Addr, an)
		}
	}
	if got := goOn(held, nil, "b"); len(got) != 2 || !slices.Equal(got[0].Nodes, []string{"b"}) {
		t.Errorf("without a picture: %+v", got)
	}
}
