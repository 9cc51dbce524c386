package ruleset

import (
	"slices"
	"strings"
	"testing"
)

// A Service agrees with its own elements, and each change of them is named.
func TestServiceDifferences(t *testing.T) {
	all := new(Services).Table(servicesInput(web(), dns(), cart(), idle()))
	have := map[string][]Element{}
	for _, s := range all.Sets {
		for _, e := range s.Sorted() {
			have[s.Name] = append(have[s.Name], *e)
		}
	}
	for _, f := range frontends(web(), dns(), cart(), idle()) {
		if d := ServiceDifferences(f, have); d != nil {
			t.Errorf("%s differs from itself: %v", f.Service, d)
		}
	}
	for _, tc := range []struct {
		set    string
		change func([]Element) []Element
		want   string
	}{
		{"services4", func(es []Element) []Element { return nil }, "services4 lacks 10.96.0.10 . tcp . 80"},
		{"endpoints4", func(es []Element) []Element {
			i := slices.IndexFunc(es, func(e Element) bool {
				return strings.HasPrefix(string(e.Key), string(Tuple(Addr(addrs("10.96.0.10")[0]), Proto(6))))
			})
			es[i].Data = Tuple(Addr(addrs("10.42.9.9")[0]), Port(1))
			return es
		}, "instead of"},
		{"endpoints4", func(es []Element) []Element {
			extra := es[0]
			extra.Key = Tuple(Addr(addrs("10.96.0.10")[0]), Proto(6), Port(80), Mark(77))
			return append(es, extra)
		}, "endpoints4 has too much: 10.96.0.10 . tcp . 80 . 0x0000004d"},
		{"allowed_sources4", func([]Element) []Element { return nil }, "allowed_sources4 lacks 203.0.113.10"},
	} {
		changed := map[string][]Element{}
		for name, es := range have {
			changed[name] = slices.Clone(es)
		}
		changed[tc.set] = tc.change(changed[tc.set])
		if d := strings.Join(ServiceDifferences(web(), changed), "\n"); !strings.Contains(d, tc.want) {
			t.Errorf("after a change of %s: %q, want %q", tc.set, d, tc.want)
		}
	}
}
