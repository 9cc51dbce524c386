package ruleset

import (
	"cmp"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// TableName is the name of the table that holds weft's rules.
const TableName = "weft"

// PodLinks matches the host ends of Pods.
const PodLinks = "weftp*"

// FabricInput is what the rules of the Pod network depend on.
type FabricInput struct {
	// PodRanges are this node's own ranges: sources that are masqueraded on the way out of the cluster.
	PodRanges []netip.Prefix
	// NoMasquerade are the destinations that see the Pod's own address.
	NoMasquerade []netip.Prefix
	Masquerade   bool
	// TunnelPort is the VXLAN port; 0 when there is no tunnel.
	TunnelPort uint16
	// TunnelSources are the only outer addresses from which VXLAN packets are accepted.
	TunnelSources []netip.Addr
	// HostPorts are the port mappings of all attachments, the oldest first: where two want the same port, the first has it.
	HostPorts []*model.HostPorts
}

// The prefixes that are never masqueraded, since no NAT can help a group address.
var multicast = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

var (
	loopback4  = netip.MustParsePrefix("127.0.0.0/8")
	loopback6  = netip.IPv6Loopback()
	linkLocal6 = netip.MustParsePrefix("fe80::/10")
)

// family is what differs between the IPv4 and the IPv6 half of the rules.
type family struct {
	Family
	suffix       string
	addr         Type
	saddr, daddr Field
}

var families = [2]family{
	{IPv4, "4", TypeIPv4Addr, IPSaddr, IPDaddr},
	{IPv6, "6", TypeIPv6Addr, IP6Saddr, IP6Daddr},
}

// has reports whether the address belongs to the family; a mapped IPv4 address is IPv4.
func (f family) has(a netip.Addr) bool { return a.Unmap().Is4() == (f.Family == IPv4) }

// Fabric returns the table of the Pod network: the guard against spoofed sources, the guard of the tunnel, masquerading and
// host ports; and the host ports that could not be given because an older attachment has them.
//
//	packet from a Pod      raw prerouting   guard -> from_pod
//	packet from a node     raw prerouting   guard -> tunnel_in     (VXLAN only)
//	packet to a host port  dstnat           hostports_in -> hostports
//	the node's own         dstnat output    hostports_out -> hostports
//	packet going out       srcnat           postrouting
//
// Every packet of every Pod passes guard, so what is there is little: whatever can be said once for a connection is in the nat
// chains, which see only its first packet.
func Fabric(in FabricInput) (Table, []Conflict) {
	t := Table{Family: INet, Name: TableName, Comment: "written by weft; changes made by hand are undone"}
	ports, conflicts := mapHostPorts(in.HostPorts)
	t.guard(in, ports.any())
	if in.TunnelPort != 0 {
		t.tunnel(in)
	}
	if ports.any() {
		t.hostPorts(ports, false)
	}
	t.postrouting(in)
	return t, conflicts
}

// guard refuses packets of Pods that lie about their source, and sends those of the tunnel to their own chain. The check asks
// the routing table whether the source lives behind the interface, so that it needs no element per Pod and holds before the
// first packet.
func (t *Table) guard(in FabricInput, hostPorts bool) {
	var fromPod []Rule
	if hostPorts {
		// route_localnet, which host ports on 127.0.0.1 need, would open the node's loopback services to its Pods.
		fromPod = append(fromPod, R("the node's loopback is not for Pods", Within(IPDaddr, loopback4), Counter{}, Drop))
	}
	fromPod = append(fromPod,
		R("", ReturnRoute, Return),
		R("neighbour discovery has no route", Within(IP6Saddr, linkLocal6), Return),
		R("duplicate address detection has no source", Eq(IP6Saddr, Addr(netip.IPv6Unspecified())), Return),
		R("not the address of this Pod", Counter{}, Drop))
	rules := []Rule{R("", Iif(PodLinks), Jump("from_pod"))}
	if in.TunnelPort != 0 {
		rules = append(rules, R("", Eq(UDPDport, Port(in.TunnelPort)), Goto("tunnel_in")))
	}
	t.Chains = append(t.Chains,
		&Chain{Name: "from_pod", Comment: "packets that a Pod sends", Rules: fromPod},
		&Chain{
			Name: "guard", Comment: "before anything else looks at them",
			Base: &Base{Type: Filter, Hook: Prerouting, Priority: PriorityRaw}, Rules: rules,
		})
}

// tunnel accepts VXLAN from the nodes only, and keeps it out of connection tracking: VXLAN has a source port per inner
// flow, each of which would be an entry.
func (t *Table) tunnel(in FabricInput) {
	var inRules, outRules []Rule
	for _, f := range families {
		if !hasFamily(in.TunnelSources, f) {
			continue
		}
		set := "tunnel_peers" + f.suffix
		var elements []Element
		for _, a := range in.TunnelSources {
			if f.has(a) {
				elements = append(elements, Element{Key: Addr(a.Unmap())})
			}
		}
		t.Sets = append(t.Sets, &Set{Name: set, Comment: "the other nodes", Key: []Type{f.addr}, Blocks: Single(elements...)})
		inRules = append(inRules, R("", In(set, f.saddr), Notrack{}, Accept))
		outRules = append(outRules, R("", Eq(UDPDport, Port(in.TunnelPort)), In(set, f.daddr), Notrack{}))
	}
	// The kernel takes VXLAN on each of the node's addresses, whatever the device's own.
	inRules = append(inRules, R("not a node of this cluster", ToLocal, Counter{}, Drop))
	t.Chains = append(t.Chains, &Chain{Name: "tunnel_in", Comment: "tunnel packets to this node", Rules: inRules})
	if len(outRules) > 0 {
		t.Chains = append(t.Chains, &Chain{
			Name: "tunnel_out", Comment: "tunnel packets of this node",
			Base: &Base{Type: Filter, Hook: Output, Priority: PriorityRaw}, Rules: outRules,
		})
	}
}

// postrouting gives packets to the outside the node's address. What stays on the node keeps its own, whatever the ranges say:
// they may have changed under running Pods.
func (t *Table) postrouting(in FabricInput) {
	if !in.Masquerade {
		return
	}
	rules := append([]Rule{R("to a Pod of this node", Oif(PodLinks), Return)}, t.masquerade(in)...)
	t.Chains = append(t.Chains, &Chain{
		Name: "postrouting", Comment: "source addresses of packets that go out",
		Base: &Base{Type: NATing, Hook: Postrouting, Priority: PrioritySrcNAT}, Rules: rules,
	})
}

// masquerade returns the rules that give packets to the outside the node's address.
func (t *Table) masquerade(in FabricInput) []Rule {
	var rules []Rule
	for _, f := range families {
		pods := ranges(in.PodRanges, f)
		if len(pods) == 0 {
			continue
		}
		podSet, notSet := "pod_ranges"+f.suffix, "no_masquerade"+f.suffix
		t.Sets = append(t.Sets,
			&Set{Name: podSet, Comment: "Pods of this node", Key: []Type{f.addr}, Interval: true, Blocks: Single(pods...)},
			&Set{
				Name: notSet, Comment: "destinations that see the Pod's own address", Key: []Type{f.addr}, Interval: true,
				Blocks: Single(ranges(slices.Concat(in.NoMasquerade, multicast), f)...),
			})
		if in.TunnelPort != 0 && hasFamily(in.TunnelSources, f) {
			// Masqueraded, such a packet would come from a node and be believed.
			rules = append(rules, R("Pods may not speak to tunnel ends", In(podSet, f.saddr), In("tunnel_peers"+f.suffix, f.daddr),
				Eq(UDPDport, Port(in.TunnelPort)), Counter{}, Drop))
		}
		rules = append(rules, R("", In(podSet, f.saddr), NotIn(notSet, f.daddr), Match{Left: MetaOIFName, Not: true, Right: IfName("lo")},
			Masquerade{FullyRandom: true}))
	}
	return rules
}

func hasFamily(addrs []netip.Addr, f family) bool { return slices.ContainsFunc(addrs, f.has) }

// ranges returns the prefixes of one family as elements, without those that lie in another one: the kernel refuses
// overlapping ranges, or takes them and loses a part.
func ranges(prefixes []netip.Prefix, f family) []Element {
	var own []netip.Prefix
	for _, p := range prefixes {
		if p.IsValid() && f.has(p.Addr()) {
			own = append(own, p.Masked())
		}
	}
	slices.SortFunc(own, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []Element
	var last netip.Prefix
	for _, p := range own {
		if last.IsValid() && last.Contains(p.Addr()) {
			continue
		}
		last = p
		out = append(out, prefixElement(p, ""))
	}
	return out
}
