package ruleset

import (
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// affinitySeed makes all nodes send a client to the same endpoint. Any number but 0 would do.
const affinitySeed = 0x77656674

// chain makes the chain.
func (p picker) chain() *Chain {
	f, i := families[0], 0
	if p.ipv6 {
		f, i = families[1], 1
	}
	kind := setEndpoints
	key := []Expr{f.daddr, MetaL4Proto, THDport}
	if p.node {
		kind, key = setNodePortEndpoints, key[1:]
	}
	if p.local {
		kind++
	}
	if p.timeout > 0 {
		return &Chain{Name: p.name(), Rules: p.remember(f, i, key, serviceSet(setID(i, kind)).Name)}
	}
	if p.hashed {
		key = append(key, Jhash{Of: f.saddr, Mod: uint32(p.n), Seed: affinitySeed})
	} else {
		key = append(key, Numgen{Mod: uint32(p.n)})
	}
	endpoints := serviceSet(setID(i, kind)).Name
	// An address in the key brings the check of the family with it.
	rule := func(checked bool, last Statement) Rule {
		if checked {
			return R("", last)
		}
		return R("", NFProto(f.Family), last)
	}
	rules := []Rule{chosenHere, rule(!p.node || p.hashed, DNATMap(f.Family, endpoints, key...))}
	// The kernel may take a change between the lookup that led here and the one above: then there are fewer endpoints than the name of
	// this chain says. The first is there as long as there is any; and a client that gets no answer asks again.
	if p.n > 1 {
		first := append(slices.Clone(key[:len(key)-1]), Numgen{Mod: 1})
		rules = append(rules, rule(!p.node, DNATMap(f.Family, endpoints, first...)))
	}
	return &Chain{Name: p.name(), Rules: append(rules, rule(!p.node, Drop))}
}

// chosenHere marks a connection whose destination is chosen.
var chosenHere = R("", Assign{Target: CtMark, Keep: ^uint32(0), Value: ServiceMark})

// affinitySize bounds the memory for clients: one that does not fit in any more gets an endpoint at random each time. Some 100 bytes
// each, so a flood of made-up addresses can take 12 MiB.
const affinitySize = 1 << 17

// remember makes the rules for a client that keeps its endpoint for some time after its last connection. One map for all Services has the
// name of the endpoint by client and frontend. The name passes through the packet's priority, since nft(8) can list no rule that
// puts what it just looked up into a map; postrouting clears it.
func (p picker) remember(f family, i int, frontend []Expr, endpoints string) []Rule {
	memory := "affinity" + f.suffix
	choices := setChoices
	if p.node {
		choices = setNodePortChoices
	}
	if p.local {
		choices++
	}
	client := Concat{f.saddr, f.daddr, MetaL4Proto, THDport}
	refresh := Remember{Map: memory, Key: client, Data: MetaPriority, Timeout: p.timeout}
	byName := DNATMap(f.Family, endpoints, append(slices.Clone(frontend), MetaPriority)...)
	draw := func(n int) Statement {
		return Assign{Target: MetaPriority, From: MapOf{Key: append(slices.Clone(Concat(frontend)), Numgen{Mod: uint32(n)}), Map: serviceSet(setID(i, choices)).Name}}
	}
	recall := Assign{Target: MetaPriority, From: MapOf{Key: client, Map: memory}}
	rules := []Rule{
		chosenHere,
		R("the endpoint that the client had", recall, refresh, byName),
		R("it is gone", Forget{Map: memory, Key: client, Data: MetaPriority}),
		R("a new client", draw(p.n), refresh, byName),
		R("the memory is full", draw(p.n), byName),
	}
	if p.n > 1 { // and if fewer are left than the name of this chain says, as in chain
		rules = append(rules, R("", draw(1), byName))
	}
	rules = append(rules, R("", Drop))
	if p.node { // nothing else brings the check of the family with it
		for r := 4; r < len(rules); r++ {
			rules[r].Statements = append([]Statement{NFProto(f.Family)}, rules[r].Statements...)
		}
	}
	return rules
}

// skeletonInput is what the chains besides pickers depend on.
type skeletonInput struct {
	present           [serviceSets]bool
	podRanges         []netip.Prefix
	nodePortAddresses []netip.Prefix
}

// skeleton is the part of the table that does not change with Services.
type skeleton struct {
	in     skeletonInput
	sets   []*Set
	chains []*Chain
	pods   [len(families)]bool // this node has Pods of that family
}

func newSkeleton(in skeletonInput) skeleton {
	s := skeleton{in: in}
	for i, f := range families {
		if pods := ranges(in.podRanges, f); len(pods) > 0 {
			s.pods[i] = true
			s.sets = append(s.sets, &Set{Name: "pods" + f.suffix, Comment: "Pods of this node", Key: []Type{f.addr}, Interval: true, Blocks: Single(pods...)})
		}
	}
	s.dispatch()
	s.nodePorts()
	for i := range families {
		s.memory(i)
		s.origins(i)
	}
	s.ends()
	s.masquerade()
	s.chains = append(s.chains,
		&Chain{
			Name: "prerouting", Comment: "connections from Pods and from outside",
			// Before host ports, so that an address that both want does not depend on who came first.
			Base: &Base{Type: NATing, Hook: Prerouting, Priority: PriorityDstNAT - 1}, Rules: []Rule{R("", Goto("services"))},
		},
		&Chain{
			Name: "output", Comment: "connections of this node",
			Base: &Base{Type: NATing, Hook: Output, Priority: PriorityDstNAT - 1}, Rules: []Rule{R("", Goto("services"))},
		})
	return s
}

func (s *skeleton) has(family, kind int) bool { return s.in.present[setID(family, kind)] }

// memory makes the map of clients that keep their endpoint.
func (s *skeleton) memory(i int) {
	if f := families[i]; s.remembers(i) {
		s.sets = append(s.sets, &Set{
			Name: "affinity" + f.suffix, Comment: "clients and the names of their endpoints (sessionAffinity)", Size: affinitySize, Dynamic: true,
			Key: []Type{f.addr, f.addr, TypeInetProto, TypeInetService}, Data: []Type{TypeMark},
		})
	}
}

// remembers says whether any Service of the family keeps clients at their endpoint.
func (s *skeleton) remembers(i int) bool {
	return s.has(i, setChoices) || s.has(i, setLocalChoices) || s.has(i, setNodePortChoices) || s.has(i, setNodePortLocalChoices)
}

// frontendKey is what a frontend is found by.
func frontendKey(f family) Concat { return Concat{f.daddr, MetaL4Proto, THDport} }

// dispatch makes the chain through which every new connection goes.
func (s *skeleton) dispatch() {
	var rules []Rule
	for i, f := range families {
		if s.has(i, setServices) {
			rules = append(rules, R("", Vmap{frontendKey(f), "services" + f.suffix}))
		}
	}
	for i, f := range families {
		if s.has(i, setClusterIPs) {
			rules = append(rules, R("a Service, but not one of its ports", In("cluster_ips"+f.suffix, f.daddr), Goto("refuse")))
		}
	}
	if s.has(0, setNodePorts) || s.has(1, setNodePorts) {
		rules = append(rules, R("", ToLocal, Goto("nodeports")))
	}
	s.chains = append(s.chains, &Chain{Name: "services", Comment: "what becomes of a new connection", Rules: rules})
}

// nodePorts makes the chain for connections to the node's own addresses. Loopback is not among them: answering there needs
// route_localnet, which opens the node's loopback services to its neighbours (CVE-2020-8558).
func (s *skeleton) nodePorts() {
	rules := []Rule{
		R("", Within(IPDaddr, loopback4), Return),
		R("", Eq(IP6Daddr, Addr(loopback6)), Return),
	}
	any := false
	for i, f := range families {
		if !s.has(i, setNodePorts) {
			continue
		}
		any = true
		port := Vmap{Concat{MetaL4Proto, THDport}, "nodeports" + f.suffix}
		if only := ranges(s.in.nodePortAddresses, f); len(only) > 0 {
			set := "nodeport_addresses" + f.suffix
			s.sets = append(s.sets, &Set{Name: set, Comment: "the node's addresses at which node ports answer", Key: []Type{f.addr}, Interval: true, Blocks: Single(only...)})
			rules = append(rules, R("", In(set, f.daddr), port))
		} else {
			rules = append(rules, R("", NFProto(f.Family), port))
		}
	}
	if any {
		s.chains = append(s.chains, &Chain{Name: "nodeports", Comment: "connections to this node's addresses", Rules: rules})
	}
}

// origins makes the chains for frontends that depend on who connects.
func (s *skeleton) origins(i int) {
	f := families[i]
	if s.has(i, setLimited) {
		s.chains = append(s.chains, &Chain{Name: "source_ranges" + f.suffix, Comment: "who may connect", Rules: []Rule{
			R("not in loadBalancerSourceRanges", NotIn("allowed_sources"+f.suffix, f.daddr, MetaL4Proto, THDport, f.saddr), Counter{}, Drop),
			R("", Vmap{frontendKey(f), "limited" + f.suffix}),
		}})
	}
	for _, c := range []struct {
		kind int
		name string
		key  Concat
	}{
		{setInside, "from_where", frontendKey(f)},
		{setNodePortInside, "nodeport_from_where", Concat{MetaL4Proto, THDport}},
	} {
		if !s.has(i, c.kind) {
			continue
		}
		inside, outside := serviceSet(setID(i, c.kind)).Name, serviceSet(setID(i, c.kind+1)).Name
		// In prerouting, a packet has no way out yet.
		rules := []Rule{R("this node's own", Ne(MetaOIFName, IfName("")), Vmap{c.key, inside})}
		if s.pods[i] {
			rules = append(rules, R("Pods of this node", In("pods"+f.suffix, f.saddr), Vmap{c.key, inside}))
		}
		s.chains = append(s.chains, &Chain{
			Name: c.name + f.suffix, Comment: "policy Local: inside, everything is as if it came by the load balancer",
			Rules: append(rules, R("", Vmap{c.key, outside})),
		})
	}
}

// ends makes the chains for connections that nobody serves.
func (s *skeleton) ends() {
	s.chains = append(s.chains,
		&Chain{Name: "refuse", Comment: "a Service without endpoints", Rules: []Rule{
			R("", L4(model.TCP), Counter{}, RejectReset),
			R("", Counter{}, RejectPort),
		}},
		&Chain{Name: "no_local_endpoint", Comment: "policy Local, and the endpoints are on other nodes", Rules: []Rule{R("", Counter{}, Drop)}})
}

// masquerade makes the chains that see to it that answers come back by this node, which alone knows whom they are for. They
// do by themselves if the client or the endpoint is a Pod of this node, or the endpoint is the node.
func (s *skeleton) masquerade() {
	var rules []Rule
	if s.remembers(0) || s.remembers(1) {
		rules = append(rules, R("where the endpoint's name was", Assign{Target: MetaPriority}))
	}
	rules = append(rules, R("this node is the endpoint", Oif("lo"), Accept))
	for i, f := range families {
		if s.has(i, setHairpin) {
			rules = append(rules, R("a Pod to itself", In("hairpin"+f.suffix, f.saddr, f.daddr), Masquerade{FullyRandom: true}))
		}
	}
	for i, f := range families {
		if s.pods[i] {
			rules = append(rules,
				R("from a Pod of this node", In("pods"+f.suffix, f.saddr), Accept),
				R("to a Pod of this node", In("pods"+f.suffix, f.daddr), Accept))
		}
	}
	// The ranges may have changed under running Pods.
	rules = append(rules, R("to a Pod of this node", Oif(PodLinks), Accept))
	s.chains = append(s.chains,
		&Chain{Name: "translated", Comment: "source addresses by which the answer finds its way", Rules: append(rules, R("", Masquerade{FullyRandom: true}))},
		&Chain{
			Name: "postrouting", Comment: "connections that were sent to an endpoint",
			Base: &Base{Type: NATing, Hook: Postrouting, Priority: PrioritySrcNAT},
			// Others may use the same bit of the mark for what they like.
			Rules: []Rule{R("", Masked(CtMark, ServiceMark, ServiceMark), HasAny{Left: CtStatus, Bits: StatusDNAT}, Goto("translated"))},
		})
}
