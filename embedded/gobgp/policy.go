package gobgp

import (
	"context"
	"net/netip"
	"slices"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"

	"weft.network/weft/appliance/compile/peering"
)

// globalTable is the name that gobgp gives to what is no VRF.
const globalTable = "global"

// localPolicy takes our own paths into the table, which import policies are asked about too.
const localPolicy = "own paths"

// setDefault makes "no" the answer to what no policy decides about.
func setDefault(ctx context.Context, bgp *server.BgpServer, d api.PolicyDirection) error {
	assignment := &api.PolicyAssignment{Name: globalTable, Direction: d, DefaultAction: api.RouteAction_REJECT}
	if d == api.PolicyDirection_IMPORT {
		own := &api.Policy{Name: localPolicy, Statements: []*api.Statement{{
			Name: localPolicy, Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL}, Actions: accept(),
		}}}
		if err := bgp.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own}); err != nil {
			return err
		}
		assignment.Policies = []*api.Policy{{Name: localPolicy}}
	}
	return bgp.AddPolicyAssignment(ctx, &api.AddPolicyAssignmentRequest{Assignment: assignment})
}

// policies adds the policies that are wanted and puts every neighbour into their sets. It returns the neighbours of which that
// changes what was decided already.
func (a *apply) policies() (moved []netip.Addr) {
	members, groups := a.wantedMembers(), map[string]*peering.Group{}
	for i := range a.want.Groups {
		groups["export "+a.want.Groups[i].Name] = &a.want.Groups[i]
	}
	rules := map[string]*peering.Neighbour{}
	for i := range a.want.Neighbours {
		rules[importName(a.want.Neighbours[i].Import)] = &a.want.Neighbours[i]
	}
	for _, name := range sortedStrings(members) {
		have, known := a.s.have.members[name]
		if !known {
			var p policy
			if g := groups[name]; g != nil {
				p = exportPolicy(g)
			} else {
				p = importPolicy(rules[name].Import)
			}
			if a.addPolicy(p, members[name]) {
				a.s.have.members[name] = members[name]
				moved = append(moved, members[name]...)
			}
			continue
		}
		fresh := without(members[name], have)
		if len(fresh) == 0 {
			continue
		}
		err := a.s.bgp.AddDefinedSet(a.ctx, &api.AddDefinedSetRequest{DefinedSet: neighbourSet(name, fresh)})
		if a.check(err, "adding neighbours to the rules %s", name) {
			a.s.have.members[name] = append(slices.Clone(have), fresh...)
			moved = append(moved, fresh...)
		}
	}
	// Also those that only leave a set have something decided anew. A session that is not there yet asks for itself.
	for name, have := range a.s.have.members {
		moved = append(moved, without(have, members[name])...)
	}
	slices.SortFunc(moved, netip.Addr.Compare)
	return slices.DeleteFunc(slices.Compact(moved), func(m netip.Addr) bool {
		_, ok := a.s.have.neighbours[m]
		return !ok
	})
}

// wantedMembers lists the neighbours of each policy.
func (a *apply) wantedMembers() map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, n := range a.want.Neighbours {
		if name := importName(n.Import); name != "" {
			out[name] = append(out[name], n.Address)
		}
		name := "export " + n.Group
		out[name] = append(out[name], n.Address)
	}
	return out
}

// addPolicy adds a policy with all that it refers to. The set of neighbours comes first and is never empty: gobgp takes that for everybody.
func (a *apply) addPolicy(p policy, members []netip.Addr) bool {
	for _, set := range append([]*api.DefinedSet{neighbourSet(p.name, members)}, p.sets...) {
		if !a.check(a.s.bgp.AddDefinedSet(a.ctx, &api.AddDefinedSetRequest{DefinedSet: set}), "adding the rules %s", p.name) {
			return false
		}
	}
	if !a.check(a.s.bgp.AddPolicy(a.ctx, &api.AddPolicyRequest{Policy: p.policy}), "adding the rules %s", p.name) {
		return false
	}
	err := a.s.bgp.AddPolicyAssignment(a.ctx, &api.AddPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: globalTable, Direction: p.direction, Policies: []*api.Policy{{Name: p.name}}, DefaultAction: api.RouteAction_REJECT,
	}})
	return a.check(err, "putting the rules %s in force", p.name)
}

// stalePolicies takes neighbours out of sets that they do not belong to any more, and removes policies that nobody needs.
func (a *apply) stalePolicies() {
	members := a.wantedMembers()
	for _, name := range sortedStrings(a.s.have.members) {
		have := a.s.have.members[name]
		if len(members[name]) == 0 {
			if a.removePolicy(name) {
				delete(a.s.have.members, name)
			}
			continue
		}
		stale := without(have, members[name])
		if len(stale) == 0 {
			continue
		}
		err := a.s.bgp.DeleteDefinedSet(a.ctx, &api.DeleteDefinedSetRequest{DefinedSet: neighbourSet(name, stale)})
		if a.check(err, "taking neighbours out of the rules %s", name) {
			a.s.have.members[name] = without(have, stale)
		}
	}
}

func (a *apply) removePolicy(name string) bool {
	direction := api.PolicyDirection_EXPORT
	if len(name) > 6 && name[:6] == "import" {
		direction = api.PolicyDirection_IMPORT
	}
	err := a.s.bgp.DeletePolicyAssignment(a.ctx, &api.DeletePolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: globalTable, Direction: direction, Policies: []*api.Policy{{Name: name}}, DefaultAction: api.RouteAction_REJECT,
	}})
	if !a.check(err, "putting the rules %s out of force", name) {
		return false
	}
	var sets []*api.DefinedSet
	for _, kind := range []api.DefinedType{api.DefinedType_NEIGHBOR, api.DefinedType_PREFIX, api.DefinedType_LARGE_COMMUNITY} {
		err := a.s.bgp.ListDefinedSet(a.ctx, &api.ListDefinedSetRequest{DefinedType: kind}, func(s *api.DefinedSet) {
			if len(s.Name) > len(name) && s.Name[:len(name)+1] == name+" " {
				sets = append(sets, s)
			}
		})
		a.check(err, "listing the rules %s", name)
	}
	if !a.check(a.s.bgp.DeletePolicy(a.ctx, &api.DeletePolicyRequest{Policy: &api.Policy{Name: name}, All: true}), "removing the rules %s", name) {
		return false
	}
	for _, s := range sets {
		a.check(a.s.bgp.DeleteDefinedSet(a.ctx, &api.DeleteDefinedSetRequest{DefinedSet: s, All: true}), "removing the rules %s", name)
	}
	return true
}

func without(list, other []netip.Addr) (out []netip.Addr) {
	for _, a := range list {
		if !slices.Contains(other, a) {
			out = append(out, a)
		}
	}
	return out
}

func sortedStrings[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
