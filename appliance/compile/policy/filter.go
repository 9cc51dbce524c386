package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// byAttribute returns the classes that have each attribute, and all of them under 0.
func (c *classes) byAttribute() map[int32][]*Class {
	out := make(map[int32][]*Class, len(c.active)+1)
	for _, class := range slices.SortedFunc(maps.Values(c.byKey), func(a, b *Class) int { return cmp.Compare(a.ID, b.ID) }) {
		out[0] = append(out[0], class)
		for _, a := range class.attributes {
			out[a] = append(out[a], class)
		}
	}
	return out
}

// list keeps byAttribute up to date, and notes which of its lists changed.
func (c *classes) list() {
	if c.lists != nil && c.listed == c.version {
		return
	}
	now, at := c.byAttribute(), map[int32]int{}
	for a, list := range now {
		if at[a] = c.changedAt[a]; !slices.Equal(list, c.lists[a]) {
			at[a] = c.version
		}
	}
	for a := range c.lists {
		if now[a] == nil {
			at[a] = c.version
		}
	}
	c.lists, c.changedAt, c.listed = now, at, c.version
}

// changed reports whether any class that policies ask about is another one than it was in a version.
func (c *classes) changed(list []*parsed, version int) bool {
	if version == c.version {
		return false
	}
	return slices.ContainsFunc(list, func(p *parsed) bool {
		return slices.ContainsFunc(p.attributes, func(a int32) bool { return c.changedAt[a] > version })
	})
}

// filterOf makes the filter of one address; nil when no policy isolates it.
func (c *Compiler) filterOf(e *endpoint, addr netip.Addr, list []*parsed, byAttribute map[int32][]*Class) *Filter {
	f := &Filter{Pod: e.ref, Addr: addr}
	some := false
	for _, d := range []Direction{Ingress, Egress} {
		keys, audit := isolating(list, d)
		if len(keys) == 0 {
			continue
		}
		some = true
		b := builder{d: d, e: e, v4: addr.Is4(), byAttribute: byAttribute, any: map[ID]bool{}, ports: map[ID][]Ports{}}
		if e.pod != nil { // nothing is allowed to a Pod whose labels are not known
			for _, p := range list {
				if p.isolates(d) && p.policy.AuditOnly == audit {
					for i := range p.rules[d] {
						b.rule(&p.rules[d][i])
					}
				}
			}
		}
		allowed := b.allowed()
		allowed.Audit, allowed.Policies = audit, keys
		f.Directions[d] = allowed
	}
	if !some {
		return nil
	}
	return f
}

// builder gathers what the rules for one direction of one address allow.
type builder struct {
	d           Direction
	e           *endpoint
	v4          bool
	byAttribute map[int32][]*Class

	pods     bool
	podPorts []Ports
	any      map[ID]bool
	ports    map[ID][]Ports
	spans    []span
}

func (b *builder) rule(r *rule) {
	ports := r.ports
	if b.d == Ingress { // the ports are this Pod's own
		for _, n := range r.named {
			if number, ok := portOf(b.e.pod, n); ok {
				ports = append(slices.Clip(ports), Ports{n.protocol, number, number})
			}
		}
		ports = union(ports)
	}
	if r.anyPort || len(ports) > 0 {
		b.allow(r, ports)
	}
	if b.d == Egress {
		b.named(r)
	}
}

// allow adds what a rule says with ports that are known; no ports mean everything.
func (b *builder) allow(r *rule, ports []Ports) {
	if r.anyPort {
		ports = nil
	}
	if r.anyPeer {
		b.spans = append(b.spans, span{whole(b.v4), ports})
	}
	for _, block := range r.blocks {
		if block.From.Is4() == b.v4 {
			b.spans = append(b.spans, span{block, ports})
		}
	}
	if r.everyPod {
		b.pods = b.pods || r.anyPort
		b.podPorts = append(b.podPorts, ports...)
	}
	for _, s := range r.selectors {
		if s.all() {
			continue
		}
		for _, class := range b.byAttribute[s.attribute] {
			b.any[class.ID] = b.any[class.ID] || r.anyPort
			b.ports[class.ID] = append(b.ports[class.ID], ports...)
		}
	}
}

// named adds ports that each peer may call differently.
func (b *builder) named(r *rule) {
	for _, n := range r.named {
		lists := [][]*Class{}
		if r.anyPeer || r.everyPod {
			lists = append(lists, b.byAttribute[0])
		}
		for _, s := range r.selectors {
			if !s.all() {
				lists = append(lists, b.byAttribute[s.attribute])
			}
		}
		for _, list := range lists {
			for _, class := range list {
				if number, ok := class.named[n]; ok {
					b.ports[class.ID] = append(b.ports[class.ID], Ports{n.protocol, number, number})
				}
			}
		}
	}
}

// allowed puts it together, without what is covered already.
func (b *builder) allowed() *Allowed {
	out := &Allowed{Pods: b.pods}
	if !b.pods {
		out.PodPorts = union(b.podPorts)
		for id, all := range b.any {
			if all {
				out.Any = append(out.Any, id)
			}
		}
		slices.Sort(out.Any)
		for id, ports := range b.ports {
			if b.any[id] {
				continue
			}
			for _, p := range union(ports) {
				if !p.within(out.PodPorts) {
					out.Ports = append(out.Ports, PeerPorts{id, p})
				}
			}
		}
		slices.SortFunc(out.Ports, func(a, b PeerPorts) int {
			return cmp.Or(cmp.Compare(a.Peer, b.Peer), a.Ports.compare(b.Ports))
		})
	}
	out.Nets, out.Blocks = sweep(b.spans)
	return out
}
