package policy_test

import (
	"testing"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/policy/policytest"
)

func check(t testing.TB, w *policytest.World, f *policy.Filters, packets int) {
	t.Helper()
	j := &policy.Judge{Snapshot: w.Snap, Input: w.In, NodeAddresses: policytest.NodeAddrs}
	for range packets {
		p := w.Packet()
		v := j.Verdict(p)
		if !w.Crosses(p) {
			if !v.Allowed {
				t.Fatalf("%+v: with the node itself Pods talk freely: %s", p, v.Why)
			}
			continue
		}
		if got := f.Passes(p); got != v.Allowed {
			t.Fatalf("%+v passes %v, want %v: %s\nfilters %+v %+v", p, got, v.Allowed, v.Why, f.Own[p.Src], f.Own[p.Dst])
		}
	}
	for _, own := range f.Own {
		for _, a := range own.Directions {
			if a != nil {
				disjoint(t, a)
			}
		}
	}
}

// disjoint checks what the sets of the kernel demand: no two ranges overlap.
func disjoint(t testing.TB, a *policy.Allowed) {
	t.Helper()
	all := []policy.RangePorts{}
	for _, n := range a.Nets {
		all = append(all, policy.RangePorts{Range: n, Ports: policy.Ports{Protocol: 0, Last: 65535}})
	}
	all = append(all, a.Blocks...)
	for i, x := range all {
		if x.To.Less(x.From) || x.Last < x.First {
			t.Fatalf("a range ends before it begins: %+v", x)
		}
		for _, y := range all[i+1:] {
			apart := x.To.Less(y.From) || y.To.Less(x.From)
			if !apart && (x.Protocol == 0 || y.Protocol == 0 || x.Protocol == y.Protocol && x.First <= y.Last && y.First <= x.Last) {
				t.Fatalf("%+v and %+v overlap", x, y)
			}
		}
	}
	for i, x := range a.Ports {
		for _, y := range a.Ports[i+1:] {
			if x.Peer == y.Peer && x.Protocol == y.Protocol && x.First <= y.Last && y.First <= x.Last {
				t.Fatalf("%+v and %+v overlap", x, y)
			}
		}
	}
}
