package peering

import (
	"fmt"
	"strings"
)

// Text prints the speaker for people and goldens: a line for each neighbour, path and problem.
func (s *Speaker) Text() string {
	var b strings.Builder
	if len(s.Neighbours) == 0 {
		b.WriteString("no speaker\n")
	} else {
		fmt.Fprintf(&b, "as %d router-id %s port %d\n", s.ASN, s.RouterID, s.Port)
	}
	if s.Drained != "" {
		fmt.Fprintf(&b, "drained by %s\n", s.Drained)
	}
	short := map[string]string{}
	for i, g := range s.Groups {
		short[g.Name] = string(rune('A' + i))
	}
	for i := range s.Neighbours {
		b.WriteString(s.Neighbours[i].text(short))
	}
	for i := range s.Groups {
		b.WriteString(s.Groups[i].text(short))
	}
	for _, p := range s.Paths {
		fmt.Fprintf(&b, "path %s", p.Prefix)
		if p.NextHop.IsValid() {
			fmt.Fprintf(&b, " via %s", p.NextHop)
		}
		b.WriteString(" to ")
		for _, g := range p.Groups {
			b.WriteString(short[g])
		}
		fmt.Fprintf(&b, " for %s\n", p.Why)
	}
	for _, r := range s.Refused {
		fmt.Fprintf(&b, "refused %s as %d %q: %s\n", r.Address, r.ASN, r.Name, r.Why)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	return b.String()
}

func (n *Neighbour) text(short map[string]string) string {
	kind := "peer"
	if n.Mesh {
		kind = "node"
	}
	out := fmt.Sprintf("neighbour %s as %d %s %q group %s", n.Address, n.ASN, kind, n.Name, short[n.Group])
	say := func(yes bool, format string, args ...any) {
		if yes {
			out += fmt.Sprintf(format, args...)
		}
	}
	say(n.Internal(), " internal")
	say(n.Port != 179, " port %d", n.Port)
	say(n.Passive, " passive")
	say(n.Source.IsValid(), " from %s", n.Source)
	say(n.MultihopTTL > 0, " ttl %d", n.MultihopTTL)
	say(n.TTLSecurityHops > 0, " within %d hops", n.TTLSecurityHops)
	say(n.Password != "", " with password")
	say(n.RestartSeconds == 0, " without graceful restart")
	say(!n.IPv4, " no ipv4")
	say(!n.IPv6, " no ipv6")
	say(n.ReflectorClient, " client")
	say(n.ClusterID.IsValid(), " cluster-id %s", n.ClusterID)
	say(n.MaxPrefixes > 0, " at most %d prefixes", n.MaxPrefixes)
	for _, r := range n.Import {
		word := "take"
		if r.Reject {
			word = "refuse"
		}
		if n.Mesh {
			break
		}
		say(true, " %s %s %d-%d", word, r.Prefix, r.GE, r.LE)
	}
	return out + "\n"
}

func (g *Group) text(short map[string]string) string {
	out := "group " + short[g.Name]
	if g.IPv6 {
		out += " over ipv6"
	} else {
		out += " over ipv4"
	}
	for _, c := range g.Communities {
		out += " community " + c.String()
	}
	for _, c := range g.LargeCommunities {
		out += " large-community " + c.String()
	}
	if g.LocalPreference != nil {
		out += fmt.Sprintf(" local-preference %d", *g.LocalPreference)
	}
	if g.MED != nil {
		out += fmt.Sprintf(" med %d", *g.MED)
	}
	if g.Reflect {
		out += " reflects"
	}
	return out + "\n"
}
