package ruleset

import (
	"strconv"

	"weft.network/weft/appliance/compile/policy"
)

// The sets of one family: those that are there once, then those of each direction.
const (
	setPeers = iota
	setIdentities
	setGeneration
	setSelf
	setDNS
	setDirections
)

// The sets of one direction.
const (
	dirIsolated = iota
	dirAudit
	dirPods
	dirPodPorts
	dirAny
	dirAllow
	dirRange
	dirNet
	dirCIDR
	dirSets
)

const policySets = setDirections + 2*dirSets

// ofDirection is the number of a set of one direction.
func ofDirection(d policy.Direction, kind int) int { return setDirections + int(d)*dirSets + kind }

func shardName(i int) string { return strconv.Itoa(i) }

// short is how sets and chains of a direction begin.
var short = [...]string{policy.Ingress: "in", policy.Egress: "eg"}

// policySet returns the set of that number, without elements.
func policySet(id int, family Family) *Set {
	addr := TypeIPv4Addr
	if family == IPv6 {
		addr = TypeIPv6Addr
	}
	switch id {
	case setPeers:
		return &Set{Name: "peers", Comment: "who has an address", Key: []Type{addr}, Data: []Type{TypeIPv4Addr}}
	case setIdentities:
		return &Set{Name: "identities", Comment: "what an identity stands for", Key: []Type{TypeIPv4Addr}}
	case setGeneration:
		return &Set{Name: "generation", Comment: "the mark of flows that were judged", Key: []Type{TypeMark}}
	case setSelf:
		return &Set{Name: "self", Comment: "a Pod reaches itself", Key: []Type{addr, addr}}
	case setDNS:
		return &Set{Name: "dns", Comment: "the DNS of this node", Key: []Type{addr, TypeInetProto, TypeInetService}}
	}
	kind, d := (id-setDirections)%dirSets, (id-setDirections)/dirSets
	info := [...]struct {
		name, comment string
		key           []Type
		interval      bool
	}{
		dirIsolated: {"isolated", "only what a set below names may pass", []Type{addr}, false},
		dirAudit:    {"audit", "what no set names is told and passes", []Type{addr}, false},
		dirPods:     {"pods", "all traffic with every Pod", []Type{addr}, false},
		dirPodPorts: {"pod_ports", "these ports with every Pod", []Type{addr, TypeInetProto, TypeInetService}, true},
		dirAny:      {"any", "all traffic with these Pods", []Type{addr, TypeIPv4Addr}, false},
		dirAllow:    {"allow", "one port with these Pods", []Type{addr, TypeIPv4Addr, TypeInetProto, TypeInetService}, false},
		dirRange:    {"range", "ports with these Pods", []Type{addr, TypeIPv4Addr, TypeInetProto, TypeInetService}, true},
		dirNet:      {"net", "all traffic with these addresses", []Type{addr, addr}, true},
		dirCIDR:     {"cidr", "ports with these addresses", []Type{addr, addr, TypeInetProto, TypeInetService}, true},
	}[kind]
	return &Set{Name: short[d] + "_" + info.name, Comment: info.comment, Key: info.key, Interval: info.interval}
}

// policyChains is what the chains depend on.
type policyChains struct {
	generation uint32
	dns        bool
}

// The pace of records: 100 a second after a burst, for each direction.
const (
	policyLogRate  = 100
	policyLogBurst = 50
	policySnaplen  = 80 // addresses and ports, also behind options and extension headers
)

// chains returns the rules. A flow that was judged in this generation passes by its mark; all others are judged, a packet
// against the direction of its flow by mirrored chains.
func (k policyChains) chains(family Family) []*Chain {
	src, dst := IPSaddr, IPDaddr
	if family == IPv6 {
		src, dst = IP6Saddr, IP6Daddr
	}
	out := []*Chain{
		judge(policy.Egress, false, src, dst, THDport),
		judge(policy.Ingress, false, dst, src, THDport),
		judge(policy.Egress, true, dst, src, THSport),
		judge(policy.Ingress, true, src, dst, THSport),
		k.both("orig", src, dst, ""),
		k.both("reply", dst, src, "_reply"),
		{
			Name: "forward", Comment: "all that Pods send to others and get from others",
			Base: &Base{Type: Filter, Hook: Forward, Priority: PriorityFilter},
			Rules: []Rule{
				R("this flow was judged", Masked(CtMark, PolicyMarkMask, k.generation), Accept),
				R("errors about flows", HasAny{CtState, StateRelated}, Accept),
				R("", ReplyPacket, Goto("reply")),
				R("", Goto("orig")),
			},
		},
	}
	if k.dns {
		out = append(out, &Chain{
			Name: "input", Comment: "to the DNS of this node, without connections; all else that Pods send to their own node passes",
			Base:  &Base{Type: Filter, Hook: Input, Priority: PriorityFilter},
			Rules: []Rule{R("", In("eg_isolated", src), In("dns", dst, MetaL4Proto, THDport), Jump("eg"))},
		})
	}
	return out
}

// both judges a packet by the policies of its sender and of its receiver.
func (k policyChains) both(name string, client, server Field, suffix string) *Chain {
	return &Chain{Name: name, Rules: []Rule{
		R("", In("eg_isolated", client), Jump("eg"+suffix)),
		R("", In("in_isolated", server), Jump("in"+suffix)),
		R("", Assign{Target: MetaPriority}, Assign{Target: CtMark, Keep: ^uint32(PolicyMarkMask), Value: k.generation}, Accept),
	}}
}

// judge is the chain for one direction: it returns what is allowed and drops the rest.
func judge(d policy.Direction, reply bool, own, peer, port Field) *Chain {
	name, chain, words := short[d]+"_", short[d], " "+d.String()
	if reply {
		chain, words = chain+"_reply", words+" reply"
	}
	said := func(verb string) Log {
		return Log{Group: PolicyLogGroup, Prefix: "weft " + verb + words, Snaplen: policySnaplen}
	}
	limit := Limit{Rate: policyLogRate, Per: Second, Burst: policyLogBurst}
	unknown := Ne(MetaPriority, idValue(0))
	return &Chain{Name: chain, Rules: []Rule{
		R("what the priority was before is no identity", Assign{Target: MetaPriority}),
		R("", Assign{Target: MetaPriority, From: MapOf{Key: peer, Map: "peers"}}, In(name+"allow", own, MetaPriority, MetaL4Proto, port), Return),
		R("", In(name+"any", own, MetaPriority), Return),
		R("", In(name+"range", own, MetaPriority, MetaL4Proto, port), Return),
		R("", unknown, In(name+"pods", own), Return),
		R("", unknown, In(name+"pod_ports", own, MetaL4Proto, port), Return),
		R("", In(name+"net", own, peer), Return),
		R("", In(name+"cidr", own, peer, MetaL4Proto, port), Return),
		R("", In("self", own, peer), Return),
		R("", In(name+"audit", own), limit, said("audit")),
		R("", In(name+"audit", own), Return),
		R("", limit, said("drop")),
		R("", Counter{}, Drop),
	}}
}
