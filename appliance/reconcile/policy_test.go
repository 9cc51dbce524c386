package reconcile

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// filterKernel holds tables as the kernel does.
type filterKernel struct {
	tables map[string]ruleset.Table
	// said is what was done: "apply" and "update" with the number of elements of isolated Pods and of what they may do.
	said []string
	fail error
}

func (k *filterKernel) take(verb string, want []ruleset.Table) (int, error) {
	if k.fail != nil {
		return 0, k.fail
	}
	isolated, allowed := 0, 0
	for _, t := range want {
		if t.Name != ruleset.PolicyTable {
			continue
		}
		if k.tables[t.ID()] = t; t.Empty() {
			delete(k.tables, t.ID())
		}
		for _, s := range t.Sets {
			switch {
			case strings.HasSuffix(s.Name, "_isolated"):
				isolated += s.Len()
			case strings.HasPrefix(s.Name, "in_"), strings.HasPrefix(s.Name, "eg_"):
				allowed += s.Len()
			}
		}
	}
	k.said = append(k.said, verb+" "+map[bool]string{true: "open", false: "closed"}[allowed > 0]+" "+map[bool]string{true: "isolated", false: "free"}[isolated > 0])
	return len(want), nil
}

func (k *filterKernel) Apply(_ context.Context, want []ruleset.Table) (int, error) {
	return k.take("apply", want)
}

func (k *filterKernel) Update(_ context.Context, want []ruleset.Table) (int, error) {
	return k.take("update", want)
}

func (k *filterKernel) Differs(want []ruleset.Table) (n int, err error) {
	for _, t := range want {
		if have, ok := k.tables[t.ID()]; ok != !t.Empty() || ok && have.String() != t.String() {
			n++
		}
	}
	return n, nil
}

func (k *filterKernel) Exists(t ruleset.Table) (bool, error) {
	_, ok := k.tables[t.ID()]
	return ok, nil
}

func (k *filterKernel) Elements(t ruleset.Table) (map[string][]ruleset.Element, error) {
	out := map[string][]ruleset.Element{}
	have := k.tables[t.ID()]
	for _, s := range have.Sets {
		out[s.Name] = []ruleset.Element{}
		for _, e := range s.Sorted() {
			out[s.Name] = append(out[s.Name], *e)
		}
	}
	return out, nil
}

func (k *filterKernel) Invalidate() {}

func (k *filterKernel) text() string {
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(k.tables)) {
		t := k.tables[id]
		b.WriteString(t.String())
	}
	return b.String()
}

// policyRig is a loop with a policy role over such a kernel.
type policyRig struct {
	*Loop
	t      *testing.T
	kernel *filterKernel
	snap   *model.Snapshot
	leases []*model.Lease
}

func newPolicyRig(t *testing.T, kernel *filterKernel) *policyRig {
	r := &policyRig{t: t, kernel: kernel}
	r.snap = &model.Snapshot{
		Nodes: map[string]*model.Node{"a": node("a", "192.0.2.1", "10.0.1.0/24")}, Pods: map[model.PodKey]*model.Pod{},
		Policies: map[model.PolicyKey]*model.NetworkPolicy{},
	}
	r.Loop = New(route.Config{NodeName: "a", Mode: route.ModeAuto, VNI: 1, Port: 4789}, Inputs{
		Snapshot: func() *model.Snapshot { return r.snap }, Leases: func() []*model.Lease { return r.leases },
		Ports: func() []*model.HostPorts { return nil },
	}, &world{}, kernel, zap.NewNop())
	r.Policies = &Policies{Attached: func() []*model.Lease { return r.leases }, CutFlows: true, Seed: 0x00004200}
	return r
}

// edit changes the cluster; it makes new maps, as a source does.
func (r *policyRig) edit(f func(*model.Snapshot)) {
	next := *r.snap
	next.Pods, next.Policies = maps.Clone(r.snap.Pods), maps.Clone(r.snap.Policies)
	f(&next)
	r.snap = &next
}

func (r *policyRig) pod(name, address, app string) {
	ref := model.PodRef{Namespace: "shop", Name: name, UID: name}
	r.edit(func(s *model.Snapshot) {
		s.Pods[ref.Key()] = &model.Pod{PodRef: ref, Node: "a", Labels: map[string]string{"app": app}}
	})
	r.leases = append(slices.Clone(r.leases), &model.Lease{Kind: model.LeasePod, Pod: ref, HostIf: "weftp" + name, Addresses: []netip.Addr{netip.MustParseAddr(address)}})
}

// allow lets Pods of one app reach those of others.
func (r *policyRig) allow(name, app string, from ...string) {
	peers := []model.PolicyPeer{}
	for _, f := range from {
		peers = append(peers, model.PolicyPeer{Pods: &model.Selector{{Key: "app", Op: model.OpIn, Values: []string{f}}}})
	}
	r.edit(func(s *model.Snapshot) {
		p := &model.NetworkPolicy{Namespace: "shop", Name: name, Pods: model.Selector{{Key: "app", Op: model.OpIn, Values: []string{app}}}, IsolatesIngress: true}
		if len(peers) > 0 {
			p.Ingress = []model.PolicyRule{{Peers: peers, AnyPort: true}}
		}
		s.Policies[p.Key()] = p
	})
}

func (r *policyRig) round(tr Trigger) {
	r.t.Helper()
	r.kernel.said = nil
	if err := r.Round(context.Background(), tr); err != nil {
		r.t.Fatal(err)
	}
}

func (r *policyRig) wantGeneration(what string, want uint32) {
	r.t.Helper()
	if got := r.Status().Policies.Generation; got != want {
		r.t.Errorf("%s: generation %#x, want %#x", what, got, want)
	}
}

func newShop(t *testing.T) *policyRig {
	r := newPolicyRig(t, &filterKernel{tables: map[string]ruleset.Table{}})
	r.pod("web", "10.0.1.2", "web")
	r.pod("front", "10.0.1.3", "front")
	return r
}

// TestPolicyGenerations: flows are judged anew exactly when something was taken away.
func TestPolicyGenerations(t *testing.T) {
	r := newShop(t)
	r.round(Trigger{})
	if text := r.kernel.text(); text != "" {
		t.Errorf("without policies there is\n%s", text)
	}
	r.allow("web", "web", "front")
	r.round(Trigger{})
	r.wantGeneration("a running Pod is isolated", 0x4300)
	r.allow("web", "web", "front", "other")
	r.round(Trigger{})
	r.wantGeneration("more is allowed", 0x4300)
	r.pod("other", "10.0.1.4", "other")
	r.round(Trigger{})
	r.wantGeneration("a Pod comes", 0x4300)
	r.allow("web", "web", "other")
	r.round(Trigger{})
	r.wantGeneration("less is allowed", 0x4400)
	if text := r.kernel.text(); !strings.Contains(text, "ct mark 0x00004400/24 accept") {
		t.Errorf("the rules are of another generation:\n%s", text)
	}
	r.Policies.CutFlows = false
	r.allow("web", "web")
	r.round(Trigger{})
	r.wantGeneration("flows may run on", 0x4400)
	r.Policies.CutFlows = true
	r.Policies.nextGen, r.Policies.generation = 0xffffff00, 0xffffff00
	r.allow("front", "front")
	r.round(Trigger{})
	r.wantGeneration("the count begins again, without 0", ruleset.PolicyStep)
}

// TestPoliciesOfTheDaemonBefore: what the kernel holds stays until the cluster is heard; a Pod that is attached meanwhile is guarded
// by the stored picture; then identities and generation go on.
func TestPoliciesOfTheDaemonBefore(t *testing.T) {
	before := newShop(t)
	before.allow("web", "web", "front")
	before.round(Trigger{})
	text := before.kernel.text()

	r := newPolicyRig(t, before.kernel)
	r.snap, r.leases = before.snap, before.leases
	r.edit(func(s *model.Snapshot) { s.Stored, s.Policies = true, map[model.PolicyKey]*model.NetworkPolicy{} }) // an older picture
	r.allow("late", "late")
	r.pod("web2", "10.0.1.9", "late")
	r.leases = r.leases[:2]
	r.round(Trigger{})
	if now := r.kernel.text(); now != text || !r.Status().Policies.Inherited {
		t.Errorf("before the cluster is heard the kernel has\n%s\nwant\n%s", now, text)
	}
	r.leases = append(slices.Clone(r.leases), &model.Lease{Kind: model.LeasePod, Pod: model.PodRef{Namespace: "shop", Name: "web2", UID: "web2"}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.9")}})
	if err := r.SyncPolicies(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`10.0.1.9 comment "shop/web2 by late"`, `10.0.1.2 comment "shop/web by web"`} {
		if !strings.Contains(r.kernel.text(), want) {
			t.Errorf("a Pod was attached, and there is no %s in\n%s", want, r.kernel.text())
		}
	}
	r.snap, r.leases = before.snap, before.leases
	r.round(Trigger{})
	r.wantGeneration("the attached Pod is gone again: something was taken away", 0x4300)
	if r.Status().Policies.Inherited {
		t.Error("the cluster was heard, and still the kernel counts as inherited")
	}

	same := newPolicyRig(t, r.kernel)
	same.snap, same.leases = before.snap, before.leases
	was := r.kernel.text()
	same.round(Trigger{})
	if now := r.kernel.text(); now != was {
		t.Errorf("a restart without news makes\n%s\nof\n%s", now, was)
	}
}

// TestPoliciesOfAnotherVersion: tables that this version would read otherwise are made anew at once, and stay as they are while nothing is known
// to make them from.
func TestPoliciesOfAnotherVersion(t *testing.T) {
	before := newShop(t)
	before.allow("web", "web", "front")
	before.round(Trigger{})
	const isolated = `10.0.1.2 comment "shop/web by web"`
	for id, table := range before.kernel.tables {
		table.Sets = slices.DeleteFunc(slices.Clone(table.Sets), func(s *ruleset.Set) bool {
			return slices.ContainsFunc(s.Sorted(), func(e *ruleset.Element) bool { return e.Comment == "shop/web by web" })
		})
		before.kernel.tables[id] = table
	}
	other := before.kernel.text()
	if strings.Contains(other, isolated) {
		t.Fatal("nothing was taken away from", other)
	}

	r := newPolicyRig(t, before.kernel)
	r.snap, r.leases = &model.Snapshot{Stored: true}, before.leases
	if tables, err := r.policyTables(r.snap, "a"); err != nil || len(tables) != 0 || r.kernel.text() != other {
		t.Errorf("without a picture the tables are touched: %v %v", tables, err)
	}
	r.snap = before.snap
	r.edit(func(s *model.Snapshot) { s.Stored = true })
	r.round(Trigger{})
	if got := r.kernel.text(); !strings.Contains(got, isolated) {
		t.Errorf("from a picture the tables are\n%s", got)
	}
}

// TestFreedomOfTheDaemonBefore: where nobody was isolated, a stored picture that is older isolates nobody before the cluster had
// time to be heard; but a Pod that is attached is guarded at once.
func TestFreedomOfTheDaemonBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fabric := ruleset.Table{Family: ruleset.INet, Name: ruleset.TableName}
		stored := func(tables ...ruleset.Table) *policyRig {
			r := newShop(t)
			for _, table := range tables {
				r.kernel.tables[table.ID()] = table
			}
			r.allow("web", "web")
			r.edit(func(s *model.Snapshot) { s.Stored = true })
			r.round(Trigger{})
			return r
		}
		isolated := func(r *policyRig) bool { return strings.Contains(r.kernel.text(), "10.0.1.2") }
		if !isolated(stored()) {
			t.Error("after a boot the stored picture does not count")
		}
		r := stored(fabric)
		if isolated(r) {
			t.Error("the stored picture counts before the cluster had time to be heard")
		}
		r.pod("web2", "10.0.1.9", "web")
		if err := r.SyncPolicies(t.Context()); err != nil || !strings.Contains(r.kernel.text(), "10.0.1.9") {
			t.Errorf("a Pod was attached, and is not isolated: %v", err)
		}
		late := stored(fabric)
		<-time.NewTimer(hold + time.Millisecond).C
		if late.round(Trigger{}); !isolated(late) {
			t.Error("the cluster is away, and its last picture does not count")
		}
		heard := stored(fabric)
		heard.edit(func(s *model.Snapshot) { s.Stored = false })
		if heard.round(Trigger{}); !isolated(heard) {
			t.Error("the cluster was heard, and the Pod is not isolated")
		}
	})
}

// TestLostPolicyTable: a table that somebody deleted comes back closed at first, and then whole.
func TestLostPolicyTable(t *testing.T) {
	r := newShop(t)
	r.allow("web", "web", "front")
	r.round(Trigger{})
	was := r.kernel.text()
	clear(r.kernel.tables)
	r.round(Trigger{Foreign: true, Rules: true, Deleted: true})
	if want := []string{"update closed isolated", "apply open isolated"}; !slices.Equal(r.kernel.said, want) {
		t.Errorf("did %q, want %q", r.kernel.said, want)
	}
	if now := r.kernel.text(); now != was {
		t.Errorf("came back as\n%s\nwant\n%s", now, was)
	}
	r.round(Trigger{Foreign: true, Rules: true, Deleted: true})
	if want := []string{"apply open isolated"}; !slices.Equal(r.kernel.said, want) {
		t.Errorf("nothing was lost; did %q, want %q", r.kernel.said, want)
	}
}

// TestGuardFails: a Pod is not attached without its policies, unless this kernel cannot enforce any.
func TestGuardFails(t *testing.T) {
	r := newShop(t)
	r.allow("web", "web")
	r.kernel.fail = errors.New("no memory")
	if err := r.SyncPolicies(context.Background()); err == nil || !strings.Contains(err.Error(), "putting the policies in force: no memory") {
		t.Errorf("got %v", err)
	}
	r.Missing = []string{"connection tracking"}
	if err := r.SyncPolicies(context.Background()); err != nil {
		t.Errorf("got %v", err)
	}
	r.Policies = nil
	if err := r.SyncPolicies(context.Background()); err != nil {
		t.Errorf("without the role: %v", err)
	}
}

// TestPoliciesAreSwept: what belonged to a Pod that is gone goes with a later round, unless its address has a new owner.
func TestPoliciesAreSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShop(t)
		r.allow("web", "web", "front")
		r.round(Trigger{})
		r.leases = r.leases[1:]
		r.edit(func(s *model.Snapshot) { delete(s.Pods, model.PodKey{Namespace: "shop", Name: "web"}) })
		r.round(Trigger{})
		if !strings.Contains(r.kernel.text(), "10.0.1.2") {
			t.Error("a round that only takes away ran at once")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			r.Run(ctx)
			close(done)
		}()
		<-time.NewTimer(time.Second).C
		synctest.Wait()
		if text := r.kernel.text(); text != "" {
			t.Errorf("after a second there is still\n%s", text)
		}
		cancel()
		<-done
	})
}
