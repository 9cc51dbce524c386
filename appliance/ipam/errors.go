package ipam

import (
	"fmt"
	"net/netip"
	"strings"
)

// ExhaustedError says that every address of the ranges is taken.
type ExhaustedError struct {
	Ranges string
	// Total addresses can be given at all; Held by attachments; Foreign in use by someone else on this node.
	Total, Held, Foreign int
}

// Error names the range, the counts and the fix.
func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("no address left in %s: %d usable, %d held by attachments, %d in use by others; "+
		"run `weft ipam check` to find leaks, move Pods to other nodes, or give this node a larger range (node.spec.podCIDRs or podCIDRs in weft.yaml)",
		e.Ranges, e.Total, e.Held, e.Foreign)
}

// UnavailableError says why an address that was asked for by name cannot be had.
type UnavailableError struct {
	Addr netip.Addr
	Why  string
	// Held is true when another attachment has it.
	Held bool
}

// Error names the address and the reason.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("requested address %s cannot be given: %s", e.Addr, e.Why)
}

func describe(sets [][]Range) string {
	var out []string
	for _, set := range sets {
		for _, r := range set {
			if full, err := NewRange(r.Prefix, netip.Addr{}, netip.Addr{}); err == nil && full.First == r.First && full.Last == r.Last {
				out = append(out, r.Prefix.String())
			} else {
				out = append(out, fmt.Sprintf("%s (%s-%s)", r.Prefix, r.First, r.Last))
			}
		}
	}
	return strings.Join(out, ", ")
}
