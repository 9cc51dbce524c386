package policy

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/policy/policytest"
	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// TestTenThousandBlocks: a policy with 10,000 ranges, many of which overlap in every way that the kernel refuses or corrupts, is
// one that the kernel takes, and what it lets pass is what the policy says.
func TestTenThousandBlocks(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns)
	r := rand.New(rand.NewPCG(1, 2))
	pod := policytest.LargePod(0, 1)
	pod.Node = "a"
	np := &model.NetworkPolicy{Namespace: "prod", Name: "many", Pods: model.Selector{}, IsolatesEgress: true}
	random := func() netip.Prefix {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(1 + r.IntN(4)), byte(r.IntN(64)), byte(r.IntN(256)), byte(r.IntN(256))}), 18+r.IntN(15))
		return p.Masked()
	}
	for i := range 10_000 {
		rule := model.PolicyRule{AnyPort: i%3 == 0}
		peer := model.PolicyPeer{Block: random()}
		if e := random(); e.Bits() > peer.Block.Bits() && peer.Block.Contains(e.Addr()) {
			peer.Except = append(peer.Except, e)
		}
		rule.Peers = append(rule.Peers, peer)
		if !rule.AnyPort {
			rule.Ports = []model.PolicyPort{{Protocol: model.TCP, First: uint16(80 + i%3), Last: uint16(80 + i%5)}}
			if i%5 < i%3 {
				rule.Ports[0].Last = rule.Ports[0].First
			}
		}
		np.Egress = append(np.Egress, rule)
	}
	np.Egress = append(np.Egress, model.PolicyRule{AnyPort: true, Peers: []model.PolicyPeer{{Block: netip.MustParsePrefix("255.255.255.0/24")}}})
	snap := &model.Snapshot{Pods: map[model.PodKey]*model.Pod{pod.Key(): pod}, Policies: map[model.PolicyKey]*model.NetworkPolicy{np.Key(): np}}
	in := policy.Input{NodeName: "a"}
	var c policy.Compiler
	var rules ruleset.Policies
	start := time.Now()
	f := c.Compile(snap, in)
	compiled := time.Since(start)
	stats := apply(t, b, rules.Tables(ruleset.PolicyInput{Filters: f, Generation: generation}))
	t.Logf("compiled in %v, in the kernel after %v: %d elements", compiled, time.Since(start), stats.ElementsAdded)
	j := &policy.Judge{Snapshot: snap, Input: in}
	passed := 0
	for range 300 {
		p := policy.Packet{Src: pod.Addresses[0], Dst: random().Addr(), Proto: model.TCP, Port: uint16(78 + r.IntN(10))}
		v := j.Verdict(p)
		if f.Passes(p) != v.Allowed {
			t.Fatalf("%+v: %v, want %v: %s", p, f.Passes(p), v.Allowed, v.Why)
		}
		if v.Allowed {
			passed++
		}
	}
	if passed == 0 || passed == 300 {
		t.Errorf("%d of 300 pass: that says nothing", passed)
	}
	// Half of the ranges go: the difference is one that the kernel takes, and reading it back finds nothing else.
	less := *np
	less.Egress = np.Egress[5000:]
	snap = &model.Snapshot{Pods: snap.Pods, Policies: map[model.PolicyKey]*model.NetworkPolicy{np.Key(): &less}}
	tables := rules.Tables(ruleset.PolicyInput{Filters: c.Compile(snap, in), Generation: generation})
	apply(t, b, tables)
	if n, err := b.Differs(tables); err != nil || n != 0 {
		t.Errorf("the kernel differs in %d messages: %v", n, err)
	}
}

// TestNobody: a policy whose selectors match nothing closes its Pods; one that selects no Pod does nothing.
func TestNobody(t *testing.T) {
	pod := policytest.LargePod(0, 1)
	pod.Node = "a"
	none := model.Selector{{Key: "app", Op: model.OpIn, Values: []string{"nobody"}}}
	for _, tc := range []struct {
		pods     model.Selector
		isolated bool
	}{{none, false}, {model.Selector{}, true}} {
		np := &model.NetworkPolicy{
			Namespace: "prod", Name: "p", Pods: tc.pods, IsolatesIngress: true,
			Ingress: []model.PolicyRule{{AnyPort: true, Peers: []model.PolicyPeer{{Pods: &none}}}, {AnyPeer: true}, {AnyPort: true}},
		}
		snap := &model.Snapshot{Pods: map[model.PodKey]*model.Pod{pod.Key(): pod}, Policies: map[model.PolicyKey]*model.NetworkPolicy{np.Key(): np}}
		var rules ruleset.Policies
		f := (&policy.Compiler{}).Compile(snap, policy.Input{NodeName: "a"})
		p := policy.Packet{Src: netip.MustParseAddr("192.0.2.9"), Dst: pod.Addresses[0], Proto: model.TCP, Port: 80}
		if f.Passes(p) == tc.isolated || rules.Tables(ruleset.PolicyInput{Filters: f, Generation: generation})[0].Empty() == tc.isolated {
			t.Errorf("isolated %v: passes %v, filters %v", tc.isolated, f.Passes(p), f.Own)
		}
	}
}

// TestChurn: labels change 500 times a second among 5,000 Pods; whatever has come while the kernel took the last ones is the next difference.
// In the end the kernel holds what one look at the cluster gives.
func TestChurn(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns)
	const pods, apps = 5000, 100
	l := largeNode{gen: generation}
	l.snap, l.in = policytest.Large(200, pods, 50)
	apply(t, b, l.tables())
	r := rand.New(rand.NewPCG(3, 4))
	start := time.Now()
	const changes, rate = 1000, 500
	rounds := 0
	for i := 0; i < changes; {
		// What is due by now, and at least one: a slow machine has fewer rounds of more changes.
		for due := min(changes, max(i+1, int(rate*time.Since(start).Seconds()))); i < due; i++ {
			p := *policytest.LargePod(r.IntN(pods), apps)
			if _, own := l.last.Attached[p.Addresses[0]]; own {
				p.Node = "a"
			}
			p.Labels = policytest.LargePod(r.IntN(apps), apps).Labels
			l.pod(&p)
		}
		apply(t, b, l.tables())
		rounds++
	}
	took := time.Since(start)
	t.Logf("%d changes in %d rounds in %v: %.0f a second", changes, rounds, took, changes/took.Seconds())
	var fresh ruleset.Policies
	var c policy.Compiler
	held := map[netip.Addr]policy.ID{}
	last := policy.ID(0)
	for _, s := range l.last.Peers {
		if s != nil {
			for a, p := range s.Peers {
				held[a], last = p.Class.ID, max(last, p.Class.ID)
			}
		}
	}
	c.Adopt(held, last)
	f := c.Compile(l.snap, l.in)
	apply(t, b, fresh.Tables(ruleset.PolicyInput{Filters: f, Generation: l.gen})) // takes away what has no members any more
	for range 3000 {
		src, dst := policytest.LargePod(r.IntN(pods), apps).Addresses[0], policytest.LargePod(r.IntN(pods), apps).Addresses[0]
		p := policy.Packet{Src: src, Dst: dst, Proto: model.TCP, Port: uint16(8000 + r.IntN(50))}
		if l.last.Passes(p) != f.Passes(p) {
			t.Fatalf("%+v: %v after all changes, %v by one look", p, l.last.Passes(p), f.Passes(p))
		}
	}
}
