package reconcile

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// zoneLabel is where the API keeps a node's zone (well-known labels).
const zoneLabel = "topology.kubernetes.io/zone"

// Flows is the connection tracking table. Forget may act a moment later.
type Flows interface {
	ForgetService(gone []service.Flow)
}

// Services serves virtual addresses. It belongs to the Loop, under whose lock all of it runs.
type Services struct {
	// Flows forgets connections to endpoints that are gone.
	Flows Flows
	// Yield says who else serves Services on this node, or nothing; then weft leaves them to it. May be nil.
	Yield func() string
	// Metrics may be nil.
	Metrics *ServiceMetrics
	// NodePortAddresses are the addresses at which node ports answer; empty means all of the node's.
	NodePortAddresses func(self *model.Node) []netip.Prefix
	// OtherNetwork says that another network gives Pods their addresses: these need not be in the node's ranges.
	OtherNetwork bool

	compiler service.Compiler
	rules    ruleset.Services
	result   service.Result
	// applied is what the kernel was last given.
	applied map[model.ServiceKey]*service.Frontends
	yielded string
	// pending says that something changed since the kernel was last given anything, triggered when that happened.
	pending   bool
	triggered []int64
	started   time.Time
	// pods are those that localPods were made from, with the ranges.
	pods              map[model.PodKey]*model.Pod
	ranges, localPods []netip.Prefix
}

// compile works out what this node serves. With an unchanged Snapshot it costs a few comparisons. Only what is put in force counts
// as a change; otherwise load balancers and people are answered from it while the kernel goes on with what it has.
func (s *Services) compile(snap *model.Snapshot, self *model.Node, state *route.State, inForce bool) ruleset.Table {
	s.started = time.Now()
	if s.Yield != nil {
		s.yielded = s.Yield()
	}
	if s.yielded != "" {
		s.result = service.Result{}
		return s.rules.Table(ruleset.ServicesInput{})
	}
	s.result = s.compiler.Compile(snap, service.Input{
		NodeName: self.Name, Zone: self.Labels[zoneLabel], NodeAddresses: self.Addresses,
	})
	if c := s.result.Changed; inForce && c.Services+c.Slices > 0 {
		s.pending = true
		s.triggered = append(s.triggered, c.Triggered...)
		s.Metrics.compiled(c, self.Addresses)
	}
	in := ruleset.ServicesInput{Frontends: s.result.Frontends, PodRanges: s.podRanges(snap, self, state.PodRanges)}
	if s.NodePortAddresses != nil {
		in.NodePortAddresses = s.NodePortAddresses(self)
	}
	return s.rules.Table(in)
}

// podRanges are where the Pods of this node are: connections from and to them keep their source address.
func (s *Services) podRanges(snap *model.Snapshot, self *model.Node, ranges []netip.Prefix) []netip.Prefix {
	if !s.OtherNetwork {
		return ranges
	}
	if s.localPods != nil && model.SameMap(s.pods, snap.Pods) && slices.Equal(s.ranges, ranges) {
		return s.localPods
	}
	seen := map[netip.Addr]bool{}
	for _, p := range snap.Pods {
		if p.Node != self.Name || p.HostNetwork || p.Completed {
			continue
		}
		for _, a := range p.Addresses {
			if !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) }) {
				seen[a] = true
			}
		}
	}
	s.pods, s.ranges, s.localPods = snap.Pods, ranges, append([]netip.Prefix{}, ranges...)
	for _, a := range slices.SortedFunc(maps.Keys(seen), netip.Addr.Compare) {
		s.localPods = append(s.localPods, netip.PrefixFrom(a, a.BitLen()))
	}
	return s.localPods
}

// committed forgets the flows that cannot go on, once the kernel has the new rules.
func (s *Services) committed(self *model.Node) {
	var gone []service.Flow
	for _, f := range service.Gone(s.applied, s.result.Frontends) {
		if f.Addr.IsValid() || !f.Untranslated {
			gone = append(gone, f)
			continue
		}
		// A node port alone would match strangers' flows to that port.
		for _, f.Addr = range self.Addresses {
			gone = append(gone, f)
		}
	}
	if len(gone) > 0 {
		s.Flows.ForgetService(gone)
	}
	s.applied = s.result.Frontends
	if s.pending {
		s.Metrics.committed(time.Since(s.started), s.triggered, self.Addresses)
		s.pending, s.triggered = false, nil
	}
}

// problems are for the log and the status screen.
func (s *Services) problems() []string {
	var out []string
	if s.yielded != "" {
		out = append(out, s.yielded)
	}
	for _, p := range s.result.Problems {
		out = append(out, p.String())
	}
	return out
}
