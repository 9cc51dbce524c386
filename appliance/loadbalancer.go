package appliance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/announcer"
	"weft.network/weft/appliance/cluster"
	"weft.network/weft/appliance/compile/lb"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/model"
)

// loadBalancers is what the daemon keeps about addresses of load balancers.
type loadBalancers struct {
	announcer *announcer.Announcer
	counts    moveCounts
	told      announced
	// held is what the daemon before this one answered for when it ended, by link.
	held map[string][]netip.Addr
	// laid is what assignAddresses did last, where nobody keeps the addresses in the cluster; only publish uses it.
	laid laidOut

	mu sync.Mutex
	// result is the newest outcome, on the node that works it out.
	result lb.Result
	// leading is true while this node gives out addresses for the cluster.
	leading bool
}

// laidOut remembers an outcome with what it was made from.
type laidOut struct {
	in       lb.Input
	services map[model.ServiceKey]*model.Service
	from     map[model.ServiceKey]*model.Service
}

func (d *Daemon) lbInput(s *model.Snapshot) lb.Input {
	in := lb.Input{
		Pools: s.Pools, Services: s.Services, Namespaces: s.Namespaces, Nodes: s.Nodes, NoDefault: !d.cfg.LoadBalancer.Default,
		Local: lb.LocalNodes(s),
	}
	if d.everyPod() { // otherwise the Pods are those of this node only
		in.Pods = s.Pods
	}
	return in
}

// sameInput reports whether two inputs are made of the same maps: a map that is shared by two Snapshots is the same.
func sameInput(a, b lb.Input) bool {
	return model.SameMap(a.Pools, b.Pools) && model.SameMap(a.Services, b.Services) && model.SameMap(a.Namespaces, b.Namespaces) && maps.Equal(a.Nodes, b.Nodes) &&
		lb.ServiceLB(a.Pods) == lb.ServiceLB(b.Pods) && (a.Local == nil) == (b.Local == nil) &&
		maps.EqualFunc(a.Local, b.Local, maps.Equal[map[string]bool, map[string]bool])
}

func (d *Daemon) setResult(r lb.Result, leading bool) {
	d.lb.mu.Lock()
	defer d.lb.mu.Unlock()
	d.lb.result, d.lb.leading = r, leading
}

func (d *Daemon) lbResult() (lb.Result, bool) {
	d.lb.mu.Lock()
	defer d.lb.mu.Unlock()
	return d.lb.result, d.lb.leading
}

// assignAddresses lays addresses over the Services of a source that nobody can write to: every node works out the same ones from
// the same files. With an API server the status of the Services has them.
func (d *Daemon) assignAddresses(s *model.Snapshot) *model.Snapshot {
	if d.cfg.Manifests == "" || !d.cfg.Has(config.RoleLB) || s == nil || len(s.Pools) == 0 && d.lb.laid.from == nil {
		return s
	}
	in := d.lbInput(s)
	in.Spread = true
	last := &d.lb.laid
	if last.services == nil || !sameInput(last.in, in) {
		r := lb.Allocate(in)
		d.setResult(r, true)
		services, from := maps.Clone(s.Services), map[model.ServiceKey]*model.Service{}
		for key, a := range r.Assignments {
			if a.Reason == lb.ReasonForeign {
				continue
			}
			from[key] = s.Services[key]
			services[key] = withAddresses(s.Services[key], a)
			if old := last.services[key]; last.from[key] == from[key] && old != nil && reflect.DeepEqual(old, services[key]) {
				services[key] = old
			}
		}
		*last = laidOut{in: in, services: services, from: from}
	}
	out := *s
	out.Services = last.services
	return &out
}

// withAddresses returns a copy of a Service whose status says what was assigned.
func withAddresses(s *model.Service, a *lb.Assignment) *model.Service {
	out := *s
	out.Ingress = nil
	for _, addr := range a.Addrs() {
		out.Ingress = append(out.Ingress, model.ServiceIngress{IP: addr})
	}
	out.Allocation = &model.Allocation{OK: a.OK, Reason: a.Reason, Message: a.Message}
	return &out
}

// allocate is what the source runs on the one node that gives out addresses; nil without the role.
func (d *Daemon) allocate() func(context.Context, *cluster.Allocations) {
	if !d.cfg.Has(config.RoleLB) {
		return nil
	}
	return func(ctx context.Context, api *cluster.Allocations) {
		d.log.Info("this node gives out the addresses of load balancers")
		d.newAllocator(api).run(ctx)
		d.setResult(lb.Result{}, false)
	}
}

// allocations is the cluster, as the allocator sees it.
type allocations interface {
	Given(context.Context) ([]cluster.LoadBalancerStatus, error)
	Write(context.Context, cluster.LoadBalancerStatus) (changed bool, err error)
	WritePools(context.Context, []cluster.PoolStatus) error
}

// allocator gives out addresses while this node is the one to do it.
type allocator struct {
	d   *Daemon
	api allocations
	// given is what this node or the one before it wrote last; the watch may not have shown it yet.
	given map[model.ServiceKey]lb.Given
	// learned is when given was read from the cluster.
	learned time.Time
	// told is the last reason that users were told without a write, by Service.
	told map[model.ServiceKey]string
	// pools is what the pools show, as far as this node has written it; poolTrouble what was in the way last.
	pools       []cluster.PoolStatus
	poolTrouble string
}

func (d *Daemon) newAllocator(api allocations) *allocator {
	return &allocator{d: d, api: api, given: map[model.ServiceKey]lb.Given{}, told: map[model.ServiceKey]string{}}
}

// The pause after a failed request.
const (
	allocateRetry = time.Second
	allocateMost  = 30 * time.Second
)

// poolAudit is how often the pools are looked at although nothing of them has changed: one that cannot be used is in no Snapshot.
const poolAudit = 15 * time.Second

func (a *allocator) run(ctx context.Context) {
	wait := time.Duration(0)
	known := false
	var last lb.Input
	audit := time.NewTicker(poolAudit)
	defer audit.Stop()
	for {
		snap, changed := a.d.newest.Watch()
		if snap == nil || snap.Stored {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				continue
			}
		}
		var err error
		if !known {
			err = a.learn(ctx)
			known = err == nil
		}
		if in := a.d.lbInput(snap); known && (wait > 0 || !sameInput(in, last)) {
			if err = a.round(ctx, in); err == nil {
				last = in
			}
		}
		if known {
			a.showPools(ctx)
		}
		var retry <-chan time.Time
		switch {
		case err == nil, ctx.Err() != nil:
			wait = 0
		default:
			if !errors.Is(err, cluster.ErrServiceChanged) {
				a.d.log.Warn("giving out addresses of load balancers", zap.Error(err))
			}
			wait = min(max(2*wait, allocateRetry), allocateMost)
			retry = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-retry:
		case <-audit.C:
			a.pools = nil
		}
	}
}

// showPools makes the pools in the cluster show what is in use of them. It is no reason to do anything else later.
func (a *allocator) showPools(ctx context.Context) {
	r, _ := a.d.lbResult()
	pools := []cluster.PoolStatus{}
	for _, p := range r.Pools {
		pools = append(pools, cluster.PoolStatus{Name: p.Name, Total: p.Size, Used: p.Used, Full: p.Full, Problem: p.Problem, Refused: p.Refused})
	}
	if a.pools != nil && slices.Equal(a.pools, pools) {
		return
	}
	err := a.api.WritePools(ctx, pools)
	if ctx.Err() != nil || errors.Is(err, cluster.ErrServiceChanged) {
		return
	}
	a.pools = pools
	trouble := ""
	if err != nil {
		trouble = err.Error()
	}
	if trouble != a.poolTrouble && trouble != "" {
		a.d.log.Warn("the pools of load balancers do not show what is in use of them: apply weft's manifests again", zap.Error(err))
	}
	a.poolTrouble = trouble
}

// watchLag is how long a Service that was read may be missing from the watch before it counts as deleted.
const watchLag = 10 * time.Second

var errWatchLag = fmt.Errorf("the watch is behind: %w", cluster.ErrServiceChanged)

// learn takes over from the allocator before.
func (a *allocator) learn(ctx context.Context) error {
	list, err := a.api.Given(ctx)
	a.learned = time.Now()
	for _, st := range list {
		a.given[st.Service] = lb.Given{UID: st.UID, Addresses: st.Addresses}
	}
	return err
}

// round works out who gets what, and writes what is new. It returns the last error after it has tried everything.
func (a *allocator) round(ctx context.Context, in lb.Input) (err error) {
	for key, g := range a.given {
		s := in.Services[key]
		if s == nil && time.Since(a.learned) < watchLag {
			return errWatchLag // its address looks free, and is not
		}
		if s == nil || s.UID != g.UID {
			delete(a.given, key)
		}
	}
	in.Given = a.given
	r := lb.Allocate(in)
	a.d.setResult(r, true)
	keys := slices.SortedFunc(maps.Keys(r.Assignments), compareKeys)
	for _, key := range keys {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if e := a.settle(ctx, in.Services[key], r.Assignments[key]); e != nil {
			err = e
		}
	}
	for _, key := range r.Cleared {
		delete(a.given, key)
		if _, e := a.api.Write(ctx, cluster.LoadBalancerStatus{Service: key, UID: in.Services[key].UID}); e != nil {
			err = e
		}
	}
	return err
}

func compareKeys(x, y model.ServiceKey) int {
	return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
}

// settle makes the cluster show one assignment, and tells the users of the Service what is new.
func (a *allocator) settle(ctx context.Context, s *model.Service, as *lb.Assignment) error {
	key := as.Service
	if as.Reason == lb.ReasonForeign {
		if a.told[key] != as.Message {
			a.told[key] = as.Message
			a.d.source.Recorder().Service(key, as.UID, true, as.Reason, as.Message)
		}
		return nil
	}
	want := withAddresses(s, as)
	if reflect.DeepEqual(want.Allocation, s.Allocation) && slices.Equal(want.Ingress, s.Ingress) {
		a.given[key] = lb.Given{UID: as.UID, Addresses: as.Addrs()}
		return nil
	}
	changed, err := a.api.Write(ctx, cluster.LoadBalancerStatus{
		Service: key, UID: as.UID, Addresses: as.Addrs(), Allocation: want.Allocation,
	})
	if err != nil {
		return err
	}
	a.given[key] = lb.Given{UID: as.UID, Addresses: as.Addrs()}
	if changed {
		a.d.source.Recorder().Service(key, as.UID, !as.OK || as.Reason == lb.ReasonOutsidePool, as.Reason, as.Message)
		a.d.log.Info("load balancer", zap.Stringer("service", key), zap.Bool("ok", as.OK), zap.String("reason", as.Reason), zap.String("what", as.Message))
	}
	return nil
}
