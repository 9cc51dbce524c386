package coredns

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/zap"

	"weft.network/weft/appliance/kernel/dnssocket"
	"weft.network/weft/appliance/model"
	"weft.network/weft/plugins/clusterdns"
)

// patience is for what takes no time on an idle machine.
const patience = 20 * time.Second

// site is a running server with a small cluster behind it.
type site struct {
	*Server
	t    testing.TB
	addr netip.AddrPort
	// stranger makes the clients no Pods of this node.
	stranger atomic.Bool
}

func newSite(t testing.TB, upstreams ...netip.AddrPort) *site {
	t.Helper()
	names, err := clusterdns.New("cluster.local", 5)
	if err != nil {
		t.Fatal(err)
	}
	svc := &model.Service{Namespace: "default", Name: "web", Type: "ClusterIP", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20")}}
	pod := &model.Pod{PodRef: model.PodRef{Namespace: "default", Name: "client"}, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	names.Update(&model.Snapshot{Services: map[model.ServiceKey]*model.Service{svc.Key(): svc}, Pods: map[model.PodKey]*model.Pod{pod.Key(): pod}})
	s := &site{t: t}
	s.Server = New(Options{Names: names, Log: zap.NewNop(), Namespace: func(a netip.Addr) string {
		if p := names.Pod(a); p != nil && !s.stranger.Load() {
			return p.Namespace
		}
		return ""
	}})
	if err := s.Configure(s.settings4(upstreams...)); err != nil {
		t.Fatal(err)
	}
	s.listen()
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return s
}

// settings4 are the daemon's defaults.
func (s *site) settings4(upstreams ...netip.AddrPort) Settings {
	return Settings{Domain: "cluster.local.", TTL: 5, Pods: "insecure", Upstreams: upstreams}
}

func (s *site) listen() {
	s.t.Helper()
	u, err := dnssocket.ListenUDP(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := dnssocket.ListenTCP(u.Addr())
	if err != nil {
		s.t.Fatal(err)
	}
	s.addr = u.Addr()
	s.Listen(Socket{Addr: u.Addr(), UDP: u.UDPConn, TCP: l, Batch: func(n, size int) Batch { return u.NewBatch(n, size) }})
}

// ask sends one question and returns the answer.
func (s *site) ask(proto, name string, kind uint16) *dns.Msg {
	s.t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	c := &dns.Client{Net: proto, Timeout: patience}
	r, _, err := c.Exchange(m, s.addr.String())
	if err != nil {
		s.t.Fatalf("asking for %s over %s: %v", name, proto, err)
	}
	return r
}

// expect asks over both protocols and compares the first answer; want is its data, or a code.
func (s *site) expect(name, want string) {
	s.t.Helper()
	for _, proto := range []string{"udp", "tcp"} {
		r := s.ask(proto, name, dns.TypeA)
		got := dns.RcodeToString[r.Rcode]
		if len(r.Answer) > 0 {
			if a, ok := r.Answer[len(r.Answer)-1].(*dns.A); ok {
				got = a.A.String()
			}
		}
		if got != want {
			s.t.Errorf("%s over %s: %s, want %s", name, proto, got, want)
		}
	}
}

// upstream is a server that stands for the rest of the world.
func upstream(t testing.TB, answer func(dns.ResponseWriter, *dns.Msg)) netip.AddrPort {
	t.Helper()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", p.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, srv := range []*dns.Server{{PacketConn: p, Handler: dns.HandlerFunc(answer)}, {Listener: l, Handler: dns.HandlerFunc(answer)}} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { _ = srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = srv.Shutdown() })
	}
	return netip.MustParseAddrPort(p.LocalAddr().String())
}

// says is an upstream's answer with that address.
func says(address string, ttl uint32) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: net.ParseIP(address)}}
		_ = w.WriteMsg(m)
	}
}
