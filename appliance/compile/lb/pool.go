package lb

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/model"
)

// pool is a LoadBalancerPool with what is in use of it.
type pool struct {
	*model.LoadBalancerPool
	refused  string
	problem  string
	reserved map[netip.Addr]string // addresses of the pool that nobody may have, and what they are
	used     map[netip.Addr]bool
	// nodes are those whose addresses a pool of node addresses gives, by name.
	nodes []*model.Node
}

// newPools checks the pools against each other and the cluster, and returns them with the first to try first.
func newPools(in Input) []*pool {
	var out []*pool
	for _, p := range in.Pools {
		out = append(out, &pool{LoadBalancerPool: p, used: map[netip.Addr]bool{}, reserved: map[netip.Addr]string{}})
	}
	slices.SortFunc(out, func(x, y *pool) int { return cmp.Or(cmp.Compare(x.Created, y.Created), cmp.Compare(x.Name, y.Name)) })
	for i, p := range out {
		p.refused = p.refuse(out[:i], in.Nodes)
		p.reserve(in)
	}
	slices.SortStableFunc(out, func(x, y *pool) int { return cmp.Compare(y.Priority, x.Priority) })
	return out
}

// refuse says why none of the pool can be used, or nothing.
func (p *pool) refuse(older []*pool, nodes map[string]*model.Node) string {
	if len(p.Blocks) == 0 && !p.NodeAddresses {
		return "it has no addresses: write some in spec.addresses, or set spec.nodeAddresses"
	}
	for _, b := range p.Blocks {
		for _, o := range older {
			if o.refused != "" {
				continue
			}
			for _, ob := range o.Blocks {
				if b.Overlaps(ob) {
					return fmt.Sprintf("its %s overlaps %s of pool %s, which is older, so pool %s is not used: change one of the two", b, ob, o.Name, p.Name)
				}
			}
		}
		for _, name := range sortedKeys(nodes) {
			for _, cidr := range nodes[name].PodCIDRs {
				if b.Overlaps(model.BlockOf(cidr)) {
					return fmt.Sprintf("its %s overlaps %s, the Pod range of node %s: give load balancers addresses of their own", b, cidr, name)
				}
			}
		}
	}
	return ""
}

// reserve takes out what others have: addresses of nodes and ClusterIPs.
func (p *pool) reserve(in Input) {
	if p.refused != "" {
		return
	}
	take := func(addr netip.Addr, what string) {
		if p.contains(addr) {
			p.reserved[addr] = what
			p.problem = fmt.Sprintf("%s is %s and is not given out: leave it out of spec.addresses", addr, what)
		}
	}
	for _, name := range sortedKeys(in.Nodes) {
		n := in.Nodes[name]
		for _, addr := range n.Addresses {
			take(addr, "the address of node "+name)
		}
		if p.NodeAddresses && (p.Nodes == nil || p.Nodes.Matches(n.Labels)) {
			p.nodes = append(p.nodes, n)
		}
	}
	var inside []model.ServiceKey
	for key, s := range in.Services {
		if slices.ContainsFunc(s.ClusterIPs, p.contains) {
			inside = append(inside, key)
		}
	}
	slices.SortFunc(inside, func(x, y model.ServiceKey) int { return strings.Compare(x.String(), y.String()) })
	for _, key := range inside { // in order, so that the same thing is said each time
		for _, addr := range in.Services[key].ClusterIPs {
			take(addr, "the ClusterIP of Service "+key.String())
		}
	}
}

func sortedKeys[T any](m map[string]T) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// contains reports whether the address is in one of the pool's blocks.
func (p *pool) contains(addr netip.Addr) bool {
	return slices.ContainsFunc(p.Blocks, func(b model.AddressBlock) bool { return b.Contains(addr) })
}

// gives reports whether the pool may give the address out at all.
func (p *pool) gives(addr netip.Addr) bool {
	return p.refused == "" && p.contains(addr) && p.reserved[addr] == "" && !(p.AvoidEdges && isEdge(addr))
}

// isEdge reports whether an IPv4 address ends in .0 or .255.
func isEdge(addr netip.Addr) bool {
	if !addr.Is4() {
		return false
	}
	last := addr.As4()[3]
	return last == 0 || last == 255
}

// mostCounted bounds the sizes that are counted and the places that a name may lead to.
const mostCounted = 1 << 32

// size returns the number of addresses of a block, at most mostCounted.
func size(b model.AddressBlock) uint64 {
	first, last := b.First.As16(), b.Last.As16()
	hi := binary.BigEndian.Uint64(last[:8]) - binary.BigEndian.Uint64(first[:8])
	lo, loFirst := binary.BigEndian.Uint64(last[8:]), binary.BigEndian.Uint64(first[8:])
	if lo < loFirst {
		hi--
	}
	if n := lo - loFirst; hi == 0 && n < mostCounted {
		return n + 1
	}
	return mostCounted
}

// at returns the address at a place of a block.
func at(b model.AddressBlock, n uint64) netip.Addr {
	a := b.First.As16()
	lo := binary.BigEndian.Uint64(a[8:])
	sum := lo + n
	if sum < lo {
		binary.BigEndian.PutUint64(a[:8], binary.BigEndian.Uint64(a[:8])+1)
	}
	binary.BigEndian.PutUint64(a[8:], sum)
	out := netip.AddrFrom16(a)
	if b.First.Is4() {
		return out.Unmap()
	}
	return out
}

// family returns the blocks of one family.
func (p *pool) family(v6 bool) (out []model.AddressBlock) {
	for _, b := range p.Blocks {
		if b.First.Is6() == v6 {
			out = append(out, b)
		}
	}
	return out
}

// has reports whether the pool has addresses of a family at all.
func (p *pool) has(v6 bool) bool {
	if p.NodeAddresses {
		return slices.ContainsFunc(p.nodes, func(n *model.Node) bool { return nodeAddress(n, v6).IsValid() })
	}
	return len(p.family(v6)) > 0
}

func nodeAddress(n *model.Node, v6 bool) netip.Addr {
	for _, a := range n.Addresses {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// free returns an address of a family that ok accepts: the first one, or with a seed the first from the place where that leads.
func (p *pool) free(v6 bool, seed string, ok func(netip.Addr) bool) netip.Addr {
	blocks := p.family(v6)
	total := uint64(0)
	for _, b := range blocks {
		total += size(b)
	}
	if total == 0 {
		return netip.Addr{}
	}
	start := uint64(0)
	if seed != "" {
		h := fnv.New64a()
		h.Write([]byte(seed))
		sum := h.Sum64()
		start = (sum ^ sum>>32) % total
	}
	for n := range total {
		place := (start + n) % total
		for _, b := range blocks {
			if s := size(b); place >= s {
				place -= s
				continue
			}
			if addr := at(b, place); p.gives(addr) && ok(addr) {
				return addr
			}
			break
		}
	}
	return netip.Addr{}
}

// count returns how many addresses of a family can be given out, and how many are.
func (p *pool) count(v6 bool) (total, used uint64) {
	if p.NodeAddresses {
		for _, n := range p.nodes {
			if nodeAddress(n, v6).IsValid() {
				total++
			}
		}
	}
	for _, b := range p.family(v6) {
		n := size(b)
		if p.AvoidEdges && !v6 && n < mostCounted {
			n -= edges(b)
		}
		total += n
	}
	for addr := range p.reserved {
		if addr.Is6() == v6 && !(p.AvoidEdges && isEdge(addr)) {
			total--
		}
	}
	for addr := range p.used {
		if addr.Is6() == v6 {
			used++
		}
	}
	return min(total, mostCounted), used
}

// edges counts the addresses of an IPv4 block that end in .0 or .255.
func edges(b model.AddressBlock) uint64 {
	first, last := b.First.As4(), b.Last.As4()
	// Below x there are x/256 complete groups of 256 with two edges each, and one more edge if x is past a .0.
	below := func(x uint64) uint64 { return 2*(x/256) + min(x%256, 1) }
	return below(uint64(binary.BigEndian.Uint32(last[:]))+1) - below(uint64(binary.BigEndian.Uint32(first[:])))
}

// excludes says why a pool is not for a Service, or nothing.
func (p *pool) excludes(s *model.Service, namespaces map[string]*model.Namespace) string {
	switch {
	case p.refused != "":
		return p.refused
	case p.Services != nil && !p.Services.Matches(s.Labels):
		return fmt.Sprintf("its serviceSelector (%s) does not select the Service's labels", p.Services)
	case p.Namespaces != nil && !p.Namespaces.Matches(namespaceLabels(s.Namespace, namespaces)):
		return fmt.Sprintf("its namespaceSelector (%s) does not select namespace %s", p.Namespaces, s.Namespace)
	}
	return ""
}

// namespaceLabels returns the labels of a namespace; its name is one even where the namespaces themselves are not known.
func namespaceLabels(name string, namespaces map[string]*model.Namespace) map[string]string {
	if n := namespaces[name]; n != nil {
		return n.Labels
	}
	return map[string]string{"kubernetes.io/metadata.name": name}
}

// status counts all pools, sorted by name.
func (a *allocator) status() (out []PoolStatus) {
	for _, p := range a.pools {
		s := PoolStatus{Name: p.Name, Problem: cmp.Or(p.refused, p.problem), Refused: p.refused != ""}
		var full []string
		for _, v6 := range []bool{false, true} {
			total, used := p.count(v6)
			s.Size, s.Used = min(s.Size+total, mostCounted), s.Used+used
			if !p.NodeAddresses && used >= total && len(p.family(v6)) > 0 {
				full = append(full, family(v6))
			}
		}
		s.Full = strings.Join(full, " and ")
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y PoolStatus) int { return strings.Compare(x.Name, y.Name) })
	return out
}
