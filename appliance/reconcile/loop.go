// Package reconcile is the one loop of the daemon: newest picture of the cluster, compile, apply, and again when anything differs.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// Host is the kernel's links, addresses, routes and neighbours. Apply sets the whole state and tells what it changed.
type Host interface {
	Underlay(ctx context.Context) (route.Underlay, error)
	// Hops says how to get to addresses that are on no subnet of the node.
	Hops(addrs []netip.Addr) map[netip.Addr]route.Hop
	ApplyHost(ctx context.Context, want route.HostNet) (changes []string, err error)
	// ApplyPods repairs the host side of attachments whose link exists.
	ApplyPods(ctx context.Context, want []podnet.Attachment) (changes []string, err error)
	EnsureSysctls(ctx context.Context) (changes, problems []string)
}

// Rules is the kernel's packet filter. Apply sets whole tables.
type Rules interface {
	Apply(ctx context.Context, want []ruleset.Table) (changes int, err error)
	// Differs says how much Apply would change, without changing it.
	Differs(want []ruleset.Table) (int, error)
	// Update is Apply for these tables alone.
	Update(ctx context.Context, want []ruleset.Table) (changes int, err error)
	// Elements reads the elements of a table's sets, by the names of the sets.
	Elements(t ruleset.Table) (map[string][]ruleset.Element, error)
	// Exists says whether the kernel has the table.
	Exists(t ruleset.Table) (bool, error)
	// Invalidate makes the next Apply read the kernel instead of trusting what it remembers.
	Invalidate()
}

// Inputs are asked at the start of each round.
type Inputs struct {
	Snapshot func() *model.Snapshot
	Leases   func() []*model.Lease
	Ports    func() []*model.HostPorts
	// Learned are the routes of BGP neighbours; nil when there is no speaker.
	Learned func() []model.LearnedRoute
}

// Status is what the loop last did.
type Status struct {
	State    route.State
	Applied  bool      // at least one round has put the rules in force; Err says what is amiss with the rest
	Held     bool      // the kernel is as the daemon before this one has left it, until the cluster is heard
	At       time.Time // of the last round
	Took     time.Duration
	Rounds   uint64
	Repairs  uint64
	Err      string // of the last round; empty when it succeeded
	Problems []string
	// Services is what this node serves; its zero value without that role.
	Services service.Result
	// Policies is what of the policies is in force; its zero value without that role.
	Policies PolicyStatus
}

// Loop brings the kernel to what the Snapshot asks for.
type Loop struct {
	Inputs   Inputs
	Host     Host
	Rules    Rules
	Log      *zap.Logger
	OnChange func(Status)
	// Missing names what this kernel's packet filter cannot do. With anything in it, rules that the kernel refuses are a
	// problem to report, and the node goes on without them: Pods that reach each other unguarded beat a node without a network.
	Missing []string
	// NoFabric leaves links, routes and the Pods' rules to somebody else: the role fabric is off.
	NoFabric bool
	// Services is nil without that role.
	Services *Services
	// Policies is nil without that role.
	Policies *Policies
	// DNS has no addresses without that role; nil leaves alone what is there.
	DNS *DNS
	// Former are empty tables, of roles that are off: what the kernel has of them goes with the first round.
	Former []ruleset.Table

	trigger chan Trigger // what is asked for, at most one
	kicking sync.Mutex   // who puts something in

	start  start
	run    sync.Mutex      // one round at a time
	fabric []ruleset.Table // the packet filter of the Pod network as it was last set; run guards it
	tables []ruleset.Table // all of the packet filter as it was last set; run guards it

	inForce bool // the packet filter was set once; run guards it

	mu     sync.Mutex
	config route.Config
	status Status
	// nodes are those that links and routes were last made for, problems what was found then; only Round uses them.
	nodes    map[string]*model.Node
	problems []string
}

// The pace of the loop.
const (
	// settle is how long a round waits for more changes after the first.
	settle = 5 * time.Millisecond
	// audit is how often everything is compared although nobody said that anything changed.
	audit = time.Minute
	// firstRetry and lastRetry bound the pause after a failed round.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// New returns a loop that has not run yet.
func New(cfg route.Config, in Inputs, h Host, r Rules, log *zap.Logger) *Loop {
	return &Loop{Inputs: in, Host: h, Rules: r, Log: log, config: cfg, trigger: make(chan Trigger, 1), start: start{over: make(chan struct{})}}
}

// Configure takes new settings and asks for a round.
func (l *Loop) Configure(cfg route.Config) {
	l.mu.Lock()
	l.config = cfg
	l.mu.Unlock()
	l.Kick(Trigger{What: "the configuration changed", Fabric: true})
}

// Settings returns those in force.
func (l *Loop) Settings() route.Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.config
}

// Status returns what the last round did.
func (l *Loop) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// Run loops until ctx ends.
func (l *Loop) Run(ctx context.Context) {
	ticker := time.NewTicker(audit)
	defer ticker.Stop()
	retry := time.Duration(0)
	for {
		var wait <-chan time.Time
		if retry > 0 {
			wait = time.After(retry)
		}
		var t Trigger
		select {
		case <-ctx.Done():
			return
		case t = <-l.trigger:
			t = l.gather(ctx, t)
		case <-ticker.C:
			t = Trigger{What: "audit", Foreign: true, Fabric: true, Rules: true}
		case <-wait:
			t = Trigger{What: "retry", Fabric: true, Rules: true}
		}
		if err := l.Round(ctx, t); err != nil && ctx.Err() == nil {
			retry = min(max(2*retry, firstRetry), lastRetry)
			l.Log.Error("the node's network is not as it should be; trying again", zap.Error(err), zap.Duration("in", retry))
		} else {
			retry = 0
		}
	}
}

// Round compiles the newest Snapshot and applies it.
func (l *Loop) Round(ctx context.Context, t Trigger) error {
	l.run.Lock()
	defer l.run.Unlock()
	start := time.Now()
	state, changes, problems, err := l.apply(ctx, t)

	l.mu.Lock()
	s := &l.status
	before := append(slices.Clone(s.State.Warnings), s.Problems...)
	s.At, s.Took, s.Rounds, s.Problems = start, time.Since(start), s.Rounds+1, problems
	s.Held = l.start.held
	if s.Err = ""; err != nil {
		s.Err = err.Error()
	}
	s.Applied = s.Applied || l.inForce
	if state != nil {
		s.State = *state
	}
	if l.Services != nil {
		s.Services = l.Services.result
	}
	if t.Foreign {
		s.Repairs += uint64(len(changes))
	}
	status := *s
	l.mu.Unlock()

	l.report(t, changes, before, status)
	if l.OnChange != nil {
		l.OnChange(status)
	}
	return err
}

// report logs what a round changed and what is new among the warnings.
func (l *Loop) report(t Trigger, changes, before []string, s Status) {
	known := map[string]bool{}
	for _, w := range before {
		known[w] = true
	}
	for _, w := range append(slices.Clone(s.State.Warnings), s.Problems...) {
		if !known[w] {
			l.Log.Warn(w)
		}
	}
	if len(changes) == 0 {
		return
	}
	if t.Foreign {
		l.Log.Warn("repaired what something else changed", zap.String("seen", t.What), zap.Strings("repairs", changes))
		return
	}
	l.Log.Info("applied", zap.String("because", t.What), zap.Strings("changes", changes), zap.Duration("took", s.Took))
}

// apply does one round. state is nil when the cluster does not know this node (any more): what the kernel holds then stays,
// since an empty answer is more often a mistake than a wish.
func (l *Loop) apply(ctx context.Context, t Trigger) (state *route.State, changes, problems []string, err error) {
	l.mu.Lock()
	cfg := l.config
	last, applied := l.status.State, l.status.Applied
	l.mu.Unlock()
	snap := l.Inputs.Snapshot()
	self := snap.Node(cfg.NodeName)
	state = &last
	held, err := l.held(snap)
	if err != nil {
		return state, nil, l.problems, err
	}
	if self != nil && len(self.PodCIDRs) == 0 && len(last.PodRanges) > 0 && !l.NoFabric {
		l.nodes = nil
		return state, nil, append(slices.Clone(l.problems), "the cluster names no Pod range for this node any more (node.spec.podCIDRs), as while a Node is made "+
			"anew: all stays as it is until there is one"), nil
	}
	var fabricErr error
	if self == nil || !applied || t.Fabric || !maps.Equal(l.nodes, snap.Nodes) {
		l.nodes = nil // until it has succeeded, whatever the next round is about
		state, changes, fabricErr = l.applyFabric(ctx, cfg, snap, &last, held)
		if state == nil && applied {
			state = &last
		}
		if state == nil || self == nil {
			return state, changes, l.problems, fabricErr
		}
		if fabricErr == nil && !held {
			l.nodes = snap.Nodes
		}
		// A route that the kernel refuses is no reason to send connections to endpoints that are gone, or to forget a policy.
		defer func() { err = errors.Join(fabricErr, err) }()
	}
	if l.DNS != nil {
		more, dnsErr := l.DNS.apply(ctx, t.Fabric)
		changes = append(changes, more...)
		defer func() { err = errors.Join(err, dnsErr) }() // the rest of the node's network does not depend on it
	}
	if t.Rules {
		l.Rules.Invalidate()
	}
	if t.Deleted {
		if err := l.restorePolicies(ctx); err != nil {
			l.Log.Error("a table of policies was lost", zap.Error(err))
		}
	}
	n, err := l.applyRules(ctx, cfg, snap, self, state, held)
	l.heldWas(held, snap)
	l.inForce = l.inForce || (err == nil || len(l.Missing) > 0) && !errors.Is(fabricErr, route.ErrNodeLink)
	if n > 0 {
		changes = append(changes, fmt.Sprintf("%d nftables objects", n))
	}
	problems = append(slices.Clone(l.problems), l.Missing...)
	if err != nil && len(l.Missing) > 0 {
		problems = append(problems, "the node works without its packet filter: "+err.Error())
		err = nil
	}
	if l.Services != nil {
		problems = append(problems, l.Services.problems()...)
	}
	if l.Policies != nil {
		problems = append(problems, l.Policies.problems()...)
	}
	return state, changes, problems, err
}

// applyFabric brings links, routes and settings to what the nodes ask for; held, it only works out what that is.
func (l *Loop) applyFabric(ctx context.Context, cfg route.Config, snap *model.Snapshot, last *route.State, held bool) (state *route.State, changes []string, err error) {
	under, err := l.Host.Underlay(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the node's links: %w", err)
	}
	if l.Inputs.Learned != nil {
		cfg.Learned = l.Inputs.Learned()
		under.Hops = l.Host.Hops(route.Distant(cfg.Learned, under))
	}
	compiled := route.Compile(snap, cfg, under)
	if snap.Node(cfg.NodeName) == nil {
		last.Warnings = compiled.Warnings
		return last, nil, nil
	}
	state = &compiled
	if l.NoFabric {
		return &route.State{PodRanges: compiled.PodRanges}, nil, nil
	}
	if held {
		return state, nil, nil
	}
	changes, hostErr := l.Host.ApplyHost(ctx, compiled.HostNet)
	if hostErr != nil {
		hostErr = fmt.Errorf("applying links and routes: %w", hostErr)
	}
	// After the links: some settings are theirs.
	more, problems := l.Host.EnsureSysctls(ctx)
	l.problems = problems
	changes = append(changes, more...)
	more, err = l.Host.ApplyPods(ctx, l.attachments())
	changes = append(changes, more...)
	if err != nil {
		err = fmt.Errorf("applying the routes of Pods: %w", err)
	}
	return state, changes, errors.Join(hostErr, err)
}

func (l *Loop) attachments() []podnet.Attachment {
	var out []podnet.Attachment
	for _, lease := range l.Inputs.Leases() {
		if lease.Kind == model.LeasePod {
			out = append(out, podnet.Compile(lease))
		}
	}
	return out
}

// CheckRules compares the packet filter of the Pod network in the kernel with what it was last set to, and changes nothing: a
// host port that is about to be opened is missing rightly.
func (l *Loop) CheckRules() error {
	l.run.Lock()
	defer l.run.Unlock()
	n, err := l.Rules.Differs(l.fabric)
	if err != nil {
		return fmt.Errorf("reading the packet filter: %w", err)
	}
	if n > 0 {
		return fmt.Errorf("table inet weft in the kernel differs from what it should be in %d objects", n)
	}
	return nil
}

// applyRules sets all tables, since one that was named before and is not now is removed. Those that did not change cost a comparison.
func (l *Loop) applyRules(ctx context.Context, cfg route.Config, snap *model.Snapshot, self *model.Node, s *route.State, held bool) (int, error) {
	var tables []ruleset.Table
	if held {
		// The table of the Pod network is as it was left.
	} else if l.NoFabric { // another network's list may name our portmap
		tables = append(tables, ruleset.HostPortTable(l.Inputs.Ports(), true))
	} else {
		tables = append(tables, l.table(cfg, s))
	}
	fabric := slices.Clip(tables)
	serve := false
	if l.Services != nil {
		inherited, err := l.inherited(snap)
		if err != nil {
			return 0, err
		}
		serve = !inherited
		if table := l.Services.compile(snap, self, s, serve); serve {
			tables = append(fabric, table)
		}
	}
	if l.Policies != nil {
		more, err := l.policyTables(snap, self.Name)
		if err != nil {
			return 0, err
		}
		tables = append(slices.Clip(tables), more...)
	}
	if l.DNS != nil {
		tables = append(slices.Clip(tables), l.DNS.tables()...)
	}
	n, err := l.Rules.Apply(ctx, append(slices.Clip(tables), l.Former...))
	if err == nil && len(l.Former) > 0 {
		_, err = l.Rules.Apply(ctx, tables) // from here on tables of those names are somebody else's
	}
	if err != nil {
		if serve {
			l.Services.Metrics.failed(self.Addresses)
		}
		return n, fmt.Errorf("applying the packet filter: %w", err)
	}
	l.fabric, l.tables, l.Former = fabric, tables, nil
	if serve {
		l.Services.committed(self)
	}
	if l.Policies != nil {
		l.Policies.committed(snap)
		l.publishPolicies()
	}
	return n, nil
}

// Tables returns the packet filter as it was last set, by all parts of weft.
func (l *Loop) Tables() []ruleset.Table {
	l.run.Lock()
	defer l.run.Unlock()
	return slices.Clone(l.tables)
}

// inherited says whether Services must be left as the daemon before this one made them: the picture in the store is older than
// what the kernel serves, and would take back the last changes until the cluster is heard. After a boot the kernel has nothing.
func (l *Loop) inherited(snap *model.Snapshot) (bool, error) {
	if !snap.Stored || l.Services.applied != nil {
		return false, nil
	}
	found, err := l.Rules.Exists(ruleset.Table{Family: ruleset.INet, Name: ruleset.ServiceTable})
	if err != nil {
		return false, fmt.Errorf("looking for the table of Services: %w", err)
	}
	return found, nil
}

// table compiles the packet filter.
func (l *Loop) table(cfg route.Config, s *route.State) ruleset.Table {
	in := ruleset.FabricInput{
		PodRanges: s.PodRanges, NoMasquerade: s.NoMasquerade, Masquerade: cfg.Masquerade,
		TunnelSources: s.TunnelSources, HostPorts: l.Inputs.Ports(),
	}
	if s.HostNet.Tunnel != nil {
		in.TunnelPort = s.HostNet.Tunnel.Port
	}
	table, conflicts := ruleset.Fabric(in)
	for _, c := range conflicts {
		l.Log.Warn("two attachments want one host port", zap.String("conflict", c.String()))
	}
	return table
}
