package ruleset

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
)

// ServiceTableOf returns the table as it would be if there were one Service only: its sets say which elements are that Service's.
func ServiceTableOf(f *service.Frontends) Table {
	return new(Services).Table(ServicesInput{Frontends: map[model.ServiceKey]*service.Frontends{f.Service: f}})
}

// ServiceDifferences compares one Service with the elements that the kernel has, by the name of the set: what is missing, what is
// otherwise, and what the kernel has at the Service's frontends that should not be there.
func ServiceDifferences(f *service.Frontends, have map[string][]Element) []string {
	table := ServiceTableOf(f)
	fronts := frontendKeys(&table)
	var out []string
	for _, s := range table.Sets {
		if s.Dynamic || !slices.ContainsFunc(serviceSetNames[:], func(n struct{ name, comment string }) bool { return strings.HasPrefix(s.Name, n.name) }) {
			continue
		}
		kernel := map[string]*Element{}
		for i := range have[s.Name] {
			kernel[have[s.Name][i].ID()] = &have[s.Name][i]
		}
		wanted := map[string]bool{}
		for _, e := range s.Sorted() {
			wanted[e.ID()] = true
			switch k := kernel[e.ID()]; {
			case k == nil:
				out = append(out, fmt.Sprintf("%s lacks %s", s.Name, s.ElementText(e)))
			case k.Data != e.Data || k.Verdict != e.Verdict:
				out = append(out, fmt.Sprintf("%s has %s instead of %s", s.Name, s.ElementText(k), s.ElementText(e)))
			}
		}
		if len(s.Data) == 0 {
			continue // what leads to an endpoint matters
		}
		for id, k := range kernel {
			if !wanted[id] && slices.ContainsFunc(fronts, func(front Value) bool {
				return strings.HasPrefix(string(k.Key), string(front)) && len(k.Key) == len(front)+4
			}) {
				out = append(out, fmt.Sprintf("%s has too much: %s", s.Name, s.ElementText(k)))
			}
		}
	}
	slices.Sort(out)
	return out
}

// frontendKeys are the keys of the verdict maps of a table with one Service.
func frontendKeys(t *Table) (out []Value) {
	for _, s := range t.Sets {
		if s.Verdicts {
			for _, e := range s.Sorted() {
				out = append(out, e.Key)
			}
		}
	}
	return out
}

// RememberedFrontend returns the frontend of an element of a map of clients.
func RememberedFrontend(s *Set, e *Element) (at netip.AddrPort, p model.Protocol, ok bool) {
	if len(s.Key) != 4 || len(e.Key) != width(s.Key) {
		return at, p, false
	}
	n := s.Key[0].padded()
	key := e.Key[n:]
	return netip.AddrPortFrom(key[:n].addr(), key[n+4:].port()), model.Protocol(key[n]), true
}
