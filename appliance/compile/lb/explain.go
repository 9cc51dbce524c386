package lb

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/compile/announce"
	"weft.network/weft/appliance/model"
)

// Explain says, step by step, how the addresses of a Service are decided.
func Explain(in Input, s *model.Service) (out []string) {
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if !Wants(s, in.NoDefault) {
		switch {
		case s.Type != "LoadBalancer":
			say("its type is %s: only Services of type LoadBalancer get addresses", s.Type)
		case s.LoadBalancerClass != "":
			say("its loadBalancerClass is %s: weft gives addresses to class %s", s.LoadBalancerClass, Class)
		default:
			say("it has no loadBalancerClass, and weft.yaml says loadBalancer.default: false: set the class to %s", Class)
		}
		return out
	}
	w, err := wishOf(s)
	var families []string
	for _, ip := range s.ClusterIPs {
		families = append(families, family(ip.Is6()))
	}
	say("it needs %s, the families of its ClusterIPs", cmp.Or(strings.Join(families, " and "), "nothing: it has no ClusterIP"))
	if s.DualStack == "require" {
		say("both families or none (ipFamilyPolicy RequireDualStack)")
	}
	switch {
	case err != nil:
		say("%v", err)
	case len(w.addrs) > 0:
		say("it asks for %s (%s)", join(w.addrs), w.from)
	}
	if w.pool != "" {
		say("it asks for pool %s", w.pool)
	}
	if w.share != "" {
		say("it may share an address with Services of the key %q, as long as their ports differ", w.share)
	}
	for _, ing := range s.Ingress {
		say("it has %s, and keeps it as long as it can", ing.IP)
	}
	a := newAllocator(in)
	r := Allocate(in)
	for _, p := range a.pools {
		line := fmt.Sprintf("pool %s", p.Name)
		if p.Priority != 0 {
			line += fmt.Sprintf(" (priority %d)", p.Priority)
		}
		why := p.excludes(s, in.Namespaces)
		switch {
		case why != "":
			say("%s: not used: %s", line, why)
		case p.OnRequest && w.pool != p.Name && !slices.ContainsFunc(w.addrs, p.contains):
			say("%s: only for Services that ask for it (autoAssign: false)", line)
		default:
			i := slices.IndexFunc(r.Pools, func(st PoolStatus) bool { return st.Name == p.Name })
			say("%s: %d of %d addresses in use", line, r.Pools[i].Used, r.Pools[i].Size)
		}
	}
	if len(a.pools) == 0 {
		say("there is no LoadBalancerPool")
	}
	if as := r.Assignments[s.Key()]; as != nil {
		say("%s: %s", as.Reason, as.Message)
	}
	return out
}

// Ranking sorts nodes by who should answer for an address: the first that lives and is on the segment does.
func Ranking(addr netip.Addr, nodes []string) []string {
	out := slices.Clone(nodes)
	slices.SortFunc(out, func(a, b string) int {
		return cmp.Or(cmp.Compare(announce.Rank(b, addr), announce.Rank(a, addr)), cmp.Compare(b, a))
	})
	return out
}
