package appliance

import (
	"net/netip"
	"slices"
	"testing"

	"weft.network/weft/appliance/compile/lb"
)

// TestGoOn: a node that starts again answers for what it answered for, whatever an older picture says.
func TestGoOn(t *testing.T) {
	addr := netip.MustParseAddr
	stored := []lb.Announcement{
		{Addr: addr("192.0.2.10"), L2: true, Nodes: []string{"a", "b"}}, // held, and known
		{Addr: addr("192.0.2.11"), L2: true, Nodes: []string{"b"}},      // held: an endpoint came to this node after the picture
		{Addr: addr("192.0.2.12"), L2: true, Nodes: []string{"a", "b"}}, // let go after the picture
	}
	held := map[string][]netip.Addr{"eth0": {addr("192.0.2.10"), addr("192.0.2.11"), addr("192.0.2.13")}} // the last is new
	got := map[netip.Addr][]string{}
	for _, an := range goOn(stored, held, "a") {
		if !an.L2 || !slices.Equal(an.Interfaces, []string{"eth0"}) {
			t.Errorf("%s is announced as %+v", an.Addr, an)
		}
		got[an.Addr] = an.Nodes
	}
	want := map[netip.Addr][]string{addr("192.0.2.10"): {"a", "b"}, addr("192.0.2.11"): {"a"}, addr("192.0.2.13"): {"a"}}
	if len(got) != len(want) {
		t.Errorf("announced %v, want %v", got, want)
	}
	for a, nodes := range want {
		if !slices.Equal(got[a], nodes) {
			t.Errorf("%s: nodes %v, want %v", a, got[a], nodes)
		}
	}
}
