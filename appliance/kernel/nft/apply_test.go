package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	. "weft.network/weft/appliance/ruleset"
)

// service makes the elements of one Service with n endpoints, in the layout with one numbered map.
func service(i, n int) (svcs, eps *Block) {
	key := Tuple(Addr(netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)})), Proto(6), Port(80))
	svcs, eps = &Block{}, &Block{}
	for j := range n {
		k := i*16 + j
		eps.Elements = append(eps.Elements, Element{
			Key:  Tuple(key, Mark(uint32(j))),
			Data: Tuple(Addr(netip.AddrFrom4([4]byte{10, 128 + byte(k>>16), byte(k >> 8), byte(k)})), Port(8080)),
		})
	}
	svcs.Elements = []Element{{Key: key, Verdict: Goto(fmt.Sprintf("n%d", n)), Comment: fmt.Sprintf("ns/service-%d", i)}}
	return svcs, eps
}

var (
	svcsSet   = Set{Name: "svcs", Key: []Type{TypeIPv4Addr, TypeInetProto, TypeInetService}, Verdicts: true}
	epsSet    = Set{Name: "eps", Key: []Type{TypeIPv4Addr, TypeInetProto, TypeInetService, TypeMark}, Data: []Type{TypeIPv4Addr, TypeInetService}}
	svcChains = serviceChains()
)

func serviceChains() (out []*Chain) {
	for n := uint32(1); n <= 8; n++ {
		out = append(out, &Chain{Name: fmt.Sprintf("n%d", n), Rules: []Rule{R("", DNATMap(IPv4, "eps", IPDaddr, MetaL4Proto, THDport, Numgen{Mod: n}))}})
	}
	rules := []Rule{R("", Vmap{Key: Concat{IPDaddr, MetaL4Proto, THDport}, Map: "svcs"})}
	return append(out,
		&Chain{Name: "pre", Base: &Base{Type: NATing, Hook: Prerouting, Priority: PriorityDstNAT}, Rules: rules},
		&Chain{Name: "out", Base: &Base{Type: NATing, Hook: Output, Priority: PriorityDstNAT}, Rules: rules})
}

// services makes a table with those Services.
func services(svcs, eps map[string]*Block) Table {
	s, e := svcsSet, epsSet
	s.Blocks, e.Blocks = svcs, eps
	return Table{Family: INet, Name: "weft", Sets: []*Set{&s, &e}, Chains: svcChains}
}

func manyServices(count, endpoints int) (svcs, eps map[string]*Block) {
	svcs, eps = map[string]*Block{}, map[string]*Block{}
	for i := range count {
		owner := fmt.Sprintf("ns/service-%d", i)
		svcs[owner], eps[owner] = service(i, endpoints)
	}
	return svcs, eps
}

// TestTenThousandServices fills 10,000 x 4, changes one at a time, and restarts.
func TestTenThousandServices(t *testing.T) {
	ns, b := open(t)
	svcs, eps := manyServices(10000, 4)
	table := services(svcs, eps)
	start := time.Now()
	cold := apply(t, b, table)
	t.Logf("cold fill: %v, %+v", time.Since(start), cold)
	if cold.ElementsAdded != 50000 || cold.Transactions < 2 {
		t.Errorf("cold fill %+v, want 50000 elements in several transactions", cold)
	}
	applyNothing(t, b, table)

	var add, replace, idle time.Duration
	const rounds = 10
	for i := range rounds {
		owner := fmt.Sprintf("ns/service-%d", 700*i)
		// One endpoint more: an element is added, the verdict replaced.
		svcs, eps = maps.Clone(svcs), maps.Clone(eps)
		svcs[owner], eps[owner] = service(700*i, 5)
		table = services(svcs, eps)
		start = time.Now()
		stats := apply(t, b, table)
		add += time.Since(start)
		if stats.Read || stats.Transactions != 1 || stats.ElementsAdded != 2 || stats.ElementsDeleted != 1 {
			t.Errorf("one endpoint more: %+v", stats)
		}
		// One Service more: adds only.
		svcs, eps = maps.Clone(svcs), maps.Clone(eps)
		owner = fmt.Sprintf("ns/new-%d", i)
		svcs[owner], eps[owner] = service(20000+i, 1)
		table = services(svcs, eps)
		start = time.Now()
		stats = apply(t, b, table)
		replace += time.Since(start)
		if stats.ElementsAdded != 2 || stats.ElementsDeleted != 0 {
			t.Errorf("one Service more: %+v", stats)
		}
		start = time.Now()
		applyNothing(t, b, services(maps.Clone(svcs), maps.Clone(eps)))
		idle += time.Since(start)
	}
	t.Logf("one endpoint more: %v; one Service more: %v; nothing: %v", add/rounds, replace/rounds, idle/rounds)

	other := reopen(t, ns)
	start = time.Now()
	stats := apply(t, other, table)
	t.Logf("restart: %v, %+v", time.Since(start), stats)
	if stats.Messages != 0 || !stats.Read {
		t.Errorf("a restart changed something: %+v", stats)
	}
	if n := strings.Count(ns.Run("nft", "list", "map", "inet", "weft", "eps"), " : 10."); n != 40000+rounds+rounds {
		t.Errorf("%d endpoints in the kernel, want %d", n, 40000+2*rounds)
	}
}

func TestElementsMoveBetweenOwners(t *testing.T) {
	ns, b := open(t)
	svcs, eps := service(1, 2)
	chains := svcChains
	two := func(a, c string, ab, cb *Block) Table {
		table := services(map[string]*Block{a: svcs}, map[string]*Block{a: ab, c: cb})
		table.Chains = chains
		return table
	}
	first := &Block{Elements: eps.Elements[:1]}
	second := &Block{Elements: eps.Elements[1:]}
	apply(t, b, two("a", "b", first, second))
	// Swapped: the same elements, so nothing is sent.
	if stats := apply(t, b, two("a", "b", second, first)); stats.Messages != 0 {
		t.Errorf("moving elements sent %+v", stats)
	}
	// Both want the first one: refused, and the picture stays right.
	_, err := b.Apply(context.Background(), []Table{two("a", "b", first, first)})
	if err == nil || !strings.Contains(err.Error(), `table inet weft: element 10.96.0.1 . tcp . 80 . 0x00000000 of map eps is wanted by both "a" and "b"`) {
		t.Errorf("conflict: %v", err)
	}
	changed := &Block{Elements: []Element{{Key: eps.Elements[1].Key, Data: eps.Elements[0].Data}}}
	table := two("a", "b", first, changed)
	if stats := apply(t, b, table); stats.ElementsAdded != 1 || stats.ElementsDeleted != 1 {
		t.Errorf("other data: %+v", stats)
	}
	wantListed(t, ns, table)
	applyNothing(t, reopen(t, ns), table)
}

func TestSharedElements(t *testing.T) {
	ns, b := open(t)
	table := func(owners ...string) Table {
		s := &Set{Name: "s", Key: []Type{TypeIPv4Addr}, Blocks: map[string]*Block{}}
		for _, o := range owners {
			s.Blocks[o] = &Block{Elements: []Element{{Key: a("10.0.0.1"), Comment: "shared"}}}
		}
		return Table{Name: "weft", Sets: []*Set{s}}
	}
	for _, c := range []struct {
		owners []string
		want   Stats
	}{
		{[]string{"a"}, Stats{ElementsAdded: 1}},
		{[]string{"a", "b"}, Stats{}},
		{[]string{"a", "b", "c"}, Stats{}},
		{[]string{"a"}, Stats{}},
		{nil, Stats{ElementsDeleted: 1}},
		{[]string{"a", "b"}, Stats{ElementsAdded: 1}},
	} {
		got := apply(t, b, table(c.owners...))
		if got.ElementsAdded != c.want.ElementsAdded || got.ElementsDeleted != c.want.ElementsDeleted {
			t.Errorf("owners %v: %+v, want %+v", c.owners, got, c.want)
		}
	}
	applyNothing(t, reopen(t, ns), table("a", "b"))
}

func TestSchemaChanges(t *testing.T) {
	ns, b := open(t)
	table := func(key Type, value Value, comment string, hook Hook, verdict Verdict) Table {
		return Table{Name: "weft", Sets: []*Set{
			{Name: "s", Key: []Type{key}, Blocks: Single(Element{Key: value})},
			{Name: "v", Key: []Type{TypeInetService}, Verdicts: true, Blocks: Single(Element{Key: Port(1), Verdict: verdict})},
		}, Chains: []*Chain{
			{Name: "c", Comment: comment, Rules: []Rule{R("", Drop)}},
			{Name: "hook", Base: &Base{Type: Filter, Hook: hook}, Rules: []Rule{R("", Vmap{Key: THDport, Map: "v"}), R("", In("s", map[Type]Expr{TypeIPv4Addr: IPSaddr, TypeInetService: THDport}[key]), Jump("c"))}},
		}}
	}
	for _, next := range []Table{
		table(TypeIPv4Addr, a("10.0.0.1"), "one", Input, Jump("c")),
		table(TypeInetService, Port(80), "one", Input, Jump("c")),   // another key
		table(TypeInetService, Port(80), "two", Input, Jump("c")),   // a comment of a chain that a map names
		table(TypeInetService, Port(80), "two", Forward, Jump("c")), // another hook
		table(TypeInetService, Port(80), "two", Forward, Accept),
		table(TypeIPv4Addr, a("10.0.0.2"), "three", Output, Goto("c")), // everything
	} {
		if stats := apply(t, b, next); stats.Transactions != 1 || stats.Rebuilt || stats.Retry != nil {
			t.Errorf("%+v", stats)
		}
		if got := ns.Run("nft", "list", "table", "inet", "weft"); !sameLines(got, next.String()) {
			t.Errorf("nft lists\n%s\nwant\n%s", got, next.String())
		}
		applyNothing(t, b, next)
		applyNothing(t, reopen(t, ns), next)
	}
}

// TestForeignHands lets somebody else change the table in every way, with and without a word to us.
func TestForeignHands(t *testing.T) {
	for _, c := range []struct{ name, script string }{
		{"table deleted", "delete table inet weft"},
		{"ruleset flushed", "flush ruleset"},
		{"chains flushed", "flush table inet weft"},
		{"rule added", "insert rule inet weft guard accept"},
		{"rule replaced", "flush chain inet weft guard; add rule inet weft guard accept"},
		{"element deleted", "delete element inet weft hostport4 { tcp . 8080 }"},
		{"element added", "add element inet weft tunnel_peers4 { 6.6.6.6 }"},
		{"element changed", "delete element inet weft hostport4 { tcp . 8080 }; add element inet weft hostport4 { tcp . 8080 : 6.6.6.6 . 80 }"},
		{"range deleted", "delete element inet weft pod_ranges4 { 10.42.1.0/24 }"},
		{"range added", "add element inet weft no_masquerade4 { 64.0.0.0/4, 200.0.0.1-200.0.0.7 }"},
		{"chain added", "add chain inet weft mine { type filter hook input priority 0; policy drop; }"},
		{"set added", "add set inet weft mine { type ipv4_addr; }"},
		{"chain deleted", "delete chain inet weft tunnel_out"},
		{"policy changed", "chain inet weft guard { policy drop; }"},
		{"set replaced", "flush chain inet weft postrouting; delete set inet weft pod_ranges4; add set inet weft pod_ranges4 { type ipv4_addr; }"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns, b := open(t)
			table := fabric(webPorts())
			apply(t, b, table)
			good := ns.Run("nft", "list", "table", "inet", "weft")
			for _, restart := range []bool{false, true} {
				ns.Run("nft", c.script)
				b.Invalidate()
				if restart {
					b = reopen(t, ns)
				}
				if stats := apply(t, b, table); stats.Messages == 0 || stats.Rebuilt || stats.Retry != nil {
					t.Errorf("repair: %+v", stats)
				}
				if got := ns.Run("nft", "list", "table", "inet", "weft"); !sameLines(got, good) {
					t.Errorf("repaired to\n%s\nwant\n%s", got, good)
				}
				applyNothing(t, b, table)
			}
		})
	}
}

// TestStalePicture changes the table when nobody told us that it differs.
func TestStalePicture(t *testing.T) {
	ns, b := open(t)
	svcs, eps := manyServices(3, 2)
	apply(t, b, services(svcs, eps))
	ns.Run("nft", "delete table inet weft")
	next := maps.Clone(eps)
	delete(next, "ns/service-1")
	svcs = maps.Clone(svcs)
	delete(svcs, "ns/service-1")
	table := services(svcs, next)
	if stats := apply(t, b, table); !errors.Is(stats.Retry, unix.ENOENT) || !stats.Read {
		t.Errorf("%+v", stats)
	}
	wantListed(t, ns, table)
}

// TestRebuild makes tables anew in one transaction, whatever is there.
func TestRebuild(t *testing.T) {
	for _, partial := range []bool{false, true} {
		ns, b := open(t)
		svcs, eps := manyServices(3, 2)
		table := services(svcs, eps)
		table.Partial = partial
		for _, before := range []string{"flush ruleset", "delete table inet weft; table inet weft { map svcs { type mark : verdict; }; chain n1 { type filter hook input priority 0; drop; }; }"} {
			ns.Run("nft", before)
			b.Invalidate()
			stats, err := b.apply(context.Background(), []*Table{&table}, true)
			if err != nil || stats.Transactions != 1 {
				t.Errorf("rebuild: %+v, %v", stats, err)
			}
			if got := ns.Run("nft", "list", "table", "inet", "weft"); !sameLines(got, table.String()) {
				t.Errorf("nft lists\n%s\nwant\n%s", got, table.String())
			}
			applyNothing(t, b, table)
		}
	}
}

func TestPartial(t *testing.T) {
	ns, b := open(t)
	ns.Run("nft", "table inet weft { set theirs { type ipv4_addr; elements = { 10.0.0.1 }; }; chain theirs { type filter hook input priority 0; policy accept; ip saddr @theirs accept; }; }")
	theirs := ns.Run("nft", "list", "table", "inet", "weft")
	svcs, eps := manyServices(3, 2)
	table := services(svcs, eps)
	table.Partial = true
	apply(t, b, table)
	applyNothing(t, b, table)
	applyNothing(t, reopen(t, ns), table)
	listed := ns.Run("nft", "list", "table", "inet", "weft")
	for _, want := range []string{"set theirs", "ip saddr @theirs accept", "map svcs", "vmap @svcs"} {
		if !strings.Contains(listed, want) {
			t.Errorf("no %q in\n%s", want, listed)
		}
	}
	// A set that was theirs and is named only now.
	more := table
	more.Sets = append([]*Set{{Name: "late", Key: []Type{TypeIPv4Addr}, Blocks: Single(Element{Key: a("10.0.0.1")})}}, table.Sets...)
	ns.Run("nft", "add set inet weft late { type ipv4_addr; }; add element inet weft late { 10.0.0.2 }")
	b.Invalidate()
	apply(t, b, table)
	apply(t, b, more)
	if got := ns.Run("nft", "list", "set", "inet", "weft", "late"); !strings.Contains(got, "elements = { 10.0.0.1 }") {
		t.Errorf("a set taken over: %s", got)
	}
	b.Invalidate()
	apply(t, b, Table{Name: "weft", Partial: true})
	if got := ns.Run("nft", "list", "table", "inet", "weft"); got != theirs {
		t.Errorf("ours taken back:\n%s\nwant\n%s", got, theirs)
	}
}

// TestRefused looks at the error for something that the kernel will never take.
func TestRefused(t *testing.T) {
	_, b := open(t)
	_, err := b.Apply(context.Background(), []Table{{Name: "weft", Chains: []*Chain{
		{Name: "c", Rules: []Rule{R("", Jump("missing"))}},
		{Name: "hook", Base: &Base{Type: Filter, Hook: Input}, Rules: []Rule{R("", Jump("c"))}},
	}}})
	var failed *Error
	if !errors.As(err, &failed) || !errors.Is(err, unix.ENOENT) {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{"add rule c jump missing", "no such file or directory", "batch: add table inet weft"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %q", want, err)
		}
	}
	_, err = b.Apply(context.Background(), []Table{{Name: "weft", Chains: []*Chain{{Name: "c", Rules: []Rule{R("", Eq(TCPDport, Port(1)), Eq(UDPDport, Port(1)))}}}}})
	if err == nil || !strings.Contains(err.Error(), "two protocols at once") {
		t.Errorf("error %v", err)
	}
}
