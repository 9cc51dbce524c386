package coredns

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Answer is what the server says to one question, for people.
type Answer struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	Rcode   string   `json:"rcode"`
	Records []string `json:"records"`
	// By says where the answer is from.
	By   string        `json:"by"`
	Took time.Duration `json:"took"`
}

// ParseType reads the name of a kind of record.
func ParseType(text string) (uint16, error) {
	if kind, ok := dns.StringToType[strings.ToUpper(text)]; ok {
		return kind, nil
	}
	return 0, fmt.Errorf("%q is not a type of record such as A, AAAA, SRV or PTR", text)
}

// Lookup asks the server itself, as a client at that address would. It is counted like any other query.
func (s *Server) Lookup(name string, kind uint16, from netip.Addr) (Answer, error) {
	if _, ok := dns.IsDomainName(name); !ok {
		return Answer{}, fmt.Errorf("%q is not a name of the DNS", name)
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), kind)
	m.SetEdns0(packetSize, false)
	packet, err := m.Pack()
	if err != nil {
		return Answer{}, fmt.Errorf("asking for %q: %w", name, err)
	}
	a := Answer{Name: dns.Fqdn(name), Type: dns.TypeToString[kind], Records: []string{}}
	start := time.Now()
	reply := new(dns.Msg)
	c := s.chain.Load()
	switch out, brief := s.names.Answer(packet, make([]byte, 0, packetSize)); {
	case c == nil:
		reply.Rcode, a.By = dns.RcodeServerFailure, "nobody: the server is not set up"
	case out != nil && c.direct && !(c.autopath && s.mayGoOn(brief, from)):
		if err := reply.Unpack(out); err != nil {
			return a, fmt.Errorf("reading the answer: %w", err)
		}
		a.By = "the picture of the cluster"
	default:
		w := &responder{from: netip.AddrPortFrom(from, 0), keep: reply}
		if found, tried := s.autopath(c, w, m); found != nil {
			reply = found
			if a.By = s.source(c, tried); tried != a.Name {
				a.By = "autopath, which tried " + tried + ": " + a.By
			}
		} else {
			c.serve(w, m)
			a.By = s.source(c, a.Name)
		}
	}
	a.Took, a.Rcode = time.Since(start), rcodeName(reply.Rcode)
	for _, rr := range reply.Answer {
		a.Records = append(a.Records, strings.Join(strings.Fields(rr.String()), " "))
	}
	return a, nil
}

// source says who answers for a name that does not take the short way.
func (s *Server) source(c *chain, name string) string {
	name = strings.ToLower(name)
	zone := ""
	for _, z := range c.zones {
		if dns.IsSubDomain(z, name) && len(z) > len(zone) {
			zone = z
		}
	}
	switch {
	case zone != "":
		return "the server block " + zone
	case dns.IsSubDomain(s.names.Domain(), name):
		return "the picture of the cluster, by CoreDNS"
	case !s.names.Synced() && strings.HasSuffix(name, ".arpa."):
		return "nobody: the cluster was not heard yet"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.settings.Upstreams) == 0 {
		return "nobody: there is no upstream"
	}
	var list []string
	for _, u := range s.settings.Upstreams {
		list = append(list, u.String())
	}
	return "the cache, or upstream " + strings.Join(list, ", ")
}
