package iface

import (
	"context"
	"errors"
	"net/netip"
)

// DNSLink carries the addresses at which this node's DNS server answers. It is a link of its own, a bridge without ports, since
// the server may run on a node whose Pod network is somebody else's.
const DNSLink = "weft.dns"

// ApplyDNS gives the node these addresses, and takes the link away when there are none. It returns what it changed.
func (b *Backend) ApplyDNS(ctx context.Context, want []netip.Addr) (changes []string, err error) {
	b.applying.Lock()
	defer b.applying.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b.expect.setDNS(want)
	a := &hostApply{b: b, names: map[int]string{}}
	if len(want) == 0 {
		a.removeLink(DNSLink, "bridge")
	} else if index := a.bridge(DNSLink); index != 0 {
		a.addresses(ctx, DNSLink, index, want)
	}
	return a.changes, errors.Join(a.errs...)
}
