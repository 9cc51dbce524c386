package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/policy/policytest"
	"weft.network/weft/appliance/kernel/nft"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

func init() {
	register(70, Row{
		Name: "policy-tcp",
		About: "TCP from Pod to Pod on one node, isolated on both sides and allowed, with 100 and 1,000 NetworkPolicies and 5,000 Pods in the kernel, and with none, " +
			"beside the same path with connection tracking alone and with nothing",
		Run: runPolicyTCP,
	})
	register(71, Row{
		Name:  "policy-program",
		About: "1,000 NetworkPolicies and 5,000 Pods, 110 of them here: compiled and in the kernel from nothing, and then changes one at a time",
		Run:   runPolicyProgram,
	})
}

const (
	policyPods = 5000
	policyOwn  = 110
	policyGen  = 5 * ruleset.PolicyStep
)

// guarded is a node that enforces policies.
type guarded struct {
	backend  *nft.Backend
	snap     *model.Snapshot
	in       policy.Input
	compiler policy.Compiler
	rules    ruleset.Policies
	last     *policy.Filters
	gen      uint32
}

func (l *Lab) guarded(node *Netns, policies int) (*guarded, error) {
	b, err := nft.Open(nft.Options{NetNS: node.fd()})
	if err != nil {
		return nil, err
	}
	l.Cleanup(b.Close)
	g := &guarded{backend: b, gen: policyGen}
	g.snap, g.in = policytest.Large(policies, l.Sized(policyPods, 500), policyOwn)
	return g, nil
}

// sync does what the loop does after each change.
func (g *guarded) sync(ctx context.Context) error {
	f := g.compiler.Compile(g.snap, g.in)
	tightened := policy.Tightened(g.last, f)
	if g.last = f; tightened {
		g.gen += ruleset.PolicyStep
	}
	_, err := g.backend.Apply(ctx, g.rules.Tables(ruleset.PolicyInput{Filters: f, Generation: g.gen, Linger: !tightened}))
	return err
}

// admit makes two Pods of the bench Pods of the cluster, isolated on both sides, and lets the one reach the other.
func (g *guarded) admit(pods [2]*Sandbox) {
	for i, s := range pods {
		p := policytest.LargePod(i, len(g.snap.Pods)/10)
		p.Node, p.Addresses = g.in.NodeName, []netip.Addr{s.addr}
		p.Labels = map[string]string{"app": p.Labels["app"], "bench": fmt.Sprint(i)}
		g.snap.Pods[p.Key()] = p
		g.in.Attached[i] = policy.Attached{Pod: p.PodRef, Addresses: p.Addresses}
	}
	peer := func(n string) []model.PolicyPeer {
		return []model.PolicyPeer{{Pods: &model.Selector{{Key: "bench", Op: model.OpIn, Values: []string{n}}}}}
	}
	rule := func(n string) []model.PolicyRule {
		return []model.PolicyRule{{Peers: peer(n), Ports: []model.PolicyPort{{Protocol: model.TCP, First: 1024, Last: 65535}}}}
	}
	both := model.Selector{{Key: "bench", Op: model.OpExists}}
	np := &model.NetworkPolicy{Namespace: "prod", Name: "bench", Pods: both, IsolatesIngress: true, IsolatesEgress: true, Ingress: rule("0"), Egress: rule("1")}
	g.snap.Policies[np.Key()] = np
}

func runPolicyTCP(ctx context.Context, lab *Lab) ([]Result, error) {
	type path struct {
		name     string
		bare     Bare
		guarded  bool
		policies int
	}
	tracked := Bare{Conntrack: true}
	paths := []path{{tracked.String(), tracked, false, 0}, {Bare{}.String(), Bare{}, false, 0}}
	for _, n := range []int{0, lab.Sized(100, 10), lab.Sized(1000, 100)} {
		paths = append(paths, path{fmt.Sprintf("%d policies", n), tracked, true, n})
	}
	var sides []*peers
	for _, p := range paths {
		pods, err := lab.BarePods(ctx, p.bare)
		if err != nil {
			return nil, err
		}
		if p.guarded {
			g, err := lab.guarded(pods[0].node, max(0, p.policies-1))
			if err != nil {
				return nil, err
			}
			if p.policies > 0 {
				g.admit(pods)
			}
			if err := g.sync(ctx); err != nil {
				return nil, err
			}
		}
		side, err := lab.Peers(pods[0], pods[1])
		if err != nil {
			return nil, err
		}
		sides = append(sides, side)
	}
	const mib = 1 << 20
	together := [2]int{0, 0}
	var out []Result
	for _, load := range []tcpLoad{
		{loadConnect, "connections", "k/s", together, 80, 20, lab.Sized(400, 100), 1e-3, ratioAtLeast(0.97)},
		{loadRequest, "requests", "k/s", together, 60, 100, lab.Sized(1500, 300), 1e-3, ratioAtLeast(0.97)},
		{loadStream, "stream", "Gbit/s", together, 40, 16 * mib, lab.Sized(64, 16) * mib, 8e-9, ratioAtLeast(0.97)},
	} {
		var arms []arm
		for _, side := range sides {
			arms = append(arms, func(ctx context.Context) (float64, error) {
				took, err := side.run(ctx, load.load, load.cpus, load.warm, load.count)
				return float64(load.count) * load.perSecond / took.Seconds(), err
			})
		}
		s, err := interleave(ctx, lab.Rounds(load.rounds), arms...)
		if err != nil {
			return nil, err
		}
		for i := 2; i < len(paths); i++ {
			alone := compare("", "", s[i], "", s[1], noBudget).Ratio.Median
			out = append(out, compare(paths[i].name+", "+load.what, load.unit, s[i], paths[0].name, s[0], load.budget).
				note("%s×  of %s, which tracks nothing", number(alone), paths[1].name))
		}
	}
	return out, nil
}

func runPolicyProgram(ctx context.Context, lab *Lab) ([]Result, error) {
	policies, pods := lab.Sized(1000, 50), lab.Sized(policyPods, 500)
	millis := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	var compile, cold, label, join, attach, heap []float64
	for range lab.Rounds(7) {
		node, err := lab.Netns(ctx)
		if err != nil {
			return nil, err
		}
		g, err := lab.guarded(node, policies)
		if err != nil {
			return nil, err
		}
		runtime.GC()
		before := heapMiB()
		start := time.Now()
		g.compiler.Compile(g.snap, g.in)
		compile = append(compile, millis(time.Since(start)))
		start = time.Now()
		if err := g.sync(ctx); err != nil {
			return nil, err
		}
		cold = append(cold, millis(time.Since(start)))
		runtime.GC()
		heap = append(heap, heapMiB()-before)
		for i := range 10 {
			for _, change := range []struct {
				into *[]float64
				do   func()
			}{
				{&label, func() {
					p := *policytest.LargePod(policyOwn+200+i, pods/10)
					p.Labels = policytest.LargePod(policyOwn+201+7*i, pods/10).Labels
					g.pod(&p)
				}},
				{&join, func() { g.pod(policytest.LargePod(pods+i, pods/10)) }},
				{&attach, func() {
					p := policytest.LargePod(pods+pods/10*20+i, pods/10)
					p.Node = g.in.NodeName
					g.pod(p)
					g.in.Attached = append(slices.Clone(g.in.Attached), policy.Attached{Pod: p.PodRef, Addresses: p.Addresses})
				}},
			} {
				change.do()
				start := time.Now()
				if err := g.sync(ctx); err != nil {
					return nil, err
				}
				*change.into = append(*change.into, millis(time.Since(start)))
			}
		}
		lab.tidy()
	}
	title := fmt.Sprintf("%d policies, %d Pods: ", policies, pods)
	return []Result{
		alone(title+"compiled", "ms", compile, noBudget).note("selectors, identities and ranges; once, at the start"),
		alone(title+"in the kernel", "ms", cold, atMost(50, "ms")).note("a chain per Pod and policy takes about 210 ms"),
		alone(title+"one Pod's label changes, event to kernel", "ms", label, atMost(30, "ms")),
		alone(title+"a Pod elsewhere appears, event to kernel", "ms", join, atMost(50, "ms")),
		alone(title+"a Pod of this node is attached", "ms", attach, noBudget).note("with policies that nothing here had before"),
		alone(title+"memory of the daemon's part", "MiB", heap, noBudget),
	}, nil
}

// pod replaces one Pod of the cluster.
func (g *guarded) pod(p *model.Pod) {
	next := *g.snap
	next.Pods = maps.Clone(g.snap.Pods)
	next.Pods[p.Key()] = p
	g.snap = &next
}

func heapMiB() float64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}
