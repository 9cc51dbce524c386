package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// world is a kernel that remembers what it was given.
type world struct {
	mu       sync.Mutex
	host     route.HostNet
	pods     []podnet.Attachment
	tables   []ruleset.Table
	hosts    int // how often links and routes were compared
	stale    int // how often the packet filter was to be read again
	changes  []string
	failHost error
	failRule error
	gone     []service.Flow
	updated  [][]ruleset.Table
	served   bool // the kernel has a table of Services
}

func (w *world) Underlay(context.Context) (route.Underlay, error) {
	return route.Underlay{Links: []route.UnderlayLink{{Name: "eth0", MTU: 1500, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}}}, nil
}

func (w *world) Hops([]netip.Addr) map[netip.Addr]route.Hop { return nil }

func (w *world) ApplyHost(_ context.Context, want route.HostNet) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.host, w.hosts = want, w.hosts+1
	return w.changes, w.failHost
}

func (w *world) ApplyPods(_ context.Context, want []podnet.Attachment) ([]string, error) {
	w.pods = want
	return nil, nil
}

func (w *world) EnsureSysctls(context.Context) (changes, problems []string) {
	return nil, []string{"a sysctl cannot be set"}
}

func (w *world) Apply(_ context.Context, want []ruleset.Table) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tables = want
	return len(want), w.failRule
}

func (w *world) Differs([]ruleset.Table) (int, error) { return len(w.changes), nil }

func (w *world) Exists(ruleset.Table) (bool, error)                           { return w.served, nil }
func (w *world) Elements(ruleset.Table) (map[string][]ruleset.Element, error) { return nil, nil }
func (w *world) Update(_ context.Context, want []ruleset.Table) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.updated = append(w.updated, want)
	return len(want), w.failRule
}
func (w *world) Invalidate()                       { w.stale++ }
func (w *world) ForgetService(gone []service.Flow) { w.gone = append(w.gone, gone...) }
func (w *world) table(i int) string                { return w.tables[i].String() }
func node(name, addr, pods string) *model.Node {
	return &model.Node{Name: name, Addresses: []netip.Addr{netip.MustParseAddr(addr)}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(pods)}}
}

// rig is a loop over a world with one other node.
type rig struct {
	*Loop
	w    *world
	snap *model.Snapshot
}

func newRig() *rig {
	r := &rig{w: &world{}, snap: &model.Snapshot{Nodes: map[string]*model.Node{
		"a": node("a", "192.0.2.1", "10.0.1.0/24"), "b": node("b", "192.0.2.2", "10.0.2.0/24"),
	}}}
	r.Loop = New(route.Config{NodeName: "a", Mode: route.ModeAuto, VNI: 1, Port: 4789, Masquerade: true}, Inputs{
		Snapshot: func() *model.Snapshot { return r.snap },
		Leases: func() []*model.Lease {
			return []*model.Lease{{Kind: model.LeasePod, HostIf: "weftp1"}, {Kind: model.LeaseIPAM}}
		},
		Ports: func() []*model.HostPorts { return nil },
	}, r.w, r.w, zap.NewNop())
	return r
}

// TestRoundWithoutNode: a round that knows nothing of this node has set nothing up, and gives nobody an address.
func TestRoundWithoutNode(t *testing.T) {
	r, ctx := newRig(), context.Background()
	known := r.snap
	r.snap = &model.Snapshot{}
	if err := r.Round(ctx, Trigger{}); err != nil || r.Status().Applied {
		t.Errorf("an unknown node: applied %v, error %v", r.Status().Applied, err)
	}
	r.snap = known
	if err := r.Round(ctx, Trigger{}); err != nil || !r.Status().Applied {
		t.Errorf("a known node: applied %v, error %v", r.Status().Applied, err)
	}
}

func TestRound(t *testing.T) {
	r, ctx := newRig(), context.Background()
	if err := r.Round(ctx, Trigger{}); err != nil {
		t.Fatal(err)
	}
	if s := r.Status(); !s.Applied || s.Rounds != 1 || s.Err != "" || !slices.Contains(s.Problems, "a sysctl cannot be set") {
		t.Errorf("status %+v", s)
	}
	if text := r.w.host.Text(); !strings.Contains(text, "route replace 10.0.2.0/24 via 192.0.2.2 dev eth0") {
		t.Errorf("host:\n%s", text)
	}
	if len(r.w.pods) != 1 || !strings.Contains(r.w.table(0), "10.0.1.0/24") {
		t.Errorf("pods %v, tables\n%s", r.w.pods, r.w.table(0))
	}

	// Links and routes are compared only when nodes or the kernel changed; the packet filter is set each time.
	for _, tc := range []struct {
		what  string
		t     Trigger
		edit  func()
		hosts int
	}{
		{"nothing changed", Trigger{}, func() {}, 0},
		{"a Pod changed", Trigger{}, func() { r.snap = &model.Snapshot{Nodes: r.snap.Nodes, Pods: map[model.PodKey]*model.Pod{}} }, 0},
		{"the kernel changed", Trigger{Fabric: true, Foreign: true}, func() {}, 1},
		{"a node changed", Trigger{}, func() {
			r.snap = &model.Snapshot{Nodes: map[string]*model.Node{"a": r.snap.Nodes["a"], "b": node("b", "192.0.2.3", "10.0.2.0/24")}}
		}, 1},
		{"and then not", Trigger{}, func() {}, 0},
	} {
		before := r.w.hosts
		tc.edit()
		if err := r.Round(ctx, tc.t); err != nil || r.w.hosts-before != tc.hosts {
			t.Errorf("%s: compared %d times, want %d (%v)", tc.what, r.w.hosts-before, tc.hosts, err)
		}
	}
}

// A failed round is made good by the next one, also when that one is about something else.
func TestFailureIsRemembered(t *testing.T) {
	r, ctx := newRig(), context.Background()
	if err := r.Round(ctx, Trigger{}); err != nil {
		t.Fatal(err)
	}
	r.w.failHost = errors.New("injected")
	if err := r.Round(ctx, Trigger{Fabric: true}); err == nil {
		t.Fatal("no error")
	}
	r.w.failHost = nil
	before := r.w.hosts
	if err := r.Round(ctx, Trigger{What: "a Pod changed"}); err != nil || r.w.hosts != before+1 {
		t.Errorf("compared %d times more, want once (%v)", r.w.hosts-before, err)
	}
}

// Links and routes that the kernel refuses, for ever perhaps, keep nothing else from the kernel.
func TestRulesWithoutRoutes(t *testing.T) {
	r, ctx := newRig(), context.Background()
	for _, applied := range []bool{false, true} {
		r.w.failHost = errors.New("injected")
		port := netip.MustParseAddr("10.0.1.9")
		number := uint16(8080)
		if applied {
			number++
		}
		r.Inputs.Ports = func() []*model.HostPorts {
			return []*model.HostPorts{{Addresses: []netip.Addr{port}, Mappings: []model.PortMapping{{HostPort: number, ContainerPort: 80, Protocol: model.TCP}}}}
		}
		err := r.Round(ctx, Trigger{})
		if err == nil || !strings.Contains(err.Error(), "links and routes: injected") {
			t.Errorf("the error is %v", err)
		}
		if text := r.w.table(0); !strings.Contains(text, fmt.Sprint(number)) {
			t.Errorf("applied before %v: the host port is not in the rules:\n%s", applied, text)
		}
		if s := r.Status(); !s.Applied || s.Err == "" {
			t.Errorf("status %+v", s)
		}
		if err := r.SyncRules(ctx); err != nil {
			t.Errorf("opening a host port: %v", err)
		}
	}
	before := r.w.hosts
	r.w.failHost = nil
	if err := r.Round(ctx, Trigger{}); err != nil || r.w.hosts != before+1 {
		t.Errorf("the next round did not make it good: %v", err)
	}
}

// A Node that is made anew has no Pod range until somebody gives it one: what runs goes on with what it had.
func TestNodeWithoutRange(t *testing.T) {
	r, ctx := newRig(), context.Background()
	if err := r.Round(ctx, Trigger{}); err != nil {
		t.Fatal(err)
	}
	hosts, rules := r.w.hosts, r.w.table(0)
	fresh := *r.snap.Nodes["a"]
	fresh.PodCIDRs = nil
	r.snap = &model.Snapshot{Nodes: map[string]*model.Node{"a": &fresh, "b": r.snap.Nodes["b"]}}
	if err := r.Round(ctx, Trigger{Fabric: true, Rules: true}); err != nil || r.w.hosts != hosts || r.w.table(0) != rules {
		t.Errorf("links were set %d times more, %v; the rules are\n%s", r.w.hosts-hosts, err, r.w.table(0))
	}
	if s := r.Status(); len(s.State.PodRanges) != 1 || !strings.Contains(strings.Join(s.Problems, ""), "node.spec.podCIDRs") {
		t.Errorf("status %+v", s)
	}
	r.snap = &model.Snapshot{Nodes: map[string]*model.Node{"a": node("a", "192.0.2.1", "10.0.9.0/24"), "b": r.snap.Nodes["b"]}}
	if err := r.Round(ctx, Trigger{}); err != nil || r.w.hosts != hosts+1 || !strings.Contains(r.w.table(0), "10.0.9.0/24") {
		t.Errorf("with a new range: %v\n%s", err, r.w.table(0))
	}
}

// What a round changes after a foreign hand is a repair; what it changes otherwise is not.
func TestRepairsAreCounted(t *testing.T) {
	r, ctx := newRig(), context.Background()
	r.w.changes = []string{"route 10.0.2.0/24 added"}
	for _, foreign := range []bool{false, true} {
		before := r.Status().Repairs
		if err := r.Round(ctx, Trigger{Foreign: foreign, Fabric: true, Rules: true}); err != nil {
			t.Fatal(err)
		}
		if got := r.Status().Repairs > before; got != foreign {
			t.Errorf("foreign %t: counted %t", foreign, got)
		}
	}
	if r.w.stale != 2 {
		t.Errorf("the packet filter was read again %d times, want 2", r.w.stale)
	}
}

// A cluster that does not know this node (any more) changes nothing in the kernel.
func TestUnknownNodeChangesNothing(t *testing.T) {
	r, ctx := newRig(), context.Background()
	if err := r.Round(ctx, Trigger{}); err != nil {
		t.Fatal(err)
	}
	before := r.w.hosts
	r.snap = &model.Snapshot{Nodes: map[string]*model.Node{"b": r.snap.Nodes["b"]}}
	if err := r.Round(ctx, Trigger{Fabric: true}); err != nil {
		t.Fatal(err)
	}
	s := r.Status()
	if r.w.hosts != before || len(s.State.HostNet.Routes) != 1 || !s.Applied {
		t.Errorf("applied %d times more; state %+v", r.w.hosts-before, s.State)
	}
	if len(s.State.Warnings) == 0 || !strings.Contains(s.State.Warnings[0], `node "a" is not known`) {
		t.Errorf("warnings %v", s.State.Warnings)
	}
	port := netip.MustParseAddr("10.0.1.7")
	r.Inputs.Ports = func() []*model.HostPorts {
		return []*model.HostPorts{{Addresses: []netip.Addr{port}, Mappings: []model.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: model.TCP}}}}
	}
	if err := r.SyncRules(ctx); err != nil || !strings.Contains(r.w.table(0), "8080") {
		t.Errorf("a host port while the Node is being made anew: %v\n%s", err, r.w.table(0))
	}
	never := newRig()
	never.snap = &model.Snapshot{}
	if err := never.SyncRules(ctx); err == nil {
		t.Error("host ports of a node that was never known: no error")
	}
}

func TestFailures(t *testing.T) {
	broken := errors.New("injected")
	for _, tc := range []struct {
		name    string
		edit    func(*rig)
		applied bool
		err     string
		problem string
	}{
		{"routes", func(r *rig) { r.w.failHost = broken }, true, "applying links and routes: injected", ""},
		{"the node's own link", func(r *rig) { r.w.failHost = fmt.Errorf("%w: injected", route.ErrNodeLink) }, false, "applying links and routes: the node's own link in the Pod network: injected", ""},
		{"rules", func(r *rig) { r.w.failRule = broken }, false, "applying the packet filter: injected", ""},
		{"rules on a kernel without NAT", func(r *rig) { r.w.failRule, r.Missing = broken, []string{"no NAT"} }, true, "", "works without its packet filter"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig()
			tc.edit(r)
			err := r.Round(context.Background(), Trigger{})
			s := r.Status()
			if fmt.Sprint(err) != tc.err && (err != nil || tc.err != "") || s.Applied != tc.applied || s.Err != tc.err {
				t.Errorf("%v, status %+v", err, s)
			}
			if tc.problem != "" && !strings.Contains(strings.Join(s.Problems, "\n"), tc.problem) {
				t.Errorf("problems %v", s.Problems)
			}
		})
	}
}

// TestKick: while a round runs, what is asked for is put together and nothing of it is lost.
func TestKick(t *testing.T) {
	l := New(route.Config{}, Inputs{}, nil, nil, zap.NewNop())
	for range 100 {
		l.Kick(Trigger{What: "the cluster changed"})
	}
	l.Kick(Trigger{What: "other routes", Fabric: true})
	l.Kick(Trigger{What: "the cluster changed", Rules: true, Deleted: true, Foreign: true})
	want := Trigger{What: "the cluster changed; other routes; the cluster changed", Fabric: true, Rules: true, Deleted: true, Foreign: true}
	if got := <-l.trigger; got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Run gathers triggers, tries again after a failure, and audits without being asked.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.Run(ctx)
		}()
		rounds := func(after time.Duration) uint64 {
			<-time.After(after)
			synctest.Wait()
			return r.Status().Rounds
		}
		for range 10 {
			r.Kick(Trigger{What: "the cluster changed"})
		}
		if n := rounds(10 * time.Millisecond); n != 1 {
			t.Errorf("%d rounds for ten triggers at once, want 1", n)
		}
		r.w.mu.Lock()
		r.w.failHost = errors.New("injected")
		r.w.mu.Unlock()
		r.Kick(Trigger{Fabric: true})
		if n := rounds(time.Second); n < 3 || n > 6 {
			t.Errorf("%d rounds in the second after a failure, want some tries", n)
		}
		r.w.mu.Lock()
		r.w.failHost = nil
		r.w.mu.Unlock()
		before := rounds(lastRetry)
		if s := r.Status(); s.Err != "" {
			t.Errorf("still failing: %s", s.Err)
		}
		if n := rounds(audit+time.Second) - before; n != 1 {
			t.Errorf("%d rounds in a minute without news, want the audit", n)
		}
		cancel()
		<-done
	})
}

// Services come and go in the same round, and flows to what is gone are forgotten.
func TestServices(t *testing.T) {
	r, ctx := newRig(), context.Background()
	r.Services = &Services{Flows: r.w, Yield: func() string { return "" }}
	svc := &model.Service{
		Namespace: "default", Name: "dns", Type: "NodePort", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Ports: []model.ServicePort{{Protocol: model.UDP, Port: 53, NodePort: 30053}},
	}
	slice := &model.EndpointSlice{
		Namespace: "default", Name: "dns-1", Service: "dns", Ports: []model.EndpointPort{{Protocol: model.UDP, Port: 5353}},
		Endpoints: []model.Endpoint{{Addresses: []netip.Addr{netip.MustParseAddr("10.0.2.9")}, Ready: true, Serving: true, Node: "b"}},
	}
	r.snap = &model.Snapshot{
		Nodes: r.snap.Nodes, Services: map[model.ServiceKey]*model.Service{svc.Key(): svc},
		Slices: map[model.SliceKey]*model.EndpointSlice{slice.Key(): slice},
	}
	if err := r.Round(ctx, Trigger{}); err != nil {
		t.Fatal(err)
	}
	if len(r.w.tables) != 2 || !strings.Contains(r.w.table(1), "10.96.0.10 . udp . 53") {
		t.Fatalf("%d tables", len(r.w.tables))
	}
	// A node port that begins to serve forgets flows at this node's addresses, not at everybody's.
	for _, f := range r.w.gone {
		if !f.Addr.IsValid() {
			t.Errorf("flow %+v would match strangers", f)
		}
	}
	r.w.gone = nil
	r.snap = &model.Snapshot{Nodes: r.snap.Nodes, Services: r.snap.Services}
	if err := r.Round(ctx, Trigger{}); err != nil {
		t.Fatal(err)
	}
	if len(r.w.gone) == 0 {
		t.Error("a Service was scaled to zero, and no flow was forgotten")
	}
	hidden := *slice
	hidden.Unproxied = true
	r.snap = &model.Snapshot{Nodes: r.snap.Nodes, Services: r.snap.Services, Slices: map[model.SliceKey]*model.EndpointSlice{hidden.Key(): &hidden}}
	if err := r.Round(ctx, Trigger{}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(r.w.table(1), "10.0.2.9") {
		t.Errorf("a slice that is not for proxies is served:\n%s", r.w.table(1))
	}
	r.Services.Yield = func() string { return "kube-proxy runs here" }
	if err := r.Round(ctx, Trigger{}); err != nil {
		t.Fatal(err)
	}
	if !r.w.tables[1].Empty() || !slices.Contains(r.Status().Problems, "kube-proxy runs here") {
		t.Errorf("beside kube-proxy: %s, %v", r.w.table(1), r.Status().Problems)
	}
}

// A daemon that starts again leaves Services alone until it hears from the cluster: its store may be older than the kernel.
// After a boot, the store is all there is.
func TestServicesAreInherited(t *testing.T) {
	for _, inKernel := range []bool{true, false} {
		r, ctx := newRig(), context.Background()
		r.Services, r.w.served = &Services{Flows: r.w}, inKernel
		web := &model.Service{
			Namespace: "default", Name: "web", Type: "LoadBalancer", ExternalLocal: true, HealthCheckNodePort: 30999,
			ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20")}, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, NodePort: 30080}},
		}
		r.snap.Services = map[model.ServiceKey]*model.Service{web.Key(): web}
		r.snap.Stored = true
		r.start.waited.Store(true)
		if err := r.Round(ctx, Trigger{}); err != nil {
			t.Fatal(err)
		}
		if s := r.Status().Services; s.HealthChecks[web.Key()].Port != 30999 || s.Frontends[web.Key()] == nil {
			t.Errorf("in the kernel %t: the health check that load balancers ask for is not answered: %+v", inKernel, s)
		}
		if got := len(r.w.tables); got != map[bool]int{true: 1, false: 2}[inKernel] {
			t.Errorf("in the kernel %t: %d tables from the store", inKernel, got)
		}
		r.snap = &model.Snapshot{Nodes: r.snap.Nodes}
		if err := r.Round(ctx, Trigger{}); err != nil {
			t.Fatal(err)
		}
		if got := len(r.w.tables); got != 2 {
			t.Errorf("in the kernel %t: %d tables from the cluster", inKernel, got)
		}
	}
}
