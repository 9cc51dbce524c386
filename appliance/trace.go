package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/control"
	"weft.network/weft/appliance/kernel/iface"
	"weft.network/weft/appliance/kernel/nft"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/reconcile"
	"weft.network/weft/appliance/ruleset"
	"weft.network/weft/appliance/store"
	"weft.network/weft/appliance/trace"
)

// TraceAnswer is the answer to GET /v1/trace.
type TraceAnswer struct {
	trace.Report
	// Node is the one that was asked. What other nodes do is compiled from the same picture of the cluster.
	Node string `json:"node"`
	// Picture says where that picture comes from.
	Picture string `json:"picture"`
	// Agrees says that this node's kernel holds what was traced; Differences are what it holds otherwise, those that change the
	// outcome first.
	Agrees      bool     `json:"agrees"`
	Differences []string `json:"differences,omitempty"`
	Warnings    []string `json:"warnings,omitempty"`
}

// tracing is what a question is answered from: of a running daemon, or of what one left behind.
type tracing struct {
	node     string
	picture  string
	snapshot *model.Snapshot
	leases   []*model.Lease
	tables   []ruleset.Table
	config   route.Config
	links    *iface.Backend
	rules    *nft.Backend
	judge    *policy.Judge   // nil where policies are not weft's
	loop     *reconcile.Loop // of a store: the one that has compiled it
	warnings []string
}

// A difference counts when it is still there after so many more looks.
const (
	lookAgain = 2
	lookPause = 50 * time.Millisecond
)

func (d *Daemon) serveTrace(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	t := tracing{
		node: d.cfg.NodeName, picture: "weftd", snapshot: d.snapshot(), leases: d.attacher.Leases(), tables: d.loop.Tables(),
		config: d.loop.Settings(), links: d.kernel.Backend, rules: d.kernel.rules,
	}
	if d.loop.Policies != nil {
		t.judge = d.judge()
	}
	if !d.cfg.Has(config.RoleServices) {
		t.warnings = append(t.warnings, "role services is off on this node: whoever serves Services here is not traced")
	}
	if d.loop.NoFabric {
		t.warnings = append(t.warnings, "role fabric is off on this node: the Pod network of whoever has it is not traced")
	}
	answer, err := t.answer(r.Context(), q.Get("from"), q.Get("to"), q.Get("protocol"))
	for range lookAgain {
		if err != nil || answer.Agrees {
			break
		}
		// The loop may have changed the kernel between the two looks.
		<-time.After(lookPause)
		t.snapshot, t.leases, t.tables = d.snapshot(), d.attacher.Leases(), d.loop.Tables()
		answer, err = t.answer(r.Context(), q.Get("from"), q.Get("to"), q.Get("protocol"))
	}
	if err != nil {
		control.WriteError(w, http.StatusBadRequest, err)
		return
	}
	control.WriteJSON(w, answer)
}

// answer traces twice: through the tables that weft makes, and through those that the kernel holds.
func (t *tracing) answer(ctx context.Context, from, to, protocol string) (TraceAnswer, error) {
	out := TraceAnswer{Node: t.node, Picture: t.picture, Warnings: t.warnings}
	proto, err := model.ParseProtocol(protocol)
	if err != nil {
		return out, err
	}
	under, err := t.links.Underlay(ctx)
	if err != nil {
		return out, err
	}
	world := func(tables []ruleset.Table) *trace.World {
		this := t.this(ctx, tables)
		known := map[string]*trace.Node{t.node: this}
		return &trace.World{Snapshot: t.snapshot, This: t.node, Leases: t.leases, Policy: t.policy(), Node: func(name string) *trace.Node {
			n, ok := known[name]
			if !ok {
				n = trace.Compiled(t.snapshot, t.config, under, name)
				known[name] = n
			}
			return n
		}}
	}
	if out.Report, err = world(t.tables).Trace(from, to, proto); err != nil {
		return out, err
	}
	held := make([]ruleset.Table, 0, len(t.tables))
	var differ []string
	for i := range t.tables {
		have, d, err := t.rules.ReadBack(t.tables[i])
		if err != nil {
			return out, fmt.Errorf("reading the packet filter: %w", err)
		}
		held, differ = append(held, have), append(differ, d...)
	}
	kernel, err := world(held).Trace(from, to, proto)
	if err != nil {
		return out, err
	}
	out.Differences = append(out.Report.Differences(&kernel, "in the kernel"), t.contradicts(&out.Report, proto)...)
	out.Differences = append(out.Differences, differ...)
	out.Agrees = len(out.Differences) == 0
	return out, t.recall(&out.Report, held, func(tables []ruleset.Table) (trace.Report, error) { return world(tables).Trace(from, to, proto) })
}

// policy says for the report what the policies themselves say; nil where they are somebody else's.
func (t *tracing) policy() func(netip.Addr, netip.AddrPort, model.Protocol) string {
	if t.judge == nil {
		return nil
	}
	j := *t.judge
	j.Everywhere = true
	return func(src netip.Addr, dst netip.AddrPort, p model.Protocol) string {
		return j.Verdict(policy.Packet{Src: src, Dst: dst.Addr(), Proto: p, Port: dst.Port()}).Words()
	}
}

// contradicts names connections of which the policies say one thing and the tables made of them another.
func (t *tracing) contradicts(r *trace.Report, proto model.Protocol) (out []string) {
	if t.judge == nil {
		return nil
	}
	j := *t.judge
	j.Everywhere = true
	look := func(src netip.Addr, dst netip.AddrPort, works bool, hops []trace.Hop) {
		v := j.Verdict(policy.Packet{Src: src, Dst: dst.Addr(), Proto: proto, Port: dst.Port()})
		dropped := false
		if n := len(hops); n > 0 && !works && len(hops[n-1].Rules) > 0 {
			rules := hops[n-1].Rules
			dropped = strings.HasSuffix(rules[len(rules)-1].Table, " "+ruleset.PolicyTable)
		}
		switch {
		case works && !v.Allowed:
			out = append(out, fmt.Sprintf("the tables let a connection to %s pass, and the policies do not: %s", dst, v.Why))
		case dropped && v.Allowed:
			out = append(out, fmt.Sprintf("the tables drop a connection to %s, and the policies do not: %s", dst, v.Why))
		}
	}
	for i := range r.Paths {
		p := &r.Paths[i]
		if len(p.Endpoints) == 0 {
			look(p.Source, p.Destination, p.Works, p.Hops)
		}
		for k := range p.Endpoints {
			look(p.Source, p.Endpoints[k].Address, p.Endpoints[k].Works, p.Endpoints[k].Hops)
		}
	}
	return out
}

// recall asks once more with what the kernel remembers of clients, if it remembers any.
func (t *tracing) recall(r *trace.Report, held []ruleset.Table, ask func([]ruleset.Table) (trace.Report, error)) error {
	found := false
	tables := slices.Clone(held)
	for i := range tables {
		var memory ruleset.Table
		memory.Family, memory.Name = tables[i].Family, tables[i].Name
		tables[i].Sets = slices.Clone(tables[i].Sets)
		for _, s := range tables[i].Sets {
			if s.Dynamic {
				memory.Sets = append(memory.Sets, s)
			}
		}
		if len(memory.Sets) == 0 {
			continue
		}
		elements, err := t.rules.Elements(memory)
		if err != nil {
			return fmt.Errorf("reading which clients are remembered: %w", err)
		}
		for j, s := range tables[i].Sets {
			if s.Dynamic && len(elements[s.Name]) > 0 {
				known := *s
				known.Blocks = ruleset.Single(elements[s.Name]...)
				tables[i].Sets[j], found = &known, true
			}
		}
	}
	if !found {
		return nil
	}
	remembered, err := ask(tables)
	r.Recall(&remembered)
	return err
}

// this is the node that is asked: its routes are the kernel's.
func (t *tracing) this(ctx context.Context, tables []ruleset.Table) *trace.Node {
	known := map[netip.Addr]trace.Route{}
	way := func(to netip.Addr) trace.Route {
		if r, ok := known[to]; ok {
			return r
		}
		p, err := t.links.PathTo(ctx, to)
		if err != nil {
			p.Refused = err.Error()
		}
		r := trace.Route{Way: ruleset.Way{Link: p.Link, Local: p.Local, Refused: p.Refused}, Via: p.Via, Src: p.Src}
		known[to] = r
		return r
	}
	return &trace.Node{
		Name: t.node, Tables: tables, Route: way,
		Arrives: func(from netip.Addr) string { return way(from).Link },
		Returns: func(to netip.Addr, link string) bool { return way(to).Link == link },
	}
}

// Trace asks the daemon of this node or, when it does not run, answers from its store and the kernel. It changes nothing.
func Trace(ctx context.Context, cfg config.Config, from, to, protocol string) (TraceAnswer, error) {
	var out TraceAnswer
	path := fmt.Sprintf("/v1/trace?from=%s&to=%s&protocol=%s", url.QueryEscape(from), url.QueryEscape(to), url.QueryEscape(protocol))
	err := control.NewClient(cfg.RunDir).Get(ctx, path, &out)
	if !errors.Is(err, control.ErrNoDaemon) {
		return out, err
	}
	t, closing, err := traceStore(ctx, cfg)
	if err != nil {
		return out, err
	}
	defer closing()
	return t.answer(ctx, from, to, protocol)
}

// openLeft opens the store of a daemon that does not run.
func openLeft(dir string) (*store.Store, error) {
	s, err := store.OpenReadOnly(filepath.Join(dir, StoreName), directWait)
	switch {
	case errors.Is(err, store.ErrBusy):
		return nil, fmt.Errorf("weftd is starting or stopping, so try again: %w", err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("weftd does not run and has left no store in %s (start it, or name its --state-dir): %w", dir, fs.ErrNotExist)
	}
	return s, err
}

// traceStore reads what a daemon left behind, and compiles it as that daemon would.
func traceStore(ctx context.Context, cfg config.Config) (t *tracing, closing func(), err error) {
	if cfg.NodeName == "" {
		if cfg.NodeName, err = hostname(); err != nil {
			return nil, nil, err
		}
	}
	s, err := openLeft(cfg.StateDir)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	state, err := readState(s)
	if err != nil {
		return nil, nil, err
	}
	snap, err := s.Snapshot()
	if err != nil {
		return nil, nil, err
	}
	links, err := iface.Open(iface.Options{ReadOnly: true})
	if err != nil {
		return nil, nil, fmt.Errorf("opening the kernel's links and routes: %w", err)
	}
	rules, err := nft.Open(nft.Options{})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("opening the kernel's packet filter: %w", err), links.Close())
	}
	closing = func() {
		rules.Close()
		_ = links.Close()
	}
	t = &tracing{
		node: cfg.NodeName, picture: "the store, since weftd does not run: it may be older than what the kernel holds",
		leases: state.Leases, config: routeConfig(&cfg), links: links, rules: rules,
	}
	d := &Daemon{cfg: cfg, log: zap.NewNop()}
	t.snapshot = d.overlay(snap)
	if t.snapshot != nil { // what is wanted is what the store says, also where the kernel holds something else
		wanted := *t.snapshot
		wanted.Stored = false
		t.snapshot = &wanted
	}
	dry := &dryRun{links: links, rules: rules}
	loop := reconcile.New(routeConfig(&cfg), reconcile.Inputs{
		Snapshot: func() *model.Snapshot { return t.snapshot },
		Leases:   func() []*model.Lease { return state.Leases }, Ports: func() []*model.HostPorts { return state.Ports },
	}, dry, dry, zap.NewNop())
	loop.NoFabric = !cfg.Has(config.RoleFabric)
	if cfg.Has(config.RoleServices) {
		loop.Services = &reconcile.Services{Flows: dry, OtherNetwork: loop.NoFabric}
	}
	if cfg.Has(config.RolePolicy) {
		loop.Policies = &reconcile.Policies{Attached: func() []*model.Lease { return state.Leases }}
		if cfg.Has(config.RoleDNS) {
			d.dns = &dnsRole{kubelet: d.kubelet()}
			d.newest.Set(t.snapshot)
			loop.Policies.DNS = d.policyDNS
		}
	}
	if err := loop.Round(ctx, reconcile.Trigger{What: "a question"}); err != nil {
		closing()
		return nil, nil, fmt.Errorf("compiling what weftd would: %w", err)
	}
	t.tables, t.loop = loop.Tables(), loop
	if loop.Policies != nil {
		t.judge = newJudge(t.snapshot, loop.Status().Policies.Input, cfg.NodeName)
	}
	return t, closing, nil
}

// dryRun is a kernel that changes nothing, for a round of the loop whose outcome is only looked at.
type dryRun struct {
	links *iface.Backend
	rules *nft.Backend
}

func (r *dryRun) Underlay(ctx context.Context) (route.Underlay, error) { return r.links.Underlay(ctx) }

// Hops asks the kernel.
func (r *dryRun) Hops(addrs []netip.Addr) map[netip.Addr]route.Hop { return r.links.Hops(addrs) }

// ApplyHost changes nothing.
func (*dryRun) ApplyHost(context.Context, route.HostNet) ([]string, error) { return nil, nil }

// ApplyPods changes nothing.
func (*dryRun) ApplyPods(context.Context, []podnet.Attachment) ([]string, error) { return nil, nil }

// EnsureSysctls changes nothing.
func (*dryRun) EnsureSysctls(context.Context) (changes, problems []string) { return nil, nil }

// Apply changes nothing.
func (*dryRun) Apply(context.Context, []ruleset.Table) (int, error) { return 0, nil }

// Update changes nothing.
func (*dryRun) Update(context.Context, []ruleset.Table) (int, error) { return 0, nil }

// Elements reads the kernel: policies go on with the identities that are there.
func (r *dryRun) Elements(t ruleset.Table) (map[string][]ruleset.Element, error) {
	return r.rules.Elements(t)
}

// Differs compares nothing.
func (*dryRun) Differs([]ruleset.Table) (int, error) { return 0, nil }

// Exists says no, so that Services are compiled from the store; of policies it tells what is true.
func (r *dryRun) Exists(t ruleset.Table) (bool, error) {
	if t.Name != ruleset.PolicyTable {
		return false, nil
	}
	return r.rules.Exists(t)
}

// Invalidate has nothing to forget.
func (*dryRun) Invalidate() {}

// ForgetService forgets nothing.
func (*dryRun) ForgetService([]service.Flow) {}
