package route

import (
	"fmt"
	"strings"
)

// Text prints the state line by line as the ip(8) and bridge(8) commands that would make it, for goldens and for people.
func (h *HostNet) Text() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for i, a := range h.NodeAddresses {
		if i == 0 {
			line("link add %s type bridge", NodeLink)
		}
		line("address add %s/%d dev %s", a, a.BitLen(), NodeLink)
	}
	if t := h.Tunnel; t != nil {
		line("link add %s address %s mtu %d type vxlan id %d local %s dev %s dstport %d nolearning",
			TunnelLink, t.MAC, t.MTU, t.VNI, t.Local, t.Link, t.Port)
		for _, p := range t.Peers {
			line("fdb append %s dev %s dst %s # %s", p.MAC, TunnelLink, p.Outer, p.Node)
			for _, hop := range p.NextHops {
				line("neigh replace %s lladdr %s dev %s nud permanent", hop, p.MAC, TunnelLink)
			}
		}
	}
	for _, p := range h.Blackholes {
		line("route replace unreachable %s", p)
	}
	for _, r := range h.Routes {
		s := fmt.Sprintf("route replace %s via %s dev %s", r.Dst, r.Via, r.Link)
		if r.Src.IsValid() {
			s += " src " + r.Src.String()
		}
		if r.OnLink {
			s += " onlink"
		}
		if r.Metric != 0 {
			s += fmt.Sprintf(" metric %d", r.Metric)
		}
		line("%s", s)
	}
	return b.String()
}

// Text prints the whole result: the host network, then peers, MTU, masquerade exceptions and warnings.
func (s *State) Text() string {
	var b strings.Builder
	b.WriteString(s.HostNet.Text())
	fmt.Fprintf(&b, "pod mtu %d\n", s.PodMTU)
	for _, p := range s.Peers {
		fmt.Fprintf(&b, "peer %s %s outer %s inner %v", p.Node, p.Mode, p.Outer, p.Inner)
		if p.Routed {
			b.WriteString(" by routers")
		}
		if p.Problem != "" {
			fmt.Fprintf(&b, " problem: %s", p.Problem)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "masquerade from %v except to %v\n", s.PodRanges, s.NoMasquerade)
	fmt.Fprintf(&b, "tunnel accepts %v\n", s.TunnelSources)
	for _, w := range s.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	return b.String()
}
