package nft

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/model"
	. "weft.network/weft/appliance/ruleset"
)

// open makes a namespace and a backend in it.
func open(t testing.TB) (*netnstest.NS, *Backend) {
	t.Helper()
	ns := netnstest.New(t)
	return ns, reopen(t, ns)
}

// reopen is a restart of the daemon: another backend in the same namespace.
func reopen(t testing.TB, ns *netnstest.NS) *Backend {
	t.Helper()
	b, err := Open(Options{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func apply(t testing.TB, b *Backend, tables ...Table) Stats {
	t.Helper()
	stats, err := b.Apply(context.Background(), tables)
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

// applyNothing applies tables that are in the kernel already.
func applyNothing(t testing.TB, b *Backend, tables ...Table) {
	t.Helper()
	if stats := apply(t, b, tables...); stats.Messages != 0 {
		t.Errorf("changed something where nothing differs: %+v", stats)
	}
}

// wantListed compares what nft(8) lists with how we print the table.
func wantListed(t testing.TB, ns *netnstest.NS, tables ...Table) {
	t.Helper()
	for _, table := range tables {
		got := ns.Run("nft", "list", "table", table.Family.String(), table.Name)
		if want := table.String(); got != want {
			t.Errorf("nft lists\n%s\nwant\n%s", got, want)
		}
	}
}

func a(s string) Value { return Addr(netip.MustParseAddr(s)) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func fabric(ports ...*model.HostPorts) Table {
	t, _ := Fabric(FabricInput{
		PodRanges:    []netip.Prefix{prefix("10.42.1.0/24"), prefix("fd00:42:0:1::/64")},
		NoMasquerade: []netip.Prefix{prefix("10.42.0.0/16"), prefix("fd00:42::/48")},
		Masquerade:   true, TunnelPort: 4789,
		TunnelSources: []netip.Addr{netip.MustParseAddr("192.168.9.2"), netip.MustParseAddr("fd00:9::2")},
		HostPorts:     ports,
	})
	return t
}

func webPorts() *model.HostPorts {
	return &model.HostPorts{
		AttachmentKey: model.AttachmentKey{Network: "weft", ContainerID: "web", IfName: "eth0"},
		Pod:           model.PodRef{Namespace: "shop", Name: "web"},
		Addresses:     []netip.Addr{netip.MustParseAddr("10.42.1.5"), netip.MustParseAddr("fd00:42:0:1::5")},
		Mappings: []model.PortMapping{
			{HostPort: 8080, ContainerPort: 80, Protocol: model.TCP},
			{HostPort: 53, ContainerPort: 53, Protocol: model.UDP, HostIP: netip.MustParseAddr("192.168.9.1")},
		},
	}
}

func TestFabric(t *testing.T) {
	ns, b := open(t)
	table := fabric(webPorts())
	apply(t, b, table)
	wantListed(t, ns, table)
	again := fabric(webPorts()) // other pointers, the same content
	applyNothing(t, b, again)
	applyNothing(t, reopen(t, ns), again)
	// Each part comes and goes.
	for _, next := range []Table{fabric(), fabric(webPorts()), must(Fabric(FabricInput{})), fabric(webPorts())} {
		apply(t, b, next)
		got := ns.Run("nft", "list", "table", "inet", "weft")
		fresh, other := open(t)
		apply(t, other, next)
		if want := fresh.Run("nft", "list", "table", "inet", "weft"); !sameLines(got, want) {
			t.Errorf("changed to\n%s\nwant\n%s", got, want)
		}
		applyNothing(t, b, next)
		applyNothing(t, reopen(t, ns), next)
	}
	apply(t, b)
	if out := ns.Run("nft", "list", "ruleset"); out != "" {
		t.Errorf("left behind:\n%s", out)
	}
}

// TestGoldens loads the texts of the package ruleset with nft(8): they are what it lists. Those of Services it lists and does
// not load: to its parser a random number is an integer, and maps keyed by integers make it abort.
func TestGoldens(t *testing.T) {
	files, err := filepath.Glob("../../ruleset/testdata/fabric*.nft")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		ns := netnstest.New(t)
		ns.Run("nft", "-f", file)
		want, err := os.ReadFile(file)
		if got := ns.Run("nft", "list", "ruleset"); got != string(want) || err != nil {
			t.Errorf("%s (%v): nft lists\n%s", file, err, got)
		}
	}
}

func must(t Table, _ []Conflict) Table { return t }

// sameLines compares listings whatever the order of their objects, which is that in which they were made.
func sameLines(a, b string) bool {
	count := map[string]int{}
	for line := range strings.Lines(a) {
		count[line]++
	}
	for line := range strings.Lines(b) {
		count[line]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// TestEveryExpression lists all that the package ruleset can say.
func TestEveryExpression(t *testing.T) {
	for _, table := range everything() {
		t.Run(table.ID(), func(t *testing.T) {
			ns, b := open(t)
			if err := table.Check(); err != nil {
				t.Fatal(err)
			}
			apply(t, b, table)
			wantListed(t, ns, table)
			applyNothing(t, b, table)
			applyNothing(t, reopen(t, ns), table)
		})
	}
}

// everything has each statement, expression, type and kind of set in it: what Services and policies will be made of.
func everything() []Table {
	sets := []*Set{
		{Name: "v4", Key: []Type{TypeIPv4Addr}, Comment: "some", Blocks: Single(Element{Key: a("10.0.0.1")}, Element{Key: a("9.0.0.1"), Comment: "x"}, Element{Key: a("10.0.0.3")})},
		{Name: "ranges", Key: []Type{TypeIPv4Addr}, Interval: true, Blocks: Single(Element{Key: a("10.0.0.0"), End: a("10.0.0.255")}, Element{Key: a("10.0.1.0"), End: a("10.0.1.9")},
			Element{Key: a("10.0.2.1"), End: a("10.0.2.1")}, Element{Key: a("192.0.0.0"), End: a("255.255.255.255")})},
		{Name: "ports", Key: []Type{TypeInetService}, Interval: true, Blocks: Single(Element{Key: Port(80), End: Port(80)}, Element{Key: Port(8000), End: Port(8100)}, Element{Key: Port(65000), End: Port(65535)})},
		{Name: "protos", Key: []Type{TypeInetProto}, Size: 100, Blocks: Single(Element{Key: Proto(6)}, Element{Key: Proto(58)}, Element{Key: Proto(1)}, Element{Key: Proto(17)}, Element{Key: Proto(132)})},
		{Name: "marks", Key: []Type{TypeMark}, Blocks: Single(Element{Key: Mark(0x100)}, Element{Key: Mark(2)}, Element{Key: Mark(0x10000)}, Element{Key: Mark(7)}, Element{Key: Mark(8)}, Element{Key: Mark(9)})},
		{Name: "links", Key: []Type{TypeIfName}, Blocks: Single(Element{Key: IfName("lo")}, Element{Key: IfName("weftp0123456789")})},
		{Name: "link_addr", Key: []Type{TypeIfName, TypeIPv4Addr}, Blocks: Single(Element{Key: Tuple(IfName("eth0"), a("10.0.0.1"))})},
		{Name: "peers", Key: []Type{TypeIPv4Addr}, Data: []Type{TypeIPv4Addr}, Blocks: Single(Element{Key: a("10.9.1.2"), Data: a("0.1.0.17"), Comment: "app=web"}, Element{Key: a("10.9.1.3"), Data: a("0.1.0.18")})},
		{Name: "to_mark", Key: []Type{TypeIPv4Addr}, Data: []Type{TypeMark}, Blocks: Single(Element{Key: a("10.9.1.2"), Data: Mark(0x100)})},
		{Name: "allow", Key: []Type{TypeIPv4Addr, TypeIPv4Addr, TypeInetProto, TypeInetService}, Blocks: Single(Element{Key: Tuple(a("10.9.2.2"), a("0.1.0.17"), Proto(6), Port(443)), Comment: "shop/allow-web"},
			Element{Key: Tuple(a("10.9.2.1"), a("0.1.0.17"), Proto(17), Port(443))}, Element{Key: Tuple(a("10.9.2.3"), a("0.1.0.16"), Proto(6), Port(80))})},
		{Name: "cidr", Key: []Type{TypeIPv4Addr, TypeIPv4Addr, TypeInetProto, TypeInetService}, Interval: true, Blocks: Single(
			Element{Key: Tuple(a("10.9.2.2"), a("0.0.0.0"), Proto(6), Port(0)), End: Tuple(a("10.9.2.2"), a("255.255.255.255"), Proto(6), Port(65535))},
			Element{Key: Tuple(a("10.9.2.3"), a("10.77.0.0"), Proto(17), Port(53)), End: Tuple(a("10.9.2.3"), a("10.77.255.255"), Proto(17), Port(53)), Comment: "dns"})},
		{Name: "svcs", Key: []Type{TypeIPv4Addr, TypeInetProto, TypeInetService}, Verdicts: true, Blocks: Single(Element{Key: Tuple(a("10.96.0.1"), Proto(6), Port(443)), Verdict: Goto("n3"), Comment: "default/kubernetes"},
			Element{Key: Tuple(a("10.96.0.2"), Proto(6), Port(443)), Verdict: Drop}, Element{Key: Tuple(a("10.96.0.3"), Proto(6), Port(443)), Verdict: Jump("reject")})},
		{Name: "eps", Key: []Type{TypeIPv4Addr, TypeInetProto, TypeInetService, TypeMark}, Data: []Type{TypeIPv4Addr, TypeInetService}, Blocks: Single(
			Element{Key: Tuple(a("10.96.0.1"), Proto(6), Port(443), Mark(0)), Data: Tuple(a("10.42.0.5"), Port(6443))},
			Element{Key: Tuple(a("10.96.0.1"), Proto(6), Port(443), Mark(1)), Data: Tuple(a("10.42.0.6"), Port(6443)), Comment: "b"},
			Element{Key: Tuple(a("10.96.0.1"), Proto(6), Port(443), Mark(258)), Data: Tuple(a("10.42.0.7"), Port(6443))})},
		{Name: "v6", Key: []Type{TypeIPv6Addr}, Interval: true, Blocks: Single(Element{Key: a("fd00::"), End: a("fd00::ffff")}, Element{Key: a("fe80::"), End: a("fe80::5")})},
		{Name: "svcs6", Key: []Type{TypeIPv6Addr, TypeInetProto, TypeInetService}, Verdicts: true, Blocks: Single(Element{Key: Tuple(a("fd00::1"), Proto(6), Port(443)), Verdict: Accept})},
	}
	rules := []Rule{
		R("", In("v4", IPSaddr), NotIn("ranges", IPDaddr), Counter{}, Accept),
		R("with a comment", In("ports", TCPDport), In("protos", MetaL4Proto), Return),
		R("", In("link_addr", MetaIIFName, IPSaddr), Drop),
		R("", In("links", MetaOIFName), In("marks", MetaMark), Drop),
		R("", Iif("weftp*"), Oif("lo"), Ne(MetaOIFName, IfName("eth0")), Return),
		R("", Assign{Target: MetaPriority}),
		R("", Assign{Target: MetaPriority, From: MapOf{Key: IPSaddr, Map: "peers"}}, In("allow", IPDaddr, MetaPriority, MetaL4Proto, THDport), Return),
		R("", Assign{Target: MetaMark, From: MapOf{Key: IPSaddr, Map: "to_mark"}}),
		R("", In("cidr", IPDaddr, IPSaddr, MetaL4Proto, THSport), Return),
		R("", Masked(CtMark, 0xffffff00, 0x100), Accept),
		R("", Masked(MetaMark, 0x4000, 0x4000), Accept),
		R("", Match{Left: MetaMark, Not: true, Mask: Mark(0x4000), Right: Mark(0x4000)}, Accept),
		R("", Eq(CtMark, Mark(5)), Ne(MetaMark, Mark(6)), Accept),
		R("", Assign{Target: CtMark, Keep: 0xff, Value: 0x100}, Accept),
		R("", Assign{Target: MetaMark, Keep: ^uint32(0x4000), Value: 0x4000}),
		R("", Assign{Target: MetaMark, Value: 0x4000}),
		R("", Assign{Target: CtMark, From: MetaMark}),
		R("", Assign{Target: MetaMark, From: CtMark}),
		R("", HasAny{Left: CtState, Bits: StateRelated | StateEstablished}, Accept),
		R("", HasAny{Left: CtState, Bits: StateInvalid}, Drop),
		R("", HasAny{Left: CtStatus, Bits: StatusDNAT}, ReplyPacket, Accept),
		R("", Eq(CtDirection, "\x00"), Unicast, Accept),
		R("", ReturnRoute, Drop),
		R("", ToLocal, L4(model.UDP), Accept),
		R("", NFProto(IPv6), L4(model.SCTP), Accept),
		R("", Within(IPSaddr, prefix("10.0.0.0/8")), Within(IPDaddr, prefix("10.1.2.0/23")), Accept),
		R("", Within(IP6Saddr, prefix("fe80::/10")), Eq(IP6Daddr, a("ff02::1")), NotIn("v6", IP6Saddr), Accept),
		R("", Eq(UDPDport, Port(4789)), Eq(UDPSport, Port(1)), Accept),
		R("", Eq(TCPSport, Port(1)), RejectReset),
		R("", Eq(THDport, Port(1)), RejectPort),
		R("", Limit{Rate: 100, Per: Second, Burst: 50}, Log{Group: 77, Prefix: "weft deny in", Snaplen: 80}),
		R("", Limit{Rate: 10, Per: Minute, Burst: 5}, Log{Group: 1, Prefix: "x"}, Drop),
		R("", Assign{Target: MetaMark, From: Jhash{Of: Concat{IPSaddr, IPDaddr}, Mod: 5, Seed: 0xabc}}),
		R("", Assign{Target: MetaMark, From: Jhash{Of: IPSaddr, Mod: 5, Seed: 1}}),
	}
	nat := []Rule{
		R("", Vmap{Key: Concat{IPDaddr, MetaL4Proto, THDport}, Map: "svcs"}),
		R("", Vmap{Key: Concat{IP6Daddr, MetaL4Proto, THDport}, Map: "svcs6"}),
		R("", Eq(UDPDport, Port(5)), Redirect{Port: 53}),
		R("", Redirect{}),
		R("", Eq(TCPDport, Port(5)), NAT{Family: IPv4, Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}),
		R("", Eq(TCPDport, Port(5)), NAT{Family: IPv6, Addr: netip.MustParseAddr("fd00::1"), Port: 80}),
		R("", NAT{Family: IPv6, Addr: netip.MustParseAddr("fd00::1")}),
		R("", NAT{Family: IPv4, From: &MapOf{Key: IPDaddr, Map: "peers"}}),
	}
	inet := Table{Family: INet, Name: "everything", Comment: "one of each", Sets: sets, Chains: []*Chain{
		{Name: "n3", Rules: []Rule{R("", DNATMap(IPv4, "eps", IPDaddr, MetaL4Proto, THDport, Numgen{Mod: 3}))}},
		{Name: "h3", Rules: []Rule{R("", DNATMap(IPv4, "eps", IPDaddr, MetaL4Proto, THDport, Jhash{Of: IPSaddr, Mod: 3, Seed: 7}))}},
		{Name: "reject", Comment: "no endpoints", Rules: []Rule{R("", RejectPort)}},
		{Name: "judge", Rules: rules},
		{Name: "early", Base: &Base{Type: Filter, Hook: Prerouting, Priority: PriorityRaw - 5}, Rules: []Rule{R("", Eq(UDPDport, Port(53)), Notrack{}, Accept)}},
		{Name: "mangle", Base: &Base{Type: Route, Hook: Output, Priority: PriorityMangle}},
		{Name: "forward", Base: &Base{Type: Filter, Hook: Forward, Priority: PriorityFilter, Drop: true}, Rules: []Rule{R("", Jump("judge")), R("", Goto("reject"))}},
		{Name: "input", Base: &Base{Type: Filter, Hook: Input, Priority: PriorityFilter + 1}},
		{Name: "pre", Base: &Base{Type: NATing, Hook: Prerouting, Priority: PriorityDstNAT}, Rules: nat},
		{Name: "out", Base: &Base{Type: NATing, Hook: Output, Priority: PriorityDstNAT}, Rules: nat[:2]},
		{Name: "post", Base: &Base{Type: NATing, Hook: Postrouting, Priority: PrioritySrcNAT}, Rules: []Rule{
			R("", Within(IPSaddr, prefix("10.0.0.0/8")), NAT{Source: true, Family: IPv4, Addr: netip.MustParseAddr("192.0.2.1")}), R("", Masquerade{}), R("", Masquerade{FullyRandom: true}),
		}},
	}}
	// The policy tables are of one family each, where addresses need no check of it.
	ip6 := Table{Family: IPv6, Name: "everything", Sets: []*Set{
		{Name: "peers", Key: []Type{TypeIPv6Addr}, Data: []Type{TypeIPv4Addr}, Blocks: Single(Element{Key: a("fd00::2"), Data: a("0.1.0.17")})},
		{Name: "cidr", Key: []Type{TypeIPv6Addr, TypeIPv6Addr, TypeInetProto, TypeInetService}, Interval: true, Blocks: Single(
			Element{Key: Tuple(a("fd00::2"), a("::"), Proto(6), Port(0)), End: Tuple(a("fd00::2"), a("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Proto(6), Port(65535))})},
	}, Chains: []*Chain{
		{Name: "in", Rules: []Rule{
			R("", Assign{Target: MetaPriority, From: MapOf{Key: IP6Saddr, Map: "peers"}}, Return),
			R("", In("cidr", IP6Daddr, IP6Saddr, MetaL4Proto, THDport), Return),
			R("", RejectPort),
		}},
		{Name: "forward", Base: &Base{Type: Filter, Hook: Forward}, Rules: []Rule{R("", Jump("in"))}},
	}}
	ip := Table{Family: IPv4, Name: "everything", Chains: []*Chain{
		{Name: "forward", Base: &Base{Type: Filter, Hook: Forward}, Rules: []Rule{R("", Eq(IPSaddr, a("10.0.0.1")), RejectPort)}},
	}}
	return []Table{inet, ip6, ip}
}
