package ruleset

import (
	"fmt"
	"net/netip"

	"weft.network/weft/appliance/model"
)

// Conflict is a port mapping that was not given because an older attachment has the same host address, protocol and port.
type Conflict struct {
	Mapping       model.PortMapping
	Family        Family
	Winner, Loser *model.HostPorts
}

// String says who has the port, who does not get it, and what to do.
func (c Conflict) String() string {
	host := "every address"
	if c.Mapping.HostIP.IsValid() && !c.Mapping.HostIP.IsUnspecified() {
		host = c.Mapping.HostIP.String()
	}
	version := map[Family]string{IPv4: "IPv4", IPv6: "IPv6"}[c.Family]
	return fmt.Sprintf("hostPort %d/%s (%s) on %s belongs to %s, so %s does not get it; choose another hostPort or node",
		c.Mapping.HostPort, c.Mapping.Protocol, version, host, owner(c.Winner), owner(c.Loser))
}

func owner(h *model.HostPorts) string {
	if h.Pod.IsZero() {
		return h.AttachmentKey.String()
	}
	return h.Pod.String()
}

// hostPortBlocks are the elements of the sets of one family, by attachment.
type hostPortBlocks struct {
	byAddr, anyAddr, hairpin, local map[string]*Block
}

type hostPortSets [len(families)]hostPortBlocks

func (p *hostPortSets) any() bool {
	for _, b := range p {
		if len(b.byAddr)+len(b.anyAddr) > 0 {
			return true
		}
	}
	return false
}

// mapHostPorts sorts the mappings into the sets. A mapping without a host address counts for each family in which the Pod
// has an address; one with an address of a family that the Pod has not is void, as in the reference plugin.
func mapHostPorts(all []*model.HostPorts) (hostPortSets, []Conflict) {
	var sets hostPortSets
	var conflicts []Conflict
	for i, f := range families {
		sets[i] = hostPortBlocks{map[string]*Block{}, map[string]*Block{}, map[string]*Block{}, map[string]*Block{}}
		taken := map[Value]*model.HostPorts{}
		for _, h := range all {
			pod, ok := podAddr(h, f)
			if !ok {
				continue
			}
			var byAddr, anyAddr []Element
			for _, m := range h.Mappings {
				wild := !m.HostIP.IsValid() || m.HostIP.IsUnspecified()
				if m.HostIP.IsValid() && !f.has(m.HostIP) {
					continue
				}
				e := Element{Key: Tuple(Proto(m.Protocol), Port(m.HostPort)), Data: Tuple(Addr(pod), Port(m.ContainerPort)), Comment: comment(owner(h))}
				if !wild {
					e.Key = Tuple(Addr(m.HostIP.Unmap()), e.Key)
				}
				if winner := taken[e.Key]; winner != nil {
					conflicts = append(conflicts, Conflict{m, f.Family, winner, h})
					continue
				}
				taken[e.Key] = h
				if wild {
					anyAddr = append(anyAddr, e)
				} else {
					byAddr = append(byAddr, e)
				}
			}
			sets[i].add(h, pod, byAddr, anyAddr)
		}
	}
	return sets, conflicts
}

// podAddr returns the Pod's first address of the family.
func podAddr(h *model.HostPorts, f family) (netip.Addr, bool) {
	for _, a := range h.Addresses {
		if f.has(a) {
			return a.Unmap(), true
		}
	}
	return netip.Addr{}, false
}

func (b *hostPortBlocks) add(h *model.HostPorts, pod netip.Addr, byAddr, anyAddr []Element) {
	if len(byAddr)+len(anyAddr) == 0 {
		return
	}
	key := h.AttachmentKey.String()
	if len(byAddr) > 0 {
		b.byAddr[key] = &Block{byAddr}
	}
	if len(anyAddr) > 0 {
		b.anyAddr[key] = &Block{anyAddr}
	}
	if !h.NoSNAT {
		b.hairpin[key] = &Block{[]Element{{Key: Tuple(Addr(pod), Addr(pod)), Comment: comment(owner(h))}}}
		b.local[key] = &Block{[]Element{{Key: Addr(pod), Comment: comment(owner(h))}}}
	}
}

// comment makes a text fit for a comment.
func comment(s string) string { return s[:min(len(s), MaxComment)] }

// hostPorts adds the sets and chains of host ports, of a family without any only when both are asked for.
func (t *Table) hostPorts(sets hostPortSets, both bool) {
	var translate, out []Rule
	portKey := []Type{TypeInetProto, TypeInetService}
	for i, f := range families {
		if !both && len(sets[i].byAddr)+len(sets[i].anyAddr) == 0 {
			continue
		}
		byAddr, anyAddr, hairpin, local := "hostport_ip"+f.suffix, "hostport"+f.suffix, "hostport_hairpin"+f.suffix, "hostport_pods"+f.suffix
		data := []Type{f.addr, TypeInetService}
		t.Sets = append(t.Sets,
			&Set{Name: byAddr, Comment: "host ports on one address of the node", Key: append([]Type{f.addr}, portKey...), Data: data, Blocks: sets[i].byAddr},
			&Set{Name: anyAddr, Comment: "host ports on every address of the node", Key: portKey, Data: data, Blocks: sets[i].anyAddr},
			&Set{Name: hairpin, Comment: "Pods that may reach themselves through their host port", Key: []Type{f.addr, f.addr}, Blocks: sets[i].hairpin})
		translate = append(translate,
			R("", DNATMap(f.Family, byAddr, f.daddr, MetaL4Proto, THDport)),
			R("", NFProto(f.Family), DNATMap(f.Family, anyAddr, MetaL4Proto, THDport)))
		out = append(out, R("a Pod to its own host port", In(hairpin, f.saddr, f.daddr), Masquerade{FullyRandom: true}))
		if f.Family == IPv4 {
			t.Sets = append(t.Sets, &Set{Name: local, Comment: "Pods with host ports", Key: []Type{f.addr}, Blocks: sets[i].local})
			// A Pod cannot answer to 127.0.0.1. For IPv6 the kernel has no way to send from ::1 to a Pod at all.
			out = append(out, R("the node to a host port on 127.0.0.1", Within(IPSaddr, loopback4), In(local, f.daddr), Masquerade{FullyRandom: true}))
		}
	}
	t.Chains = append(t.Chains,
		&Chain{Name: "hostports", Comment: "host ports of Pods", Rules: translate},
		&Chain{
			Name: "hostports_in", Comment: "packets to this node",
			Base: &Base{Type: NATing, Hook: Prerouting, Priority: PriorityDstNAT},
			Rules: []Rule{
				// route_localnet, which host ports on 127.0.0.1 need, opens the node's loopback to whatever is on that link. Behind
				// another plugin's bridge no guard comes before. A connection's first packet passes here, so that is enough.
				R("the node's loopback is not for others", Match{Left: MetaIIFName, Not: true, Right: IfName("lo")}, Within(IPDaddr, loopback4), Counter{}, Drop),
				R("", ToLocal, Goto("hostports")),
			},
		},
		&Chain{
			Name: "hostports_out", Comment: "the node's own packets to itself",
			Base: &Base{Type: NATing, Hook: Output, Priority: PriorityDstNAT},
			Rules: []Rule{
				R("cannot reach a Pod", Eq(IP6Daddr, Addr(loopback6)), Accept),
				R("", ToLocal, Goto("hostports")),
			},
		},
		&Chain{
			Name: "hostports_snat", Comment: "source addresses that a Pod could not answer",
			Base: &Base{Type: NATing, Hook: Postrouting, Priority: PrioritySrcNAT}, Rules: out,
		})
}

// HostPortTable is the part of table "inet weft" that a plugin without a daemon may write: the host ports of all attachments,
// and nothing else. With both, both families are named also without elements, so that the last host port goes too.
func HostPortTable(ports []*model.HostPorts, both bool) Table {
	t := Table{Family: INet, Name: TableName, Partial: true}
	sets, _ := mapHostPorts(ports)
	t.hostPorts(sets, both)
	return t
}
