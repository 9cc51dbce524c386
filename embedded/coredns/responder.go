package coredns

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// responder is the dns.ResponseWriter of one query.
type responder struct {
	udp      *net.UDPConn       // nil over TCP
	next     dns.ResponseWriter // nil over UDP
	local    netip.AddrPort
	from     netip.AddrPort
	asked    int
	start    time.Time
	keep     *dns.Msg // set to keep the answer instead of sending it
	rcode    int
	answered int
}

// LocalAddr implements dns.ResponseWriter.
func (w *responder) LocalAddr() net.Addr { return w.addr(w.local) }

// RemoteAddr implements dns.ResponseWriter.
func (w *responder) RemoteAddr() net.Addr { return w.addr(w.from) }

func (w *responder) addr(a netip.AddrPort) net.Addr {
	if w.next != nil {
		return net.TCPAddrFromAddrPort(a)
	}
	return net.UDPAddrFromAddrPort(a)
}

// buffers are for packing answers.
var buffers = sync.Pool{New: func() any { b := make([]byte, packetSize); return &b }}

// WriteMsg implements dns.ResponseWriter.
func (w *responder) WriteMsg(m *dns.Msg) error {
	w.rcode = m.Rcode
	if w.keep != nil {
		*w.keep = *m
		return nil
	}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	b, err := m.PackBuffer(*buffer)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// Write implements dns.ResponseWriter.
func (w *responder) Write(b []byte) (int, error) {
	w.answered = len(b)
	if w.next != nil {
		return w.next.Write(b)
	}
	if w.udp == nil {
		return len(b), nil
	}
	return w.udp.WriteToUDPAddrPort(b, w.from)
}

// Close implements dns.ResponseWriter.
func (w *responder) Close() error {
	if w.next != nil {
		return w.next.Close()
	}
	return nil
}

// TsigStatus implements dns.ResponseWriter.
func (w *responder) TsigStatus() error { return nil }

// TsigTimersOnly implements dns.ResponseWriter.
func (w *responder) TsigTimersOnly(bool) {}

// Hijack implements dns.ResponseWriter.
func (w *responder) Hijack() {}
