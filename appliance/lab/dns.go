package lab

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// DNSAnswer is what a server said.
type DNSAnswer struct {
	Name  string `json:"name"`
	Rcode string `json:"rcode"`
	// Data are the addresses or names of the answer.
	Data []string `json:"data"`
}

// askDNS asks a DNS server for names, one after the other, and prints a DNSAnswer for each.
//
//	dns [--type A] [--tcp] [--timeout 5s] SERVER NAME...
func askDNS(ctx context.Context, flags *flag.FlagSet, args []string, stdout io.Writer) error {
	kind := flags.String("type", "A", "of the records")
	tcp := flags.Bool("tcp", false, "ask over TCP")
	timeout := flags.Duration("timeout", 5*time.Second, "for each name")
	all, err := targets(flags, args, "SERVER and a NAME")
	if err != nil {
		return err
	}
	c := &dns.Client{Timeout: *timeout}
	if *tcp {
		c.Net = "tcp"
	}
	for _, name := range all[1:] {
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(name), dns.StringToType[*kind])
		r, _, err := c.ExchangeContext(ctx, m, net.JoinHostPort(all[0], "53"))
		if err != nil {
			return fmt.Errorf("asking %s for %s: %w", all[0], name, err)
		}
		a := DNSAnswer{Name: name, Rcode: dns.RcodeToString[r.Rcode], Data: []string{}}
		for _, rr := range r.Answer {
			a.Data = append(a.Data, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
		if err := json.NewEncoder(stdout).Encode(a); err != nil {
			return err
		}
	}
	return nil
}

// DNSLoad is what became of many questions.
type DNSLoad struct {
	Asked    int `json:"asked"`
	Answered int `json:"answered"`
	// Wrong answers had another code or another address than the first one.
	Wrong int `json:"wrong"`
	// LongestMillis is the longest that an answer took.
	LongestMillis int64  `json:"longestMillis"`
	Error         string `json:"error,omitempty"`
}

// loadDNS asks a server for one name at a steady rate, without waiting for answers, and prints a DNSLoad. It fails if an answer is
// missing, or is not WANT, an address or a code.
//
//	dnsload [--rate 10000] [--for 3s] [--patience 5s] SERVER NAME WANT
func loadDNS(ctx context.Context, flags *flag.FlagSet, args []string, stdout io.Writer) error {
	rate := flags.Int("rate", 10000, "questions per second")
	limit := flags.Duration("for", 3*time.Second, "so long")
	patience := flags.Duration("patience", 5*time.Second, "for the last answers; so long a Pod's resolver waits")
	all, err := targets(flags, args, "SERVER, a NAME and what to expect")
	if err != nil {
		return err
	}
	if len(all) != 3 {
		return errors.New("dnsload needs a SERVER, a NAME and what to expect")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", net.JoinHostPort(all[0], "53"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	// So that nothing is lost on this side: with the answers of a whole second at once, after a restart.
	roomy(conn.(*net.UDPConn), 16<<20)
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(all[1]), dns.TypeA)
	packet, err := m.Pack()
	if err != nil {
		return err
	}
	l := &dnsLoad{conn: conn, packet: packet, want: all[2], sent: make([]time.Time, 1<<16), out: make([]bool, 1<<16)}
	result := l.run(ctx, *rate, *limit, *patience)
	if err := json.NewEncoder(stdout).Encode(result); err != nil {
		return err
	}
	if result.Answered != result.Asked || result.Wrong > 0 || result.Error != "" {
		return fmt.Errorf("%d of %d questions were answered, %d wrongly: %s", result.Answered, result.Asked, result.Wrong, result.Error)
	}
	return nil
}

// dnsLoad keeps, for each ID, when its question was sent and whether it is out.
type dnsLoad struct {
	conn   net.Conn
	packet []byte
	want   string
	sent   []time.Time
	out    []bool
	result DNSLoad
}

// run sends in ticks of a millisecond and reads in between. One goroutine does both: what it does is known exactly.
// After a while in which it did not run it catches up little by little, so that there is room for the answers.
func (l *dnsLoad) run(ctx context.Context, rate int, limit, patience time.Duration) DNSLoad {
	start := time.Now()
	atOnce := max(50, 2*rate/1000)
	buffer := make([]byte, 4096)
	for ctx.Err() == nil {
		now := time.Now()
		elapsed := now.Sub(start)
		if elapsed < limit {
			for due := min(int(elapsed.Seconds()*float64(rate)), l.result.Asked+atOnce); l.result.Asked < due; {
				id := uint16(l.result.Asked)
				if l.out[id] { // more than 65536 are unanswered
					break
				}
				l.packet[0], l.packet[1] = byte(id>>8), byte(id)
				if _, err := l.conn.Write(l.packet); err != nil {
					l.result.Error = err.Error()
					return l.result
				}
				l.out[id], l.sent[id] = true, now
				l.result.Asked++
			}
		} else if l.result.Answered == l.result.Asked || elapsed > limit+patience {
			return l.result
		}
		_ = l.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		for {
			n, err := l.conn.Read(buffer)
			if err != nil {
				break
			}
			l.answer(buffer[:n])
		}
	}
	return l.result
}

func (l *dnsLoad) answer(b []byte) {
	r := new(dns.Msg)
	if err := r.Unpack(b); err != nil || !l.out[r.Id] {
		l.result.Wrong++
		return
	}
	l.out[r.Id] = false
	l.result.Answered++
	l.result.LongestMillis = max(l.result.LongestMillis, time.Since(l.sent[r.Id]).Milliseconds())
	got := dns.RcodeToString[r.Rcode]
	if len(r.Answer) > 0 {
		if a, ok := r.Answer[0].(*dns.A); ok {
			if addr, ok := netip.AddrFromSlice(a.A.To4()); ok {
				got = addr.String()
			}
		}
	}
	if got != l.want {
		l.result.Wrong++
		l.result.Error = "an answer was " + got
	}
}

// serveDNS answers every question for an A record with one address, as somebody else's DNS server does; of other records it has none.
//
//	dnsserve ADDRESS
func serveDNS(ctx context.Context, flags *flag.FlagSet, args []string, stdout io.Writer) error {
	all, err := targets(flags, args, "ADDRESS")
	if err != nil {
		return err
	}
	a, err := netip.ParseAddr(all[0])
	if err != nil {
		return err
	}
	p, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", ":53")
	if err != nil {
		return err
	}
	roomy(p.(*net.UDPConn), 16<<20)
	s := &dns.Server{PacketConn: p, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		if r.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.IP(a.AsSlice())}}
		}
		_ = w.WriteMsg(m)
	})}
	context.AfterFunc(ctx, func() { _ = s.Shutdown() })
	if _, err := io.WriteString(stdout, ready); err != nil {
		return err
	}
	return s.ActivateAndServe()
}
