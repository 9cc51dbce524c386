package coredns

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// stubs are the addresses of systemd-resolved, whose own upstreams are in stubFile.
var stubs = []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("127.0.0.54")}

const stubFile = "/run/systemd/resolve/resolv.conf"

// mostUpstreams is how many the plugin forward takes.
const mostUpstreams = 15

// Upstreams are what a resolv.conf names.
type Upstreams struct {
	// Path is the file they are from.
	Path    string
	Servers []netip.AddrPort
	Search  []string
	// Stub is true when systemd-resolved names no server and its stub stands for them.
	Stub bool
	// Skipped says which servers are left out, and why.
	Skipped []string
}

// ReadUpstreams reads a resolv.conf. Addresses of this server itself are left out: its own questions would come back to it.
func ReadUpstreams(path string, own []netip.Addr) (Upstreams, error) {
	return readUpstreams(path, stubFile, own)
}

func readUpstreams(path, behindStub string, own []netip.Addr) (Upstreams, error) {
	u := Upstreams{Path: path}
	text, err := os.ReadFile(path)
	if err != nil {
		return u, fmt.Errorf("reading the node's DNS servers: %w", err)
	}
	stub := false
	for _, line := range strings.Split(string(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.ContainsAny(fields[0][:1], "#;") {
			continue
		}
		switch fields[0] {
		case "search":
			u.Search = fields[1:]
		case "domain":
			u.Search = fields[1:2]
		case "nameserver":
			a, err := netip.ParseAddr(fields[1])
			switch {
			case err != nil:
				u.skip("%s: nameserver %q is not an address", path, fields[1])
			case slices.Contains(stubs, a):
				stub = true
			case slices.Contains(own, a.Unmap()):
				u.skip("%s: nameserver %s is this node's DNS server itself; questions would go round in a loop", path, a)
			case a.IsUnspecified():
				u.skip("%s: nameserver %s is no server", path, a)
			case len(u.Servers) < mostUpstreams:
				u.Servers = append(u.Servers, netip.AddrPortFrom(a.Unmap(), 53))
			}
		}
	}
	if stub && path != behindStub {
		if more, err := readUpstreams(behindStub, behindStub, own); err == nil && len(more.Servers) > 0 {
			more.Skipped = append(u.Skipped, more.Skipped...)
			if len(more.Search) == 0 {
				more.Search = u.Search
			}
			return more, nil
		}
		for _, s := range stubs[:1] { // it answers this node, if not its Pods
			u.Stub = len(u.Servers) == 0
			u.Servers = append(u.Servers, netip.AddrPortFrom(s, 53))
		}
	}
	return u, nil
}

func (u *Upstreams) skip(format string, args ...any) {
	u.Skipped = append(u.Skipped, fmt.Sprintf(format, args...))
}
