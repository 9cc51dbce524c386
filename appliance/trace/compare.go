package trace

import (
	"fmt"
	"slices"
)

// Recall takes over from an answer that knows what the kernel remembers of clients.
func (r *Report) Recall(other *Report) {
	for i := range r.Paths {
		if i < len(other.Paths) && len(other.Paths[i].Endpoints) == 1 && len(r.Paths[i].Endpoints) > 1 {
			r.Paths[i].Remembered = other.Paths[i].Endpoints[0].Address
		}
	}
}

// Differences says in what another answer to the same question differs: the same packet through other tables.
func (r *Report) Differences(other *Report, whose string) []string {
	var out []string
	for i := range r.Paths {
		if i >= len(other.Paths) {
			break
		}
		a, b := &r.Paths[i], &other.Paths[i]
		if a.Works != b.Works || (len(a.Endpoints) == 0) != (len(b.Endpoints) == 0) || len(a.Endpoints) == 0 && a.Verdict != b.Verdict {
			out = append(out, fmt.Sprintf("to %s: %s the connection %s", a.Destination, whose, b.Verdict))
		}
		for _, e := range a.Endpoints {
			j := slices.IndexFunc(b.Endpoints, func(f Endpoint) bool { return f.Address == e.Address })
			switch {
			case j < 0 && len(b.Endpoints) > 0:
				out = append(out, fmt.Sprintf("to %s: %s endpoint %s gets no connections", a.Destination, whose, e.Address))
			case j >= 0 && (b.Endpoints[j].Works != e.Works || b.Endpoints[j].Source != e.Source):
				f := b.Endpoints[j]
				out = append(out, fmt.Sprintf("to %s: %s a connection to endpoint %s from %s %s", a.Destination, whose, f.Address, f.Source, f.Verdict))
			}
		}
		for _, f := range b.Endpoints {
			if !slices.ContainsFunc(a.Endpoints, func(e Endpoint) bool { return e.Address == f.Address }) {
				out = append(out, fmt.Sprintf("to %s: %s endpoint %s gets connections, too", a.Destination, whose, f.Address))
			}
		}
	}
	return out
}
