package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/policy/policytest"
)

// passes evaluates filters as the rules in the kernel do: by data alone.
func passes(f *policy.Filters, p policy.Packet) bool {
	if p.Src == p.Dst {
		return true
	}
	if own := f.Own[p.Src]; own != nil && !allows(own.Directions[policy.Egress], f, p.Dst, p) {
		return false
	}
	own := f.Own[p.Dst]
	return own == nil || allows(own.Directions[policy.Ingress], f, p.Src, p)
}

func allows(a *policy.Allowed, f *policy.Filters, peer netip.Addr, p policy.Packet) bool {
	if a == nil || a.Audit {
		return true
	}
	in := func(q policy.Ports) bool {
		return q.Protocol == p.Proto && q.First <= p.Port && p.Port <= q.Last
	}
	if s := f.Peers[policy.ShardOf(peer)]; s != nil {
		if who, ok := s.Peers[peer]; ok {
			id := who.Class.ID
			if a.Pods || slices.Contains(a.Any, id) || slices.ContainsFunc(a.PodPorts, in) ||
				slices.ContainsFunc(a.Ports, func(q policy.PeerPorts) bool { return q.Peer == id && in(q.Ports) }) {
				return true
			}
		}
	}
	within := func(r policy.Range) bool { return !peer.Less(r.From) && !r.To.Less(peer) }
	return slices.ContainsFunc(a.Nets, within) || slices.ContainsFunc(a.Blocks, func(b policy.RangePorts) bool { return within(b.Range) && in(b.Ports) })
}

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
		if got := passes(f, p); got != v.Allowed {
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
