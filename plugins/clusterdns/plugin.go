package clusterdns

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"weft.network/weft/appliance/model"
)

// Name is the directive in a Corefile; its arguments and options are those of the directive kubernetes.
const Name = "weft"

// inUse are the names that the next server will answer. CoreDNS' registry of plugins belongs to the process, and so does this.
var inUse atomic.Pointer[Names]

// Use makes servers that are set up from now on answer these names.
func Use(n *Names) { inUse.Store(n) }

// Setup reads the directive.
func Setup(c *caddy.Controller) error {
	c.Next()
	k, err := kubernetes.ParseStanza(c)
	if err != nil {
		return plugin.Error(Name, err)
	}
	h := &Handler{Names: inUse.Load(), kubernetes: k}
	if h.Names == nil {
		return plugin.Error(Name, c.Err("no names of a cluster are given"))
	}
	k.APIConn = conn{h.Names}
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		k.Next = next
		return h
	})
	return nil
}

// Handler answers for the cluster: with the kubernetes plugin, and where that depends on knowing the server's own addresses, by itself.
type Handler struct {
	Names      *Names
	kubernetes *kubernetes.Kubernetes
}

// Name implements plugin.Handler. It is not "kubernetes": that name is taken.
func (h *Handler) Name() string { return Name }

// ServeDNS implements plugin.Handler.
func (h *Handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w, Req: r}
	zone := plugin.Zones(h.kubernetes.Zones).Matches(state.Name())
	if zone == "" {
		return plugin.NextOrFailure(h.Name(), h.kubernetes.Next, ctx, w, r)
	}
	if !h.Names.Synced() {
		return dns.RcodeServerFailure, nil
	}
	if zone == h.Names.domain {
		if m := h.servers(&state); m != nil {
			return dns.RcodeSuccess, w.WriteMsg(m)
		}
	}
	return h.kubernetes.ServeDNS(ctx, w, r)
}

// servers answers questions about the name servers of the domain, which the kubernetes plugin finds by its own Pod; nil for
// all other questions.
func (h *Handler) servers(state *request.Request) *dns.Msg {
	domain, name, kind := h.Names.domain, state.Name(), state.QType()
	target, addrs := h.Names.server()
	m := new(dns.Msg)
	m.SetReply(state.Req)
	m.Authoritative = true
	if name == domain && kind == dns.TypeNS {
		if len(addrs) == 0 {
			return nil
		}
		m.Answer = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: state.QName(), Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: h.Names.ttl}, Ns: target}}
		m.Extra = append(addressRecords(target, dns.TypeA, h.Names.ttl, addrs), addressRecords(target, dns.TypeAAAA, h.Names.ttl, addrs)...)
		return m
	}
	if name != "ns.dns."+domain || kind != dns.TypeA && kind != dns.TypeAAAA {
		return nil
	}
	if m.Answer = addressRecords(state.QName(), kind, h.Names.ttl, addrs); len(m.Answer) == 0 {
		return nil
	}
	return m
}

// The Service by which Pods find the cluster's DNS, whoever serves it.
const (
	ServiceNamespace = "kube-system"
	ServiceName      = "kube-dns"
)

// server names the DNS server of the domain, with its addresses: those of its Service, or without one those it listens at.
func (n *Names) server() (name string, addrs []netip.Addr) {
	if p := n.current.Load(); p != nil {
		if s := p.snapshot.Services[model.ServiceKey{Namespace: ServiceNamespace, Name: ServiceName}]; s != nil && len(s.ClusterIPs) > 0 {
			return strings.Join([]string{ServiceName, ServiceNamespace, "svc", n.domain}, "."), s.ClusterIPs
		}
	}
	return "ns.dns." + n.domain, *n.nodeDNS.Load()
}

func addressRecords(name string, kind uint16, ttl uint32, addrs []netip.Addr) (out []dns.RR) {
	for _, a := range addrs {
		header := dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
		switch {
		case kind == dns.TypeA && a.Is4():
			out = append(out, &dns.A{Hdr: header, A: net.IP(a.AsSlice())})
		case kind == dns.TypeAAAA && a.Is6():
			out = append(out, &dns.AAAA{Hdr: header, AAAA: net.IP(a.AsSlice())})
		}
	}
	return out
}
