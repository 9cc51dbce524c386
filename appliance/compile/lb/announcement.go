package lb

import (
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// DrainLabel on a node, whatever its value unless it is "false", takes the load-balancer addresses away from it.
const DrainLabel = "weft.network/drain"

// excludeLabel is what Kubernetes itself has for that. Control planes of kubeadm carry it, so it counts only while it leaves a node.
const excludeLabel = "node.kubernetes.io/exclude-from-external-load-balancers"

// Announcement is one address that nodes may announce.
type Announcement struct {
	Addr netip.Addr
	Pool string
	// Services have the address; more than one share it.
	Services []model.ServiceKey
	// Nodes may announce it, sorted.
	Nodes []string
	// L2 says whether it is answered for on segments, and Interfaces on which; none means where it is in the link's subnet.
	L2         bool
	Interfaces []string
	// Why says why no node may announce it, or that a label was not honoured.
	Why string
}

// Announcements lists the addresses in use that are no node's own, sorted. Local Services count on nodes with a ready endpoint only.
func Announcements(snap *model.Snapshot) []Announcement {
	if snap == nil {
		return nil
	}
	local := map[model.ServiceKey]map[string]bool{}
	byAddr := map[netip.Addr][]*model.Service{}
	for key, s := range snap.Services {
		if s.Type != "LoadBalancer" || s.Allocation == nil {
			continue
		}
		for _, ing := range s.Ingress {
			if ing.Proxy {
				continue
			}
			byAddr[ing.IP] = append(byAddr[ing.IP], s)
			if s.ExternalLocal {
				local[key] = map[string]bool{}
			}
		}
	}
	if len(byAddr) == 0 {
		return nil
	}
	for _, n := range snap.Nodes {
		for _, a := range n.Addresses {
			delete(byAddr, a)
		}
	}
	readyNodes(snap, local)
	a := announcer{snap: snap, local: local, pools: newPools(Input{Pools: snap.Pools, Nodes: snap.Nodes})}
	out := make([]Announcement, 0, len(byAddr))
	for addr, services := range byAddr {
		slices.SortFunc(services, byAge)
		out = append(out, a.announcement(addr, services))
	}
	slices.SortFunc(out, func(x, y Announcement) int { return x.Addr.Compare(y.Addr) })
	return out
}

// AnyLocal reports whether the announcements depend on where endpoints are.
func AnyLocal(snap *model.Snapshot) bool {
	if snap == nil {
		return false
	}
	for _, s := range snap.Services {
		if s.Type == "LoadBalancer" && s.ExternalLocal && len(s.Ingress) > 0 {
			return true
		}
	}
	return false
}

// LocalNodes says which nodes have a ready endpoint of each Service with externalTrafficPolicy Local. It is nil where no pool gives out
// the nodes' own addresses: then it does not matter who gets which.
func LocalNodes(snap *model.Snapshot) map[model.ServiceKey]map[string]bool {
	if snap == nil {
		return nil
	}
	nodes := false
	for _, p := range snap.Pools {
		nodes = nodes || p.NodeAddresses
	}
	if !nodes {
		return nil
	}
	out := map[model.ServiceKey]map[string]bool{}
	for key, s := range snap.Services {
		if s.Type == "LoadBalancer" && s.ExternalLocal {
			out[key] = map[string]bool{}
		}
	}
	readyNodes(snap, out)
	return out
}

// readyNodes notes for each Service in the map which nodes have a ready endpoint of it.
func readyNodes(snap *model.Snapshot, local map[model.ServiceKey]map[string]bool) {
	if len(local) == 0 {
		return
	}
	for _, slice := range snap.Slices {
		nodes := local[slice.ServiceKey()]
		if nodes == nil || slice.Unproxied {
			continue
		}
		for i := range slice.Endpoints {
			if e := &slice.Endpoints[i]; e.Ready && e.Node != "" {
				nodes[e.Node] = true
			}
		}
	}
}

type announcer struct {
	snap  *model.Snapshot
	local map[model.ServiceKey]map[string]bool
	pools []*pool
}

func (a *announcer) announcement(addr netip.Addr, services []*model.Service) Announcement {
	out := Announcement{Addr: addr, L2: true}
	var selector *model.Selector
	for _, p := range a.pools {
		if p.refused == "" && p.contains(addr) {
			out.Pool, out.L2, out.Interfaces, selector = p.Name, !p.NoL2, p.Interfaces, p.LoadBalancerPool.Nodes
		}
	}
	for _, s := range services {
		out.Services = append(out.Services, s.Key())
	}
	var all []*model.Node
	for _, n := range a.snap.SortedNodes() {
		if selector == nil || selector.Matches(n.Labels) {
			all = append(all, n)
		}
	}
	steps := []struct {
		keep func(*model.Node) bool
		why  string
	}{
		{func(n *model.Node) bool { return !Drained(n) }, "every node that may announce it is drained (label " + DrainLabel + ")"},
		{func(n *model.Node) bool { return a.serves(n, services) }, "externalTrafficPolicy is Local, and no node that may announce it has a ready endpoint"},
	}
	if len(all) == 0 {
		out.Why = "the pool's nodeSelector selects no node"
	}
	for _, step := range steps {
		left := filter(all, step.keep)
		if len(left) == 0 && len(all) > 0 {
			out.Why = step.why
		}
		all = left
	}
	open := filter(all, func(n *model.Node) bool { _, excluded := n.Labels[excludeLabel]; return !excluded })
	switch {
	case len(open) > 0:
		all = open
	case len(all) > 0:
		out.Why = "every node has the label " + excludeLabel + ", so it is not honoured"
	}
	for _, n := range all {
		out.Nodes = append(out.Nodes, n.Name)
	}
	return out
}

// Drained reports whether a node gives its load-balancer addresses away.
func Drained(n *model.Node) bool {
	value, ok := n.Labels[DrainLabel]
	return ok && value != "false"
}

// serves reports whether packets for the Services that arrive at a node find an endpoint. One that has no endpoint on any node takes
// the address from none of those that share it.
func (a *announcer) serves(n *model.Node, services []*model.Service) bool {
	counts := false
	for _, s := range services {
		nodes := a.local[s.Key()]
		switch {
		case s.ExternalLocal && len(nodes) == 0:
			continue
		case s.ExternalLocal && !nodes[n.Name]:
			return false
		}
		counts = true
	}
	return counts
}

func filter(nodes []*model.Node, keep func(*model.Node) bool) (out []*model.Node) {
	for _, n := range nodes {
		if keep(n) {
			out = append(out, n)
		}
	}
	return out
}
