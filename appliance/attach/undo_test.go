package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"weft.network/weft/appliance/ipam"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/store"
)

var steps = []string{"OpenNS", "Guard", "AddPod", "SetBandwidth", "store.Write", "SyncPorts", "DelPod"}

// full is an ADD that needs every step.
func (r *rig) full(container, pod string) Request {
	req := r.request(container, pod)
	req.Ports = []model.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: model.TCP}}
	req.Bandwidth = model.Bandwidth{IngressRate: 8e6, IngressBurst: 8e5, EgressRate: 8e6, EgressBurst: 8e5}
	return req
}

// TestUndo fails each step of an ADD in turn and looks for leftovers; then the retry must work.
func TestUndo(t *testing.T) {
	ctx := context.Background()
	fired := map[string]int{}
	for _, kind := range []model.LeaseKind{model.LeasePod, model.LeaseIPAM} {
		for _, step := range steps {
			for n := 1; ; n++ {
				r := newRig(t, "10.1.0.0/28", "fd01::/64")
				req := r.full("c1", "p1")
				req.Kind = kind
				r.plan(step, n)
				_, err := r.a.Add(ctx, req)
				if r.fired == 0 {
					if err != nil {
						t.Fatalf("%s %s %d: nothing failed, but %v", kind, step, n, err)
					}
					break
				}
				fired[step]++
				if !errors.Is(err, errInjected) {
					t.Errorf("%s %s %d: want the injected failure, got %v", kind, step, n, err)
				}
				if left := r.leftovers(); len(left) > 0 {
					t.Errorf("%s %s %d: left %v", kind, step, n, left)
				}
				r.plan("", 0)
				if res, err := r.a.Add(ctx, req); err != nil || res.Lease.Addresses[0] != netip.MustParseAddr("10.1.0.2") {
					t.Errorf("%s %s %d: retry: %v %v", kind, step, n, res.Lease, err)
				}
			}
		}
	}
	for step, want := range map[string]int{"OpenNS": 1, "Guard": 2, "AddPod": 1, "SetBandwidth": 1, "store.Write": 4, "SyncPorts": 2, "DelPod": 0} {
		if fired[step] != want {
			t.Errorf("%s failed %d times, want %d: an ADD has other steps than this test thinks", step, fired[step], want)
		}
	}
}

// TestUndoFails fails a step of ADD and one of its undoing: a DEL afterwards must clean up, now or after a restart.
func TestUndoFails(t *testing.T) {
	ctx := context.Background()
	for _, restart := range []bool{false, true} {
		for _, step := range steps[1:6] {
			for _, second := range append(steps[4:], "everything") {
				name := fmt.Sprintf("%s then %s, restart %t", step, second, restart)
				r := newRig(t, "10.1.0.0/28", "fd01::/64")
				r.plan(step, 1)
				r.nth[second] = -1
				if second == "everything" {
					for _, s := range steps[4:] {
						r.nth[s] = -1
					}
				}
				if step == "store.Write" {
					r.nth["store.Write"] = 2 // the host ports: the lease is there
				}
				if _, err := r.a.Add(ctx, r.full("c1", "p1")); err == nil {
					t.Errorf("%s: no error", name)
				}
				r.plan("", 0)
				if restart {
					r.restart()
				}
				if err := r.a.Del(ctx, keyOf("weft", "c1"), model.LeasePod); err != nil {
					t.Errorf("%s: DEL: %v", name, err)
				}
				if restart { // what the daemon does at its start
					_ = r.node.SyncPorts(ctx, r.a.HostPorts())
				}
				if left := r.leftovers(); len(left) > 0 {
					t.Errorf("%s: left %v", name, left)
				}
			}
		}
	}
}

// TestDelFails fails each step of a DEL in turn: what is not gone is still known, and the next DEL finishes.
func TestDelFails(t *testing.T) {
	ctx := context.Background()
	total := 0
	for _, step := range steps {
		for n := 1; ; n++ {
			r := newRig(t, "10.1.0.0/28", "fd01::/64")
			res, err := r.a.Add(ctx, r.full("c1", "p1"))
			if err != nil {
				t.Fatal(err)
			}
			r.plan(step, n)
			err = r.a.Del(ctx, keyOf("weft", "c1"), model.LeasePod)
			if r.fired == 0 {
				break
			}
			total++
			if !errors.Is(err, errInjected) {
				t.Errorf("%s %d: want the injected failure, got %v", step, n, err)
			}
			r.plan("", 0)
			other := r.request("c2", "p2")
			other.Want = res.Lease.Addresses[:1]
			if _, err := r.a.Add(ctx, other); err == nil {
				// The address of a lease that is not gone may only be had by taking that lease down first.
				if leases := r.a.Leases(); len(leases) != 1 || leases[0].ContainerID != "c2" {
					t.Errorf("%s %d: two leases with %s", step, n, other.Want)
				}
				_ = r.a.Del(ctx, other.Key, model.LeasePod)
			}
			if err := r.a.Del(ctx, keyOf("weft", "c1"), model.LeasePod); err != nil {
				t.Errorf("%s %d: again: %v", step, n, err)
			}
			if left := r.leftovers(); len(left) > 0 {
				t.Errorf("%s %d: left %v", step, n, left)
			}
		}
	}
	if total < 4 {
		t.Errorf("only %d failures: DEL has fewer steps than this test thinks", total)
	}
}

// TestPortmapUndo is the same for the host ports of another plugin's interface.
func TestPortmapUndo(t *testing.T) {
	ctx := context.Background()
	hp := &model.HostPorts{AttachmentKey: keyOf("other", "c1"), Addresses: []netip.Addr{netip.MustParseAddr("10.5.0.2")}, Mappings: mappings("80:80/tcp")}
	for _, step := range []string{"store.Write", "SyncPorts"} {
		r := newRig(t, "10.1.0.0/28")
		r.plan(step, 1)
		if err := r.a.SetPorts(ctx, hp); !errors.Is(err, errInjected) {
			t.Errorf("%s: %v", step, err)
		}
		if left := r.leftovers(); len(left) > 0 {
			t.Errorf("%s: left %v", step, left)
		}
		if err := r.a.SetPorts(ctx, hp); err != nil {
			t.Fatal(err)
		}
		if err := r.a.CheckPorts(ctx, hp); err != nil {
			t.Error(err)
		}
		r.plan(step, 1)
		if err := r.a.ClearPorts(ctx, hp.AttachmentKey); !errors.Is(err, errInjected) {
			t.Errorf("%s: %v", step, err)
		}
		for range 2 {
			if err := r.a.ClearPorts(ctx, hp.AttachmentKey); err != nil {
				t.Error(err)
			}
		}
		if left := r.leftovers(); len(left) > 0 {
			t.Errorf("%s: left %v", step, left)
		}
	}
}

// TestCallerGoes ends the caller's context at every step: the result is all or nothing.
func TestCallerGoes(t *testing.T) {
	for _, step := range steps[:6] {
		r := newRig(t, "10.1.0.0/28", "fd01::/64")
		ctx, cancel := context.WithCancel(context.Background())
		r.node.pods[podRef("p1")] = nil
		r.plan(step, 1)
		cancel()
		if _, err := r.a.Add(ctx, r.full("c1", "p1")); err == nil {
			t.Errorf("%s: no error", step)
		}
		if left := r.leftovers(); len(left) > 0 {
			t.Errorf("%s: left %v", step, left)
		}
	}
}

// TestParallel adds 50 at once, then deletes and repeats in between, as a node that drains and fills does.
func TestParallel(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, "10.1.0.0/24", "fd01::/64")
	const n = 50
	var wg sync.WaitGroup
	got := make([]Result, n)
	for i := range n {
		req := r.request(fmt.Sprintf("c%d", i), fmt.Sprintf("p%d", i))
		wg.Go(func() {
			var err error
			if got[i], err = r.a.Add(ctx, req); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[netip.Addr]int{}
	for i, res := range got {
		for _, addr := range res.Lease.Addresses {
			if j, twice := seen[addr]; twice {
				t.Errorf("%s was given to c%d and c%d", addr, i, j)
			}
			seen[addr] = i
		}
	}
	if len(seen) != 2*n {
		t.Errorf("%d addresses, want %d", len(seen), 2*n)
	}
	for i := range n {
		for _, again := range []bool{i%2 == 0, false} {
			req := r.request(fmt.Sprintf("c%d", i), fmt.Sprintf("p%d", i))
			wg.Go(func() {
				if again {
					_, _ = r.a.Add(ctx, req)
				}
				if err := r.a.Del(ctx, req.Key, model.LeasePod); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for i := range n {
		if err := r.a.Del(ctx, keyOf("weft", fmt.Sprintf("c%d", i)), model.LeasePod); err != nil {
			t.Error(err)
		}
	}
	if left := r.leftovers(); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// TestOneKey lets ADD and DEL of one attachment run against each other: whoever is last decides, and it is whole.
func TestOneKey(t *testing.T) {
	ctx := context.Background()
	for range 20 {
		r := newRig(t, "10.1.0.0/28")
		req := r.full("c1", "p1")
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				if i%3 == 0 {
					if err := r.a.Del(ctx, req.Key, model.LeasePod); err != nil {
						t.Error(err)
					}
				} else if res, err := r.a.Add(ctx, req); err != nil || len(res.Lease.Addresses) != 1 {
					t.Error(res, err)
				}
			})
		}
		wg.Wait()
		if len(r.a.Leases()) == 1 {
			if _, err := r.do([]string{"check", "c1"}); err != nil {
				t.Errorf("half an attachment: %v; %v", err, r.leftovers())
			}
		} else if left := r.leftovers(); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	}
}

// TestWait ends the wait for another call of the same attachment with the context.
func TestWait(t *testing.T) {
	r := newRig(t, "10.1.0.0/28")
	unlock, err := r.a.lock(context.Background(), keyOf("weft", "c1"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.a.Del(ctx, keyOf("weft", "c1"), model.LeasePod); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	unlock()
	if err := r.a.Del(context.Background(), keyOf("weft", "c1"), model.LeasePod); err != nil {
		t.Error(err)
	}
}

// TestTwoLeasesOneAddress is a store that should not be: the older one keeps the address, and when it goes the other has it.
func TestTwoLeasesOneAddress(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, "10.1.0.0/28")
	for i, name := range []string{"old", "young"} {
		l := &model.Lease{AttachmentKey: keyOf("weft", name), Kind: model.LeasePod, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.2")}, Created: int64(i), HostIf: "weftp" + name}
		if err := r.store.Write(ctx, store.PutLease(l)); err != nil {
			t.Fatal(err)
		}
	}
	r.restart()
	want := func(who string) {
		t.Helper()
		req := r.request("c3", "p3")
		req.Want = []netip.Addr{netip.MustParseAddr("10.1.0.2")}
		req.Kind = model.LeaseIPAM // does not bury anybody
		req.Ranges = r.node.facts.Ranges
		_, err := r.a.pick(ctx, req, req.Ranges, req.Ranges)
		var taken *ipam.UnavailableError
		if !errors.As(err, &taken) || taken.Why != "it is held by weft/"+who+"/eth0" {
			t.Errorf("got %v, want it to be held by %s", err, who)
		}
	}
	want("old")
	if err := r.a.Del(ctx, keyOf("weft", "old"), model.LeasePod); err != nil {
		t.Fatal(err)
	}
	want("young")
}

// TestReload compares what a new attacher knows with what the old one knew.
func TestReload(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, "10.1.0.0/24", "fd01::/64")
	for i := range 20 {
		req := r.request(fmt.Sprintf("c%d", i), fmt.Sprintf("p%d", i))
		if i%3 == 0 {
			req.Ports = mappings(fmt.Sprintf("%d:80/tcp", 8000+i))
		}
		if i%4 == 0 {
			r.options(&req, []string{"net=other", "range=10.5.0.0/24"})
			req.Kind = model.LeaseIPAM
		}
		if _, err := r.a.Add(ctx, req); err != nil {
			t.Fatal(err)
		}
		if i%5 == 0 {
			if err := r.a.Del(ctx, req.Key, req.Kind); err != nil {
				t.Fatal(err)
			}
		}
	}
	see := func() string {
		total, held, cooling := r.a.Usage()
		return fmt.Sprint(r.view("leases"), r.view("ports"), total, held, cooling)
	}
	before := see()
	r.restart()
	if after := see(); after != before {
		t.Errorf("before %s\nafter  %s", before, after)
	}
}

// TestGuard: when the link comes up, whoever enforces policies knows the address, and not only after ADD; when it is gone they hear
// of that, too.
func TestGuard(t *testing.T) {
	ctx := context.Background()
	r := newRig(t, "10.1.0.0/28", "fd01::/64")
	guarded := 0
	r.node.guard = func() error {
		for _, l := range r.a.Guarded() {
			if l.Pod.Name == "p1" && len(l.Addresses) == 2 {
				guarded++
			}
		}
		if len(r.kernel.links) > 0 {
			t.Error("the link came up before its policies")
		}
		return nil
	}
	if _, err := r.a.Add(ctx, r.request("c1", "p1")); err != nil {
		t.Fatal(err)
	}
	if guarded != 1 || len(r.a.Guarded()) != 1 || r.node.freed.Load() != 0 {
		t.Errorf("guarded %d times, %d are known, %d went", guarded, len(r.a.Guarded()), r.node.freed.Load())
	}
	if err := r.a.Del(ctx, r.request("c1", "p1").Key, model.LeasePod); err != nil {
		t.Fatal(err)
	}
	if len(r.a.Guarded()) != 0 || r.node.freed.Load() != 1 {
		t.Errorf("after DEL %d are known, %d went", len(r.a.Guarded()), r.node.freed.Load())
	}
}

// TestFreeGoesOn: a leaked lease that cannot be taken down does not keep the others.
func TestFreeGoesOn(t *testing.T) {
	ctx, r := context.Background(), newRig(t, "10.1.0.0/28")
	for i := range 3 {
		if _, err := r.a.Add(ctx, r.request(fmt.Sprintf("c%d", i), fmt.Sprintf("p%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	r.kernel.reboot()
	r.now += graceTime
	leaks, err := r.a.Leaks(ctx, nil)
	if err != nil || len(leaks) != 3 {
		t.Fatalf("leaks %v, %v", leaks, err)
	}
	r.plan("DelPod", 1)
	freed := 0
	if err := r.a.Free(ctx, leaks, func(Leak) { freed++ }); !errors.Is(err, errInjected) || freed != 2 || len(r.a.Leases()) != 1 {
		t.Errorf("freed %d of 3 leaks, %d are left: %v", freed, len(r.a.Leases()), err)
	}
	r.plan("", 0)
	if err := r.a.Free(ctx, leaks, func(Leak) {}); err != nil || len(r.a.Leases()) != 0 {
		t.Errorf("%d are left: %v", len(r.a.Leases()), err)
	}
}
