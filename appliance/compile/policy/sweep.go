package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// span is a range of addresses and what is allowed with it; no ports mean everything.
type span struct {
	Range
	ports []Ports
}

// without returns the parts of a prefix that none of the exceptions covers.
func without(block netip.Prefix, except []netip.Prefix) []Range {
	from, to := block.Masked().Addr(), lastOf(block)
	cuts := make([]Range, 0, len(except))
	for _, e := range except {
		if e.Addr().Is4() == from.Is4() {
			cuts = append(cuts, Range{e.Masked().Addr(), lastOf(e)})
		}
	}
	slices.SortFunc(cuts, func(a, b Range) int { return a.From.Compare(b.From) })
	var out []Range
	for _, c := range cuts {
		if c.To.Less(from) {
			continue
		}
		if to.Less(c.From) {
			break
		}
		if from.Less(c.From) {
			out = append(out, Range{from, c.From.Prev()})
		}
		if from = c.To.Next(); !from.IsValid() || to.Less(from) { // the exception reaches the end
			return out
		}
	}
	return append(out, Range{from, to})
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// sweep cuts spans of one family, which may overlap in any way, into ranges that do not, and says for each all that is allowed
// with it. The kernel takes only such ranges: of two that overlap it refuses one or, in some sets, loses a part without a word.
func sweep(spans []span) (nets []Range, blocks []RangePorts) {
	if len(spans) == 0 {
		return nil, nil
	}
	type edge struct {
		at   netip.Addr
		what int // the index in contents
		add  int
	}
	contents, index := [][]Ports{}, map[string]int{}
	edges := make([]edge, 0, 2*len(spans))
	for _, s := range spans {
		key := portsKey(s.ports)
		i, ok := index[key]
		if !ok {
			i = len(contents)
			index[key], contents = i, append(contents, s.ports)
		}
		edges = append(edges, edge{s.From, i, 1})
		if end := s.To.Next(); end.IsValid() {
			edges = append(edges, edge{end, i, -1})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.what, b.what)) })
	merged := newMerger(contents)
	var out []span
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			merged.count(edges[i].what, edges[i].add)
		}
		if merged.active == 0 {
			continue
		}
		s := span{Range{From: at, To: lastOf(netip.PrefixFrom(at, 0))}, merged.ports()}
		if i < len(edges) {
			s.To = edges[i].at.Prev()
		}
		if n := len(out); n > 0 && out[n-1].To.Next() == s.From && slices.Equal(out[n-1].ports, s.ports) {
			out[n-1].To = s.To
			continue
		}
		out = append(out, s)
	}
	for _, s := range out {
		if len(s.ports) == 0 {
			nets = append(nets, s.Range)
		}
		for _, p := range s.ports {
			blocks = append(blocks, RangePorts{s.Range, p})
		}
	}
	return nets, blocks
}

func portsKey(list []Ports) string {
	var b strings.Builder
	for _, p := range list {
		b.WriteString(strconv.Itoa(int(p.Protocol)) + ":" + strconv.Itoa(int(p.First)) + "-" + strconv.Itoa(int(p.Last)) + ",")
	}
	return b.String()
}

// merger keeps count of what is allowed at one place of the sweep.
type merger struct {
	contents [][]Ports
	counts   []int
	active   int
	known    map[string][]Ports // by the contents that are active
}

func newMerger(contents [][]Ports) *merger {
	return &merger{contents: contents, counts: make([]int, len(contents)), known: map[string][]Ports{}}
}

func (m *merger) count(what, add int) {
	before := m.counts[what] > 0
	m.counts[what] += add
	if after := m.counts[what] > 0; after != before {
		m.active += add
	}
}

// ports returns the union of what is active; nothing means everything.
func (m *merger) ports() []Ports {
	var key []byte
	var all []Ports
	for i, n := range m.counts {
		if n == 0 {
			continue
		}
		if len(m.contents[i]) == 0 {
			return nil
		}
		key = append(strconv.AppendInt(key, int64(i), 10), ',')
		all = append(all, m.contents[i]...)
	}
	out, ok := m.known[string(key)]
	if !ok {
		out = union(all)
		m.known[string(key)] = out
	}
	return out
}

// union sorts ports and joins those that touch or overlap.
func union(list []Ports) []Ports {
	list = slices.Clone(list)
	slices.SortFunc(list, Ports.compare)
	var out []Ports
	for _, p := range list {
		if n := len(out); n > 0 && out[n-1].Protocol == p.Protocol && int(p.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, p.Last)
			continue
		}
		out = append(out, p)
	}
	return out
}

func (p Ports) compare(o Ports) int {
	return cmp.Or(cmp.Compare(p.Protocol, o.Protocol), cmp.Compare(p.First, o.First), cmp.Compare(p.Last, o.Last))
}

// within reports whether the ports are among others that are sorted and joined.
func (p Ports) within(list []Ports) bool {
	return slices.ContainsFunc(list, func(o Ports) bool {
		return o.Protocol == p.Protocol && o.First <= p.First && p.Last <= o.Last
	})
}
