package reconcile

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/ruleset"
)

// DNS brings the packets for this node's DNS server to it. It belongs to the Loop, under whose lock all of it runs.
type DNS struct {
	// Link gives the node the addresses of the server.
	Link interface {
		ApplyDNS(ctx context.Context, want []netip.Addr) (changes []string, err error)
	}
	// Addresses are those at which the server listens; a packet must not come before that. It says false while the server has not
	// begun: then what the daemon before this one has left stays, and packets wait in its sockets. nil stands for no server.
	Addresses func() (list []netip.Addr, begun bool)

	applied []netip.Addr
	begun   bool
	known   bool // applied is what the kernel holds
}

// apply gives the node the addresses, if they differ from the last time or the kernel was touched. The rules come after them: while
// a Service at the same address is still translated, queries go where they went before.
func (d *DNS) apply(ctx context.Context, again bool) (changes []string, err error) {
	var want []netip.Addr
	if d.begun = true; d.Addresses != nil {
		want, d.begun = d.Addresses()
	}
	if !d.begun {
		return nil, nil
	}
	if d.known && !again && slices.Equal(want, d.applied) {
		return nil, nil
	}
	if changes, err = d.Link.ApplyDNS(ctx, want); err != nil {
		d.known = false
		return changes, fmt.Errorf("giving the node the addresses of its DNS server: %w", err)
	}
	d.applied, d.known = want, true
	return changes, nil
}

// tables keep queries out of connection tracking. Without addresses the table is empty, and removed.
func (d *DNS) tables() []ruleset.Table {
	if !d.begun {
		return nil
	}
	return []ruleset.Table{ruleset.DNS(d.applied)}
}
