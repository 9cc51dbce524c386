// Without this Go listens with MPTCP, which knows neither TCP-MD5 nor a minimum TTL; main.go has the same line.
//
//go:debug multipathtcp=0

package gobgp

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/log"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"weft.network/weft/appliance/compile/peering"
	"weft.network/weft/appliance/model"
)

// speaker is one of several in this process, each with an address of the loopback of its own.
type speaker struct {
	t    *testing.T
	s    *Server
	want peering.Speaker
}

// freePort is below those that the kernel gives to clients, so that none has it when the server comes.
func freePort(t testing.TB) uint16 {
	t.Helper()
	for range 100 {
		port := uint16(20000 + rand.IntN(10000))
		if l, err := net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func newSpeaker(t *testing.T, asn uint32, address string) *speaker {
	t.Helper()
	x := &speaker{t: t, want: peering.Speaker{ASN: asn, RouterID: netip.MustParseAddr(address), Port: freePort(t)}}
	x.s = New(Options{Log: zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel))})
	t.Cleanup(func() {
		if _, err := x.s.Apply(context.Background(), peering.Speaker{}); err != nil {
			t.Error(err)
		}
	})
	return x
}

func (x *speaker) address() netip.Addr { return x.want.RouterID }

// meet makes neighbours of two speakers; edit changes each end.
func meet(a, b *speaker, edit func(n *peering.Neighbour)) {
	for _, pair := range [][2]*speaker{{a, b}, {b, a}} {
		own, peer := pair[0], pair[1]
		n := peering.Neighbour{
			Name: "p" + peer.address().String(), Address: peer.address(), ASN: peer.want.ASN, LocalASN: own.want.ASN, Port: peer.want.Port, Source: own.address(),
			Passive:     own.address().Compare(peer.address()) > 0,
			HoldSeconds: 9, KeepaliveSeconds: 3, ConnectRetrySeconds: 1, RestartSeconds: 20, IPv4: true, IPv6: true, MultihopTTL: 4,
			Import: []model.PrefixRule{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), LE: 32}, {Prefix: netip.MustParsePrefix("::/0"), LE: 128}},
			Group:  "g",
		}
		if edit != nil {
			edit(&n)
		}
		own.want.Neighbours = slices.DeleteFunc(own.want.Neighbours, func(o peering.Neighbour) bool { return o.Address == n.Address })
		own.want.Neighbours = append(own.want.Neighbours, n)
		if own.want.Groups == nil {
			own.want.Groups = []peering.Group{{Name: "g"}}
		}
	}
}

func (x *speaker) tell(prefixes ...string) {
	x.want.Paths = nil
	for _, p := range prefixes {
		path := peering.Path{Prefix: netip.MustParsePrefix(p), Groups: []string{"g"}}
		if path.Prefix.Addr().Is6() {
			path.NextHop = netip.MustParseAddr("2001:db8::" + fmt.Sprint(x.address().As4()[3]))
		}
		x.want.Paths = append(x.want.Paths, path)
	}
}

func (x *speaker) apply() []string {
	x.t.Helper()
	changes, err := x.s.Apply(x.t.Context(), x.want)
	if err != nil {
		x.t.Fatal(err)
	}
	return changes
}

func (x *speaker) session(peer *speaker) Session {
	x.t.Helper()
	all, err := x.s.Sessions(x.t.Context(), true)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, s := range all {
		if s.Neighbour.Address == peer.address() {
			return s
		}
	}
	return Session{}
}

func (x *speaker) routes() (out []string) {
	for _, r := range x.s.Routes() {
		out = append(out, fmt.Sprintf("%s via %s", r.Prefix, r.NextHop))
	}
	return out
}

// wait polls until the condition holds; the limit is for a busy machine.
func wait(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute) // routes of a neighbour that is gone may stay for one
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("not in two minutes: %s", what)
		case <-tick.C:
		}
	}
}

func (x *speaker) untilUp(peer *speaker) {
	x.t.Helper()
	wait(x.t, "a session", func() bool { return x.session(peer).State == "Established" })
}

func (x *speaker) untilRoutes(want ...string) {
	x.t.Helper()
	defer func() {
		if x.t.Failed() {
			x.t.Logf("routes are %q", x.routes())
		}
	}()
	wait(x.t, fmt.Sprintf("routes %q", want), func() bool { return slices.Equal(x.routes(), want) })
}

// settle asks the others before one starts anew: a server that starts writes variables of gobgp that all servers of a process read,
// which only a test has several of.
func settle(starting *speaker, others ...*speaker) {
	for _, x := range others {
		x.session(starting)
	}
}

func TestRoutesFollow(t *testing.T) {
	a, b := newSpeaker(t, 65001, "127.0.0.1"), newSpeaker(t, 65002, "127.0.0.2")
	meet(a, b, nil)
	a.tell("10.1.0.0/24", "203.0.113.5/32", "2001:db8:1::/64")
	a.apply()
	b.apply()
	b.untilRoutes("10.1.0.0/24 via 127.0.0.1", "203.0.113.5/32 via 127.0.0.1", "2001:db8:1::/64 via 2001:db8::1")
	if changes := a.apply(); changes != nil {
		t.Errorf("a second apply changes %q", changes)
	}

	a.tell("10.1.0.0/24")
	a.apply()
	b.untilRoutes("10.1.0.0/24 via 127.0.0.1")

	// New communities, and a route that is not for this neighbour any more: the session stays.
	a.want.Groups = []peering.Group{{Name: "h", Communities: []model.Community{64512<<16 | 100}, LargeCommunities: []model.LargeCommunity{{1, 2, 3}}}, {Name: "nobody"}}
	a.want.Neighbours[0].Group = "h"
	a.want.Paths = []peering.Path{{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Groups: []string{"h"}}, {Prefix: netip.MustParsePrefix("10.2.0.0/24"), Groups: []string{"nobody"}}}
	a.apply()
	wait(t, "the communities", func() bool {
		got, err := b.s.Received(t.Context(), a.address())
		return err == nil && len(got) == 1 && slices.Equal(got[0].Communities, []string{"64512:100"}) && slices.Equal(got[0].LargeCommunities, []string{"1:2:3"})
	})
	if told, err := a.s.Advertised(t.Context(), b.address()); err != nil || len(told) != 1 || told[0].Prefix.String() != "10.1.0.0/24" {
		t.Errorf("told are %v %v", told, err)
	}
	a.want.Paths[0].Groups = []string{"nobody"}
	a.apply()
	b.untilRoutes()
	if s := a.session(b); s.State != "Established" || s.Ended != 0 {
		t.Errorf("the session has suffered: %+v", s)
	}
	if s := a.session(b); !s.Restart || s.RestartSeconds != 20 || s.HoldSeconds != 9 || !slices.Equal(s.Families, []string{"ipv4", "ipv6"}) || s.LocalAddress != a.address() || s.RouterID != b.address() {
		t.Errorf("what was agreed: %+v", s)
	}
}

// TestLessForOne: what one neighbour is not told any more is withdrawn from it, and from nobody else. Each has a group of its own, as
// peering gives it.
func TestLessForOne(t *testing.T) {
	a, b, c := newSpeaker(t, 65001, "127.0.0.1"), newSpeaker(t, 65002, "127.0.0.2"), newSpeaker(t, 65003, "127.0.0.3")
	meet(a, b, nil)
	meet(a, c, nil)
	a.want.Groups = []peering.Group{{Name: "b"}, {Name: "c"}}
	a.want.Neighbours[0].Group, a.want.Neighbours[1].Group = "b", "c"
	a.want.Paths = []peering.Path{
		{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Groups: []string{"b", "c"}}, {Prefix: netip.MustParsePrefix("203.0.113.5/32"), Groups: []string{"b", "c"}},
	}
	a.apply()
	settle(b, a)
	b.apply()
	settle(c, a, b)
	c.apply()
	all := []string{"10.1.0.0/24 via 127.0.0.1", "203.0.113.5/32 via 127.0.0.1"}
	b.untilRoutes(all...)
	c.untilRoutes(all...)

	a.want.Groups[0].Name, a.want.Neighbours[0].Group = "d", "d"
	a.want.Paths[0].Groups, a.want.Paths[1].Groups = []string{"d", "c"}, []string{"c"}
	a.apply()
	b.untilRoutes(all[0])
	c.untilRoutes(all...)
	for _, x := range []*speaker{b, c} {
		if s := a.session(x); s.State != "Established" || s.Ended != 0 {
			t.Errorf("the session has suffered: %+v", s)
		}
	}
}

func TestImportRules(t *testing.T) {
	a, b := newSpeaker(t, 65001, "127.0.0.1"), newSpeaker(t, 65002, "127.0.0.2")
	rule := func(prefix string, ge, le int, reject bool) model.PrefixRule {
		return model.PrefixRule{Prefix: netip.MustParsePrefix(prefix), GE: ge, LE: le, Reject: reject}
	}
	meet(a, b, func(n *peering.Neighbour) { n.Import = nil })
	a.tell("10.1.0.0/24", "10.2.0.0/24", "10.2.1.0/25", "2001:db8:1::/64")
	a.apply()
	b.apply()
	wait(t, "all routes in the session", func() bool { return b.session(a).Received == 4 })
	b.untilRoutes() // nothing is taken unless asked for
	b.want.Neighbours[0].Import = []model.PrefixRule{rule("10.2.0.0/24", 24, 24, true), rule("10.0.0.0/8", 8, 24, false), rule("2001:db8::/32", 64, 64, false)}
	b.apply()
	b.untilRoutes("10.1.0.0/24 via 127.0.0.1", "2001:db8:1::/64 via 2001:db8::1")
	got, err := b.s.Received(t.Context(), a.address())
	if err != nil || len(got) != 4 || got[0].Filtered || !got[1].Filtered || !got[2].Filtered {
		t.Errorf("received %+v %v", got, err)
	}
	b.want.Neighbours[0].Import = []model.PrefixRule{rule("10.2.0.0/16", 25, 25, false)}
	b.apply()
	b.untilRoutes("10.2.1.0/25 via 127.0.0.1")
	b.want.Neighbours[0].Import = nil
	b.apply()
	b.untilRoutes()
	if s := b.session(a); s.Ended != 0 {
		t.Errorf("the session ended %d times", s.Ended)
	}
}

// TestPeersComeAndGo changes one session and leaves the other alone.
func TestPeersComeAndGo(t *testing.T) {
	a, b, c := newSpeaker(t, 65001, "127.0.0.1"), newSpeaker(t, 65002, "127.0.0.2"), newSpeaker(t, 65003, "127.0.0.3")
	a.tell("10.1.0.0/24")
	meet(a, b, nil)
	a.apply()
	b.apply()
	b.untilRoutes("10.1.0.0/24 via 127.0.0.1")
	meet(a, c, nil)
	a.apply()
	c.apply()
	c.untilRoutes("10.1.0.0/24 via 127.0.0.1")
	a.want.Neighbours = slices.DeleteFunc(a.want.Neighbours, func(n peering.Neighbour) bool { return n.Address == c.address() })
	a.apply()
	c.untilRoutes()
	meet(a, c, func(n *peering.Neighbour) { n.HoldSeconds = 30 })
	a.apply()
	c.apply()
	c.untilRoutes("10.1.0.0/24 via 127.0.0.1")
	if s := b.session(a); s.State != "Established" || s.Ended != 0 {
		t.Errorf("the other session has suffered: %+v", s)
	}
	// Off: no port is open.
	if _, err := a.s.Apply(t.Context(), peering.Speaker{}); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.want.Port)); err == nil {
		_ = conn.Close()
		t.Error("a speaker that is off listens")
	}
	b.untilRoutes()
	if _, err := a.s.Sessions(t.Context(), false); err == nil {
		t.Error("a speaker that is off has sessions")
	}
	settle(a, b, c)
	a.apply()
	b.untilRoutes("10.1.0.0/24 via 127.0.0.1")
}

// TestPasswords is the trap of gobgp: a password that was taken away stays on the listening socket.
func TestPasswords(t *testing.T) {
	a, b := newSpeaker(t, 65001, "127.0.0.1"), newSpeaker(t, 65002, "127.0.0.2")
	password := func(x *speaker, text string) {
		x.want.Neighbours[0].Password = text
		x.apply()
	}
	meet(a, b, func(n *peering.Neighbour) { n.Passive = n.Address == netip.MustParseAddr("127.0.0.2") }) // a waits, so its listening socket decides
	password(a, "one")
	password(b, "one")
	b.untilUp(a)
	password(b, "two")
	wait(t, "the end of the session", func() bool { return b.session(a).State != "Established" })
	never := time.After(3 * time.Second)
	for waiting := true; waiting; {
		select {
		case <-never:
			waiting = false
		case <-time.After(50 * time.Millisecond):
			if b.session(a).State == "Established" {
				t.Fatal("a session with a wrong password")
			}
		}
	}
	password(a, "two")
	b.untilUp(a)
	password(a, "")
	password(b, "")
	b.untilUp(a)
}

func TestReflector(t *testing.T) {
	a, r, c := newSpeaker(t, 65001, "127.0.0.1"), newSpeaker(t, 65001, "127.0.0.2"), newSpeaker(t, 65001, "127.0.0.3")
	client := func(n *peering.Neighbour) {
		n.ReflectorClient = n.Address != r.address()
		n.MultihopTTL = 0
	}
	meet(a, r, client)
	meet(c, r, client)
	r.want.Groups = []peering.Group{{Name: "g", Reflect: true}}
	a.tell("10.1.0.0/24")
	c.tell("10.3.0.0/24")
	for _, x := range []*speaker{a, r, c} {
		x.apply()
	}
	c.untilRoutes("10.1.0.0/24 via 127.0.0.1")
	a.untilRoutes("10.3.0.0/24 via 127.0.0.3")
}

func TestMaxPrefixes(t *testing.T) {
	a, b := newSpeaker(t, 65001, "127.0.0.1"), newSpeaker(t, 65002, "127.0.0.2")
	meet(a, b, nil)
	b.want.Neighbours[0].MaxPrefixes = 2
	a.tell("10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24")
	a.apply()
	b.apply()
	wait(t, "the end of the session", func() bool { return strings.Contains(b.session(a).LastError, "maxPrefixes (2)") })
	b.untilRoutes()
	wait(t, "the reason at the other end", func() bool { return strings.Contains(a.session(b).LastError, "too many routes") })
}

// TestMaxPrefixesOfAHurriedPeer: the routes go, too, when the peer closes the connection at once, which gobgp takes for a restart.
func TestMaxPrefixesOfAHurriedPeer(t *testing.T) {
	b := newSpeaker(t, 65001, "127.0.0.1")
	hurried := &speaker{want: peering.Speaker{ASN: 65100, RouterID: netip.MustParseAddr("127.0.0.9")}}
	meet(b, hurried, func(n *peering.Neighbour) { n.Passive, n.MaxPrefixes = true, 2 })
	b.apply()
	update := []byte{0, 0, 0, 20, 0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfe, 0x4c, 0x40, 3, 4, 127, 0, 0, 9, 24, 10, 1, 1, 24, 10, 1, 2}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	over := func() bool { return strings.Contains(b.session(hurried).LastError, "maxPrefixes (2)") }
	wait(t, "the end of the session", func() bool {
		conn, err := d.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", b.want.Port))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = conn.Write(slices.Concat(message(1, open(65100)), message(4, nil)))
		if err := untilKeepalive(conn); err == nil { // the speaker refuses connections for a moment
			_, _ = conn.Write(slices.Concat(message(2, update), message(2, append(update, 24, 10, 1, 3))))
		}
		return over()
	})
	b.untilRoutes()
	if got := b.session(hurried); got.State != "Idle" || !over() {
		t.Errorf("the session: %+v", got)
	}
	b.want.Neighbours[0].MaxPrefixes = 3
	b.apply()
	if over() {
		t.Error("a changed peer is still closed")
	}
}

func TestWrongASN(t *testing.T) {
	a, b := newSpeaker(t, 65001, "127.0.0.1"), newSpeaker(t, 65002, "127.0.0.2")
	meet(a, b, nil)
	b.want.Neighbours[0].ASN = 65009
	a.apply()
	b.apply()
	wait(t, "the reason", func() bool { return strings.Contains(b.session(a).LastError, "bad peer AS") })
	b.want.Neighbours[0].ASN = 65001
	b.apply()
	b.untilUp(a)
}

func TestTTLSecurity(t *testing.T) {
	a, b := newSpeaker(t, 65001, "127.0.0.1"), newSpeaker(t, 65002, "127.0.0.2")
	meet(a, b, func(n *peering.Neighbour) { n.MultihopTTL, n.TTLSecurityHops = 0, 1 })
	a.apply()
	b.apply()
	b.untilUp(a)
}

// TestFailure has gobgp call Fatal, as it does when it finds itself in a state that cannot be.
func TestFailure(t *testing.T) {
	a, b := newSpeaker(t, 65001, "127.0.0.1"), newSpeaker(t, 65002, "127.0.0.2")
	a.s.options.Log = zap.NewNop()
	meet(a, b, nil)
	a.tell("10.1.0.0/24")
	a.apply()
	b.apply()
	b.untilRoutes("10.1.0.0/24 via 127.0.0.1")
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		(&logger{zap: zap.NewNop(), state: &a.s.state}).Fatal("path's nlri is nil", nil)
		t.Error("Fatal returns")
	}()
	<-gone
	if a.s.Failure() == "" {
		t.Error("the failure is not known")
	}
	if _, err := a.s.Apply(t.Context(), a.want); err == nil || !strings.Contains(err.Error(), "path's nlri is nil") {
		t.Errorf("applying to a failed speaker: %v", err)
	}
	b.untilRoutes()
	settle(a, b)
	wait(t, "a new speaker", func() bool { _, err := a.s.Apply(t.Context(), a.want); return err == nil })
	b.untilRoutes("10.1.0.0/24 via 127.0.0.1")
}

// TestFailureUnderApply is a failure of the goroutine that Apply waits for.
func TestFailureUnderApply(t *testing.T) {
	s := New(Options{Log: zap.NewNop()})
	stuck := make(chan struct{})
	defer close(stuck)
	s.state.fail("a test")
	if s.guarded(func() { <-stuck }) {
		t.Error("a stuck call has ended")
	}
	if !s.guarded(func() {}) {
		t.Error("a call that ends is given up")
	}
}

// TestNoPortForTheAPI makes sure that gobgp's own interface is not reachable.
func TestNoPortForTheAPI(t *testing.T) {
	a, b := newSpeaker(t, 65001, "127.0.0.1"), newSpeaker(t, 65002, "127.0.0.2")
	meet(a, b, nil)
	a.apply()
	if conn, err := net.Dial("tcp", "127.0.0.1:50051"); err == nil {
		_ = conn.Close()
		t.Error("gobgp's API listens")
	}
}

// TestOwnEnd: the late word of a session that was removed says nothing about the next one with the same peer.
func TestOwnEnd(t *testing.T) {
	s := New(Options{Log: zap.NewNop()})
	peer := netip.MustParseAddr("192.0.2.1")
	s.state.add(peer)
	l := &logger{zap: zap.NewNop(), state: &s.state}
	l.Info("Peer Down", log.Fields{"Key": "192.0.2.1", "Reason": "dying"})
	if why, ended := s.state.of(peer); why != "" || ended != 0 {
		t.Errorf("removed by ourselves: %q, %d sessions ended", why, ended)
	}
	l.Info("Peer Down", log.Fields{"Key": "192.0.2.1", "Reason": "read failed"})
	if why, ended := s.state.of(peer); why != "the session ended: read failed" || ended != 1 {
		t.Errorf("ended by the peer: %q, %d sessions ended", why, ended)
	}
}
