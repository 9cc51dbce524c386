package coredns

import (
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// world is an upstream that knows some names, with their addresses of IPv4, and remembers what it was asked.
type world struct {
	mu    sync.Mutex
	names map[string]string // "" breaks down
	asked []string
}

func (o *world) answer(w dns.ResponseWriter, r *dns.Msg) {
	q := r.Question[0]
	o.mu.Lock()
	o.asked = append(o.asked, q.Name+" "+dns.TypeToString[q.Qtype])
	address, known := o.names[q.Name]
	o.mu.Unlock()
	m := new(dns.Msg)
	m.SetReply(r)
	switch {
	case !known:
		m.Rcode = dns.RcodeNameError
	case address == "":
		m.Rcode = dns.RcodeServerFailure
	case q.Qtype == dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 77}, A: net.ParseIP(address)}}
	}
	_ = w.WriteMsg(m)
}

// all returns what was asked since the last time.
func (o *world) all() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.asked
	o.asked = nil
	slices.Sort(out)
	return slices.Compact(out)
}

func newWorld(t *testing.T, names map[string]string) (*site, *world) {
	o := &world{names: names}
	s := newSite(t, upstream(t, o.answer))
	set := s.settings4(s.settings.Upstreams...)
	set.Autopath, set.Search = true, []string{"office.example", "."}
	if err := s.Configure(set); err != nil {
		t.Fatal(err)
	}
	return s, o
}

// TestAutopath: one question for an outside name has the answer behind a CNAME, as CoreDNS' plugin gives it, over both protocols.
func TestAutopath(t *testing.T) {
	s, o := newWorld(t, map[string]string{"www.example.org.": "192.0.2.80", "intra.office.example.": "192.0.2.81", "tellme.": "192.0.2.82"})
	const first = ".default.svc.cluster.local."
	for _, c := range []struct{ name, tried, address string }{
		{"www.example.org", "www.example.org.", "192.0.2.80"},
		{"WWW.example.org", "WWW.example.org.", "192.0.2.80"},
		{"intra", "intra.office.example.", "192.0.2.81"},
		{"tellme", "tellme.", "192.0.2.82"},
		{"web.default", "web.default.svc.cluster.local.", "10.96.0.20"},
		{"web.default.svc", "web.default.svc.cluster.local.", "10.96.0.20"},
		{"web.default.svc.cluster.local", "web.default.svc.cluster.local.", "10.96.0.20"},
	} {
		for _, proto := range []string{"udp", "tcp"} {
			r := s.ask(proto, c.name+first, dns.TypeA)
			if r.Rcode != dns.RcodeSuccess || len(r.Answer) != 2 || r.Question[0].Name != c.name+first {
				t.Errorf("%s over %s: %v", c.name, proto, r)
				continue
			}
			alias, ok1 := r.Answer[0].(*dns.CNAME)
			a, ok2 := r.Answer[1].(*dns.A)
			if !ok1 || !ok2 || alias.Hdr.Name != c.name+first || alias.Target != c.tried || !strings.EqualFold(a.Hdr.Name, c.tried) || a.A.String() != c.address {
				t.Errorf("%s over %s: %v", c.name, proto, r.Answer)
			}
		}
	}
	o.all()
	// No address of this family: that is the answer, as of the name itself, and no denial.
	if r := s.ask("udp", "www.example.org"+first, dns.TypeAAAA); r.Rcode != dns.RcodeSuccess || len(r.Answer) != 0 {
		t.Errorf("AAAA: %v", r)
	}
	if got, want := o.all(), []string{"www.example.org. AAAA", "www.example.org.office.example. AAAA"}; !slices.Equal(got, want) {
		t.Errorf("the upstream was asked %v, want %v", got, want)
	}
	if n := s.counters.autopath.Load(); n != 15 {
		t.Errorf("counted %d", n)
	}
	answer, err := s.Lookup("www.example.org"+first, dns.TypeA, netip.MustParseAddr("127.0.0.1"))
	if err != nil || len(answer.Records) != 2 || !strings.HasPrefix(answer.By, "autopath, which tried www.example.org.: ") {
		t.Errorf("Lookup: %+v, %v", answer, err)
	}
}

// TestAutopathStandsAside: what is not made by a search list, or fails on the way, is answered as without it.
func TestAutopathStandsAside(t *testing.T) {
	s, o := newWorld(t, map[string]string{"www.example.org.": "192.0.2.80", "broken.office.example.": "", "broken.": "192.0.2.83"})
	denied := func(name string, kind uint16) {
		t.Helper()
		if r := s.ask("udp", name, kind); r.Rcode != dns.RcodeNameError || len(r.Answer) != 0 || len(r.Ns) != 1 {
			t.Errorf("%s: %v", name, r)
		}
	}
	s.expect("web.default.svc.cluster.local.", "10.96.0.20")
	denied("www.example.org.svc.cluster.local.", dns.TypeA)       // not the first name of the list
	denied("www.example.org.cluster.local.", dns.TypeA)           // neither
	denied("www.example.org.other.svc.cluster.local.", dns.TypeA) // another namespace
	denied("www.example.org.default.svc.cluster.local.", dns.TypeSRV)
	if got := o.all(); len(got) != 0 {
		t.Errorf("the upstream was asked %v", got)
	}
	denied("nobody.example.default.svc.cluster.local.", dns.TypeA) // there is none at the end of the list
	denied("broken.default.svc.cluster.local.", dns.TypeA)         // a later name must not take the place of one that could not be asked for
	o.all()

	m := new(dns.Msg)
	m.SetQuestion("www.example.org.default.svc.cluster.local.", dns.TypeA)
	m.SetEdns0(1232, true)
	if r, err := dns.Exchange(m, s.addr.String()); err != nil || r.Rcode != dns.RcodeNameError {
		t.Errorf("who checks signatures got %v, %v", r, err)
	}
	s.stranger.Store(true) // nobody knows whose address it is
	denied("www.example.org.default.svc.cluster.local.", dns.TypeA)
	if got := o.all(); len(got) != 0 {
		t.Errorf("the upstream was asked %v", got)
	}
	s.stranger.Store(false)
	if err := s.Configure(s.settings4(s.settings.Upstreams...)); err != nil {
		t.Fatal(err)
	}
	denied("www.example.org.default.svc.cluster.local.", dns.TypeA) // it is off
}

// TestAutopathFindsServerBlocks: the plugin autopath does not look there.
func TestAutopathFindsServerBlocks(t *testing.T) {
	s, _ := newWorld(t, nil)
	corp := upstream(t, says("192.0.2.90", 60))
	set := s.settings
	set.Servers = []Snippet{{"corp", "corp.example {\n forward . " + corp.String() + "\n}\n"}}
	if err := s.Configure(set); err != nil {
		t.Fatal(err)
	}
	s.expect("git.corp.example.default.svc.cluster.local.", "192.0.2.90")
}

// TestAutopathCountsItsQuestionOnce makes sure that what is tried on the way is not counted as if clients had asked.
func TestAutopathCountsItsQuestionOnce(t *testing.T) {
	s, _ := newWorld(t, map[string]string{"www.example.org.": "192.0.2.80"})
	s.ask("udp", "www.example.org.default.svc.cluster.local.", dns.TypeA)
	st := s.Stats()
	for end := time.Now().Add(patience); st.Queries < 1 && time.Now().Before(end); st = s.Stats() {
		runtime.Gosched()
	}
	if st.Queries != 1 || st.Direct != 0 || st.Rcodes["NOERROR"] != 1 {
		t.Errorf("counted %+v", st)
	}
}
