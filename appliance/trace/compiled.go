package trace

import (
	"net/netip"
	"slices"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// zoneLabel is where the API keeps a node's zone (well-known labels).
const zoneLabel = "topology.kubernetes.io/zone"

// Compiled returns another node as weft makes it from the same picture of the cluster: with the tables of Services, policies and the Pod
// network, without its host ports, and with the settings of this node where they are not the cluster's. under are this node's
// links: the length of their subnets says who is next to whom. It is nil if the cluster does not know the node.
func Compiled(snap *model.Snapshot, cfg route.Config, under route.Underlay, name string) *Node {
	n := snap.Node(name)
	if n == nil {
		return nil
	}
	const link = "eth0" // its name is known to that node alone
	guess := route.UnderlayLink{Name: link, MTU: 1500}
	for _, a := range n.Addresses {
		guess.Addresses = append(guess.Addresses, netip.PrefixFrom(a, subnetBits(under, a)))
	}
	cfg.NodeName = name
	state := route.Compile(snap, cfg, route.Underlay{Links: []route.UnderlayLink{guess}})
	fabric := ruleset.FabricInput{
		PodRanges: state.PodRanges, NoMasquerade: state.NoMasquerade, Masquerade: cfg.Masquerade, TunnelSources: state.TunnelSources,
	}
	if state.HostNet.Tunnel != nil {
		fabric.TunnelPort = state.HostNet.Tunnel.Port
	}
	table, _ := ruleset.Fabric(fabric)
	var services service.Compiler
	result := services.Compile(snap, service.Input{NodeName: name, Zone: n.Labels[zoneLabel], NodeAddresses: n.Addresses})
	var rules ruleset.Services
	c := compiled{node: n, state: state, link: link}
	tables := []ruleset.Table{table, rules.Table(ruleset.ServicesInput{Frontends: result.Frontends, PodRanges: state.PodRanges})}
	var policies policy.Compiler
	var guards ruleset.Policies
	filters := policies.Compile(snap, policy.Input{NodeName: name})
	return &Node{
		Name:   name,
		Tables: append(tables, guards.Tables(ruleset.PolicyInput{Filters: filters, Generation: ruleset.PolicyStep})...),
		Route:  c.route, Arrives: func(from netip.Addr) string { return c.route(from).Link },
		Returns: func(to netip.Addr, link string) bool { return c.route(to).Link == link },
	}
}

func subnetBits(under route.Underlay, a netip.Addr) int {
	for _, l := range under.Links {
		for _, p := range l.Addresses {
			if p.Masked().Contains(a) {
				return p.Bits()
			}
		}
	}
	return a.BitLen()
}

// compiled is the routing table of a node that is only known from the cluster.
type compiled struct {
	node  *model.Node
	state route.State
	link  string
}

// podLink stands for the host end of a Pod of that node.
const podLink = "weftp?"

func (c *compiled) route(to netip.Addr) Route {
	if to.IsLoopback() || slices.Contains(c.node.Addresses, to) || slices.Contains(c.state.HostNet.NodeAddresses, to) {
		return Route{Way: ruleset.Way{Link: "lo", Local: true}, Src: to}
	}
	own := sameFamily(c.node.Addresses, to)
	for _, r := range c.node.PodCIDRs {
		if r.Contains(to) {
			return Route{Way: ruleset.Way{Link: podLink}, Src: sameFamily(c.state.HostNet.NodeAddresses, to)}
		}
	}
	for _, r := range c.state.HostNet.Routes {
		if r.Dst.Contains(to) {
			out := Route{Way: ruleset.Way{Link: r.Link}, Via: r.Via, Src: r.Src}
			if !out.Src.IsValid() {
				out.Src = own
			}
			return out
		}
	}
	return Route{Way: ruleset.Way{Link: c.link}, Src: own}
}
