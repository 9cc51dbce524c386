package attach

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/model"
)

// world is what a runtime knows: which sandboxes exist, and what the last ADD of each answered.
type world struct {
	*rig
	rng   *rand.Rand
	next  int
	boxes map[string]*sandbox
	log   []string
}

type sandbox struct {
	req  Request
	told []netip.Addr // by an ADD that succeeded; nil while there was none
}

// TestRandom does thousands of random things, crashes and reboots among them, and after each one looks whether an address that a
// living interface has was given a second time, and in the end whether anything was left.
func TestRandom(t *testing.T) {
	runs := 20
	if testing.Short() {
		runs = 8
	}
	for seed := range runs {
		w := &world{rig: newRig(t, "10.1.0.0/27", "fd01::/124"), rng: rand.New(rand.NewPCG(uint64(seed), 7)), boxes: map[string]*sandbox{}}
		for range 120 {
			w.now += w.rng.Int64N(20)
			w.op()
			if bad := w.check(); bad != "" {
				t.Fatalf("seed %d: %s after\n%s", seed, bad, strings.Join(w.log[max(0, len(w.log)-25):], "\n"))
			}
		}
		w.plan("", 0)
		ctx := context.Background()
		for _, b := range w.boxes {
			if err := w.a.Del(ctx, b.req.Key, b.req.Kind); err != nil {
				t.Fatal(err)
			}
		}
		w.kernel.reboot()
		w.now += 2 * graceTime
		w.free(nil)
		if err := w.node.SyncPorts(ctx, w.a.HostPorts()); err != nil {
			t.Fatal(err)
		}
		if left := w.leftovers(); len(left) > 0 {
			t.Fatalf("seed %d: left %v after\n%s", seed, left, strings.Join(w.log[max(0, len(w.log)-25):], "\n"))
		}
	}
}

func (w *world) say(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

func (w *world) op() {
	ctx := context.Background()
	switch n := w.rng.IntN(100); {
	case n < 45:
		w.add(ctx)
	case n < 70:
		w.del(ctx)
	case n < 76: // a crash in the middle of something
		w.faults.crash(1 + w.rng.IntN(4))
		w.say("crash soon")
		if w.rng.IntN(2) == 0 {
			w.add(ctx)
		} else {
			w.del(ctx)
		}
		w.restart()
	case n < 80:
		w.say("reboot")
		w.kernel.reboot()
		for _, b := range w.boxes {
			b.told = nil
		}
		w.restart()
	case n < 84:
		w.say("restart")
		w.restart()
	case n < 90: // something fails
		w.plan(steps[w.rng.IntN(len(steps))], -1)
		w.say("failing %v", w.nth)
		w.add(ctx)
		w.del(ctx)
		w.plan("", 0)
	case n < 95:
		known := map[string]bool{}
		for id, b := range w.boxes {
			if b.told != nil {
				known[id] = true
			}
		}
		w.free(known)
	default:
		w.collect(ctx)
	}
}

// add is an ADD of a new sandbox, or one that is repeated.
func (w *world) add(ctx context.Context) {
	b := &sandbox{}
	if ids := slices.Sorted(maps.Keys(w.boxes)); len(ids) > 0 && w.rng.IntN(4) == 0 {
		b = w.boxes[ids[w.rng.IntN(len(ids))]]
		w.kernel.ns[b.req.NetNS] = true
	} else {
		w.next++
		b.req = w.request(fmt.Sprintf("c%d", w.next), fmt.Sprintf("p%d", w.rng.IntN(25)))
		if w.rng.IntN(3) == 0 {
			b.req.Kind, b.req.Key.Network = model.LeaseIPAM, "other"
		}
		if w.rng.IntN(4) == 0 {
			b.req.Ports = mappings(fmt.Sprintf("%d:80/tcp", 8000+w.rng.IntN(20)))
		}
		if w.rng.IntN(6) == 0 {
			b.req.Want = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.1.0.%d", w.rng.IntN(32)))}
		}
		w.boxes[b.req.Key.ContainerID] = b
	}
	res, err := w.a.Add(ctx, b.req)
	w.say("ADD %s %s %s: %s %v", b.req.Kind, b.req.Key, b.req.Pod, resultText(res), err)
	if err == nil {
		if b.told != nil && !slices.Equal(b.told, res.Lease.Addresses) {
			w.t.Fatalf("repeated ADD of %s: %v, before %v", b.req.Key, res.Lease.Addresses, b.told)
		}
		b.told = res.Lease.Addresses
	}
}

// del is a DEL of any sandbox there ever was; most have none left.
func (w *world) del(ctx context.Context) {
	ids := slices.Sorted(maps.Keys(w.boxes))
	if len(ids) == 0 {
		return
	}
	b := w.boxes[ids[w.rng.IntN(len(ids))]]
	if w.rng.IntN(2) == 0 {
		delete(w.kernel.ns, b.req.NetNS)
	}
	err := w.a.Del(ctx, b.req.Key, b.req.Kind)
	w.say("DEL %s: %v", b.req.Key, err)
	b.told = nil
	delete(w.kernel.ns, b.req.NetNS) // the runtime goes on, whatever DEL said
}

// free does what the daemon does with leaks.
func (w *world) free(known map[string]bool) {
	leaks, err := w.a.Leaks(context.Background(), known)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range leaks {
		w.say("leak %s", l.Lease.AttachmentKey)
		if err := w.a.Release(context.Background(), l.Lease, false); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) collect(ctx context.Context) {
	var valid []model.AttachmentKey
	for _, b := range w.boxes {
		if b.told != nil {
			valid = append(valid, b.req.Key)
		}
	}
	w.say("GC")
	for network, kind := range map[string]model.LeaseKind{"weft": model.LeasePod, "other": model.LeaseIPAM} {
		if err := w.a.Collect(ctx, network, kind, valid); err != nil {
			w.t.Fatal(err)
		}
	}
}

// check returns what is wrong.
func (w *world) check() string {
	holder := map[netip.Addr]string{}
	claim := func(who string, addrs []netip.Addr) string {
		for _, a := range addrs {
			if other, taken := holder[a]; taken && other != who {
				return fmt.Sprintf("%s was given to %s and %s", a, other, who)
			}
			holder[a] = who
		}
		return ""
	}
	for id, b := range w.boxes {
		if b.told == nil {
			continue
		}
		if bad := claim(id, b.told); bad != "" {
			return bad
		}
		held := slices.ContainsFunc(w.a.Leases(), func(l *model.Lease) bool {
			return l.AttachmentKey == b.req.Key && slices.Equal(l.Addresses, b.told)
		})
		if !held {
			return fmt.Sprintf("the lease of %s is lost", id)
		}
		if b.req.Kind == model.LeasePod && !slices.ContainsFunc(slices.Collect(maps.Values(w.kernel.links)), func(l podnet.Attachment) bool {
			return slices.Equal(l.Addresses, b.told)
		}) {
			return fmt.Sprintf("the link of %s is lost", id)
		}
	}
	for _, l := range w.kernel.links {
		// A link may outlive a DEL that failed: nobody else may have its addresses either.
		if bad := claim(strings.Fields(l.Alias)[2], l.Addresses); bad != "" {
			return bad
		}
	}
	return ""
}
