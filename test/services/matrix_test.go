package services

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

var this = service.Input{NodeName: "here", Zone: "a", NodeAddresses: nodeAddrs}

func compileAll(t testing.TB, snap *model.Snapshot) ruleset.Table {
	var c service.Compiler
	r := c.Compile(snap, this)
	table := new(ruleset.Services).Table(ruleset.ServicesInput{Frontends: r.Frontends, PodRanges: podRanges})
	if err := table.Check(); err != nil {
		t.Fatal(err)
	}
	return table
}

// source is who connects.
type source struct {
	name     string
	addr     both
	link     string // over which the packets come in; empty for this node's own
	fromNode bool
}

var sources = []source{
	{name: "Pod of this node", addr: pair("10.42.1.20"), link: "weftpclient"},
	{name: "Pod of this node that is an endpoint", addr: pair("10.42.1.11"), link: "weftplocal"},
	{name: "Pod of another node", addr: pair("10.42.2.20"), link: "eth0"},
	{name: "this node, or a Pod in its network", addr: pair("192.168.9.1"), fromNode: true},
	{name: "another node, or a Pod in its network", addr: pair("192.168.9.2"), link: "eth0"},
	{name: "outside", addr: pair("198.51.100.9"), link: "eth1"},
	{name: "outside, elsewhere", addr: pair("192.0.2.9"), link: "eth1"},
	{name: "this node, from the Service's address", fromNode: true},
}

// destinations returns where one port of a Service may be looked for: its own addresses, the node's, and ports that it does not have.
func destinations(s *model.Service, p *model.ServicePort) (out []netip.AddrPort) {
	addrs := slices.Concat(s.ClusterIPs, s.ExternalIPs)
	for _, in := range s.Ingress {
		addrs = append(addrs, in.IP)
	}
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a, p.Port))
	}
	out = append(out, netip.AddrPortFrom(addrs[0], 81), netip.AddrPortFrom(addrs[len(addrs)-1], 81))
	if p.NodePort != 0 {
		for _, a := range nodeAddrs {
			out = append(out, netip.AddrPortFrom(a, p.NodePort))
		}
		out = append(out, netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", p.NodePort)), netip.MustParseAddrPort(fmt.Sprintf("[::1]:%d", p.NodePort)))
	}
	return out
}

// facts is the node's routing table.
func facts(draw func(uint32) uint32) ruleset.Facts {
	return ruleset.Facts{
		Local:  func(a netip.Addr) bool { return a.IsLoopback() || slices.Contains(nodeAddrs, a) },
		Random: draw, Remembers: true,
		Own: func(to netip.Addr) netip.Addr {
			return nodeAddrs[map[bool]int{true: 1}[to.Is6()]]
		},
	}
}

// outLink is where a packet leaves. One of the Pods has been attached by another CNI plugin.
func outLink(to netip.Addr) string {
	switch {
	case to.IsLoopback() || slices.Contains(nodeAddrs, to):
		return "lo"
	case to == pair("10.42.1.12")[0] || to == pair("10.42.1.12")[1]:
		return "veth12"
	case podRanges[0].Contains(to) || podRanges[1].Contains(to):
		return "weftp" + to.String()[len(to.String())-2:]
	}
	return "eth0"
}

// journey sends one packet through the hooks as far as it gets.
func journey(tr *ruleset.Tracer, c conn, link string) (ruleset.Outcome, bool) {
	p := ruleset.Packet{IIf: link, Src: c.src, Dst: c.dst.Addr(), Sport: 40000, Dport: c.dst.Port(), Proto: c.protocol, CtState: ruleset.StateNew}
	walk := tr.Walk(p, c.fromNode, func(to netip.Addr) ruleset.Way {
		out := outLink(to)
		return ruleset.Way{Link: out, Local: out == "lo"}
	})
	out := ruleset.Outcome{Packet: walk.Packet, Rejected: walk.End == ruleset.Rejected, Accepted: walk.End == ruleset.Delivered || walk.End == ruleset.Forwarded}
	for _, leg := range walk.Legs {
		out.Steps = append(out.Steps, leg.Steps...)
	}
	return out, out.Accepted && out.Packet.CtStatus&ruleset.StatusDNAT != 0
}

// TestMatrix compares tracer and oracle for every Service, destination, protocol, source and family.
func TestMatrix(t *testing.T) {
	snap, what := generate()
	table := compileAll(t, snap)
	var draw uint32
	tr := ruleset.NewTracer([]ruleset.Table{table}, facts(func(mod uint32) uint32 { return draw % mod }))
	cases, failures := 0, 0
	kinds := map[string]int{}
	for key, s := range snap.Services {
		turn := 0 // every protocol has its turn: all of them everywhere would take three times as long
		one := oracle{&model.Snapshot{Services: map[model.ServiceKey]*model.Service{key: s}, Slices: slicesFor(snap, s)}}
		for i := range s.Ports {
			for _, dst := range destinations(s, &s.Ports[i]) {
				for _, from := range sources {
					if turn++; turn%len(s.Ports) != 0 && !testing.Verbose() {
						continue
					}
					c := conn{protocol: s.Ports[i].Protocol, src: from.addr[map[bool]int{true: 1}[dst.Addr().Is6()]], dst: dst, fromNode: from.fromNode}
					if !c.src.IsValid() {
						c.src = dst.Addr()
					}
					cases++
					want := one.fate(c)
					if why := check(tr, &draw, one, c, from.link, want); why != "" {
						if failures++; failures <= 10 {
							t.Errorf("%s (%s): %s from %s (%s) to %s: %s", key, what[key], c.protocol, from.name, c.src, dst, why)
						}
					}
					kinds[want.kind()]++
				}
			}
		}
	}
	t.Logf("%d Services, %d cases, %d wrong: %v", len(snap.Services), cases, failures, kinds)
	for _, k := range []string{"pass", "refuse", "drop", "one backend", "several backends", "several backends, sticky"} {
		if kinds[k] < 100 {
			t.Errorf("only %d cases of %q: the matrix does not try it", kinds[k], k)
		}
	}
}

func (f fate) kind() string {
	switch {
	case f.pass:
		return "pass"
	case f.refuse:
		return "refuse"
	case f.drop:
		return "drop"
	case len(f.backends) == 1:
		return "one backend"
	case f.sticky:
		return "several backends, sticky"
	}
	return "several backends"
}

func slicesFor(snap *model.Snapshot, s *model.Service) map[model.SliceKey]*model.EndpointSlice {
	out := map[model.SliceKey]*model.EndpointSlice{}
	for _, suffix := range []string{"-0", "-1", "-again"} {
		if e := snap.Slices[model.SliceKey{Namespace: s.Namespace, Name: s.Name + suffix}]; e != nil {
			out[e.Key()] = e
		}
	}
	return out
}

// check sends a connection through the tracer, once for each number that may be drawn, and says what is wrong.
func check(tr *ruleset.Tracer, draw *uint32, o oracle, c conn, link string, want fate) string {
	var seen []netip.AddrPort
	for *draw = 0; *draw < 6; *draw++ {
		out, chosen := journey(tr, c, link)
		p := out.Packet
		got := fate{pass: out.Accepted && !chosen, refuse: out.Rejected, drop: !out.Accepted && !out.Rejected}
		if got.pass != want.pass || got.refuse != want.refuse || got.drop != want.drop {
			return fmt.Sprintf("%s to %s, want %s: %v", got.kind(), p.Dst, want.kind(), out.Steps)
		}
		if !chosen {
			return ""
		}
		backend := netip.AddrPortFrom(p.Dst, p.Dport)
		if !slices.Contains(want.backends, backend) {
			return fmt.Sprintf("sent to %s, want one of %v", backend, want.backends)
		}
		if !slices.Contains(seen, backend) {
			seen = append(seen, backend)
		}
		if masq, want := p.CtStatus&ruleset.StatusSNAT != 0, o.masqueraded(c, p.Dst); masq != want {
			return fmt.Sprintf("sent to %s, source changed %v, want %v: %v", backend, masq, want, out.Steps)
		}
	}
	if want.sticky && len(want.backends) > 1 {
		if len(seen) > 1 {
			return fmt.Sprintf("sent to %v although the Service is sticky", seen)
		}
	} else if len(seen) != len(want.backends) {
		return fmt.Sprintf("sent to %v only, want all of %v", seen, want.backends)
	}
	return ""
}
