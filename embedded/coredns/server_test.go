package coredns

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/zap"

	"weft.network/weft/appliance/kernel/dnssocket"
	"weft.network/weft/plugins/clusterdns"
)

func TestServer(t *testing.T) {
	s := newSite(t, upstream(t, says("192.0.2.80", 60)))
	s.expect("web.default.svc.cluster.local.", "10.96.0.20")
	s.expect("nope.default.svc.cluster.local.", "NXDOMAIN")
	s.expect("www.example.org.default.svc.cluster.local.", "NXDOMAIN")
	s.expect("www.example.org.", "192.0.2.80")
	st := s.Stats()
	for end := time.Now().Add(patience); st.Queries < 8 && time.Now().Before(end); st = s.Stats() {
		runtime.Gosched() // a query is counted after it was answered
	}
	// Of each pair the one over UDP is answered directly, where the name belongs to the cluster.
	if st.Queries != 8 || st.Direct != 3 || st.Rcodes["NOERROR"] != 4 || st.Rcodes["NXDOMAIN"] != 4 || st.Types["A"] != 8 {
		t.Errorf("counted %+v", st)
	}
}

// TestWithoutUpstream makes sure that the cluster's names do not depend on one.
func TestWithoutUpstream(t *testing.T) {
	s := newSite(t)
	s.expect("web.default.svc.cluster.local.", "10.96.0.20")
	s.expect("www.example.org.", "SERVFAIL")
}

func TestUpstreamsThatMisbehave(t *testing.T) {
	for name, answer := range map[string]func(dns.ResponseWriter, *dns.Msg){
		"silent":  func(dns.ResponseWriter, *dns.Msg) {},
		"garbage": func(w dns.ResponseWriter, _ *dns.Msg) { _, _ = w.Write([]byte("this is no answer, not even nearly")) },
		"other question": func(w dns.ResponseWriter, r *dns.Msg) {
			m := new(dns.Msg)
			m.SetReply(r)
			m.Question[0].Name = "evil.example."
			_ = w.WriteMsg(m)
		},
		"empty packet": func(w dns.ResponseWriter, _ *dns.Msg) { _, _ = w.Write(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, upstream(t, answer))
			if r := s.ask("udp", "www.example.org.", dns.TypeA); r.Rcode == dns.RcodeSuccess || len(r.Answer) > 0 {
				t.Errorf("got %v", r)
			}
			s.expect("web.default.svc.cluster.local.", "10.96.0.20")
		})
	}
}

// TestStaleIsBetterThanNothing takes the upstream away after it has answered once.
func TestStaleIsBetterThanNothing(t *testing.T) {
	var silent atomic.Bool
	s := newSite(t, upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		if !silent.Load() {
			says("192.0.2.80", 1)(w, r)
		}
	}))
	s.expect("www.example.org.", "192.0.2.80")
	silent.Store(true)
	timer := time.NewTimer(6 * time.Second) // the cache keeps everything for at least 5 seconds
	<-timer.C
	s.expect("www.example.org.", "192.0.2.80")
}

// TestBigAnswersOverTCP makes sure that a cut answer of the upstream is asked for again over TCP.
func TestBigAnswersOverTCP(t *testing.T) {
	s := newSite(t, upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		if w.LocalAddr().Network() == "udp" {
			m.Truncated = true
			_ = w.WriteMsg(m)
			return
		}
		for i := range 200 {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, byte(i))})
		}
		_ = w.WriteMsg(m)
	}))
	if r := s.ask("udp", "big.example.org.", dns.TypeA); !r.Truncated {
		t.Error("an answer that does not fit is not marked")
	}
	if r := s.ask("tcp", "big.example.org.", dns.TypeA); len(r.Answer) != 200 {
		t.Errorf("%d of 200 addresses over TCP", len(r.Answer))
	}
}

// TestJunk sends what is no query, and asks in between.
func TestJunk(t *testing.T) {
	s := newSite(t)
	conn, err := net.Dial("udp", s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	question := new(dns.Msg)
	question.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	good, err := question.Pack()
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewSource(1))
	for i := range 2000 {
		b := append([]byte(nil), good...)
		switch i % 4 {
		case 0:
			b = b[:r.Intn(len(b))]
		case 1:
			b[r.Intn(len(b))] ^= byte(1 << r.Intn(8))
		case 2:
			b = make([]byte, r.Intn(600))
			r.Read(b)
		default:
			b[4+r.Intn(8)] = byte(r.Intn(256))
		}
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		if i%200 == 0 {
			s.expect("web.default.svc.cluster.local.", "10.96.0.20")
		}
	}
	s.expect("web.default.svc.cluster.local.", "10.96.0.20")
	if s.Stats().Malformed == 0 {
		t.Error("nothing was counted as malformed")
	}
}

// TestTCPClientsThatMisbehave keeps connections open with half a query, with frames of 64 KiB, and with nothing.
func TestTCPClientsThatMisbehave(t *testing.T) {
	s := newSite(t)
	var held []net.Conn
	for range mostConnsOfClient - 4 {
		c, err := net.Dial("tcp", s.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
	}
	frame := make([]byte, 2+65535)
	binary.BigEndian.PutUint16(frame, 65535)
	for i, c := range held {
		switch i % 3 {
		case 0:
			_, _ = c.Write([]byte{0, 40, 1}) // and nothing more
		case 1:
			go func() { _, _ = c.Write(frame) }()
		}
	}
	s.expect("web.default.svc.cluster.local.", "10.96.0.20")
	// Everybody who does not go on is sent away.
	for _, c := range held {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatal("a connection that says nothing is kept for ever")
		}
	}
}

// TestOneClientCannotTakeAllConnections opens more than one client may have.
func TestOneClientCannotTakeAllConnections(t *testing.T) {
	s := newSite(t)
	for range 3 * mostConnsOfClient {
		c, err := net.Dial("tcp", s.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	m := new(dns.Msg)
	m.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	r, _, err := (&dns.Client{Net: "tcp", Dialer: &d, Timeout: patience}).Exchange(m, s.addr.String())
	if err != nil || len(r.Answer) != 1 {
		t.Errorf("another client: %v %v", r, err)
	}
}

// TestQueriesThatNobodyAnswers fills one client's share of waiting queries; another client is answered.
func TestQueriesThatNobodyAnswers(t *testing.T) {
	s := newSite(t, upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		if strings.HasPrefix(r.Question[0].Name, "fine") {
			says("192.0.2.80", 60)(w, r)
		}
	}))
	conn, err := net.Dial("udp", s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 3 * mostOfClient {
		m := new(dns.Msg)
		m.SetQuestion(fmt.Sprintf("slow-%d.example.org.", i), dns.TypeA)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(b)
	}
	m := new(dns.Msg)
	m.SetQuestion("fine.example.org.", dns.TypeA)
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	r, _, err := (&dns.Client{Dialer: &d, Timeout: patience}).Exchange(m, s.addr.String())
	if err != nil || len(r.Answer) != 1 {
		t.Errorf("another client: %v %v", r, err)
	}
	if s.Stats().Refused == 0 {
		t.Error("no query of the greedy client was refused")
	}
}

// TestFair compares a flood with a few packets of others.
func TestFair(t *testing.T) {
	f, now := newFair(), time.Unix(1, 0)
	flood, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	admitted := func(a netip.Addr, n int) (out int) {
		for range n {
			if f.admit(a) {
				out++
			}
		}
		return out
	}
	f.begin(now, true)
	if n := admitted(flood, 5000); n != 5000 {
		t.Errorf("%d of 5000 packets of the only client", n)
	}
	if n := admitted(other, 20); n != 20 {
		t.Errorf("%d of 20 packets of another client", n)
	}
	if n := admitted(flood, 1000); n != 0 {
		t.Errorf("%d packets of the flood while others wait", n)
	}
	f.begin(now.Add(time.Millisecond), false)
	if n := admitted(flood, 1000); n != 1000 {
		t.Errorf("%d of 1000 packets when there is room", n)
	}
	f.begin(now.Add(2*window), true)
	if n := admitted(flood, 100); n != 100 {
		t.Errorf("%d of 100 packets in a new window", n)
	}
}

// TestHandOver asks without pause while one server stops and the next one takes its sockets over.
func TestHandOver(t *testing.T) {
	s := newSite(t)
	var wg sync.WaitGroup
	var asked, lost atomic.Int64
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			c, err := net.Dial("udp", s.addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			co := &dns.Conn{Conn: c}
			for {
				select {
				case <-stop:
					return
				default:
				}
				m := new(dns.Msg)
				m.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
				_ = c.SetDeadline(time.Now().Add(patience))
				asked.Add(1)
				if err := co.WriteMsg(m); err != nil {
					lost.Add(1)
					continue
				}
				if r, err := co.ReadMsg(); err != nil || r.Id != m.Id || len(r.Answer) != 1 {
					lost.Add(1)
				}
			}
		})
	}
	for range 5 {
		s.mu.Lock()
		udpFile, err := s.sockets[0].UDP.File()
		if err != nil {
			t.Fatal(err)
		}
		tcpFile, err := s.sockets[0].TCP.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Unlock()
		if err := s.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		next := New(Options{Names: s.names, Log: zap.NewNop()})
		if err := next.Configure(s.settings4()); err != nil {
			t.Fatal(err)
		}
		u, err := dnssocket.AdoptUDP(udpFile)
		if err != nil {
			t.Fatal(err)
		}
		l, err := dnssocket.AdoptTCP(tcpFile)
		if err != nil {
			t.Fatal(err)
		}
		s.Server = next
		next.Listen(Socket{Addr: u.Addr(), UDP: u.UDPConn, TCP: l, Batch: func(n, size int) Batch { return u.NewBatch(n, size) }})
		for before := asked.Load(); asked.Load() < before+20 && lost.Load() == 0; {
			s.expect("web.default.svc.cluster.local.", "10.96.0.20")
		}
	}
	close(stop)
	wg.Wait()
	if lost.Load() > 0 || asked.Load() < 100 {
		t.Errorf("%d of %d queries were lost", lost.Load(), asked.Load())
	}
}

// TestReconfigure changes the upstream under load.
func TestReconfigure(t *testing.T) {
	one, two := upstream(t, says("192.0.2.1", 60)), upstream(t, says("192.0.2.2", 60))
	s := newSite(t, one)
	s.expect("a.example.org.", "192.0.2.1")
	if err := s.Configure(s.settings4(two)); err != nil {
		t.Fatal(err)
	}
	s.expect("a.example.org.", "192.0.2.2")
}

// TestPanic makes sure that a mistake in answering one packet is not the end.
func TestPanic(t *testing.T) {
	s := newSite(t)
	b := &brokenBatch{}
	s.answerBatch(Socket{}, b, 1, s.counters.shard(), newFair())
	s.expect("web.default.svc.cluster.local.", "10.96.0.20")
}

type brokenBatch struct{ Batch }

func (*brokenBatch) Packet(int) []byte { panic("broken") }
func (*brokenBatch) Flush() error      { return nil }

// TestNotSetUp answers before there is anything to answer with.
func TestNotSetUp(t *testing.T) {
	names, err := clusterdns.New("cluster.local", 5)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{Server: New(Options{Names: names, Log: zap.NewNop()}), t: t}
	s.listen()
	defer func() { _ = s.Close(context.Background()) }()
	s.expect("web.default.svc.cluster.local.", "SERVFAIL")
	if err := s.Configure(s.settings4()); err != nil {
		t.Fatal(err)
	}
	s.expect("web.default.svc.cluster.local.", "SERVFAIL")
}
