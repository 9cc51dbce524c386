package coredns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"weft.network/weft/plugins/clusterdns"
)

// autopath tries a Pod's search list in its place. It does what the plugin of that name does, which is not linked: that one asks
// only the main server, not the user's further blocks, and believes the API about whose address it is.
//
// The answer is that of the first name that exists, behind a CNAME from the name that was asked for; after any failure it is the
// answer to that name itself, and the client goes on by itself. tried is the name that the answer is about. nil means that this
// question is none that a search list made.
func (s *Server) autopath(c *chain, w *responder, r *dns.Msg) (m *dns.Msg, tried string) {
	if !c.autopath || len(r.Question) != 1 {
		return nil, ""
	}
	q := r.Question[0]
	base, ok := s.searched(q, w.from.Addr())
	if o := r.IsEdns0(); !ok || o != nil && o.Do() { // who checks signatures must not be given names of ours
		return nil, ""
	}
	first := c.keep(w, r, q.Name)
	if first.Rcode != dns.RcodeNameError {
		return first, q.Name
	}
	for _, suffix := range slices.Concat([]string{"svc." + s.names.Domain(), s.names.Domain()}, c.search, []string{""}) {
		name := base + dns.Fqdn(suffix)
		if suffix == "" {
			name = base
		}
		if _, ok := dns.IsDomainName(name); !ok {
			continue // too long to be asked for
		}
		switch m := c.keep(w, r, name); m.Rcode {
		case dns.RcodeNameError:
		case dns.RcodeSuccess:
			s.counters.autopath.Add(1)
			m.Question = []dns.Question{q}
			if len(m.Answer) > 0 {
				header := dns.RR_Header{Name: q.Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: m.Answer[0].Header().Ttl}
				m.Answer = slices.Concat([]dns.RR{&dns.CNAME{Hdr: header, Target: name}}, m.Answer)
			}
			return (&request.Request{W: w, Req: r}).Scrub(m), name
		default:
			return first, q.Name
		}
	}
	return first, q.Name
}

// mayGoOn reports whether a denial is one for autopath to look behind.
func (s *Server) mayGoOn(reply clusterdns.Reply, from netip.Addr) bool {
	return reply.Rcode == dns.RcodeNameError && reply.Namespace != nil && (reply.Type == dns.TypeA || reply.Type == dns.TypeAAAA) &&
		strings.EqualFold(string(reply.Namespace), s.namespace(from.Unmap()))
}

// searched returns what a Pod was asked for, with the dot at the end, if its resolver made this question of it with the first name
// of its search list, NAMESPACE.svc.DOMAIN.
func (s *Server) searched(q dns.Question, from netip.Addr) (base string, ok bool) {
	if q.Qclass != dns.ClassINET || q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA {
		return "", false
	}
	namespace := s.namespace(from.Unmap())
	suffix := namespace + ".svc." + s.names.Domain()
	if cut := len(q.Name) - len(suffix); namespace != "" && cut > 1 && q.Name[cut-1] == '.' && strings.EqualFold(q.Name[cut:], suffix) {
		return q.Name[:cut], true
	}
	return "", false
}

// keep answers a query as if it had been for that name.
func (c *chain) keep(w *responder, r *dns.Msg, name string) *dns.Msg {
	q := r.Copy()
	q.Question[0].Name = name
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}}
	c.serve(&responder{next: w.next, local: w.local, from: w.from, keep: m}, q)
	if !m.Response { // nobody has answered
		m.SetRcode(r, dns.RcodeServerFailure)
	}
	return m
}
