package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/model"
)

// allocator is one run of Allocate.
type allocator struct {
	in    Input
	pools []*pool // the first to try first
	// tenants are the Services that have an address.
	tenants map[netip.Addr][]*claim
	// serviceLB is a Pod of k3s' ServiceLB, if that runs.
	serviceLB string
}

func newAllocator(in Input) *allocator {
	return &allocator{in: in, pools: newPools(in), tenants: map[netip.Addr][]*claim{}, serviceLB: ServiceLB(in.Pods)}
}

// claim is one Service on its way to its addresses.
type claim struct {
	svc     *model.Service
	wish    wish
	bad     error
	foreign string // why somebody else looks after the Service
	gaveUp  bool   // it needs two families and cannot have both
	parts   []part // one per family
}

// part is one family of a claim.
type part struct {
	v6  bool
	got []Address
	// reason and why say what is in the way, as far as anything was tried.
	reason, why string
}

func (p *part) fail(reason, format string, a ...any) {
	if p.why == "" {
		p.reason, p.why = reason, fmt.Sprintf(format, a...)
	}
}

func (a *allocator) newClaim(s *model.Service) *claim {
	c := &claim{svc: s}
	c.wish, c.bad = wishOf(s)
	for _, ip := range s.ClusterIPs {
		c.parts = append(c.parts, part{v6: ip.Is6()})
	}
	return c
}

// keep lets a Service have what it had, unless it asks for something else.
func (a *allocator) keep(c *claim) {
	had, ours := a.had(c.svc)
	if c.foreign = a.foreign(c.svc, had, ours); c.foreign != "" || len(had) == 0 {
		return
	}
	for i := range c.parts {
		p := &c.parts[i]
		for _, addr := range had {
			if addr.Is6() == p.v6 && len(p.got) == 0 && a.keeps(c, addr, ours) {
				a.take(c, p, addr)
			}
		}
	}
}

// foreign says why somebody else looks after a Service, or nothing.
func (a *allocator) foreign(s *model.Service, had []netip.Addr, ours bool) string {
	switch {
	case s.LoadBalancerClass != "":
		return ""
	case a.serviceLB != "":
		return fmt.Sprintf("the ServiceLB of k3s runs (Pod %s) and takes Services without a class, so weft leaves them to it: start the k3s servers "+
			"with --disable=servicelb, or set spec.loadBalancerClass to %s", a.serviceLB, Class)
	case !ours && elsewhere(s) != "":
		return fmt.Sprintf("another load balancer, %s, delivers its connections, so weft leaves it alone: set spec.loadBalancerClass to %s for an address of weft's",
			elsewhere(s), Class)
	case ours, len(had) == 0, slices.ContainsFunc(had, func(addr netip.Addr) bool { return a.poolOf(addr) != nil }):
		return ""
	case a.in.Pods != nil && !slices.ContainsFunc(had, func(addr netip.Addr) bool { return !a.isNodeAddress(addr) }):
		return "" // what a ServiceLB left behind that is gone
	}
	return fmt.Sprintf("another load balancer gave it %s, so weft leaves it alone: take that one away (k3s: --disable=servicelb), "+
		"or set spec.loadBalancerClass to %s", join(had), Class)
}

// elsewhere names a load balancer in the status that delivers by itself: by a name, or with ipMode Proxy.
func elsewhere(s *model.Service) string {
	for _, ing := range s.Ingress {
		if ing.Proxy {
			return ing.IP.String()
		}
	}
	return s.IngressName
}

// serviceLBLabel is on the Pods of k3s' ServiceLB.
const serviceLBLabel = "svccontroller.k3s.cattle.io/svcname"

// ServiceLB names a Pod of k3s' ServiceLB, or nothing.
func ServiceLB(pods map[model.PodKey]*model.Pod) string {
	found := ""
	for key, p := range pods {
		name := key.Namespace + "/" + key.Name
		if p.Labels[serviceLBLabel] != "" && !p.Completed && (found == "" || name < found) {
			found = name
		}
	}
	return found
}

// had returns the addresses that the Service has, and whether weft gave them.
func (a *allocator) had(s *model.Service) (out []netip.Addr, ours bool) {
	if g, ok := a.in.Given[s.Key()]; ok && g.UID == s.UID {
		return g.Addresses, true
	}
	for _, ing := range s.Ingress {
		if !ing.Proxy {
			out = append(out, ing.IP)
		}
	}
	return out, s.Allocation != nil
}

// keeps reports whether a Service may go on having an address.
func (a *allocator) keeps(c *claim, addr netip.Addr, ours bool) bool {
	p := a.poolOf(addr)
	switch {
	case a.isNodeAddress(addr):
		return false // those are worked out anew each time
	case a.rival(c, addr, false) != "":
		return false
	case c.bad != nil:
		return ours
	case c.wish.of(addr.Is6()).IsValid() && c.wish.of(addr.Is6()) != addr:
		return false
	case c.wish.pool != "" && p != nil && p.Name != c.wish.pool:
		return false // in none it stays: that pool may only be gone for a moment
	case p == nil:
		return ours
	}
	return p.reserved[addr] == ""
}

func (a *allocator) isNodeAddress(addr netip.Addr) bool {
	for _, n := range a.in.Nodes {
		if slices.Contains(n.Addresses, addr) {
			return true
		}
	}
	return false
}

// poolOf returns the pool that an address is from, or nil.
func (a *allocator) poolOf(addr netip.Addr) *pool {
	for _, p := range a.pools {
		if p.refused == "" && p.contains(addr) {
			return p
		}
	}
	return nil
}

func (a *allocator) take(c *claim, p *part, addr netip.Addr) {
	got := Address{Addr: addr}
	if from := a.poolOf(addr); from != nil {
		got.Pool = from.Name
		from.used[addr] = true
	}
	p.got = append(p.got, got)
	a.tenants[addr] = append(a.tenants[addr], c)
}

// rival names who has an address that the Service cannot share with it; nothing if it can be had. On an address of a node,
// Services share as the node's own programs do: by their ports.
func (a *allocator) rival(c *claim, addr netip.Addr, node bool) string {
	for _, t := range a.tenants[addr] {
		switch {
		case t == c:
		case !node && (c.wish.share == "" || t.wish.share == ""):
			return fmt.Sprintf("Service %s; give both the same annotation %s to share it", t.svc.Key(), shareAnnotations[0])
		case !node && c.wish.share != t.wish.share:
			return fmt.Sprintf("Service %s, which shares it under another key", t.svc.Key())
		case !node && c.svc.ExternalLocal != t.svc.ExternalLocal:
			return fmt.Sprintf("Service %s; to share it, both need the same externalTrafficPolicy", t.svc.Key())
		default:
			if port := commonPort(c.svc, t.svc); port != "" {
				return fmt.Sprintf("Service %s, whose port %s this one wants too", t.svc.Key(), port)
			}
		}
	}
	return ""
}

// commonPort names a port that both Services have.
func commonPort(x, y *model.Service) string {
	for _, p := range x.Ports {
		for _, q := range y.Ports {
			if p.Port == q.Port && p.Protocol == q.Protocol {
				return fmt.Sprintf("%d/%s", p.Port, p.Protocol)
			}
		}
	}
	return ""
}

// request gives a Service the addresses that it asks for, or none: another one would not be what its DNS name says.
func (a *allocator) request(c *claim) {
	if c.foreign != "" || c.bad != nil {
		return
	}
	for i := range c.parts {
		p := &c.parts[i]
		addr := c.wish.of(p.v6)
		if !addr.IsValid() || len(p.got) > 0 {
			continue
		}
		from, node := a.poolOf(addr), false
		for _, q := range a.pools {
			if q.NodeAddresses && slices.ContainsFunc(q.nodes, func(n *model.Node) bool { return slices.Contains(n.Addresses, addr) }) {
				from, node = q, true
			}
		}
		switch {
		case from == nil:
			p.fail(ReasonNotInPool, "%s (%s) is in no pool: add it to one, or ask for an address of %s", addr, c.wish.from, a.poolNames())
		case c.wish.pool != "" && c.wish.pool != from.Name:
			p.fail(ReasonNotInPool, "%s (%s) is in pool %s, but the Service also asks for pool %s: remove one of the two annotations", addr, c.wish.from, from.Name, c.wish.pool)
		case from.excludes(c.svc, a.in.Namespaces) != "":
			p.fail(ReasonNotInPool, "%s (%s) is in pool %s, which is not for this Service: %s", addr, c.wish.from, from.Name, from.excludes(c.svc, a.in.Namespaces))
		case from.reserved[addr] != "":
			p.fail(ReasonTaken, "%s (%s) is %s: ask for another", addr, c.wish.from, from.reserved[addr])
		case !node && !from.gives(addr):
			p.fail(ReasonNotInPool, "%s (%s) ends in .0 or .255, which pool %s avoids (avoidBuggyIPs): ask for another", addr, c.wish.from, from.Name)
		case node && !a.local(c.svc, addr):
			p.fail(ReasonNoEndpoint, "%s (%s) is of a node without a ready endpoint, and externalTrafficPolicy is Local: wait for a Pod there, or use Cluster", addr, c.wish.from)
		case node && ownPort(c.svc) != 0:
			p.fail(ReasonTaken, "%s (%s) is a node's own, on which port %d belongs to the node: use another port, or a pool of other addresses", addr, c.wish.from, ownPort(c.svc))
		case a.rival(c, addr, node) != "":
			p.fail(ReasonTaken, "%s (%s) belongs to %s: ask for another, or release it there", addr, c.wish.from, a.rival(c, addr, node))
		case node:
			a.takeNode(c, p, from, addr)
		default:
			a.take(c, p, addr)
		}
	}
}

func (a *allocator) poolNames() string {
	var names []string
	for _, p := range a.pools {
		if p.refused == "" {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return "a pool (there is none that can be used)"
	}
	return "pool " + strings.Join(names, " or ")
}

// surrender gives back what a Service cannot use, since it needs both families and has one.
func (a *allocator) surrender(c *claim) {
	missing := slices.ContainsFunc(c.parts, func(p part) bool { return len(p.got) == 0 })
	if c.svc.DualStack != "require" || c.bad != nil || !missing {
		return
	}
	c.gaveUp = true
	for i := range c.parts {
		for _, got := range c.parts[i].got {
			a.release(c, got.Addr)
		}
		c.parts[i].got = nil
	}
}

func (a *allocator) release(c *claim, addr netip.Addr) {
	a.tenants[addr] = slices.DeleteFunc(a.tenants[addr], func(t *claim) bool { return t == c })
	if len(a.tenants[addr]) > 0 {
		return
	}
	for _, p := range a.pools {
		delete(p.used, addr)
	}
}

// choose gives a Service addresses of the first pool that has some.
func (a *allocator) choose(c *claim) {
	if c.foreign != "" || c.bad != nil || c.gaveUp {
		return
	}
	for i := range c.parts {
		p := &c.parts[i]
		if len(p.got) > 0 || c.wish.of(p.v6).IsValid() {
			continue
		}
		p.reason, p.why = "", ""
		a.chooseFamily(c, p)
	}
}

func (a *allocator) chooseFamily(c *claim, p *part) {
	var full, others, waiting []string
	for _, q := range a.pools {
		switch why := q.excludes(c.svc, a.in.Namespaces); {
		case c.wish.pool != "" && q.Name != c.wish.pool:
			continue
		case why != "":
			others = append(others, fmt.Sprintf("pool %s: %s", q.Name, why))
			continue
		case q.OnRequest && c.wish.pool == "":
			others = append(others, fmt.Sprintf("pool %s is only for Services that ask for it (autoAssign: false)", q.Name))
			continue
		case !q.has(p.v6):
			others = append(others, fmt.Sprintf("pool %s has no %s addresses", q.Name, family(p.v6)))
			continue
		}
		if q.NodeAddresses {
			switch why := a.takeNodes(c, p, q); {
			case len(p.got) > 0:
			case why == "":
				waiting = append(waiting, q.Name)
			default:
				full = append(full, why)
			}
		} else if addr := a.pick(c, q, p.v6); addr.IsValid() {
			a.take(c, p, addr)
		} else {
			total, used := q.count(p.v6)
			full = append(full, fmt.Sprintf("pool %s has %d, of which %d are in use", q.Name, total, used))
		}
		if len(p.got) > 0 {
			return
		}
	}
	switch {
	case len(waiting) > 0:
		p.fail(ReasonNoEndpoint, "externalTrafficPolicy is Local, and no node of pool %s has a ready endpoint: wait for the Pod, or use Cluster", strings.Join(waiting, ", "))
	case len(full) > 0:
		p.fail(ReasonExhausted, "no %s address is free: %s; add a range to a pool, or release a Service", family(p.v6), strings.Join(full, ", "))
	case c.wish.pool != "" && len(others) == 0:
		p.fail(ReasonNoPool, "there is no pool %s, which the Service asks for: create it, or ask for %s", c.wish.pool, a.poolNames())
	case len(others) == 0:
		p.fail(ReasonNoPool, "there is no LoadBalancerPool: create one")
	default:
		p.fail(ReasonNoPool, "no pool gives it an %s address: %s", family(p.v6), strings.Join(others, "; "))
	}
}

// pick finds a free address of a pool, or one that the Service may share.
func (a *allocator) pick(c *claim, q *pool, v6 bool) netip.Addr {
	if c.wish.share != "" {
		var shared []netip.Addr
		for addr := range q.used {
			if addr.Is6() == v6 && q.gives(addr) && a.rival(c, addr, false) == "" {
				shared = append(shared, addr)
			}
		}
		if len(shared) > 0 {
			return slices.MinFunc(shared, netip.Addr.Compare)
		}
	}
	seed := ""
	if a.in.Spread {
		seed = c.svc.Key().String()
	}
	return q.free(v6, seed, func(addr netip.Addr) bool { return len(a.tenants[addr]) == 0 })
}

// local reports whether the node with that address may serve a Service, as far as it is known.
func (a *allocator) local(s *model.Service, addr netip.Addr) bool {
	if !s.ExternalLocal || a.in.Local == nil {
		return true
	}
	for name := range a.in.Local[s.Key()] {
		if n := a.in.Nodes[name]; n != nil && slices.Contains(n.Addresses, addr) {
			return true
		}
	}
	return false
}

// takeNodes gives a Service the addresses of all nodes of a pool that may serve it. It returns what is in the way where there is none, and
// nothing where none has an endpoint.
func (a *allocator) takeNodes(c *claim, p *part, q *pool) string {
	if port := ownPort(c.svc); port != 0 {
		return fmt.Sprintf("pool %s gives the nodes' own addresses, on which port %d belongs to the node: use another port, or a pool of other addresses", q.Name, port)
	}
	why := fmt.Sprintf("pool %s has no nodes", q.Name)
	for _, n := range q.nodes {
		addr := nodeAddress(n, p.v6)
		if !addr.IsValid() {
			continue
		}
		if !a.local(c.svc, addr) {
			why = ""
			continue
		}
		if rival := a.rival(c, addr, true); rival != "" {
			why = fmt.Sprintf("%s of pool %s belongs to %s", addr, q.Name, rival)
			continue
		}
		a.takeNode(c, p, q, addr)
	}
	return why
}

func (a *allocator) takeNode(c *claim, p *part, q *pool, addr netip.Addr) {
	got := Address{Addr: addr, Pool: q.Name}
	for _, n := range q.nodes {
		if slices.Contains(n.Addresses, addr) {
			got.Node = n.Name
		}
	}
	q.used[addr] = true
	p.got = append(p.got, got)
	a.tenants[addr] = append(a.tenants[addr], c)
}

func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

func join(addrs []netip.Addr) string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return strings.Join(out, " and ")
}

// finish says what became of a claim.
func (c *claim) finish() *Assignment {
	out := &Assignment{Service: c.svc.Key(), UID: c.svc.UID}
	var missing *part
	var said, lost []string
	for i := range c.parts {
		p := &c.parts[i]
		if len(p.got) == 0 && (missing == nil || missing.why == "") {
			missing = p
		}
		for _, got := range p.got {
			out.Addresses = append(out.Addresses, got)
			if got.Pool == "" {
				lost = append(lost, got.Addr.String())
			}
			said = append(said, fmt.Sprintf("%s from pool %s", got.Addr, got.Pool))
		}
	}
	say := func(ok bool, reason, format string, a ...any) *Assignment {
		out.OK, out.Reason, out.Message = ok, reason, fmt.Sprintf(format, a...)
		return out
	}
	switch {
	case c.foreign != "":
		return say(false, ReasonForeign, "%s", c.foreign)
	case c.bad != nil:
		return say(false, ReasonMalformed, "%v", c.bad)
	case len(c.parts) == 0:
		return say(false, ReasonNoPool, "it has no ClusterIP, so nothing can be served: wait for the API server, or write spec.clusterIPs in its manifest")
	case c.gaveUp:
		return say(false, missing.reason, "ipFamilyPolicy RequireDualStack wants both families: %s", missing.why)
	case len(out.Addresses) == 0:
		return say(false, missing.reason, "%s", missing.why)
	case len(lost) > 0:
		return say(true, ReasonOutsidePool, "%s is in no pool any more and stays until the Service is deleted or asks for another: "+
			"put the address back into a pool, or recreate the Service", strings.Join(lost, " and "))
	case missing != nil && len(c.wish.addrs) > 0 && c.wish.of(missing.v6).IsValid():
		return say(false, missing.reason, "%s; it has %s", missing.why, strings.Join(said, " and "))
	case missing != nil:
		return say(true, ReasonPartly, "%s; none of the other family: %s", strings.Join(said, " and "), missing.why)
	}
	if out.Addresses[0].Node != "" {
		return say(true, ReasonNode, "%s", strings.Join(said, " and "))
	}
	return say(true, ReasonAllocated, "%s", strings.Join(said, " and "))
}
