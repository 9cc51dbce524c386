package service

import (
	"fmt"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// builder makes the Frontends of one Service.
type builder struct {
	in       Input
	svc      *model.Service
	slices   []*model.EndpointSlice // sorted by name
	problems []Problem
}

// maxAffinity is the longest time-out that the API allows: a day, in seconds.
const maxAffinity = 86400

// maxProblems is how many problems of one Service are told; a slice of bad addresses has a thousand.
const maxProblems = 10

func (b *builder) problem(format string, a ...any) {
	if len(b.problems) > maxProblems {
		return
	}
	p := Problem{b.svc.Key(), fmt.Sprintf(format, a...)}
	if len(b.problems) == maxProblems {
		p.Text = "has more problems than these"
	}
	if !slices.Contains(b.problems, p) {
		b.problems = append(b.problems, p)
	}
}

// build returns the Frontends, or nil if the Service is not for this node to serve. before, which may be nil, is the
// outcome of the last time: the order of endpoints follows it.
func (b *builder) build(before *Frontends) (*Frontends, *HealthCheck) {
	if !served(b.svc) {
		return nil, nil
	}
	f := &Frontends{Service: b.svc.Key()}
	var check *HealthCheck
	if b.svc.Type == "LoadBalancer" && b.svc.ExternalLocal && b.svc.HealthCheckNodePort != 0 {
		check = &HealthCheck{Port: b.svc.HealthCheckNodePort}
	}
	var done [2]bool // by family: a Service has at most one ClusterIP of each
	for n, ip := range b.svc.ClusterIPs {
		v6 := ip.Unmap().Is6()
		i := 0
		if v6 {
			i = 1
		}
		if why := unusable(ip.Unmap(), v6); why != "" || done[i] {
			b.problem("clusterIP %s %s (ignored)", ip, orText(why, "is the second of its family"))
			continue
		}
		done[i] = true
		locals := map[netip.Addr]bool{}
		for j := range b.svc.Ports {
			p, ok := b.port(&b.svc.Ports[j], ip.Unmap(), before, locals)
			if !ok {
				continue
			}
			p.Frontends = slices.DeleteFunc(p.Frontends, func(fe Frontend) bool { return b.again(f, &p, &fe) })
			if len(p.Frontends) > 0 {
				f.Ports = append(f.Ports, p)
			}
		}
		if n == 0 && check != nil {
			check.LocalEndpoints = len(locals)
		}
	}
	if len(f.Ports) == 0 {
		return nil, check
	}
	return f, check
}

// again reports whether another port of the Service asks for the same already.
func (b *builder) again(f *Frontends, p *Port, fe *Frontend) bool {
	same := func(o *Port) bool {
		return slices.ContainsFunc(o.Frontends, func(x Frontend) bool { return claimOf(o, &x) == claimOf(p, fe) })
	}
	i := slices.IndexFunc(f.Ports, func(o Port) bool { return same(&o) })
	if i < 0 {
		return false
	}
	b.problem("port %q asks for what port %q has: %s port %d (ignored)", p.Name, f.Ports[i].Name, p.Protocol, fe.Port)
	return true
}

func orText(s, other string) string {
	if s != "" {
		return s
	}
	return other
}

// served reports whether a Service is weft's to serve.
func served(s *model.Service) bool {
	return !s.Headless && s.Type != "ExternalName" && s.OtherProxy == "" && len(s.ClusterIPs) > 0
}

// port makes one port in the family of the ClusterIP, and adds the addresses of ready endpoints on this node to locals.
func (b *builder) port(sp *model.ServicePort, ip netip.Addr, before *Frontends, locals map[netip.Addr]bool) (Port, bool) {
	if sp.Port == 0 || sp.Protocol != model.TCP && sp.Protocol != model.UDP && sp.Protocol != model.SCTP {
		b.problem("port %q (%d/%s) is not one that can be served; use 1 to 65535 over TCP, UDP or SCTP", sp.Name, sp.Port, sp.Protocol)
		return Port{}, false
	}
	v6 := ip.Is6()
	p := Port{Name: sp.Name, Protocol: sp.Protocol, IPv6: v6, Hashed: b.svc.Annotations[HashAnnotation] == "true"}
	if !p.Hashed && b.svc.AffinityTimeout > 0 { // a hash remembers for ever
		p.Affinity = uint32(min(b.svc.AffinityTimeout, maxAffinity))
	}
	external := b.external(sp, v6)
	all := b.gather(sp, v6)
	usesLocal := b.svc.InternalLocal || b.svc.ExternalLocal && len(external) > 0
	c := b.choose(all, !b.svc.InternalLocal || len(external) > 0, usesLocal)

	old := before.port(sp, v6)
	p.Cluster, p.Local = places(c.cluster), places(c.local)
	if !p.Hashed { // a table of hashes does not care for the order
		p.Cluster, p.Local = settle(old.Cluster, p.Cluster), settle(old.Local, p.Local)
	}
	p.Hairpin = b.hairpin(c)
	for i := range all {
		if e := &all[i]; e.local && e.ready {
			locals[e.at.Addr()] = true
		}
		if sp.Protocol == model.UDP && (all[i].ready || all[i].of.Serving) {
			p.Serving = append(p.Serving, all[i].at)
		}
	}
	within := target(c, b.svc.InternalLocal)
	p.Frontends = append(p.Frontends, Frontend{Kind: ClusterIP, Addr: ip, Port: sp.Port, Inside: within, Outside: within})
	for _, f := range external {
		f.Inside, f.Outside = target(c, false), target(c, b.svc.ExternalLocal)
		if !slices.ContainsFunc(p.Frontends, func(o Frontend) bool { return o.Addr == f.Addr && o.Port == f.Port }) {
			p.Frontends = append(p.Frontends, f)
		}
	}
	return p, true
}

// target is what a policy does with a connection.
func target(c choice, local bool) Target {
	switch {
	case !c.any:
		return Refuse
	case !local:
		return ToCluster
	case len(c.local) == 0:
		return NoLocal
	}
	return ToLocal
}

// external returns where a port is reached from outside of the cluster, the load balancer first.
func (b *builder) external(sp *model.ServicePort, v6 bool) (out []Frontend) {
	usable := func(field string, a netip.Addr) bool {
		if a.Unmap().IsValid() && a.Unmap().Is6() != v6 {
			return false // the other family's turn
		}
		why := unusable(a.Unmap(), v6)
		if why != "" {
			b.problem("%s %s %s (ignored)", field, a, why)
		}
		return why == ""
	}
	if b.svc.Type == "LoadBalancer" {
		for _, ing := range b.svc.Ingress {
			if !ing.Proxy && usable("status.loadBalancer.ingress", ing.IP) {
				f := Frontend{Kind: LoadBalancer, Addr: ing.IP.Unmap(), Port: sp.Port, Alone: b.alone(ing.IP.Unmap())}
				f.Sources = b.sources(f.Addr)
				out = append(out, f)
			}
		}
	}
	for _, ip := range b.svc.ExternalIPs {
		if usable("externalIPs", ip) {
			out = append(out, Frontend{Kind: ExternalIP, Addr: ip.Unmap(), Port: sp.Port})
		}
	}
	if sp.NodePort != 0 && b.svc.Type != "ClusterIP" {
		out = append(out, Frontend{Kind: NodePort, Port: sp.NodePort})
	}
	return out
}

// alone reports whether a load balancer's address is one that weft gave, and no node's own: nobody else answers at its other ports.
func (b *builder) alone(addr netip.Addr) bool {
	a := b.svc.Allocation
	return a != nil && a.OK && a.Reason != model.ReasonNode && !slices.Contains(b.in.NodeAddresses, addr)
}

// sources returns who may connect to a load balancer's address; nil if everybody.
func (b *builder) sources(vip netip.Addr) (out []netip.Prefix) {
	fromNode := false
	for _, r := range b.svc.SourceRanges {
		if !r.IsValid() || r.Addr().Is6() != vip.Is6() {
			continue
		}
		if r.Bits() == 0 {
			return nil
		}
		out = append(out, r.Masked())
		fromNode = fromNode || slices.ContainsFunc(b.in.NodeAddresses, r.Contains)
	}
	if len(out) == 0 && len(b.svc.SourceRanges) > 0 {
		b.problem("loadBalancerSourceRanges has no %s range, so everybody may connect to %s; add one to limit that", familyName(vip.Is6()), vip)
	}
	if fromNode {
		// Where the address is the node's own, the node's packets to it come from it, too.
		out = append(out, netip.PrefixFrom(vip, vip.BitLen()))
	}
	return out
}

// hairpin returns the Pods of this node that connections may be sent to, and those of which nobody says where they are: a slice that is
// written by hand names no node. A process of the node itself is none: its packets to itself never leave.
func (b *builder) hairpin(c choice) (out []netip.Addr) {
	for _, es := range [][]endpoint{c.cluster, c.local} {
		for i := range es {
			if a := es[i].at.Addr(); (es[i].local || es[i].of.Node == "") && !slices.Contains(b.in.NodeAddresses, a) {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// port returns the port of that name, or an empty one.
func (f *Frontends) port(sp *model.ServicePort, v6 bool) Port {
	if f != nil {
		for _, p := range f.Ports {
			if p.Name == sp.Name && p.Protocol == sp.Protocol && p.IPv6 == v6 {
				return p
			}
		}
	}
	return Port{}
}
