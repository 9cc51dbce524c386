package iface

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Path is what the routing table does with a packet of this node.
type Path struct {
	// Link is the way out; "lo" for an address of this node.
	Link string `json:"link,omitempty"`
	// Via is the next hop, Src the address that the node's own packets get; both may be invalid.
	Via netip.Addr `json:"via,omitzero"`
	Src netip.Addr `json:"src,omitzero"`
	// Local says that the address is one of this node.
	Local bool `json:"local,omitempty"`
	// Refused says why there is no way; empty where there is one.
	Refused string `json:"refused,omitempty"`
}

// PathTo asks the kernel for the way to an address.
func (b *Backend) PathTo(ctx context.Context, dst netip.Addr) (Path, error) {
	if err := ctx.Err(); err != nil {
		return Path{}, err
	}
	routes, err := b.links.RouteGet(dst.AsSlice())
	switch {
	case errors.Is(err, unix.EHOSTUNREACH):
		return Path{Refused: "host unreachable"}, nil
	case errors.Is(err, unix.ENETUNREACH):
		return Path{Refused: "no route"}, nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return Path{Refused: "prohibited"}, nil
	case err != nil:
		return Path{}, fmt.Errorf("asking for the route to %s: %w", dst, err)
	case len(routes) == 0:
		return Path{Refused: "no route"}, nil
	}
	r := routes[0]
	p := Path{Local: r.Type == unix.RTN_LOCAL, Link: b.linkName(r.LinkIndex)}
	if via, ok := netip.AddrFromSlice(r.Gw); ok {
		p.Via = via.Unmap()
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		p.Src = src.Unmap()
	}
	switch r.Type {
	case unix.RTN_UNREACHABLE:
		p.Refused = "unreachable"
	case unix.RTN_BLACKHOLE:
		p.Refused = "blackhole"
	case unix.RTN_PROHIBIT:
		p.Refused = "prohibited"
	}
	return p, nil
}
