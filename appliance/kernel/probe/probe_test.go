package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// way is one family's source, destination, and the router between them.
type way struct{ from, to, router string }

func TestExactSize(t *testing.T) {
	a, b := pairOf(t)
	r := b.listen("192.168.1.2", "fd01::2")
	// The rules count packets of exactly the size, so that the kernel and not our own arithmetic says what was sent.
	for _, w := range []way{{"192.168.1.1", "192.168.1.2", ""}, {"fd01::1", "fd01::2", ""}, {"", "192.168.1.2", ""}} {
		for _, size := range []int{MinSize(netip.MustParseAddr(w.to)), 1280, 1499, 1500} {
			length := fmt.Sprintf("ip length %d ip frag-off & 0x4000 == 0x4000", size)
			if strings.Contains(w.to, ":") {
				length = fmt.Sprintf("ip6 length %d", size-40)
			}
			b.run("nft add table inet t\nnft add chain inet t c { type filter hook input priority 0 ; }\nnft add rule inet t c udp dport 9466 " + length + " counter")
			reply, err := a.send(w.from, w.to, size)
			if err != nil || reply.Bytes != size || reply.RTT <= 0 {
				t.Errorf("%s, %d bytes: %+v, %v", w.to, size, reply, err)
			}
			if out := b.run("nft list table inet t"); !strings.Contains(out, "packets 1 ") {
				t.Errorf("%s, %d bytes: the kernel saw\n%s", w.to, size, out)
			}
			b.run("nft delete table inet t")
		}
	}
	if s := r.Stats(); s != (Stats{Answered: 12}) {
		t.Errorf("stats %+v", s)
	}
}

func TestWrongSize(t *testing.T) {
	to := netip.MustParseAddr("192.0.2.1")
	for _, size := range []int{-1, 0, 59, 65536} {
		if _, err := Send(t.Context(), netip.Addr{}, to, testPort, size, time.Second); err == nil || !strings.Contains(err.Error(), "must be 60 to 65535") {
			t.Errorf("size %d: %v", size, err)
		}
	}
	if _, err := Send(t.Context(), netip.Addr{}, netip.Addr{}, testPort, 100, time.Second); err == nil {
		t.Error("no destination: no error")
	}
}

func TestOwnLinkTooSmall(t *testing.T) {
	a, b := pairOf(t)
	b.listen("192.168.1.2", "fd01::2")
	for _, w := range []way{{"192.168.1.1", "192.168.1.2", ""}, {"fd01::1", "fd01::2", ""}} {
		_, err := a.send(w.from, w.to, 1501)
		var big *TooBigError
		if !errors.As(err, &big) || big.MTU != 1500 || big.From.IsValid() {
			t.Errorf("%s: %v", w.to, err)
		}
	}
}

func TestRouterSaysTooBig(t *testing.T) {
	a, _, b := routed(t, "1400")
	b.listen("192.168.2.2", "fd02::2")
	for _, w := range []way{{"192.168.1.1", "192.168.2.2", "192.168.1.254"}, {"fd01::1", "fd02::2", "fd01::fe"}} {
		// Twice: what the kernel learned the first time must not turn the second into a local error.
		for range 2 {
			_, err := a.send(w.from, w.to, 1450)
			var big *TooBigError
			if !errors.As(err, &big) || big.MTU != 1400 || big.From.String() != w.router {
				t.Errorf("%s: %v", w.to, err)
			}
		}
		if reply, err := a.send(w.from, w.to, 1400); err != nil || reply.Bytes != 1400 {
			t.Errorf("%s: %+v, %v", w.to, reply, err)
		}
	}
}

// TestStalePathMTU has a path that became better: the kernel still believes the old size, a probe does not.
func TestStalePathMTU(t *testing.T) {
	a, r, b := routed(t, "1400")
	b.listen("192.168.2.2", "fd02::2")
	for _, w := range []way{{"192.168.1.1", "192.168.2.2", ""}, {"fd01::1", "fd02::2", ""}} {
		if _, err := a.send(w.from, w.to, 1450); err == nil {
			t.Errorf("%s: too large a packet passed", w.to)
		}
	}
	r.run("ip link set right mtu 1500")
	for _, w := range []way{{"192.168.1.1", "192.168.2.2", ""}, {"fd01::1", "fd02::2", ""}} {
		if out := a.run("ip route get " + w.to); !strings.Contains(out, "mtu 1400") {
			t.Fatalf("the kernel did not learn the path MTU, so that this test shows nothing: %s", out)
		}
		if _, err := a.send(w.from, w.to, 1500); err != nil {
			t.Errorf("%s: %v", w.to, err)
		}
	}
}

func TestUnreachable(t *testing.T) {
	a, r, _ := routed(t, "1500")
	r.run("ip route add unreachable 198.51.100.0/24\nip -6 route add unreachable fd99::/64")
	a.run("ip route add unreachable 203.0.113.0/24")
	a.run("ping -q -c 1 -w 20 192.168.2.2\nping -q -c 1 -w 20 fd02::2") // who has not met waits for neighbour discovery
	for _, tc := range []struct {
		name, from, to string
		number         error
		by             string
		refused        bool
	}{
		{"port closed", "", "192.168.2.2", unix.ECONNREFUSED, "192.168.2.2", true},
		{"port closed, IPv6", "", "fd02::2", unix.ECONNREFUSED, "fd02::2", true},
		{"a router has no route", "", "198.51.100.1", unix.EHOSTUNREACH, "192.168.1.254", false},
		{"a router has no route, IPv6", "", "fd99::1", unix.ENETUNREACH, "fd01::fe", false},
		{"no route here", "", "203.0.113.1", unix.EHOSTUNREACH, "", false},
		{"source is not ours", "192.0.2.77", "192.168.2.2", unix.EADDRNOTAVAIL, "", false},
	} {
		start := time.Now()
		_, err := a.send(tc.from, tc.to, 200)
		var bad *UnreachableError
		if !errors.As(err, &bad) || !errors.Is(err, tc.number) || bad.Refused() != tc.refused {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if (tc.by == "") == bad.From.IsValid() || tc.by != "" && bad.From.String() != tc.by {
			t.Errorf("%s: said by %s: %v", tc.name, bad.From, err)
		}
		if took := time.Since(start); took >= patience {
			t.Errorf("%s: took %s, it waited for the timeout", tc.name, took)
		}
	}
}

func TestTimeoutAndCancel(t *testing.T) {
	a, b := pairOf(t)
	b.run("nft add table inet t\nnft add chain inet t c { type filter hook input priority 0 ; }\nnft add rule inet t c udp dport 9466 drop")
	start := time.Now()
	var err error
	a.in(func() {
		_, err = Send(t.Context(), netip.Addr{}, netip.MustParseAddr("192.168.1.2"), testPort, 200, time.Second)
	})
	var late interface{ Timeout() bool } // how the prober recognises it
	if !errors.Is(err, ErrTimeout) || !errors.As(err, &late) || !late.Timeout() {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took < 900*time.Millisecond || took > patience {
		t.Errorf("waited %s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	a.in(func() {
		_, err = Send(ctx, netip.Addr{}, netip.MustParseAddr("192.168.1.2"), testPort, 200, 3*patience)
	})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrTimeout) {
		t.Errorf("got %v", err)
	}
}

// TestAddressesAppearLater listens before the addresses exist, and on others later.
func TestAddressesAppearLater(t *testing.T) {
	a, b := pairOf(t)
	r := b.listen("10.244.2.1", "fd00:2::1")
	b.run("ip link add weft0 type bridge\nip link set weft0 up\nip addr add 10.244.2.1/32 dev weft0\nip addr add fd00:2::1/128 dev weft0 nodad")
	a.run("ip route add 10.244.2.0/24 via 192.168.1.2\nip -6 route add fd00:2::/64 via fd01::2")
	for _, to := range []string{"10.244.2.1", "fd00:2::1"} {
		if _, err := a.send("", to, 1400); err != nil {
			t.Error(err)
		}
	}
	if _, err := a.send("", "192.168.1.2", 200); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("an address that was not asked for: %v", err)
	}
	set := func(addrs ...string) (err error) {
		b.in(func() { err = r.SetAddrs(parse(addrs)) })
		return err
	}
	for range 2 { // the second time changes nothing
		if err := set("fd00:2::1", "192.168.1.2"); err != nil {
			t.Error(err)
		}
		if got := fmt.Sprint(r.Addrs()); got != "[192.168.1.2 fd00:2::1]" {
			t.Errorf("listening on %s", got)
		}
	}
	if _, err := a.send("", "192.168.1.2", 200); err != nil {
		t.Error(err)
	}
	if _, err := a.send("", "10.244.2.1", 200); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("an address that was taken away: %v", err)
	}
	if err := set("192.168.1.2", "0.0.0.0"); err == nil {
		t.Error("the address of everybody was accepted")
	}
	r.Close()
	if _, err := a.send("", "192.168.1.2", 200); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after Close: %v", err)
	}
	if err := set("192.168.1.2"); err == nil {
		t.Error("a closed responder listens again")
	}
}

func TestPortTaken(t *testing.T) {
	a, _ := pairOf(t)
	a.listen("192.168.1.1")
	a.in(func() {
		_, err := Listen(t.Context(), Options{Port: testPort, Addrs: parse([]string{"fd01::1", "192.168.1.1"})})
		if err == nil || !strings.Contains(err.Error(), "192.168.1.1:9466") || !strings.Contains(err.Error(), "fabric.probe.port") {
			t.Errorf("got %v", err)
		}
		if _, err := Listen(t.Context(), Options{}); err == nil {
			t.Error("port 0 was accepted")
		}
		// Nothing was left open on the other address.
		r, err := Listen(t.Context(), Options{Port: testPort, Addrs: parse([]string{"fd01::1"})})
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
	})
}

func TestListenEndsWithContext(t *testing.T) {
	a, b := pairOf(t)
	ctx, cancel := context.WithCancel(t.Context())
	var r *Responder
	var err error
	b.in(func() { r, err = Listen(ctx, Options{Port: testPort, Addrs: parse([]string{"192.168.1.2"})}) })
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	eventually(t, 3*patience, "the socket closes", func() bool { return len(r.Addrs()) == 0 })
	r.work.Wait()
	if _, err := a.send("", "192.168.1.2", 200); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
}

// TestFlood sends rubbish and too many probes: the rubbish gets no answer, the probes a bounded number.
func TestFlood(t *testing.T) {
	a, b := pairOf(t)
	r := b.listen("192.168.1.2")
	var conn net.Conn
	var err error
	a.in(func() { conn, err = net.Dial("udp4", "192.168.1.2:9466") })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const rubbish, probes = 50, 150 // few enough for the socket's buffer, should the reader be slow
	for i := range rubbish {
		if _, err := conn.Write(make([]byte, 20*i)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 3*patience, "rubbish is ignored", func() bool { return r.Stats().Ignored == rubbish })
	start := time.Now()
	for i := range probes {
		p, _ := newProbe(headerSize, uint32(i))
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 3*patience, "every probe is counted", func() bool { s := r.Stats(); return s.Answered+s.Limited == probes })
	s := r.Stats()
	if most := answerBurst + uint64(time.Since(start)/answerEvery) + 1; s.Answered < answerBurst || s.Answered > most {
		t.Errorf("stats %+v: want %d to %d answers", s, answerBurst, most)
	}
	if err := conn.SetReadDeadline(time.Now().Add(3 * patience)); err != nil {
		t.Fatal(err)
	}
	buf, got := make([]byte, 100), uint64(0)
	for got < s.Answered {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%d of %d answers: %v", got, s.Answered, err)
		}
		if n != headerSize {
			t.Errorf("an answer of %d bytes", n)
		}
		got++
	}
}
