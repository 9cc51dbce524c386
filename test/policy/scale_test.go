package policy

import (
	"maps"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/policy/policytest"
	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// largeNode is a node of a large cluster with its tables in the kernel.
type largeNode struct {
	snap     *model.Snapshot
	in       policy.Input
	compiler policy.Compiler
	rules    ruleset.Policies
	last     *policy.Filters
	gen      uint32
}

// tables compiles as the loop does.
func (l *largeNode) tables() []ruleset.Table {
	f := l.compiler.Compile(l.snap, l.in)
	tightened := policy.Tightened(l.last, f)
	if l.last = f; tightened {
		l.gen += ruleset.PolicyStep
	}
	return l.rules.Tables(ruleset.PolicyInput{Filters: f, Generation: l.gen, Linger: !tightened})
}

// pod replaces one Pod of the cluster.
func (l *largeNode) pod(p *model.Pod) {
	next := *l.snap
	next.Pods = maps.Clone(l.snap.Pods)
	next.Pods[p.Key()] = p
	l.snap = &next
}

// TestScaleOfChanges measures what changes of a large cluster cost on one node, and bounds how much goes to the kernel for each.
func TestScaleOfChanges(t *testing.T) {
	ns := netnstest.New(t)
	b := open(t, ns)
	const pods, apps = 5000, 500
	l := largeNode{gen: generation}
	l.snap, l.in = policytest.Large(1000, pods, 110)
	start := time.Now()
	tables := l.tables()
	compiled := time.Since(start)
	stats := apply(t, b, tables)
	t.Logf("cold: compile %v, with the kernel %v, %d elements", compiled, time.Since(start), stats.ElementsAdded)

	median := func(what string, most int, change func(i int)) {
		var took, made []time.Duration
		largest := 0
		for i := range 20 {
			change(i)
			start := time.Now()
			tables := l.tables()
			made = append(made, time.Since(start))
			s := apply(t, b, tables)
			took = append(took, time.Since(start))
			largest = max(largest, s.ElementsAdded+s.ElementsDeleted)
		}
		slices.Sort(took)
		slices.Sort(made)
		t.Logf("%s: compile %v, with the kernel %v (worst %v), at most %d elements", what, made[10], took[10], took[19], largest)
		if largest > most {
			t.Errorf("%s: %d elements for one change", what, largest)
		}
	}
	median("a Pod elsewhere appears", 1, func(i int) { l.pod(policytest.LargePod(pods+i, apps)) })
	median("a Pod elsewhere changes its label", 16, func(i int) {
		p := *policytest.LargePod(1000+i, apps)
		p.Labels = map[string]string{"app": "app-0" + strconv.Itoa(100+(i+7)%300)}
		l.pod(&p)
	})
	median("a Pod elsewhere goes", 2, func(i int) {
		next := *l.snap
		next.Pods = maps.Clone(l.snap.Pods)
		delete(next.Pods, policytest.LargePod(2000+i, apps).Key())
		l.snap = &next
	})
	median("a Pod of this node appears", 300, func(i int) {
		p := policytest.LargePod(pods+100+i, apps)
		p.Node = "a"
		l.pod(p)
		l.in.Attached = append(slices.Clone(l.in.Attached), policy.Attached{Pod: p.PodRef, Addresses: p.Addresses})
	})
	median("a policy is edited", 1500, func(i int) {
		next := *l.snap
		next.Policies = maps.Clone(l.snap.Policies)
		for key, np := range next.Policies {
			edited := *np
			edited.Ingress = append(slices.Clone(np.Ingress), model.PolicyRule{AnyPeer: true, Ports: []model.PolicyPort{{Protocol: model.TCP, First: uint16(100 + i), Last: uint16(100 + i)}}})
			next.Policies[key] = &edited
			break
		}
		l.snap = &next
	})
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("heap %d MiB", m.HeapAlloc>>20)
}
