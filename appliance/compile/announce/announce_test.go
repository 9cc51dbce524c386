package announce

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"weft.network/weft/appliance/model"
)

// goal is how long a dead node's addresses may be silent.
const goal = 2000

func cluster(t testing.TB, seed uint64, n int, list []netip.Addr) (*sim, []string) {
	s := newSim(t, seed)
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("node%d", i+1))
	}
	for _, name := range names {
		s.start(name, candidates(list, names...))
		s.run(7)
	}
	s.run(3000)
	return s, names
}

// TestOneOwner: from start on never two, soon exactly one, spread over the nodes.
func TestOneOwner(t *testing.T) {
	list := addrs(60)
	s := newSim(t, 1)
	names := []string{"a", "b", "c"}
	for _, n := range names {
		s.start(n, candidates(list, names...))
	}
	for range 3000 {
		s.run(1)
		for _, a := range list {
			if o := s.owners(a); len(o) > 1 {
				t.Fatalf("at %d %s is held by %v", s.now, a, o)
			}
		}
	}
	share := map[string]int{}
	for _, owner := range s.sole(list...) {
		share[owner]++
	}
	for _, n := range names {
		if share[n] < 10 {
			t.Errorf("%s has %d of 60 addresses: %v", n, share[n], share)
		}
	}
}

// TestDeadNode: its addresses answer elsewhere within the goal, the others stay where they are; when it comes back, nothing is silent.
func TestDeadNode(t *testing.T) {
	list := addrs(30)
	s, names := cluster(t, 2, 3, list)
	before := s.sole(list...)
	delete(s.nodes, "node2")
	s.run(goal)
	now := s.sole(list...)
	for a, owner := range before {
		if owner != "node2" && now[a] != owner {
			t.Errorf("%s moved from %s to %s for nothing", a, owner, now[a])
		}
	}
	s.start("node2", candidates(list, names...))
	for range 3000 {
		s.run(1)
		for _, a := range list {
			if len(s.owners(a)) == 0 {
				t.Fatalf("at %d nobody has %s while node2 comes back", s.now, a)
			}
		}
	}
	if back := s.sole(list...); !reflect.DeepEqual(back, before) {
		t.Errorf("after the return: %v, before: %v", back, before)
	}
}

// TestRestart: a daemon that is restarted and knows what it held goes on; nothing moves.
func TestRestart(t *testing.T) {
	list := addrs(30)
	s, names := cluster(t, 3, 3, list)
	before := s.sole(list...)
	held := s.nodes["node1"].e.Held()
	delete(s.nodes, "node1")
	s.run(900)
	mark := len(s.log)
	s.start("node1", candidates(list, names...), held...)
	s.run(4000)
	if now := s.sole(list...); !reflect.DeepEqual(now, before) {
		t.Errorf("%v became %v", before, now)
	}
	for _, line := range s.log[mark:] {
		if !strings.Contains(line, "node1") {
			t.Errorf("others moved: %s", line)
		}
	}
}

// TestDrained: a node that may no longer have its addresses hands them over within half a second, without a gap.
func TestDrained(t *testing.T) {
	list := addrs(30)
	s, _ := cluster(t, 4, 3, list)
	rest := candidates(list, "node1", "node3")
	// The others hear of it at another time than the node itself, before or after.
	for _, order := range [][]string{{"node2", "node1", "node3"}, {"node3", "node1", "node2"}} {
		for _, name := range order {
			s.do(s.nodes[name], s.nodes[name].e.Want(s.now, rest))
			for range 150 {
				s.run(1)
				for _, a := range list {
					if len(s.owners(a)) == 0 {
						t.Fatalf("at %d nobody has %s", s.now, a)
					}
				}
			}
		}
		s.run(500)
		for a, owner := range s.sole(list...) {
			if owner == "node2" {
				t.Errorf("node2 still has %s", a)
			}
		}
		s.want(candidates(list, "node1", "node2", "node3"))
		s.run(3000)
	}
}

// TestPassive: a node that its administrator drains by hand hands over, and is not waited for, however long it stays that way.
func TestPassive(t *testing.T) {
	list := addrs(30)
	s, names := cluster(t, 12, 3, list)
	before := s.sole(list...)
	s.do(s.nodes["node2"], s.nodes["node2"].e.SetPassive(s.now, true))
	s.run(500)
	for a, owner := range s.sole(list...) {
		if owner == "node2" {
			t.Errorf("node2 still has %s", a)
		}
	}
	s.run(60_000)
	delete(s.nodes, "node1")
	s.run(goal)
	for a, owner := range s.sole(list...) {
		if owner != "node3" {
			t.Errorf("%s is at %s", a, owner)
		}
	}
	s.start("node1", candidates(list, names...))
	s.do(s.nodes["node2"], s.nodes["node2"].e.SetPassive(s.now, false))
	s.run(3000)
	if now := s.sole(list...); !reflect.DeepEqual(now, before) {
		t.Errorf("%v became %v", before, now)
	}
}

// TestReluctant: a node that may have the addresses and does not take them, since it has no link for them, is not waited for forever.
func TestReluctant(t *testing.T) {
	list := addrs(30)
	s := newSim(t, 13)
	names := []string{"node1", "node2", "node3"}
	s.start("node1", candidates(list, names...))
	s.start("node2", nil)
	s.start("node3", candidates(list, names...))
	s.run(2*goal + rivalPatience)
	for a, owner := range s.sole(list...) {
		if owner == "node2" {
			t.Errorf("node2 has %s", a)
		}
	}
	delete(s.nodes, "node1")
	s.run(goal)
	s.sole(list...)
	s.do(s.nodes["node2"], s.nodes["node2"].e.Want(s.now, candidates(list, names...)))
	s.run(1000)
	for a, owner := range s.sole(list...) {
		if higher("node2", "node3", a) != (owner == "node2") {
			t.Errorf("%s is at %s", a, owner)
		}
	}
}

// TestDifferentViews: nodes that believe different things of who may have an address do not fight.
func TestDifferentViews(t *testing.T) {
	list := addrs(20)
	s, _ := cluster(t, 5, 3, list)
	s.do(s.nodes["node1"], s.nodes["node1"].e.Want(s.now, candidates(list, "node1")))
	s.do(s.nodes["node2"], s.nodes["node2"].e.Want(s.now, candidates(list, "node2", "node3")))
	s.do(s.nodes["node3"], s.nodes["node3"].e.Want(s.now, candidates(list, "node1", "node3")))
	s.run(4000)
	s.sole(list...)
	mark := len(s.log)
	s.run(20_000)
	if len(s.log) != mark {
		t.Errorf("they do not come to rest: %v", s.log[mark:])
	}
}

// TestPartition: each half of a cut segment has its own owner, and one is left when it heals.
func TestPartition(t *testing.T) {
	list := addrs(20)
	s, _ := cluster(t, 6, 4, list)
	before := s.sole(list...)
	left := func(n string) bool { return n == "node1" || n == "node2" }
	s.cut = func(a, b string) bool { return left(a) != left(b) }
	s.run(goal)
	for _, a := range list {
		o := s.owners(a)
		if len(o) != 2 || left(o[0]) == left(o[1]) {
			t.Errorf("cut in two, %s is held by %v, want one on each side", a, o)
		}
	}
	s.cut = nil
	s.run(1500)
	if now := s.sole(list...); !reflect.DeepEqual(now, before) {
		t.Errorf("healed: %v, before %v", now, before)
	}
}

// TestLoss: with every tenth frame lost nothing moves in a minute.
func TestLoss(t *testing.T) {
	list := addrs(8)
	s, _ := cluster(t, 7, 3, list)
	s.loss = 10
	mark := len(s.log)
	s.run(60_000)
	s.sole(list...)
	if len(s.log) != mark {
		t.Errorf("moves with 10%% loss: %v", s.log[mark:])
	}
}

// TestStalled: a machine that stood still for ten seconds does not think that all others have died meanwhile.
func TestStalled(t *testing.T) {
	list := addrs(30)
	s, _ := cluster(t, 8, 3, list)
	before := s.sole(list...)
	s.nodes["node3"].paused = true
	s.run(10_000)
	mark := len(s.log)
	s.nodes["node3"].paused = false
	s.run(3000)
	for _, line := range s.log[mark:] {
		for a, owner := range before {
			if owner != "node3" && strings.Contains(line, "node3 kind "+fmt.Sprint(int(Took))+" "+a.String()+" ") {
				t.Errorf("node3 took what was never its own: %s", line)
			}
		}
	}
	if now := s.sole(list...); !reflect.DeepEqual(now, before) {
		t.Errorf("%v became %v", before, now)
	}
}

// TestStranger: an address that somebody else has is not taken; one that somebody claims later is defended; both are told with the
// culprit's hardware address.
func TestStranger(t *testing.T) {
	list := addrs(1)
	mac := model.MAC{2, 1, 2, 3, 4, 5}
	s := newSim(t, 9)
	s.strangers[list[0]] = mac
	n := s.start("a", candidates(list, "a"))
	s.run(5000)
	if n.e.Owns(list[0]) {
		t.Fatal("took an address that a stranger has")
	}
	if h := n.e.Holders(s.now); h[0].Culprit != mac || h[0].Conflicts != 1 {
		t.Errorf("status %+v", h)
	}
	delete(s.strangers, list[0])
	s.run(blockedFor + 1000)
	s.sole(list...)

	s.cache[list[0]] = "stranger"
	s.do(n, n.e.Seen(s.now, list[0], mac))
	if s.cache[list[0]] != "a" {
		t.Error("the address was not defended")
	}
	s.cache[list[0]] = "stranger"
	s.do(n, n.e.Seen(s.now+1, list[0], mac))
	if s.cache[list[0]] != "stranger" {
		t.Error("defended twice within RFC 5227's interval")
	}
	if h := n.e.Holders(s.now); h[0].Culprit != mac || h[0].Conflicts != 2 || !h[0].Self {
		t.Errorf("status %+v", h)
	}
}

// TestNoStranger: what other nodes of the cluster tell is no conflict.
func TestNoStranger(t *testing.T) {
	list := addrs(10)
	s, _ := cluster(t, 10, 3, list)
	delete(s.nodes, "node1")
	s.run(3000)
	for _, line := range s.log {
		if strings.Contains(line, fmt.Sprintf("kind %d", Conflict)) {
			t.Error(line)
		}
	}
}

func TestNamesakeAndOtherCluster(t *testing.T) {
	list := addrs(1)
	s := newSim(t, 11)
	n := s.start("a", candidates(list, "a", "b"))
	other := Hello{Cluster: 5, Boot: 9, Node: "b", Parts: 1, Interval: helloInterval, Claims: list}
	if got := n.e.Hear(s.now, other, macOf("b")); got != nil || len(n.e.Peers(s.now)) != 0 {
		t.Errorf("a node of another cluster counts: %v", got)
	}
	twin := Hello{Boot: 9, Node: "a", Parts: 1, Interval: helloInterval}
	got := n.e.Hear(s.now, twin, macOf("x"))
	if len(got) != 1 || got[0].Kind != Namesake || got[0].MAC != macOf("x") {
		t.Errorf("a namesake gives %v", got)
	}
	if again := n.e.Hear(s.now+1, twin, macOf("x")); len(again) != 0 {
		t.Errorf("told again at once: %v", again)
	}
}

// TestFlood: hellos of thousands of nodes that are none cost little, and the address stays where it is.
func TestFlood(t *testing.T) {
	list := addrs(1)
	s := newSim(t, 14)
	n := s.start("a", candidates(list, "a"))
	s.run(3000)
	for i := range 5000 {
		n.e.Hear(s.now, Hello{Boot: 1, Node: fmt.Sprint("x", i), Parts: 1, Interval: 65535}, macOf("x"))
	}
	if got := len(n.e.Peers(s.now)); got > mostPeers {
		t.Errorf("%d peers are kept", got)
	}
	s.sole(list...)
	s.run(10*deadAfter*mostInterval + mostInterval)
	if got := len(n.e.Peers(s.now)); got > 0 {
		t.Errorf("%d peers are still known", got)
	}
}

// TestRandom: whatever happens to nodes, candidates and the wire, once it has calmed down each address has one owner that may have it.
func TestRandom(t *testing.T) {
	for seed := range uint64(60) {
		list := addrs(6)
		s, names := cluster(t, 100+seed, 2+int(seed%4), list)
		want := candidates(list, names...)
		for range 12 {
			name := names[s.rand.IntN(len(names))]
			switch s.rand.IntN(7) {
			case 0:
				delete(s.nodes, name)
			case 1:
				if s.nodes[name] == nil {
					s.start(name, want, list[:s.rand.IntN(3)]...)
				}
			case 2:
				s.loss = s.rand.IntN(60)
			case 3:
				half := s.rand.IntN(len(names))
				s.cut = func(a, b string) bool { return (slices.Index(names, a) < half) != (slices.Index(names, b) < half) }
			case 4:
				want = slices.Clone(want)
				i := s.rand.IntN(len(want))
				want[i].Nodes = names[s.rand.IntN(len(names)):]
				if s.rand.IntN(2) == 0 && s.nodes[name] != nil { // only one has heard
					s.do(s.nodes[name], s.nodes[name].e.Want(s.now, want))
				} else {
					s.want(want)
				}
			case 5:
				if n := s.nodes[name]; n != nil {
					n.paused = !n.paused
				}
			case 6:
				s.cut, s.loss = nil, 0
			}
			s.run(s.rand.Int64N(2500))
		}
		s.cut, s.loss = nil, 0
		for _, n := range s.nodes {
			n.paused = false
		}
		s.want(want)
		s.run(6000 + refreshInterval)
		for _, c := range want {
			var may []string
			for _, n := range c.Nodes {
				if s.nodes[n] != nil {
					may = append(may, n)
				}
			}
			o := s.owners(c.Addr)
			if len(may) == 0 && len(o) == 0 {
				continue
			}
			best := slices.MaxFunc(may, func(a, b string) int {
				if higher(a, b, c.Addr) {
					return 1
				}
				return -1
			})
			if len(o) != 1 || o[0] != best || s.cache[c.Addr] != best {
				t.Fatalf("seed %d: %s is held by %v, the segment sends to %s, want %s of %v; log:\n%s", seed, c.Addr, o, s.cache[c.Addr], best, may, strings.Join(s.log, "\n"))
			}
		}
	}
}

func TestHelloParts(t *testing.T) {
	list := addrs(200)
	var got []netip.Addr
	parts := split(Hello{Node: strings.Repeat("n", maxName), Seq: 3, Interval: 1}, list[:150], list[150:])
	for _, h := range parts {
		b, err := h.MarshalBinary()
		if err != nil || len(b) > 1280-14 {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		back, err := ParseHello(b)
		if err != nil || !slices.Equal(back.Claims, h.Claims) || !slices.Equal(back.Yields, h.Yields) || back.Node != h.Node || int(back.Parts) != len(parts) {
			t.Fatalf("%+v came back as %+v, %v", h, back, err)
		}
		got = append(append(got, back.Claims...), back.Yields...)
	}
	if !slices.Equal(got, list) {
		t.Errorf("%d addresses in %d parts", len(got), len(parts))
	}
}

func FuzzParseHello(f *testing.F) {
	b, _ := Hello{Node: "a", Parts: 1, Interval: 250, Claims: addrs(3)}.MarshalBinary()
	f.Add(b)
	f.Add([]byte("weft"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHello(b)
		if err != nil {
			return
		}
		e := New(Settings{Node: "b"}, 0, nil)
		e.Hear(1, h, model.MAC{2})
		e.Tick(2)
	})
}
