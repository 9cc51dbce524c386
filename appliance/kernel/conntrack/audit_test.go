package conntrack

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"weft.network/weft/appliance/kernel/netnstest"
)

// What is found by a look through the table is what is forgotten, and nothing else.
func TestFindUDP(t *testing.T) {
	ns := netnstest.New(t)
	fill(t, ns, entries)
	table := Open(ns.FD())
	all, err := table.FindUDP(context.Background(), func(Seen) bool { return true })
	if err != nil || len(all) != 5 {
		t.Fatalf("%d UDP connections, want 5 (%v): %+v", len(all), err, all)
	}
	gone := netip.MustParseAddrPort("10.42.0.7:53")
	found, err := table.FindUDP(context.Background(), func(s Seen) bool { return s.Backend == gone })
	if err != nil || len(found) != 2 {
		t.Fatalf("found %+v, %v, want two", found, err)
	}
	if found[0].Dst == found[1].Dst || found[0].Src == found[0].Dst {
		t.Errorf("found %+v", found)
	}
	for _, want := range []int{2, 0} { // the second time they are not there any more
		if n, err := table.Remove(context.Background(), found); err != nil || n != want {
			t.Errorf("removed %d, %v, want %d", n, err, want)
		}
	}
	if got, want := left(t, ns, entries), []string{"dns to b", "dns to nobody", "dns over tcp", "dns, IPv6", "sctp"}; !slices.Equal(got, want) {
		t.Errorf("left are %v, want %v", got, want)
	}
}
