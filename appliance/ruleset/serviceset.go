package ruleset

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
)

// The sets and maps of each family.
const (
	setServices       = iota // address, protocol, port -> what becomes of a connection
	setLimited               // the same for a frontend with source ranges, once the source is known to be allowed
	setInside                // the same for connections of this node and its Pods, where they differ from those of others
	setOutside               // the same for those of others
	setEndpoints             // address, protocol, port, number -> endpoint
	setLocalEndpoints        // the same of endpoints on this node
	setNodePorts             // the same five without an address
	setNodePortInside
	setNodePortOutside
	setNodePortEndpoints
	setNodePortLocal
	setChoices // address, protocol, port, number -> name of an endpoint, for Services that remember their clients
	setLocalChoices
	setNodePortChoices // the same two without an address
	setNodePortLocalChoices
	setAllowed    // address, protocol, port, source
	setClusterIPs // addresses at which other ports are refused
	setHairpin    // Pods of this node that are endpoints
	setKinds
)

var serviceSetNames = [setKinds]struct{ name, comment string }{
	setServices:             {"services", "addresses of Services"},
	setLimited:              {"limited", "Services with loadBalancerSourceRanges, for allowed sources"},
	setInside:               {"inside", "policy Local, for this node and its Pods: endpoints anywhere"},
	setOutside:              {"outside", "policy Local, for others: endpoints on this node"},
	setEndpoints:            {"endpoints", "endpoints, numbered from 0, or by name where clients are remembered"},
	setLocalEndpoints:       {"local_endpoints", "endpoints on this node, numbered from 0"},
	setNodePorts:            {"nodeports", "node ports"},
	setNodePortInside:       {"nodeport_inside", "policy Local, for this node and its Pods: endpoints anywhere"},
	setNodePortOutside:      {"nodeport_outside", "policy Local, for others: endpoints on this node"},
	setNodePortEndpoints:    {"nodeport_endpoints", "endpoints of node ports, numbered from 0"},
	setNodePortLocal:        {"nodeport_local_endpoints", "endpoints of node ports on this node, numbered from 0"},
	setChoices:              {"choices", "names of endpoints, numbered from 0, of Services that remember their clients"},
	setLocalChoices:         {"local_choices", "the same for endpoints on this node"},
	setNodePortChoices:      {"nodeport_choices", "the same for node ports"},
	setNodePortLocalChoices: {"nodeport_local_choices", "the same for node ports and endpoints on this node"},
	setAllowed:              {"allowed_sources", "loadBalancerSourceRanges"},
	setClusterIPs:           {"cluster_ips", "addresses of Services alone, on which every port without a Service is refused"},
	setHairpin:              {"hairpin", "Pods that may reach themselves through a Service"},
}

// setID numbers the sets of both families; family is the index in families.
func setID(family, kind int) int { return family*setKinds + kind }

// serviceSet returns a set without elements.
func serviceSet(id int) *Set {
	f, kind := families[id/setKinds], id%setKinds
	s := &Set{Name: serviceSetNames[kind].name + f.suffix, Comment: serviceSetNames[kind].comment}
	port := []Type{TypeInetProto, TypeInetService}
	s.Key = append([]Type{f.addr}, port...)
	switch kind {
	case setNodePorts, setNodePortInside, setNodePortOutside, setNodePortEndpoints, setNodePortLocal, setNodePortChoices, setNodePortLocalChoices:
		s.Key = port
	}
	switch kind {
	case setServices, setLimited, setInside, setOutside, setNodePorts, setNodePortInside, setNodePortOutside:
		s.Verdicts = true
	case setEndpoints, setLocalEndpoints, setNodePortEndpoints, setNodePortLocal:
		s.Key = append(s.Key, TypeMark)
		s.Data = []Type{f.addr, TypeInetService}
	case setChoices, setLocalChoices, setNodePortChoices, setNodePortLocalChoices:
		s.Key, s.Data = append(s.Key, TypeMark), []Type{TypeMark}
	case setAllowed:
		s.Key, s.Interval = append(s.Key, f.addr), true
	case setClusterIPs:
		s.Key = []Type{f.addr}
	case setHairpin:
		s.Key = []Type{f.addr, f.addr}
	}
	return s
}

// elementList collects the elements of one port.
type elementList struct {
	shard *shard
	port  *service.Port
	fam   int
	note  string
}

// newShard makes the elements of some Services.
func newShard(frontends map[model.ServiceKey]*service.Frontends) *shard {
	s := &shard{frontends: frontends}
	for _, k := range slices.SortedFunc(maps.Keys(frontends), compareKeys) {
		f, owner := frontends[k], k.String()
		for i := range f.Ports {
			p := &f.Ports[i]
			l := elementList{shard: s, port: p, note: owner}
			if p.IPv6 {
				l.fam = 1
			}
			if p.Name != "" {
				l.note += ":" + p.Name
			}
			for j := range p.Frontends {
				l.frontend(&p.Frontends[j])
			}
			for _, a := range p.Hairpin {
				l.add(setHairpin, Element{Key: Tuple(Addr(a), Addr(a))})
			}
		}
	}
	return s
}

func compareKeys(a, b model.ServiceKey) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// add appends elements to a set's block.
func (l *elementList) add(kind int, elements ...Element) {
	if len(elements) == 0 {
		return
	}
	b := &l.shard.blocks[setID(l.fam, kind)]
	if *b == nil {
		*b = &Block{}
	}
	(*b).Elements = append((*b).Elements, elements...)
}

func (l *elementList) frontend(f *service.Frontend) {
	f4, p := families[l.fam], l.port
	kinds := [...]int{setServices, setInside, setOutside, setEndpoints, setLocalEndpoints}
	from := "from_where" + f4.suffix
	key := Tuple(Proto(p.Protocol), Port(f.Port))
	if f.Kind == service.NodePort {
		kinds = [...]int{setNodePorts, setNodePortInside, setNodePortOutside, setNodePortEndpoints, setNodePortLocal}
		from = "nodeport_from_where" + f4.suffix
	} else {
		key = Tuple(Addr(f.Addr), key)
	}
	if f.Kind == service.ClusterIP || f.Alone {
		l.add(setClusterIPs, Element{Key: Addr(f.Addr)})
	}
	node := f.Kind == service.NodePort
	verdict := l.verdict(f.Inside, node)
	if f.Inside != f.Outside {
		l.add(kinds[1], Element{Key: key, Verdict: verdict})
		l.add(kinds[2], Element{Key: key, Verdict: l.verdict(f.Outside, node)})
		verdict = Goto(from)
	}
	if len(f.Sources) > 0 {
		l.add(setLimited, Element{Key: key, Verdict: verdict})
		for _, r := range ranges(f.Sources, f4) {
			l.add(setAllowed, Element{Key: Tuple(key, r.Key), End: Tuple(key, r.End)})
		}
		verdict = Goto("source_ranges" + f4.suffix)
	}
	l.add(kinds[0], Element{Key: key, Verdict: verdict, Comment: comment(l.note)})
	choices := setChoices
	if node {
		choices = setNodePortChoices
	}
	if f.Inside == service.ToCluster || f.Outside == service.ToCluster {
		l.endpoints(key, kinds[3], choices, p.Cluster)
	}
	if f.Inside == service.ToLocal || f.Outside == service.ToLocal {
		l.endpoints(key, kinds[4], choices+1, p.Local)
	}
}

// endpoints adds the endpoints of a frontend, by number or by name.
func (l *elementList) endpoints(key Value, kind, choices int, es []netip.AddrPort) {
	if l.port.Affinity == 0 {
		l.add(kind, elementsOf(key, nil, l.table(es))...)
		return
	}
	names := nameEndpoints(es)
	l.add(kind, elementsOf(key, names, es)...)
	for i, name := range names {
		l.add(choices, Element{Key: Tuple(key, Mark(uint32(i))), Data: Mark(name)})
	}
}

// verdict is where a connection goes for a target.
func (l *elementList) verdict(t service.Target, node bool) Verdict {
	p := picker{ipv6: l.port.IPv6, node: node}
	switch t {
	case service.Refuse:
		return Goto("refuse")
	case service.NoLocal:
		return Goto("no_local_endpoint")
	case service.ToLocal:
		p.local, p.n = true, len(l.port.Local)
	default:
		p.n = len(l.port.Cluster)
	}
	if p.hashed = l.port.Hashed && p.n > 1; p.hashed {
		p.n = tableSize(p.n)
	}
	p.timeout = l.port.Affinity
	if !slices.Contains(l.shard.pickers, p) {
		l.shard.pickers = append(l.shard.pickers, p)
	}
	return Goto(p.name())
}

// table returns the endpoints as they are numbered: as they come, or in a table of hashes.
func (l *elementList) table(es []netip.AddrPort) []netip.AddrPort {
	if l.port.Hashed && len(es) > 1 {
		return spread(es, tableSize(len(es)))
	}
	return es
}

// elementsOf returns an element for each endpoint, by its name or, without names, its number. All keys and data are one piece of
// memory.
func elementsOf(key Value, names []uint32, es []netip.AddrPort) []Element {
	if len(es) == 0 {
		return nil
	}
	var b []byte
	for i, at := range es {
		b = append(b, key...)
		id := uint32(i)
		if names != nil {
			id = names[i]
		}
		b = binary.NativeEndian.AppendUint32(b, id)
		if a := at.Addr(); a.Is4() {
			four := a.As4()
			b = append(b, four[:]...)
		} else {
			sixteen := a.As16()
			b = append(b, sixteen[:]...)
		}
		b = append(binary.BigEndian.AppendUint16(b, at.Port()), 0, 0)
	}
	all := Value(b)
	step, split := len(all)/len(es), len(key)+4
	out := make([]Element, len(es))
	for i := range out {
		one := all[i*step : (i+1)*step]
		out[i] = Element{Key: one[:split], Data: one[split:]}
	}
	return out
}

// nameEndpoints gives each endpoint a number that it keeps whoever comes and goes: clients are remembered with it. Two with the same
// hash, which is one in four billion, part in the order of their addresses.
func nameEndpoints(es []netip.AddrPort) []uint32 {
	names := make([]uint32, len(es))
	order := make([]int, len(es))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return es[a].Compare(es[b]) })
	taken := make(map[uint32]bool, len(es))
	for _, i := range order {
		h := fnv.New64a()
		b, _ := es[i].MarshalBinary() // cannot fail: it never does
		h.Write(b)
		name := uint32(mix(h.Sum64()))
		for taken[name] {
			name++
		}
		taken[name] = true
		names[i] = name
	}
	return names
}

// picker is a chain that picks one of n endpoints: at random, by the client's address, or, with a timeout, the one that the client
// had last.
type picker struct {
	n                         int
	timeout                   uint32
	ipv6, node, local, hashed bool
}

func (p picker) compare(q picker) int {
	rank := func(p picker) (r int) {
		for _, b := range []bool{p.ipv6, p.node, p.local, p.hashed, p.timeout > 0} {
			if r *= 2; b {
				r++
			}
		}
		return r<<32 + p.n
	}
	return cmp.Or(rank(p)-rank(q), cmp.Compare(p.timeout, q.timeout))
}

func (p picker) name() string {
	s := ""
	for _, part := range []struct {
		is   bool
		name string
	}{{p.node, "nodeport_"}, {p.local, "local_"}, {p.hashed, "hashed_"}, {p.timeout > 0, "sticky_"}} {
		if part.is {
			s += part.name
		}
	}
	f := families[0]
	if p.ipv6 {
		f = families[1]
	}
	s += "pick" + f.suffix + "_of_" + strconv.Itoa(p.n)
	if p.timeout > 0 {
		s += "_for_" + strconv.Itoa(int(p.timeout)) + "s"
	}
	return s
}
