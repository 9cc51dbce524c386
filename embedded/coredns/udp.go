package coredns

import (
	"context"
	"errors"
	"hash/maphash"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/zap"

	"weft.network/weft/plugins/clusterdns"
)

const (
	// readers is how many goroutines read from one socket.
	readers = 2
	// batchSize is how many packets one system call moves at most, and packetSize how long they are: queries are short, and
	// answers longer than common paths carry are cut anyway.
	batchSize  = 64
	packetSize = 4096
	// mostWaiting is how many queries may wait for CoreDNS, and mostOfClient how many of one client.
	mostWaiting  = 4096
	mostOfClient = 512
)

// readUDP answers packets until the socket is closed.
func (s *Server) readUDP(sock Socket) {
	b, counts, fair := sock.Batch(batchSize, packetSize), s.counters.shard(), newFair()
	for {
		n, err := b.Read()
		switch {
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded): // told to stop
			return
		case err != nil:
			s.log.Error("reading DNS queries", zap.Stringer("address", sock.Addr), zap.Error(err))
			timer := time.NewTimer(100 * time.Millisecond)
			select {
			case <-timer.C:
			case <-s.closing:
				timer.Stop()
				return
			}
			continue
		}
		s.answerBatch(sock, b, n, counts, fair)
	}
}

// answerBatch answers n packets. A panic costs the rest of the batch, not the node.
func (s *Server) answerBatch(sock Socket, b Batch, n int, counts *shard, fair *fair) {
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("answering DNS queries", zap.Any("panic", r), zap.Stack("stack"))
			_ = b.Flush()
		}
	}()
	start := time.Now()
	fair.begin(start, n == batchSize)
	direct := 0
	c := s.chain.Load()
	for i := range n {
		packet, from := b.Packet(i), b.From(i)
		if !fair.admit(from.Addr()) {
			counts.refused.Add(1)
			continue
		}
		var out []byte
		var reply clusterdns.Reply
		if c != nil && c.direct {
			out, reply = s.names.Answer(packet, b.Room(i))
			if c.autopath && s.mayGoOn(reply, from.Addr()) {
				out = nil
			}
		}
		if out == nil {
			s.slow(sock, from, packet, counts)
			continue
		}
		b.Reply(i, out)
		direct++
		counts.count(udp, familyOf(from.Addr()), reply.Type, byNames, reply.Rcode, len(packet), len(out))
		if s.sample(from.Addr()) {
			var m dns.Msg
			if m.Unpack(packet) == nil {
				s.logQuery(from, "udp", m.Question[0], reply.Rcode, "weft")
			}
		}
	}
	if err := b.Flush(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.log.Debug("an answer could not be sent", zap.Error(err))
	}
	if direct > 0 {
		counts.took(time.Since(start), direct)
	}
}

func familyOf(a netip.Addr) int {
	if a.Is4() || a.Is4In6() {
		return 0
	}
	return 1
}

// slow hands a packet to CoreDNS.
func (s *Server) slow(sock Socket, from netip.AddrPort, packet []byte, counts *shard) {
	r := new(dns.Msg)
	err := r.Unpack(packet)
	w := &responder{udp: sock.UDP, local: sock.Addr, from: from, asked: len(packet), start: time.Now()}
	if err != nil {
		counts.malformed.Add(1)
		if len(packet) >= 12 && packet[2]&0x80 == 0 { // never an answer to an answer
			_ = w.WriteMsg((&dns.Msg{}).SetRcodeFormatError(&dns.Msg{MsgHdr: dns.MsgHdr{Id: uint16(packet[0])<<8 | uint16(packet[1])}}))
		}
		return
	}
	switch dns.DefaultMsgAcceptFunc(header(r)) {
	case dns.MsgIgnore:
		counts.malformed.Add(1)
		return
	case dns.MsgReject, dns.MsgRejectNotImplemented:
		counts.malformed.Add(1)
		rcode := dns.RcodeFormatError
		if r.Opcode != dns.OpcodeQuery && r.Opcode != dns.OpcodeNotify {
			rcode = dns.RcodeNotImplemented
		}
		_ = w.WriteMsg(new(dns.Msg).SetRcode(&dns.Msg{MsgHdr: r.MsgHdr}, rcode))
		return
	}
	if !s.load.enter(from.Addr()) {
		counts.refused.Add(1)
		_ = w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeServerFailure))
		return
	}
	go func() {
		defer s.load.leave(from.Addr())
		s.ask(w, r, udp, counts)
	}()
}

// header is what miekg/dns looks at before it takes a message.
func header(r *dns.Msg) dns.Header {
	h := dns.Header{Id: r.Id, Qdcount: uint16(len(r.Question)), Ancount: uint16(len(r.Answer)), Nscount: uint16(len(r.Ns)), Arcount: uint16(len(r.Extra))}
	h.Bits = uint16(r.Opcode&0xf) << 11
	if r.Response {
		h.Bits |= 1 << 15
	}
	return h
}

// ask lets CoreDNS answer and counts it.
func (s *Server) ask(w *responder, r *dns.Msg, proto int, counts *shard) {
	switch c := s.chain.Load(); {
	case c == nil:
		_ = w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeServerFailure))
	default:
		if m, _ := s.autopath(c, w, r); m != nil {
			_ = w.WriteMsg(m)
		} else {
			c.serve(w, r)
		}
	}
	if o := r.IsEdns0(); o != nil && o.Do() {
		counts.do.Add(1)
	}
	counts.count(proto, familyOf(w.from.Addr()), r.Question[0].Qtype, byCoreDNS, w.rcode, w.asked, w.answered)
	counts.took(time.Since(w.start), 1)
	if s.sample(w.from.Addr()) {
		s.logQuery(w.from, []string{"udp", "tcp"}[proto], r.Question[0], w.rcode, "coredns")
	}
}

// load limits how many queries wait for CoreDNS, so that a client that asks for names nobody answers leaves room for others.
type load struct {
	mu    sync.Mutex
	of    map[netip.Addr]int
	total int
	idle  chan struct{}
}

func (l *load) enter(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[netip.Addr]int{}
	}
	if l.total >= mostWaiting || l.of[a] >= mostOfClient {
		return false
	}
	l.of[a]++
	l.total++
	return true
}

func (l *load) leave(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.of[a]--; l.of[a] == 0 {
		delete(l.of, a)
	}
	if l.total == 0 && l.idle != nil {
		close(l.idle)
		l.idle = nil
	}
}

// wait returns when no query waits any more, or the context ends.
func (l *load) wait(ctx context.Context) {
	l.mu.Lock()
	if l.total == 0 {
		l.mu.Unlock()
		return
	}
	if l.idle == nil {
		l.idle = make(chan struct{})
	}
	idle := l.idle
	l.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// fair keeps one client from filling the socket's buffer, where the packets of all others would be lost: while more comes in
// than is answered, a client that sends more than all others together is not answered, which is quick, and so the buffer empties.
type fair struct {
	seed    maphash.Seed
	since   time.Time
	total   uint32
	count   [512]uint32
	crowded bool
}

// window is over which time clients are compared, and fewPackets how many there must be before anybody is too many.
const (
	window     = 50 * time.Millisecond
	fewPackets = 4 * batchSize
)

func newFair() *fair { return &fair{seed: maphash.MakeSeed()} }

func (f *fair) begin(now time.Time, full bool) {
	f.crowded = full
	if now.Sub(f.since) > window {
		f.since, f.total = now, 0
		clear(f.count[:])
	}
}

func (f *fair) admit(a netip.Addr) bool {
	c := &f.count[maphash.Comparable(f.seed, a)%uint64(len(f.count))]
	*c++
	f.total++
	return !f.crowded || f.total < fewPackets || *c == f.total || *c <= f.total/2
}
