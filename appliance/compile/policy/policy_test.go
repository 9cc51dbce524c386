package policy_test

import (
	"net/netip"
	"reflect"
	"testing"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/policy/policytest"
	"weft.network/weft/appliance/model"
)

// TestAgainstJudge compares, for random clusters that change step by step, what the data lets pass with what the policies say.
func TestAgainstJudge(t *testing.T) {
	worlds, steps, packets := 1500, 8, 160
	if testing.Short() {
		worlds = 300
	}
	for seed := range uint64(worlds) {
		w := policytest.New(seed)
		var c policy.Compiler
		var last *policy.Filters
		var before *policy.Judge
		for range steps {
			f := c.Compile(w.Snap, w.In)
			if again := c.Compile(w.Snap, w.In); again != f {
				t.Fatalf("seed %d: the same input gives another outcome", seed)
			}
			check(t, w, f, packets)
			fresh := (&policy.Compiler{}).Compile(w.Snap, w.In)
			check(t, w, fresh, packets/8)
			if len(fresh.Own) != len(f.Own) {
				t.Fatalf("seed %d: %d filters, fresh %d", seed, len(f.Own), len(fresh.Own))
			}
			checkTightened(t, w, before, last, f)
			last, before = f, &policy.Judge{Snapshot: w.Snap, Input: w.In}
			w.Change()
		}
	}
}

// checkTightened: where nothing was taken away, all that passed between the same Pods before passes now.
func checkTightened(t *testing.T, w *policytest.World, before *policy.Judge, old, now *policy.Filters) {
	t.Helper()
	if old == nil || policy.Tightened(old, now) {
		return
	}
	after := &policy.Judge{Snapshot: w.Snap, Input: w.In}
	var same []netip.Addr
	for i := range byte(16) {
		a := netip.AddrFrom4([4]byte{10, 1, 0, i})
		was, had := old.Attached[a]
		is, has := now.Attached[a]
		if had == has && was == is && before.Name(a) == after.Name(a) {
			same = append(same, a)
		}
	}
	for _, src := range same {
		for _, dst := range same {
			for _, p := range []policy.Packet{{Src: src, Dst: dst, Proto: model.TCP, Port: 80}, {Src: src, Dst: dst, Proto: model.TCP, Port: 53}, {Src: src, Dst: dst, Proto: model.UDP, Port: 80}, {Src: src, Dst: dst, Proto: 1, Port: 0}} {
				if old.Passes(p) && !now.Passes(p) {
					t.Fatalf("%+v from %s to %s is denied now, and nobody noticed that something was taken away", p, after.Name(src), after.Name(dst))
				}
			}
		}
	}
}

func FuzzAgainstJudge(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) {
		w := policytest.New(seed)
		var c policy.Compiler
		for range 4 {
			check(t, w, c.Compile(w.Snap, w.In), 200)
			w.Change()
		}
	})
}

// TestUnchangedPointers: what a change does not touch stays the same.
func TestUnchangedPointers(t *testing.T) {
	for seed := range uint64(200) {
		w := policytest.New(seed)
		var c policy.Compiler
		before := c.Compile(w.Snap, w.In)
		w.Change()
		after := c.Compile(w.Snap, w.In)
		for addr, f := range after.Own {
			if old := before.Own[addr]; old != nil && old != f && reflect.DeepEqual(old, f) {
				t.Fatalf("seed %d: the filter of %s was made anew", seed, addr)
			}
		}
		for i, s := range after.Peers {
			if old := before.Peers[i]; old != nil && s != nil && old != s && reflect.DeepEqual(old.Peers, s.Peers) {
				same := true
				for a, p := range s.Peers {
					same = same && old.Peers[a].Class == p.Class
				}
				if same {
					t.Fatalf("seed %d: shard %d was made anew", seed, i)
				}
			}
		}
	}
}
