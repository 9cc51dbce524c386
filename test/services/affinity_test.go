package services

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/kernel/nft"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// affinityLab is a sticky Service with endpoints that really answer, and clients outside.
type affinityLab struct {
	lab
	t       *testing.T
	kernel  *nft.Backend
	compile service.Compiler
	rules   ruleset.Services
	size    uint32 // of the memory; 0 leaves it as it is
}

// affinityClients are addresses of clients outside.
const affinityClients = 12

func newAffinityLab(t *testing.T) *affinityLab {
	l := &affinityLab{lab: newLab(t), t: t}
	serve(t, l.local, "local")
	serve(t, l.others, "there", "far")
	for i := range affinityClients {
		addAddrs(l.outside, "eth0", fmt.Sprintf("198.51.100.%d/32", 100+i))
	}
	b, err := nft.Open(nft.Options{NetNS: l.node.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	l.kernel = b
	return l
}

// apply makes the Service have these endpoints and this time-out.
func (l *affinityLab) apply(timeout int, names ...string) {
	l.t.Helper()
	p := pattern{}
	for _, n := range names {
		p.places = append(p.places, ready(n))
	}
	s := plain(0, p)
	s.Type, s.AffinityTimeout = "NodePort", timeout
	nodePorts(s, 0)
	snap := &model.Snapshot{Services: map[model.ServiceKey]*model.Service{s.Key(): s}, Slices: map[model.SliceKey]*model.EndpointSlice{}}
	for _, e := range slicesOf(s, p) {
		snap.Slices[e.Key()] = e
	}
	table := l.rules.Table(ruleset.ServicesInput{Frontends: l.compile.Compile(snap, this).Frontends, PodRanges: podRanges})
	if l.size > 0 {
		for i, set := range table.Sets {
			if set.Dynamic {
				small := *set
				small.Size = l.size
				table.Sets[i] = &small
			}
		}
	}
	if _, err := l.kernel.Apply(context.Background(), []ruleset.Table{table}); err != nil {
		l.t.Fatal(err)
	}
}

// connect returns which endpoint answers a client at the node port of a family.
func (l *affinityLab) connect(client, family int) netip.Addr {
	l.t.Helper()
	src := pair(fmt.Sprintf("198.51.100.%d", 100+client))[family]
	server, _, err := ask(l.outside, conn{model.TCP, src, netip.AddrPortFrom(nodeAddrs[family], 30000), false}, patience)
	if err != nil {
		l.t.Fatal(err)
	}
	return server.Addr()
}

// remembered counts the clients that the kernel remembers.
func (l *affinityLab) remembered() int {
	l.t.Helper()
	return strings.Count(l.node.Run("nft", "list", "map", "inet", ruleset.ServiceTable, "affinity4"), "expires")
}

// TestAffinityOutlivesChanges: whoever's endpoint stays keeps it while others come and go and get other numbers; whoever's endpoint
// is gone gets another one and keeps that; and a restart of the daemon forgets nobody.
func TestAffinityOutlivesChanges(t *testing.T) {
	l := newAffinityLab(t)
	l.apply(10800, "local", "there", "far")
	for family := range 2 {
		had := map[int]netip.Addr{}
		counts := map[netip.Addr]int{}
		for c := range affinityClients {
			had[c] = l.connect(c, family)
			counts[had[c]]++
			for range 3 {
				if got := l.connect(c, family); got != had[c] {
					t.Fatalf("client %d was at %s and is at %s", c, had[c], got)
				}
			}
		}
		if len(counts) < 2 {
			t.Errorf("%d clients all went to %v: that is no choice", affinityClients, counts)
		}
		for _, names := range [][]string{{"there", "far"}, {"far", "there", "local"}, {"far", "local"}, {"far"}, {"far", "there", "local"}} {
			l.apply(10800, names...)
			there := map[netip.Addr]bool{}
			for _, n := range names {
				there[pair(places[n].addr)[family]] = true
			}
			for c := range affinityClients {
				got := l.connect(c, family)
				if there[had[c]] && got != had[c] {
					t.Errorf("endpoints %v: client %d was at %s, which is still there, and is at %s", names, c, had[c], got)
				}
				if again := l.connect(c, family); again != got {
					t.Errorf("endpoints %v: client %d was at %s and is at %s", names, c, got, again)
				}
				had[c] = got
			}
		}
		// A daemon that starts anew adopts the table, and with it the memory.
		l.kernel.Invalidate()
		l.apply(10800, "far", "there", "local")
		for c := range affinityClients {
			if got := l.connect(c, family); got != had[c] {
				t.Errorf("after a restart client %d is at %s, was at %s", c, got, had[c])
			}
		}
	}
	if n := l.remembered(); n != affinityClients {
		t.Errorf("%d clients are remembered, want %d", n, affinityClients)
	}
}

// TestAffinityEnds: the time-out counts from the last connection, and after it the client is nobody's.
func TestAffinityEnds(t *testing.T) {
	l := newAffinityLab(t)
	l.apply(2, "local", "there", "far")
	last := time.Now()
	first := l.connect(0, 0)
	for range 5 { // longer than the time-out, in all
		<-time.After(600 * time.Millisecond)
		now := time.Now()
		got := l.connect(0, 0)
		if took := time.Since(last); got != first && took < 1900*time.Millisecond {
			t.Errorf("moved from %s to %s although it came back in time, after %v", first, got, took)
		}
		first, last = got, now // a busy machine may come back too late
	}
	moved := false
	for range 25 {
		deadline := time.Now().Add(20 * time.Second)
		for l.remembered() > 0 {
			if time.Now().After(deadline) {
				t.Fatal("the kernel does not forget the client")
			}
			<-time.After(100 * time.Millisecond)
		}
		if got := l.connect(0, 0); got != first {
			moved = true
			break
		}
	}
	if !moved {
		t.Errorf("25 times after the time-out the client came to %s", first)
	}
}

// TestAffinityIsBounded: clients that do not fit into the memory are served all the same.
func TestAffinityIsBounded(t *testing.T) {
	l := newAffinityLab(t)
	l.size = 4
	l.apply(10800, "local", "there", "far")
	kept := 0
	for c := range affinityClients {
		first := l.connect(c, 0)
		same := true
		for range 12 {
			same = l.connect(c, 0) == first && same
		}
		if same {
			kept++
		}
	}
	if n := l.remembered(); n > 4 || kept < 4 || kept == affinityClients {
		t.Errorf("%d clients are remembered and %d of %d kept their endpoint, with room for 4", n, kept, affinityClients)
	}
}

// TestHashIsForetold: a Service that hashes sends each client where the tracer says, for the hash is the kernel's: every node does the
// same.
func TestHashIsForetold(t *testing.T) {
	l := newAffinityLab(t)
	p := pattern{places: []place{ready("local"), ready("there"), ready("far")}}
	s := plain(0, p)
	s.Type, s.Annotations = "NodePort", map[string]string{service.HashAnnotation: "true"}
	nodePorts(s, 0)
	snap := &model.Snapshot{Services: map[model.ServiceKey]*model.Service{s.Key(): s}, Slices: map[model.SliceKey]*model.EndpointSlice{}}
	for _, e := range slicesOf(s, p) {
		snap.Slices[e.Key()] = e
	}
	table := compileAll(t, snap)
	if _, err := l.kernel.Apply(context.Background(), []ruleset.Table{table}); err != nil {
		t.Fatal(err)
	}
	tr := ruleset.NewTracer([]ruleset.Table{table}, facts(func(uint32) uint32 { return 0 }))
	seen := map[netip.Addr]bool{}
	for family := range 2 {
		for c := range affinityClients {
			src := pair(fmt.Sprintf("198.51.100.%d", 100+c))[family]
			out, chosen := journey(tr, conn{model.TCP, src, netip.AddrPortFrom(nodeAddrs[family], 30000), false}, "eth1")
			if got := l.connect(c, family); !chosen || got != out.Packet.Dst {
				t.Errorf("client %s is at %s, foretold was %s", src, got, out.Packet.Dst)
			}
			seen[out.Packet.Dst] = true
		}
	}
	if len(seen) < 4 {
		t.Errorf("%d clients of two families went to %v only", affinityClients, seen)
	}
}
