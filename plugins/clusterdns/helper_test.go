package clusterdns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"weft.network/weft/appliance/model"
)

// world is a handler with the objects behind it.
type world struct {
	names   *Names
	handler *Handler
	objects model.Snapshot
}

// stanza is the directive as the daemon writes it.
const stanza = "weft cluster.local in-addr.arpa ip6.arpa {\n pods insecure\n ttl 5\n fallthrough in-addr.arpa ip6.arpa\n}\n"

func newWorld(t testing.TB, text string) *world {
	t.Helper()
	names, err := New("cluster.local", 5)
	if err != nil {
		t.Fatal(err)
	}
	Use(names)
	w := &world{names: names}
	c := caddy.NewTestController("dns", text)
	if err := Setup(c); err != nil {
		t.Fatal(err)
	}
	w.handler = handlerOf(c)
	w.handler.kubernetes.Next = test.NextHandler(dns.RcodeNameError, nil)
	w.handler.kubernetes.Upstream = upstreamFake{}
	w.objects = model.Snapshot{
		Services: map[model.ServiceKey]*model.Service{}, Slices: map[model.SliceKey]*model.EndpointSlice{}, Pods: map[model.PodKey]*model.Pod{},
	}
	return w
}

// upstreamFake stands for the rest of the DNS.
type upstreamFake struct{}

func (upstreamFake) Lookup(_ context.Context, _ request.Request, name string, typ uint16) (*dns.Msg, error) {
	m := new(dns.Msg)
	if typ == dns.TypeA {
		m.Answer = []dns.RR{test.A(name + " 5 IN A 192.0.2.80")}
	}
	return m, nil
}

func (w *world) service(s *model.Service) {
	w.objects.Services[s.Key()] = s
}

func (w *world) slice(s *model.EndpointSlice) { w.objects.Slices[s.Key()] = s }

func (w *world) publish() {
	s := w.objects
	s.Revision++
	w.objects.Revision = s.Revision
	s.Services, s.Slices, s.Pods = cloneMap(s.Services), cloneMap(s.Slices), cloneMap(s.Pods)
	w.names.Update(&s)
}

func cloneMap[K comparable, V any](m map[K]V) map[K]V {
	out := make(map[K]V, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// slow asks the handler.
func (w *world) slow(t testing.TB, r *dns.Msg) *dns.Msg {
	t.Helper()
	rec := dnstest.NewRecorder(&test.ResponseWriter{})
	rcode, err := w.handler.ServeDNS(context.Background(), request.NewScrubWriter(r, rec), r.Copy())
	if err != nil {
		t.Fatalf("%s: %v", r.Question[0].String(), err)
	}
	if rec.Msg == nil { // the server writes these
		m := new(dns.Msg)
		m.SetRcode(r, rcode)
		return m
	}
	return rec.Msg
}

// ask asks both paths and fails when they differ.
func (w *world) ask(t testing.TB, name string, kind uint16) string {
	t.Helper()
	r := new(dns.Msg)
	r.SetQuestion(name, kind)
	return w.exchange(t, r)
}

func (w *world) exchange(t testing.TB, r *dns.Msg) string {
	t.Helper()
	packet, err := r.Pack()
	if err != nil {
		t.Fatal(err)
	}
	want := text(w.slow(t, r))
	out, reply := w.names.Answer(packet, make([]byte, 0, 4096))
	if out == nil {
		return want
	}
	got := new(dns.Msg)
	if err := got.Unpack(out); err != nil {
		t.Fatalf("%s: the fast answer cannot be read: %v", r.Question[0].String(), err)
	}
	if text(got) != want {
		t.Fatalf("%s: the fast path says\n%s\nand the kubernetes plugin\n%s", r.Question[0].String(), text(got), want)
	}
	if got.Rcode != reply.Rcode || r.Question[0].Qtype != reply.Type {
		t.Fatalf("%s: counted as %+v", r.Question[0].String(), reply)
	}
	return want
}

// text prints a message with its records sorted, and without what no two packets share.
func text(m *dns.Msg) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s qr=%v aa=%v tc=%v rd=%v ra=%v cd=%v id=%d\n", dns.RcodeToString[m.Rcode], m.Response, m.Authoritative, m.Truncated, m.RecursionDesired, m.RecursionAvailable, m.CheckingDisabled, m.Id)
	for _, section := range []struct {
		name string
		rrs  []dns.RR
	}{{"", m.Answer}, {"authority ", m.Ns}, {"extra ", m.Extra}} {
		var lines []string
		for _, rr := range section.rrs {
			line := strings.Join(strings.Fields(rr.String()), " ")
			if o, ok := rr.(*dns.OPT); ok {
				line = fmt.Sprintf("OPT %d do=%v", o.UDPSize(), o.Do())
			}
			lines = append(lines, section.name+line)
		}
		slices.Sort(lines)
		for _, l := range lines {
			b.WriteString(l + "\n")
		}
	}
	return b.String()
}

func handlerOf(c *caddy.Controller) *Handler {
	for _, p := range dnsserver.GetConfig(c).Plugin {
		if h, ok := p(nil).(*Handler); ok {
			return h
		}
	}
	return nil
}

var _ plugin.Handler = (*Handler)(nil)

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}
