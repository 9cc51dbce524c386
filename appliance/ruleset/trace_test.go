package ruleset

import (
	"net/netip"
	"strings"
	"testing"

	"weft.network/weft/appliance/model"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// node is what the routing table of the node in fullInput says.
func nodeFacts() Facts {
	local := addrs("192.168.9.1", "fd00:9::1", "127.0.0.1", "::1")
	return Facts{
		Local: func(a netip.Addr) bool {
			for _, l := range local {
				if a == l {
					return true
				}
			}
			return false
		},
		Returns: func(to netip.Addr, link string) bool {
			behind := map[string]string{"10.42.1.5": "weftpweb", "fd00:42:0:1::5": "weftpweb", "10.42.1.6": "weftpdb"}
			if l, ok := behind[to.String()]; ok {
				return l == link
			}
			return link == "eth0"
		},
		Own: func(to netip.Addr) netip.Addr {
			if to.Is4() {
				return addr("192.168.9.1")
			}
			return addr("fd00:9::1")
		},
	}
}

// pkt makes a packet from "iif>oif src:port dst:port".
func pkt(proto model.Protocol, links, src, dst string) Packet {
	in, out, _ := strings.Cut(links, ">")
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	return Packet{IIf: in, OIf: out, Src: s.Addr(), Sport: s.Port(), Dst: d.Addr(), Dport: d.Port(), Proto: proto, CtState: StateNew}
}

func TestTraceFabric(t *testing.T) {
	table, _ := Fabric(fullInput())
	tr := NewTracer([]Table{table}, nodeFacts())
	tcp, udp := model.TCP, model.UDP
	for _, c := range []struct {
		what string
		hook Hook
		in   Packet
		want string // "src dst" afterwards, "drop", and the comment or text of the rule that decided
	}{
		{"Pod to outside", Postrouting, pkt(tcp, ">eth0", "10.42.1.5:1", "1.1.1.1:80"), "192.168.9.1:1 1.1.1.1:80 @pod_ranges4"},
		{"Pod to outside, IPv6", Postrouting, pkt(tcp, ">eth0", "[fd00:42:0:1::5]:1", "[2001:db8::1]:80"), "[fd00:9::1]:1 [2001:db8::1]:80 @pod_ranges6"},
		{"Pod to Pod", Postrouting, pkt(tcp, ">eth0", "10.42.1.5:1", "10.42.2.2:80"), "10.42.1.5:1 10.42.2.2:80"},
		{"Pod to a node", Postrouting, pkt(tcp, ">eth0", "10.42.1.5:1", "192.168.9.7:80"), "10.42.1.5:1 192.168.9.7:80"},
		{"Pod to a group", Postrouting, pkt(udp, ">eth0", "10.42.1.5:1", "239.1.1.1:80"), "10.42.1.5:1 239.1.1.1:80"},
		{"node to itself, from the address in the Pod range", Postrouting, pkt(tcp, ">lo", "10.42.1.1:1", "203.0.113.1:80"), "10.42.1.1:1 203.0.113.1:80"},
		{"node to outside", Postrouting, pkt(tcp, ">eth0", "192.168.9.1:1", "1.1.1.1:80"), "192.168.9.1:1 1.1.1.1:80"},
		{"host port", Prerouting, pkt(tcp, "eth0", "1.1.1.1:1", "192.168.9.1:8080"), "1.1.1.1:1 10.42.1.5:80 @hostport4"},
		{"host port, IPv6", Prerouting, pkt(tcp, "eth0", "[2001:db8::1]:1", "[fd00:9::1]:8080"), "[2001:db8::1]:1 [fd00:42:0:1::5]:80 @hostport6"},
		{"host port of a Pod without IPv6", Prerouting, pkt(tcp, "eth0", "[2001:db8::1]:1", "[fd00:9::1]:5432"), "[2001:db8::1]:1 [fd00:9::1]:5432 goto hostports"},
		{"host port on one address", Prerouting, pkt(udp, "eth0", "1.1.1.1:1", "192.168.9.1:53"), "1.1.1.1:1 10.42.1.5:5353 @hostport_ip4"},
		{"not on loopback", Output, pkt(udp, ">lo", "127.0.0.1:1", "127.0.0.1:53"), "127.0.0.1:1 127.0.0.1:53 goto hostports"},
		{"another protocol", Prerouting, pkt(udp, "eth0", "1.1.1.1:1", "192.168.9.1:8080"), "1.1.1.1:1 192.168.9.1:8080 goto hostports"},
		{"another machine", Prerouting, pkt(tcp, "eth0", "1.1.1.1:1", "192.168.9.7:8080"), "1.1.1.1:1 192.168.9.7:8080"},
		{"from the node to 127.0.0.1", Output, pkt(tcp, ">lo", "127.0.0.1:1", "127.0.0.1:8080"), "127.0.0.1:1 10.42.1.5:80 @hostport4"},
		{"then", Postrouting, pkt(tcp, ">weftpweb", "127.0.0.1:1", "10.42.1.5:80"), "192.168.9.1:1 10.42.1.5:80 on 127.0.0.1"},
		{"from the node to ::1", Output, pkt(tcp, ">lo", "[::1]:1", "[::1]:8080"), "[::1]:1 [::1]:8080 cannot reach a Pod"},
		{"hairpin", Postrouting, pkt(tcp, ">weftpweb", "10.42.1.5:1", "10.42.1.5:80"), "192.168.9.1:1 10.42.1.5:80 its own host port"},
		{"own address", Prerouting, pkt(tcp, "weftpweb", "10.42.1.5:1", "1.1.1.1:80"), "10.42.1.5:1 1.1.1.1:80 fib saddr . iif oif exists return"},
		{"spoofed", Prerouting, pkt(tcp, "weftpweb", "10.42.1.6:1", "1.1.1.1:80"), "drop not the address of this Pod"},
		{"spoofed, IPv6", Prerouting, pkt(tcp, "weftpdb", "[fd00:42:0:1::5]:1", "[2001:db8::1]:80"), "drop not the address of this Pod"},
		{"neighbour discovery", Prerouting, pkt(58, "weftpdb", "[fe80::9]:0", "[ff02::1:ff00:1]:0"), "[fe80::9]:0 [ff02::1:ff00:1]:0 neighbour discovery has no route"},
		{"duplicate address detection", Prerouting, pkt(58, "weftpdb", "[::]:0", "[ff02::1:ff00:1]:0"), "[::]:0 [ff02::1:ff00:1]:0 duplicate address detection has no source"},
		{"loopback of the node", Prerouting, pkt(tcp, "weftpweb", "10.42.1.5:1", "127.0.0.1:80"), "drop the node's loopback is not for Pods"},
		{"tunnel from a node", Prerouting, pkt(udp, "eth0", "192.168.9.2:1", "192.168.9.1:4789"), "192.168.9.2:1 192.168.9.1:4789 notrack accept"},
		{"tunnel from a stranger", Prerouting, pkt(udp, "eth0", "192.168.9.3:1", "192.168.9.1:4789"), "drop not a node of this cluster"},
		{"tunnel from a stranger, IPv6", Prerouting, pkt(udp, "eth0", "[fd00:9::7]:1", "[fd00:9::1]:4789"), "drop not a node of this cluster"},
		{"tunnel from a Pod", Postrouting, pkt(udp, ">eth0", "10.42.1.5:1", "192.168.9.2:4789"), "drop Pods may not speak to tunnel ends"},
		{"somebody else's tunnel", Prerouting, pkt(udp, "eth0", "192.168.9.3:1", "10.42.1.5:4789"), "192.168.9.3:1 10.42.1.5:4789 goto tunnel_in"},
	} {
		out := tr.Trace(c.hook, c.in)
		got := "drop"
		if out.Accepted {
			p := out.Packet
			got = netip.AddrPortFrom(p.Src, p.Sport).String() + " " + netip.AddrPortFrom(p.Dst, p.Dport).String()
		}
		decided := ""
		if n := len(out.Steps); n > 0 {
			decided = out.Steps[n-1].Text
		}
		before, rule, _ := strings.Cut(c.want, " ")
		if before != "drop" {
			var dst string
			dst, rule, _ = strings.Cut(rule, " ")
			before += " " + dst
		}
		if got != before || !strings.Contains(decided, rule) || rule == "" && decided != "" {
			t.Errorf("%s: %s by %q, want %s", c.what, got, decided, c.want)
		}
	}
}

// TestTraceSemantics covers what the fabric does not use.
func TestTraceSemantics(t *testing.T) {
	peers := &Set{Name: "peers", Key: []Type{TypeIPv4Addr}, Data: []Type{TypeIPv4Addr}, Blocks: Single(Element{Key: Addr(addr("10.0.0.1")), Data: Addr(addr("0.1.0.17"))})}
	allow := &Set{Name: "allow", Key: []Type{TypeIPv4Addr, TypeInetService}, Blocks: Single(Element{Key: Tuple(Addr(addr("0.1.0.17")), Port(80))})}
	cidr := &Set{
		Name: "cidr", Key: []Type{TypeIPv4Addr, TypeInetService}, Interval: true,
		Blocks: Single(Element{Key: Tuple(Addr(addr("10.1.0.0")), Port(80)), End: Tuple(Addr(addr("10.1.255.255")), Port(90))}),
	}
	vmap := &Set{Name: "vmap", Key: []Type{TypeInetService}, Verdicts: true, Blocks: Single(Element{Key: Port(1), Verdict: Drop}, Element{Key: Port(2), Verdict: Goto("refuse")}, Element{Key: Port(3), Verdict: Jump("empty")})}
	table := Table{Family: IPv4, Name: "t", Sets: []*Set{peers, allow, cidr, vmap}, Chains: []*Chain{
		{Name: "empty"},
		{Name: "refuse", Rules: []Rule{R("", RejectPort)}},
		{Name: "judge", Rules: []Rule{
			R("", Assign{Target: MetaPriority}),
			R("", Assign{Target: MetaPriority, From: MapOf{Key: IPSaddr, Map: "peers"}}, In("allow", MetaPriority, THDport), Return),
			R("", In("cidr", IPSaddr, THDport), Return),
			R("", Counter{}, Drop),
		}},
		{Name: "forward", Base: &Base{Type: Filter, Hook: Forward}, Rules: []Rule{
			R("fast", Masked(CtMark, 0xff00, 0x100), Accept),
			R("", HasAny{Left: CtState, Bits: StateEstablished}, Accept),
			R("", Vmap{Key: THDport, Map: "vmap"}),
			R("", Jump("judge")),
			R("", Assign{Target: CtMark, Keep: 0xff, Value: 0x100}),
		}},
		{Name: "late", Base: &Base{Type: Filter, Hook: Forward, Priority: 10, Drop: true}, Rules: []Rule{R("", Ne(MetaMark, Mark(9)), Accept)}},
	}}
	tr := NewTracer([]Table{table}, Facts{})
	for _, c := range []struct {
		what     string
		in       Packet
		change   func(*Packet)
		accepted bool
		rejected bool
		last     string
	}{
		{"a peer", pkt(model.TCP, "", "10.0.0.1:1", "10.9.9.9:80"), nil, true, false, "meta mark != 0x00000009 accept"},
		{"a peer, another port", pkt(model.TCP, "", "10.0.0.1:1", "10.9.9.9:81"), nil, false, false, "counter packets 0 bytes 0 drop"},
		{"no peer, with a stale scratch", pkt(model.TCP, "", "10.0.0.2:1", "10.9.9.9:80"), func(p *Packet) { p.Priority = Addr(addr("0.1.0.17")).uint32() }, false, false, "counter packets 0 bytes 0 drop"},
		{"a range", pkt(model.TCP, "", "10.1.7.7:1", "10.9.9.9:85"), nil, true, false, "meta mark != 0x00000009 accept"},
		{"outside of it", pkt(model.TCP, "", "10.1.7.7:1", "10.9.9.9:91"), nil, false, false, "counter packets 0 bytes 0 drop"},
		{"this generation", pkt(model.TCP, "", "10.0.0.2:1", "10.9.9.9:80"), func(p *Packet) { p.CtMark = 0x107 }, true, false, "meta mark != 0x00000009 accept"},
		{"established", pkt(model.TCP, "", "10.0.0.2:1", "10.9.9.9:80"), func(p *Packet) { p.CtState = StateEstablished }, true, false, "meta mark != 0x00000009 accept"},
		{"a policy", pkt(model.TCP, "", "10.0.0.1:1", "10.9.9.9:80"), func(p *Packet) { p.Mark = 9 }, false, false, "policy drop"},
		{"a verdict map", pkt(model.TCP, "", "10.0.0.1:1", "10.9.9.9:1"), nil, false, false, "th dport vmap @vmap"},
		{"a verdict map with goto", pkt(model.TCP, "", "10.0.0.1:1", "10.9.9.9:2"), nil, false, true, "reject"},
		{"a verdict map with jump", pkt(model.TCP, "", "10.0.0.2:1", "10.9.9.9:3"), nil, false, false, "counter packets 0 bytes 0 drop"},
		{"the other family", pkt(model.TCP, "", "[fd00::1]:1", "[fd00::2]:1"), nil, true, false, ""},
		{"untracked", pkt(model.TCP, "", "10.0.0.1:1", "10.9.9.9:80"), func(p *Packet) { p.CtState = StateUntracked }, true, false, "meta mark != 0x00000009 accept"},
	} {
		if c.change != nil {
			c.change(&c.in)
		}
		out := tr.Trace(Forward, c.in)
		last := ""
		if n := len(out.Steps); n > 0 {
			last = out.Steps[n-1].Text
		}
		if out.Accepted != c.accepted || out.Rejected != c.rejected || last != c.last {
			t.Errorf("%s: accepted %v, rejected %v by %q; want %v, %v, %q", c.what, out.Accepted, out.Rejected, last, c.accepted, c.rejected, c.last)
		}
	}
	if got := tr.Trace(Forward, pkt(model.TCP, "", "10.0.0.1:1", "10.9.9.9:80")).Packet.CtMark; got != 0x100 {
		t.Errorf("connection mark %#x, want 0x100", got)
	}
}
