package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// sweepAfter is how long the elements of Pods that are gone may stay: many go in one transaction, for which the kernel makes
// all others wait some 10 ms.
const sweepAfter = 250 * time.Millisecond

// Policies enforces NetworkPolicies. It belongs to the Loop, under whose lock all of it runs.
type Policies struct {
	// Attached are the leases of this node, also those that are just being given.
	Attached func() []*model.Lease
	// DNS are the addresses at which this node answers for the cluster DNS; may be nil.
	DNS func() []netip.AddrPort
	// CutFlows makes a flow that was allowed and is not any more end with its next packet; otherwise only new ones are denied.
	CutFlows bool
	// Seed is where the count of generations starts when the kernel has none.
	Seed uint32

	compiler policy.Compiler
	rules    ruleset.Policies

	started    bool
	inherited  bool                        // a daemon was here since the boot, and the cluster was not heard since it went
	found      bool                        // it has left tables: some Pod was isolated
	foreign    bool                        // those tables are of another version: nothing can be taken over
	atStart    map[netip.Addr]model.PodRef // who had which address then
	generation uint32                      // that of what is in the kernel
	applied    *policy.Filters             // what the kernel was last given
	next       *policy.Filters             // what it is being given
	nextGen    uint32
	sweep, due atomic.Bool // what lingers goes with the next round; such a round is on its way
}

// PolicyStatus is what of the policies is in force.
type PolicyStatus struct {
	Filters *policy.Filters
	// Input is what the filters were made from, besides the Snapshot.
	Input      policy.Input
	Generation uint32
	// Inherited says that the cluster was not heard since the start, and that what the kernel has is from before.
	Inherited bool
}

// input asks for what the filters depend on.
func (p *Policies) input(node string) policy.Input {
	in := policy.Input{NodeName: node}
	for _, l := range p.Attached() {
		if !l.Pod.IsZero() {
			in.Attached = append(in.Attached, policy.Attached{Pod: l.Pod, Addresses: l.Addresses})
		}
	}
	slices.SortFunc(in.Attached, func(a, b policy.Attached) int {
		return cmp.Or(slices.CompareFunc(a.Addresses, b.Addresses, netip.Addr.Compare), cmp.Compare(a.Pod.UID, b.Pod.UID))
	})
	if p.DNS != nil {
		in.DNS = p.DNS()
	}
	return in
}

// startPolicies learns what the kernel holds, once.
func (l *Loop) startPolicies(in policy.Input) error {
	p := l.Policies
	if p.started {
		return nil
	}
	var found ruleset.Inherited
	there := map[ruleset.Family]map[string][]ruleset.Element{}
	for _, t := range ruleset.PolicyShape() {
		exists, err := l.Rules.Exists(t)
		if err != nil {
			return fmt.Errorf("looking for the table of policies: %w", err)
		}
		if !exists {
			continue
		}
		elements, err := l.Rules.Elements(t)
		if err != nil {
			return fmt.Errorf("reading the table of policies: %w", err)
		}
		there[t.Family] = elements
		for _, s := range t.Sets {
			if _, ok := elements[s.Name]; !ok && !p.foreign {
				p.foreign = true
				l.Log.Warn("the tables of policies are of another version of weft: making them anew from what is known of the cluster", zap.String("set", s.Name))
			}
		}
	}
	warm, err := l.warm()
	if err != nil {
		return err
	}
	if p.foreign {
		there, warm = nil, false
	}
	for _, t := range ruleset.PolicyShape() {
		if elements, ok := there[t.Family]; ok {
			p.rules.Inherit(t.Family, elements, &found)
			p.found = true
		}
	}
	if p.inherited = p.found || warm; p.found {
		p.compiler.Adopt(found.IDs, found.Last)
	}
	if p.generation = found.Generation; p.generation == 0 {
		p.generation = max(p.Seed&ruleset.PolicyMarkMask, ruleset.PolicyStep)
	}
	p.atStart = map[netip.Addr]model.PodRef{}
	for _, a := range in.Attached {
		for _, addr := range a.Addresses {
			p.atStart[addr] = a.Pod
		}
	}
	p.started = true
	return nil
}

// policyTables compiles the policies into their tables; an error means that the kernel could not be read.
func (l *Loop) policyTables(snap *model.Snapshot, node string) ([]ruleset.Table, error) {
	p := l.Policies
	in := p.input(node)
	if err := l.startPolicies(in); err != nil {
		return nil, err
	}
	if p.foreign && snap.Stored && len(snap.Nodes) == 0 {
		return nil, nil // nothing is known to make them from: they go on as they are
	}
	filters := p.compiler.Compile(snap, in)
	p.next, p.nextGen = filters, p.generation
	out := ruleset.PolicyInput{Filters: filters, Generation: p.generation}
	if p.inherited && snap.Stored {
		if fresh := p.fresh(in); p.found || len(fresh) == 0 && !l.start.waited.Load() {
			return p.rules.Keep(out, fresh), nil
		}
	}
	tightened := policy.Tightened(p.applied, filters)
	if p.inherited { // the first time since the start: nobody knows what the difference takes away
		tables := p.rules.Tables(out)
		n, err := l.Rules.Differs(tables)
		if err != nil {
			return nil, fmt.Errorf("comparing the table of policies: %w", err)
		}
		tightened = n > 0
	}
	if tightened && p.CutFlows {
		if p.nextGen += ruleset.PolicyStep; p.nextGen == 0 {
			p.nextGen = ruleset.PolicyStep
		}
		out.Generation = p.nextGen
	}
	out.Linger = !tightened && !p.sweep.Swap(false)
	tables := p.rules.Tables(out)
	if p.rules.Lingering() {
		l.SweepPolicies()
	}
	return tables, nil
}

// SweepPolicies removes, a little later, what is there of Pods that are gone.
func (l *Loop) SweepPolicies() {
	p := l.Policies
	if p == nil {
		return
	}
	if f := l.Status().Policies.Filters; f == nil || len(f.Own) == 0 || p.due.Swap(true) {
		return
	}
	time.AfterFunc(sweepAfter, func() {
		p.due.Store(false)
		p.sweep.Store(true)
		l.Kick(Trigger{What: "Pods are gone"})
	})
}

// fresh are the addresses that were given since the start.
func (p *Policies) fresh(in policy.Input) (out []netip.Addr) {
	for _, a := range in.Attached {
		for _, addr := range a.Addresses {
			if p.atStart[addr] != a.Pod {
				out = append(out, addr)
			}
		}
	}
	return out
}

// committed notes that the kernel has what was compiled.
func (p *Policies) committed(snap *model.Snapshot) {
	p.applied, p.generation = p.next, p.nextGen
	if !snap.Stored {
		p.inherited = false
	}
}

// restorePolicies makes the tables anew after somebody has deleted them, at first with all that is isolated and nothing that is allowed:
// flows that were judged go on by their mark, new ones wait until the rest is there.
func (l *Loop) restorePolicies(ctx context.Context) error {
	p := l.Policies
	if p == nil || p.applied == nil || p.inherited {
		return nil
	}
	var guard ruleset.Policies
	tables := guard.Tables(ruleset.PolicyInput{Filters: p.applied, Generation: p.generation, Closed: true})
	var missing []ruleset.Table
	for _, t := range tables {
		exists, err := l.Rules.Exists(ruleset.Table{Family: t.Family, Name: t.Name})
		if err != nil {
			return fmt.Errorf("looking for the table of policies: %w", err)
		}
		if !exists && !t.Empty() {
			missing = append(missing, t)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if _, err := l.Rules.Update(ctx, missing); err != nil {
		return fmt.Errorf("isolating Pods anew: %w", err)
	}
	l.Log.Warn("the table of policies was lost; isolated Pods are closed until it is whole again")
	return nil
}

// SyncPolicies puts the policies of the Pods that are attached now in force, and returns when the kernel has them. It only adds,
// except where an address had another Pod a moment ago.
func (l *Loop) SyncPolicies(ctx context.Context) error {
	if l.Policies == nil {
		return nil
	}
	l.run.Lock()
	defer l.run.Unlock()
	snap := l.Inputs.Snapshot()
	if snap == nil {
		snap = &model.Snapshot{Stored: true}
	}
	tables, err := l.policyTables(snap, l.Settings().NodeName)
	if err == nil {
		_, err = l.Rules.Update(ctx, tables)
	}
	switch {
	case err == nil:
		l.Policies.committed(snap)
		l.publishPolicies()
		l.replaceTables(tables)
	case len(l.Missing) > 0: // reported by every round
		l.Log.Warn("a Pod is attached without its policies", zap.Error(err))
		return nil
	default:
		return fmt.Errorf("putting the policies in force: %w", err)
	}
	return nil
}

// replaceTables notes tables that were set without the others.
func (l *Loop) replaceTables(now []ruleset.Table) {
	l.tables = slices.DeleteFunc(slices.Clone(l.tables), func(t ruleset.Table) bool { return t.Name == ruleset.PolicyTable })
	l.tables = append(l.tables, now...)
}

// publishPolicies shows what is in force to those who ask.
func (l *Loop) publishPolicies() {
	p := l.Policies
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Policies = PolicyStatus{p.applied, p.input(l.config.NodeName), p.generation, p.inherited}
}

// problems names what policies say in vain.
func (p *Policies) problems() (out []string) {
	if p.applied == nil {
		return nil
	}
	for _, x := range p.applied.Problems {
		if x.Policy.Name == "" {
			out = append(out, x.Text)
			continue
		}
		out = append(out, fmt.Sprintf("NetworkPolicy %s: %s", x.Policy, x.Text))
	}
	return out
}
