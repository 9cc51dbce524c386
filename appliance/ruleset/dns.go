package ruleset

import (
	"net/netip"

	"weft.network/weft/appliance/model"
)

// DNSTable is the name of the table that keeps queries to this node's DNS server out of connection tracking.
const DNSTable = "weft_dns"

// DNS returns the table for queries to these addresses of this node; without addresses it is empty. A packet that is not
// tracked meets no NAT: a Service at the same address does not send it to an endpoint, and two queries that leave a Pod at the
// same moment do not race for one entry (the 5 seconds of kubernetes/kubernetes#56903). Every packet of the node passes these chains,
// so they look at the port first, which costs least.
func DNS(addrs []netip.Addr) Table {
	t := Table{Family: INet, Name: DNSTable, Comment: "written by weft; changes made by hand are undone"}
	var queries, answers []Rule
	for _, f := range families {
		var elements []Element
		for _, a := range addrs {
			if f.has(a) {
				for _, p := range []model.Protocol{model.TCP, model.UDP} {
					elements = append(elements, Element{Key: Tuple(Addr(a.Unmap()), Proto(p), Port(model.DNSPort))})
				}
				elements = append(elements, Element{Key: Tuple(Addr(a.Unmap()), Proto(model.TCP), Port(model.DNSMetricsPort))})
			}
		}
		if elements == nil {
			continue
		}
		set := "dns" + f.suffix
		t.Sets = append(t.Sets, &Set{Name: set, Comment: "where this node's DNS server listens", Key: []Type{f.addr, TypeInetProto, TypeInetService}, Blocks: Single(elements...)})
		queries = append(queries, R("", In(set, f.daddr, MetaL4Proto, THDport), Notrack{}))
		answers = append(answers, R("", In(set, f.saddr, MetaL4Proto, THSport), Notrack{}))
	}
	if queries == nil {
		return t
	}
	var in, out []Rule
	for _, p := range []uint16{model.DNSPort, model.DNSMetricsPort} {
		query := R("", Eq(THDport, Port(p)), Jump("queries"))
		in = append(in, query)
		out = append(out, query, R("", Eq(THSport, Port(p)), Jump("answers")))
	}
	t.Chains = []*Chain{
		{Name: "queries", Comment: "to this node's DNS server", Rules: queries},
		{Name: "answers", Comment: "of this node's DNS server", Rules: answers},
		{Name: "dns_in", Comment: "from Pods and other machines", Base: &Base{Type: Filter, Hook: Prerouting, Priority: PriorityRaw}, Rules: in},
		{Name: "dns_out", Comment: "of this node", Base: &Base{Type: Filter, Hook: Output, Priority: PriorityRaw}, Rules: out},
	}
	return t
}
