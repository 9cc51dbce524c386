package policy_test

import (
	"reflect"
	"testing"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/policy/policytest"
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
			checkTightened(t, w, last, f)
			last = f
			w.Change()
		}
	}
}

// checkTightened: where nothing was taken away, all that passed before passes now.
func checkTightened(t *testing.T, w *policytest.World, old, now *policy.Filters) {
	t.Helper()
	if old == nil || policy.Tightened(old, now) {
		return
	}
	for range 100 {
		p := w.Packet()
		if sameEnds(old, now, p) && old.Passes(p) && !now.Passes(p) {
			t.Fatalf("%+v is denied now, and nobody noticed that something was taken away", p)
		}
	}
}

// sameEnds says whether both ends are the same Pods as before, as far as this node can tell, so that a flow may run.
func sameEnds(old, now *policy.Filters, p policy.Packet) bool {
	src, isSrc := old.Attached[p.Src]
	dst, isDst := old.Attached[p.Dst]
	return isSrc && isDst && now.Attached[p.Src] == src && now.Attached[p.Dst] == dst
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
