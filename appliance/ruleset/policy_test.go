package ruleset

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/policy/policytest"
	"weft.network/weft/appliance/model"
)

// shopCluster is a cluster that a reader can follow: a shop whose Pods are isolated, and who may come in.
func shopCluster() (*model.Snapshot, policy.Input) {
	is := func(key string, values ...string) model.Selector {
		return model.Selector{{Key: key, Op: model.OpIn, Values: values}}
	}
	pod := func(namespace, name, node, app string, addresses ...string) *model.Pod {
		return &model.Pod{PodRef: model.PodRef{Namespace: namespace, Name: name}, Node: node, Labels: map[string]string{"app": app}, Addresses: addrs(addresses...)}
	}
	web, db := pod("shop", "web-1", "a", "web", "10.42.1.5", "fd00:42:0:1::5"), pod("shop", "db-1", "a", "db", "10.42.1.6")
	web.Ports = []model.NamedPort{{Name: "http", Protocol: model.TCP, Port: 8080}}
	front, monitor, far := pod("shop", "front-1", "b", "front", "10.42.2.7", "fd00:42:0:2::7"), pod("ops", "monitor", "b", "monitor", "10.42.2.8"), pod("shop", "web-2", "b", "web", "10.42.2.9")
	snap := &model.Snapshot{Pods: map[model.PodKey]*model.Pod{}, Policies: map[model.PolicyKey]*model.NetworkPolicy{}, Namespaces: map[string]*model.Namespace{
		"ops": {Name: "ops", Labels: map[string]string{"team": "ops"}}, "kube-system": {Name: "kube-system", Labels: map[string]string{"kubernetes.io/metadata.name": "kube-system"}},
	}}
	for _, p := range []*model.Pod{web, db, front, monitor, far} {
		snap.Pods[p.Key()] = p
	}
	apps, ops, dns, every := is("app", "front"), is("team", "ops"), is("k8s-app", "kube-dns"), model.Selector{}
	webs := is("app", "web")
	for _, p := range []*model.NetworkPolicy{
		{Name: "default-deny", Pods: model.Selector{}, IsolatesIngress: true, IsolatesEgress: true},
		{Name: "web", Pods: webs, IsolatesIngress: true, Ingress: []model.PolicyRule{
			{Peers: []model.PolicyPeer{{Pods: &apps}}, Ports: []model.PolicyPort{{Protocol: model.TCP, Name: "http"}, {Protocol: model.TCP, First: 9000, Last: 9010}}},
			{Peers: []model.PolicyPeer{{Namespaces: &ops}}, AnyPort: true},
			{Peers: []model.PolicyPeer{{Block: prefixes("198.51.100.0/24")[0], Except: prefixes("198.51.100.128/25")}}, Ports: []model.PolicyPort{{Protocol: model.TCP, First: 443, Last: 443}}},
			{Peers: []model.PolicyPeer{{Namespaces: &every}}, Ports: []model.PolicyPort{{Protocol: model.TCP, First: 80, Last: 80}}},
		}},
		{Name: "dns", Pods: model.Selector{}, IsolatesEgress: true, Egress: []model.PolicyRule{
			{Peers: []model.PolicyPeer{{Namespaces: &every, Pods: &dns}}, Ports: []model.PolicyPort{{Protocol: model.UDP, First: 53, Last: 53}}},
		}},
		{Name: "db", Pods: is("app", "db"), IsolatesIngress: true, Ingress: []model.PolicyRule{
			{Peers: []model.PolicyPeer{{Pods: &webs}}, AnyPort: true}, {Peers: []model.PolicyPeer{{Block: prefixes("192.0.2.0/24")[0]}}, AnyPort: true},
		}},
	} {
		p.Namespace = "shop"
		snap.Policies[p.Key()] = p
	}
	return snap, policy.Input{NodeName: "a", DNS: at("10.96.0.10:53 169.254.20.10:53 [fd00:96::a]:53")}
}

func TestPolicyGolden(t *testing.T) {
	snap, in := shopCluster()
	var c policy.Compiler
	var p Policies
	filters := c.Compile(snap, in)
	var text string
	for _, table := range p.Tables(PolicyInput{Filters: filters, Generation: 0x100}) {
		if err := table.Check(); err != nil {
			t.Error(err)
		}
		text += table.String()
	}
	path := filepath.Join("testdata", "policy_shop.nft")
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(path); err != nil || string(want) != text {
		t.Errorf("tables differ from %s (%v); read the difference, then run with -update:\n%s", path, err, text)
	}
	for _, table := range (&Policies{}).Tables(PolicyInput{Filters: c.Compile(&model.Snapshot{}, in), Generation: 0x100}) {
		if !table.Empty() {
			t.Errorf("without policies there is %s", table.String())
		}
	}
}

// send sends a packet as the kernel would see it.
func send(tr *Tracer, p policy.Packet, hook Hook, edit func(*Packet)) Outcome {
	q := Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Sport: 40000, Dport: p.Port, CtState: StateNew, Priority: 0x00010001}
	if edit != nil {
		edit(&q)
	}
	return tr.Trace(hook, q)
}

// reverse makes the answer to a packet, whose connection was last judged in some generation.
func reverse(mark uint32) func(*Packet) {
	return func(p *Packet) {
		p.Src, p.Dst, p.Sport, p.Dport = p.Dst, p.Src, p.Dport, p.Sport
		p.CtState, p.Reply, p.CtMark = StateEstablished, true, mark
	}
}

// TestTracePolicies compares the rules with the policies themselves, for random clusters that change step by step.
func TestTracePolicies(t *testing.T) {
	const gen = 0x00000300
	for seed := range uint64(150) {
		w := policytest.New(seed + 10_000)
		var c policy.Compiler
		var rules Policies
		for step := range 6 {
			closed := Policies{}
			in := PolicyInput{Filters: c.Compile(w.Snap, w.In), Generation: gen}
			if in.Linger = true; step%2 == 1 {
				rules.Tables(in)
			}
			in.Linger = false
			tables := rules.Tables(in)
			for _, table := range tables {
				if err := table.Check(); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			if again := rules.Tables(in); !slices.EqualFunc(tables, again, func(a, b Table) bool { return slices.Equal(a.Sets, b.Sets) && slices.Equal(a.Chains, b.Chains) }) {
				t.Fatalf("seed %d: the same filters give other tables", seed)
			}
			in.Closed = true
			compareTrace(t, w, NewTracer(tables, Facts{}), NewTracer(closed.Tables(in), Facts{}), gen)
			w.Change()
		}
	}
}

func compareTrace(t *testing.T, w *policytest.World, tr, closed *Tracer, gen uint32) {
	t.Helper()
	j := &policy.Judge{Snapshot: w.Snap, Input: w.In, NodeAddresses: policytest.NodeAddrs}
	for range 60 {
		p := w.Packet()
		if !w.Crosses(p) {
			continue
		}
		v := j.Verdict(p)
		if slices.Contains(policytest.DNSAddresses, p.Dst) && len(w.In.DNS) > 0 {
			if out := send(tr, p, Input, func(q *Packet) { q.CtState = StateUntracked }); out.Accepted != v.Allowed {
				t.Fatalf("%+v to the DNS: %v, want %v: %s\n%+v", p, out.Accepted, v.Allowed, v.Why, out.Steps)
			}
			continue
		}
		out := send(tr, p, Forward, nil)
		if out.Accepted != v.Allowed {
			t.Fatalf("%+v: %v, want %v: %s\n%+v", p, out.Accepted, v.Allowed, v.Why, out.Steps)
		}
		if send(closed, p, Forward, nil).Accepted && !v.Allowed {
			t.Fatalf("%+v passes while the table is being made again", p)
		}
		if len(out.Steps) == 0 { // no policy at all
			continue
		}
		if out.Accepted && p.Src != p.Dst && out.Packet.CtMark != gen {
			t.Fatalf("%+v passes with mark %#x", p, out.Packet.CtMark)
		}
		if back := send(tr, p, Forward, reverse(0x000002ab)); back.Accepted != v.Allowed {
			t.Fatalf("the answer to %+v, of an older generation: %v, want %v\n%+v", p, back.Accepted, v.Allowed, back.Steps)
		} else if back.Accepted && p.Src != p.Dst && back.Packet.CtMark != gen|0xab {
			t.Fatalf("bits of others are lost: %#x", back.Packet.CtMark)
		}
		if !send(tr, p, Forward, reverse(gen|1)).Accepted {
			t.Fatalf("the answer to %+v, which was judged, does not pass", p)
		}
		if !send(tr, p, Forward, func(q *Packet) { q.CtState = StateRelated }).Accepted {
			t.Fatal("an error about a flow does not pass")
		}
		if raw := send(tr, p, Forward, func(q *Packet) { q.CtState = StateUntracked }); raw.Accepted != v.Allowed {
			t.Fatalf("%+v untracked: %v, want %v", p, raw.Accepted, v.Allowed)
		}
	}
}

// TestPolicyLinger: what belonged to a Pod that is gone stays until it is swept, unless somebody has its address.
func TestPolicyLinger(t *testing.T) {
	snap, in := shopCluster()
	var c policy.Compiler
	var p Policies
	count := func(linger bool) (n int) {
		for _, table := range p.Tables(PolicyInput{Filters: c.Compile(snap, in), Generation: 0x100, Linger: linger}) {
			for _, name := range []string{"in_isolated", "peers"} {
				if s := table.Set(name); s != nil {
					n += s.Len()
				}
			}
		}
		return n
	}
	all := count(true)
	without := func(name string) {
		next := *snap
		next.Pods = maps.Clone(snap.Pods)
		delete(next.Pods, model.PodKey{Namespace: "shop", Name: name})
		snap = &next
	}
	without("db-1")
	without("front-1")
	if n := count(true); n != all {
		t.Errorf("%d elements, want %d: those of Pods that are gone can wait", n, all)
	}
	// The address of the database goes to a Pod that nothing isolates, that of the front end to nobody special.
	next := *snap
	next.Pods = maps.Clone(snap.Pods)
	next.Pods[model.PodKey{Namespace: "free", Name: "x"}] = &model.Pod{PodRef: model.PodRef{Namespace: "free", Name: "x"}, Node: "a", Addresses: addrs("10.42.1.6")}
	snap = &next
	for _, table := range p.Tables(PolicyInput{Filters: c.Compile(snap, in), Generation: 0x100, Linger: true}) {
		for _, b := range table.Set("in_isolated").Blocks {
			if b.Elements[0].Key == Addr(netip.MustParseAddr("10.42.1.6")) {
				t.Error("a Pod that nothing isolates has inherited the isolation of the one before it")
			}
		}
	}
	if n := count(false); n >= all {
		t.Errorf("%d elements after the sweep, of %d", n, all)
	}
}

// TestPolicyInherit: a daemon that starts takes over what the kernel holds, adds a Pod to it, and then finds nothing to change.
func TestPolicyInherit(t *testing.T) {
	for seed := range uint64(40) {
		w := policytest.New(seed + 50_000)
		var before policy.Compiler
		var old Policies
		for range 5 {
			w.Change()
			old.Tables(PolicyInput{Filters: before.Compile(w.Snap, w.In), Generation: 0x500})
		}
		tables := old.Tables(PolicyInput{Filters: before.Compile(w.Snap, w.In), Generation: 0x500})
		var now Policies
		var found Inherited
		for i, table := range tables {
			elements := map[string][]Element{}
			for _, s := range table.Sets {
				for _, e := range s.Sorted() {
					elements[s.Name] = append(elements[s.Name], *e)
				}
			}
			now.Inherit(policyFamilies[i], elements, &found)
		}
		if tables[0].Empty() && tables[1].Empty() {
			continue
		}
		if found.Generation != 0x500 {
			t.Fatalf("seed %d: generation %#x", seed, found.Generation)
		}
		same := func(what string, got []Table) {
			t.Helper()
			for i := range got {
				if a, b := got[i].String(), tables[i].String(); a != b {
					t.Fatalf("seed %d: %s:\n%s\nwant\n%s", seed, what, a, b)
				}
			}
		}
		var c policy.Compiler
		c.Adopt(found.IDs, found.Last)
		in := PolicyInput{Filters: c.Compile(w.Snap, w.In), Generation: 0x500}
		same("as inherited", now.Keep(in, nil))
		same("with one Pod put in again", now.Keep(in, slices.Collect(maps.Keys(in.Filters.Own))[:min(1, len(in.Filters.Own))]))
		if stale := len(before.Compile(w.Snap, w.In).Classes) != len(in.Filters.Classes); !stale {
			same("made anew", now.Tables(in))
		}
	}
}
