package coredns

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// mostConns is how many TCP connections there may be at one address, and mostConnsOfClient how many of one client.
	mostConns         = 1024
	mostConnsOfClient = 64
	// A client must send a whole query, take a whole answer, and then another one, within these times.
	tcpRead  = 3 * time.Second
	tcpWrite = 5 * time.Second
	tcpIdle  = 10 * time.Second
)

func (s *Server) newTCP(l net.Listener) *dns.Server {
	counts := s.counters.shard()
	return &dns.Server{
		Listener: Limit(l), Net: "tcp", ReadTimeout: tcpRead, WriteTimeout: tcpWrite,
		IdleTimeout: func() time.Duration { return tcpIdle }, MaxTCPQueries: -1,
		MsgInvalidFunc: func([]byte, error) { counts.malformed.Add(1) },
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
			from := addrPort(w.RemoteAddr())
			out := &responder{next: w, local: addrPort(w.LocalAddr()), from: from, asked: r.Len(), start: time.Now()}
			if !s.load.enter(from.Addr()) {
				counts.refused.Add(1)
				_ = w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeServerFailure))
				return
			}
			defer s.load.leave(from.Addr())
			s.ask(out, r, tcp, counts)
		}),
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// Limit makes a listener close connections of clients that have too many: no Pod shall use up the process' files.
func Limit(l net.Listener) net.Listener { return &limited{Listener: l, of: map[netip.Addr]int{}} }

// limited is a listener that closes connections of clients that have too many.
type limited struct {
	net.Listener
	mu    sync.Mutex
	of    map[netip.Addr]int
	total int
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		a := addrPort(c.RemoteAddr()).Addr()
		l.mu.Lock()
		if l.total >= mostConns || l.of[a] >= mostConnsOfClient {
			l.mu.Unlock()
			_ = c.Close()
			continue
		}
		l.total++
		l.of[a]++
		l.mu.Unlock()
		return &limitedConn{Conn: c, done: sync.OnceFunc(func() { l.leave(a) })}, nil
	}
}

func (l *limited) leave(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.of[a]--; l.of[a] == 0 {
		delete(l.of, a)
	}
}

type limitedConn struct {
	net.Conn
	done func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	c.done()
	return c.Conn.Close()
}
