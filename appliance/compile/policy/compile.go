package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"weft.network/weft/appliance/model"
)

// Compiler remembers the last outcome, so that the cost of the next one follows what changed. Its zero value is ready.
// It is not for several goroutines at once.
type Compiler struct {
	who       who
	classes   classes
	selectors selectors

	policies map[model.PolicyKey]*model.NetworkPolicy
	parsed   map[*model.NetworkPolicy]*parsed
	byNS     map[string][]*parsed // sorted by name
	chosen   map[*endpoint][]*parsed
	filters  map[netip.Addr]*made
	result   *Filters
	dns      []netip.AddrPort
}

// made is a filter and what it was made from.
type made struct {
	endpoint *endpoint
	chosen   []*parsed
	version  int
	filter   *Filter // nil: nothing isolates the address
}

// Adopt tells which identities the kernel has for which addresses, before the first Compile: they are used again. Numbers up
// to last are in use there and are not given to others.
func (c *Compiler) Adopt(held map[netip.Addr]ID, last ID) {
	c.classes.adopted = held
	c.classes.next = max(c.classes.next, last+1, firstID)
}

// Compile returns the filters of this node. A nil Snapshot has no policies. The outcome keeps its pointer while nothing changes.
func (c *Compiler) Compile(snap *model.Snapshot, in Input) *Filters {
	if snap == nil {
		snap = &model.Snapshot{}
	}
	if c.selectors.known == nil {
		c.selectors = selectors{known: map[string]*selector{}, ports: map[numbered]int32{}, byNumber: map[int32]numbered{}}
	}
	moved := c.who.update(snap, in)
	edited := c.result == nil || !model.SameMap(c.policies, snap.Policies)
	if !moved && !edited && model.SameMap(c.classes.namespaces, snap.Namespaces) && slices.Equal(c.dns, in.DNS) {
		return c.result
	}
	if edited {
		c.parse(snap.Policies)
	}
	c.choose(edited)
	active, named := c.wanted()
	c.classes.update(&c.who, moved, snap.Namespaces, active, named, &c.selectors)
	c.dns = in.DNS
	c.filter()
	return c.publish(in)
}

// parse takes the policies over; those that did not change stay as they are.
func (c *Compiler) parse(policies map[model.PolicyKey]*model.NetworkPolicy) {
	before := c.parsed
	c.policies, c.parsed, c.byNS = policies, make(map[*model.NetworkPolicy]*parsed, len(policies)), map[string][]*parsed{}
	// In one order, so that the same policies always give the same identities.
	for _, key := range slices.SortedFunc(maps.Keys(policies), model.PolicyKey.Compare) {
		p := policies[key]
		done := before[p]
		if done == nil {
			done = c.selectors.parse(p)
		}
		c.parsed[p] = done
		c.byNS[p.Namespace] = append(c.byNS[p.Namespace], done)
	}
	c.selectors.keep(c.parsed)
}

// choose finds the policies that select each Pod of this node.
func (c *Compiler) choose(again bool) {
	before := c.chosen
	c.chosen = make(map[*endpoint][]*parsed, len(before))
	for e := range c.who.own {
		list, known := before[e]
		if again || !known {
			var now []*parsed
			for _, p := range c.byNS[e.ref.Namespace] {
				// Of a Pod whose labels are not known yet, each policy of its namespace may be the one that isolates it.
				if e.pod == nil && !p.policy.AuditOnly || e.pod != nil && p.policy.Pods.Matches(e.pod.Labels) {
					now = append(now, p)
				}
			}
			if list = now; known && slices.Equal(before[e], now) {
				list = before[e]
			}
		}
		c.chosen[e] = list
	}
}

// wanted returns the selectors and names of ports that some filter asks about.
func (c *Compiler) wanted() ([]*selector, []portName) {
	used := map[*parsed]bool{}
	for e, list := range c.chosen {
		for _, p := range list {
			used[p] = used[p] || e.pod != nil
		}
	}
	active, named := map[*selector]bool{}, map[portName]bool{}
	for p, ask := range used {
		for d := range p.rules {
			for i := range p.rules[d] {
				r := &p.rules[d][i]
				if !ask {
					continue
				}
				for _, s := range r.selectors {
					active[s] = true
				}
				for _, n := range r.named {
					if Direction(d) == Egress {
						named[n] = true
					}
				}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(active), func(a, b *selector) int { return cmp.Compare(a.attribute, b.attribute) }),
		slices.SortedFunc(maps.Keys(named), func(a, b portName) int {
			return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.protocol, b.protocol))
		})
}

// filter makes the filters whose Pod, policies or classes changed.
func (c *Compiler) filter() {
	before := c.filters
	c.filters = make(map[netip.Addr]*made, len(before))
	c.classes.list()
	for e, list := range c.chosen {
		for _, addr := range e.addr {
			if c.who.owner(addr) != e {
				c.closeShared(addr, e, list)
				continue
			}
			old := before[addr]
			if old != nil && old.endpoint == e && sameSlice(old.chosen, list) && !c.classes.changed(list, old.version) {
				old.version = c.classes.version
				c.filters[addr] = old
				continue
			}
			now := c.filterOf(e, addr, list, c.classes.lists)
			if old != nil && reflect.DeepEqual(now, old.filter) {
				now = old.filter
			}
			c.filters[addr] = &made{e, list, c.classes.version, now}
		}
	}
}

// closeShared isolates an address that several Pods claim from everything, in the directions in which any of them is isolated.
func (c *Compiler) closeShared(addr netip.Addr, e *endpoint, list []*parsed) {
	f := &Filter{Pod: e.ref, Addr: addr}
	if old := c.filters[addr]; old != nil && old.filter != nil {
		*f = *old.filter
	}
	closed := false
	for _, d := range []Direction{Ingress, Egress} {
		if keys, audit := isolating(list, d); len(keys) > 0 && !audit {
			f.Directions[d] = &Allowed{Policies: keys}
		}
		closed = closed || f.Directions[d] != nil
	}
	if !closed {
		f = nil
	}
	c.filters[addr] = &made{filter: f}
}

// isolating returns the policies that isolate a Pod in a direction. Those that only audit count when no other does.
func isolating(list []*parsed, d Direction) (out []model.PolicyKey, audit bool) {
	var audits []model.PolicyKey
	for _, p := range list {
		switch {
		case !p.isolates(d):
		case p.policy.AuditOnly:
			audits = append(audits, p.policy.Key())
		default:
			out = append(out, p.policy.Key())
		}
	}
	if len(out) == 0 {
		return audits, len(audits) > 0
	}
	return out, false
}

// publish puts the outcome together.
func (c *Compiler) publish(in Input) *Filters {
	out := &Filters{Peers: c.classes.peers, DNS: in.DNS, Own: map[netip.Addr]*Filter{}, Attached: map[netip.Addr]model.PodRef{}, left: c.classes.left}
	for addr, m := range c.filters {
		if m.filter != nil {
			out.Own[addr] = m.filter
		}
	}
	for e := range c.chosen {
		for _, a := range e.addr {
			out.Attached[a] = e.ref
		}
	}
	for _, class := range c.classes.byKey {
		out.Classes = append(out.Classes, class)
	}
	slices.SortFunc(out.Classes, func(a, b *Class) int { return cmp.Compare(a.ID, b.ID) })
	out.Problems = append(c.problems(), c.who.problems()...)
	c.result = out
	return out
}

// problems names what a policy says in vain.
func (c *Compiler) problems() (out []Problem) {
	seen := map[*parsed]bool{}
	for _, list := range c.chosen {
		for _, p := range list {
			if seen[p] {
				continue
			}
			seen[p] = true
			for i := range p.rules[Egress] {
				if r := &p.rules[Egress][i]; len(r.blocks) > 0 && len(r.named) > 0 {
					out = append(out, Problem{p.policy.Key(), fmt.Sprintf(
						"spec.egress[%d]: the named port %q says nothing about an ipBlock, whose addresses have no names for ports; give a number", i, r.named[0].name)})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b Problem) int {
		return cmp.Or(a.Policy.Compare(b.Policy), cmp.Compare(a.Text, b.Text))
	})
	return out
}

func sameSlice[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}
