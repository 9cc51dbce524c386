package reconcile

import (
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

	compiler service.Compiler
	rules    ruleset.Services
	result   service.Result
	// applied is what the kernel was last given.
	applied map[model.ServiceKey]*service.Frontends
	yielded string
}

// compile works out what this node serves. With an unchanged Snapshot it costs a few comparisons.
func (s *Services) compile(snap *model.Snapshot, self *model.Node, state *route.State) ruleset.Table {
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
	return s.rules.Table(ruleset.ServicesInput{Frontends: s.result.Frontends, PodRanges: state.PodRanges})
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
