package clusterdns

import (
	"fmt"
	"math/rand"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"weft.network/weft/appliance/model"
)

func packetOf(t testing.TB, name string, kind uint16) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hot are the questions that must not need the whole of CoreDNS.
var hot = []struct {
	name string
	kind uint16
}{
	{"web.default.svc.cluster.local.", dns.TypeA},
	{"web.default.svc.cluster.local.", dns.TypeAAAA},
	{"single.default.svc.cluster.local.", dns.TypeAAAA},
	{"db.default.svc.cluster.local.", dns.TypeA},
	{"db-0.db.default.svc.cluster.local.", dns.TypeAAAA},
	{"_http._tcp.web.default.svc.cluster.local.", dns.TypeSRV},
	{"20.0.96.10.in-addr.arpa.", dns.TypePTR},
	{"6.2.244.10.in-addr.arpa.", dns.TypePTR},
	{"example.org.default.svc.cluster.local.", dns.TypeA},
	{"a.b.example.org.default.svc.cluster.local.", dns.TypeAAAA},
	{"example.org.svc.cluster.local.", dns.TypeA},
	{"example.org.cluster.local.", dns.TypeHTTPS},
	{"nope.default.svc.cluster.local.", dns.TypeA},
}

func TestHotNamesNeedNoMemory(t *testing.T) {
	w := specWorld(t)
	out := make([]byte, 0, 4096)
	for _, h := range hot {
		packet := packetOf(t, h.name, h.kind)
		if reply, _ := w.names.Answer(packet, out); reply == nil {
			t.Errorf("%s %s went to CoreDNS", h.name, dns.TypeToString[h.kind])
		}
		if n := testing.AllocsPerRun(100, func() { w.names.Answer(packet, out) }); n > 0 {
			t.Errorf("%s %s: %v allocations", h.name, dns.TypeToString[h.kind], n)
		}
	}
}

// TestClientsAreAnsweredInTheirForm compares both paths for what a client may put around its question.
func TestClientsAreAnsweredInTheirForm(t *testing.T) {
	w := specWorld(t)
	for _, h := range hot {
		for i, form := range []func(*dns.Msg){
			func(m *dns.Msg) { m.SetEdns0(1232, false) }, func(m *dns.Msg) { m.SetEdns0(100, true) }, func(m *dns.Msg) { m.SetEdns0(65535, true) },
			func(m *dns.Msg) { m.RecursionDesired = false }, func(m *dns.Msg) { m.CheckingDisabled = true }, func(m *dns.Msg) { m.AuthenticatedData = true },
			func(m *dns.Msg) { m.Question[0].Name = strings.ToUpper(m.Question[0].Name) },
			func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(0) },
			func(m *dns.Msg) {
				m.SetEdns0(4096, false)
				o := m.IsEdns0()
				o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
			},
		} {
			m := new(dns.Msg)
			m.SetQuestion(h.name, h.kind)
			form(m)
			t.Run(fmt.Sprint(h.name, " ", i), func(t *testing.T) { w.exchange(t, m) })
		}
	}
}

// TestBigAnswersAreCut makes sure that what does not fit is left to the path that knows how to say so.
func TestBigAnswersAreCut(t *testing.T) {
	w := specWorld(t)
	slice := &model.EndpointSlice{Namespace: "default", Name: "big-a", Service: "big"}
	for i := range 60 {
		slice.Endpoints = append(slice.Endpoints, model.Endpoint{Addresses: addrs(fmt.Sprintf("10.250.0.%d", i+1)), Ready: true})
	}
	w.service(&model.Service{Namespace: "default", Name: "big", Type: "ClusterIP", Headless: true})
	w.slice(slice)
	w.publish()
	if got := w.ask(t, "big.default.svc.cluster.local.", dns.TypeA); !strings.Contains(got, "tc=true") {
		t.Errorf("60 addresses in 512 bytes: %s", got)
	}
	m := new(dns.Msg)
	m.SetQuestion("big.default.svc.cluster.local.", dns.TypeA)
	m.SetEdns0(4096, false)
	if got := w.exchange(t, m); strings.Count(got, " IN A ") != 60 || !strings.Contains(got, "tc=false") {
		t.Errorf("60 addresses in 4096 bytes: %s", got)
	}
}

// TestClientsSpread makes sure that the first address is not always the same.
func TestClientsSpread(t *testing.T) {
	w := specWorld(t)
	packet, first := packetOf(t, "db.default.svc.cluster.local.", dns.TypeA), map[string]int{}
	for range 200 {
		out, _ := w.names.Answer(packet, nil)
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Fatal(err)
		}
		first[m.Answer[0].(*dns.A).A.String()]++
	}
	if len(first) != 2 || first["10.244.1.5"] < 50 || first["10.244.2.6"] < 50 {
		t.Errorf("first addresses: %v", first)
	}
}

// TestAlwaysAsThePlugin changes a cluster at random and compares both paths after each change, on names that exist, existed and
// never will.
func TestAlwaysAsThePlugin(t *testing.T) {
	r := rand.New(rand.NewSource(5))
	w := newWorld(t, stanza)
	name := func() string { return []string{"a", "b", "c-1", "d"}[r.Intn(4)] }
	space := func() string { return []string{"default", "kube-system", "x"}[r.Intn(3)] }
	addr := func() netip.Addr {
		if r.Intn(2) == 0 {
			return netip.AddrFrom4([4]byte{10, 0, byte(r.Intn(2)), byte(r.Intn(6))})
		}
		return netip.AddrFrom16([16]byte{0xfd, 15: byte(r.Intn(6))})
	}
	for range 400 {
		switch r.Intn(5) {
		case 0:
			delete(w.objects.Services, model.ServiceKey{Namespace: space(), Name: name()})
		case 1:
			delete(w.objects.Slices, model.SliceKey{Namespace: space(), Name: name()})
		case 2, 3:
			s := &model.Service{Namespace: space(), Name: name(), Type: "ClusterIP", Headless: r.Intn(2) == 0, PublishNotReady: r.Intn(3) == 0}
			if !s.Headless {
				s.ClusterIPs = []netip.Addr{addr()}
				if other := addr(); other.Is4() != s.ClusterIPs[0].Is4() { // one per family
					s.ClusterIPs = append(s.ClusterIPs, other)
				}
				s.Ports = []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}
			}
			w.service(s)
		default:
			s := &model.EndpointSlice{Namespace: space(), Name: name(), Service: name(), Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 80}}}
			for range r.Intn(4) {
				e := model.Endpoint{Addresses: []netip.Addr{addr()}, Ready: r.Intn(4) > 0}
				if r.Intn(2) == 0 {
					e.Hostname = name()
				}
				s.Endpoints = append(s.Endpoints, e)
			}
			w.slice(s)
		}
		w.publish()
		for range 20 {
			kind := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeHTTPS, dns.TypeTXT}[r.Intn(5)]
			base := name() + "." + space() + ".svc.cluster.local."
			switch r.Intn(5) {
			case 0:
				w.ask(t, base, kind)
			case 1:
				w.ask(t, name()+"."+base, kind)
			case 2:
				w.ask(t, "_http._tcp."+base, kind)
			case 3:
				w.ask(t, string(dashed(nil, addr()))+"."+base, kind)
			default:
				reverse, err := dns.ReverseAddr(addr().String())
				if err != nil {
					t.Fatal(err)
				}
				w.ask(t, reverse, dns.TypePTR)
			}
		}
	}
	checkIndexes(t, w)
}

// checkIndexes compares the indexes, after all their changes, with those made at once.
func checkIndexes(t *testing.T, w *world) {
	t.Helper()
	grown := w.names.current.Load()
	fresh := newWorld(t, stanza)
	fresh.objects = w.objects
	fresh.publish()
	made := fresh.names.current.Load()
	for _, pair := range [][2]map[string]string{{flat(grown.slices), flat(made.slices)}, {flat(grown.reverse), flat(made.reverse)}, {flat(grown.pods), flat(made.pods)}} {
		if fmt.Sprint(pair[0]) != fmt.Sprint(pair[1]) {
			t.Errorf("an index grew to\n%v\nmade at once it is\n%v", pair[0], pair[1])
		}
	}
	if fmt.Sprint(grown.namespaces) != fmt.Sprint(made.namespaces) {
		t.Errorf("namespaces %v, made at once %v", grown.namespaces, made.namespaces)
	}
}

func flat[K comparable, V any](t table[K, V]) map[string]string {
	out := map[string]string{}
	for _, m := range t.shard {
		for k, v := range m {
			switch v := any(v).(type) {
			case []owner:
				out[fmt.Sprint(k)] = fmt.Sprint(len(v))
			case []*model.EndpointSlice:
				for _, s := range v {
					out[fmt.Sprint(k)] += s.Name + " "
				}
			default:
				out[fmt.Sprint(k)] = "a Pod"
			}
		}
	}
	return out
}

// FuzzAnswer makes sure that no packet stops the fast path, and that what it answers, CoreDNS answers too.
func FuzzAnswer(f *testing.F) {
	w := specWorld(f)
	for _, h := range hot {
		f.Add(packetOf(f, h.name, h.kind))
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, packet []byte) {
		out, _ := w.names.Answer(packet, make([]byte, 0, 512))
		if out == nil {
			return
		}
		r := new(dns.Msg)
		if err := r.Unpack(packet); err != nil {
			t.Fatalf("answered a packet that nobody can read: %v", err)
		}
		w.exchange(t, r)
	})
}

// bigNames is a cluster of that many Services with one endpoint each.
func bigNames(b *testing.B, n int) (*world, *model.Snapshot) {
	w := newWorld(b, stanza)
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 100, byte(i >> 8), byte(i)})
		w.service(&model.Service{Namespace: "default", Name: fmt.Sprint("svc-", i), Type: "ClusterIP", ClusterIPs: []netip.Addr{a}, Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}})
		w.slice(&model.EndpointSlice{Namespace: "default", Name: fmt.Sprint("svc-", i, "-a"), Service: fmt.Sprint("svc-", i), Endpoints: []model.Endpoint{{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})}, Ready: true}}})
	}
	w.publish()
	return w, w.names.current.Load().snapshot
}

func BenchmarkAnswer(b *testing.B) {
	w, _ := bigNames(b, 10000)
	packets := make([][]byte, 10000)
	for i := range packets {
		packets[i] = packetOf(b, fmt.Sprintf("svc-%d.default.svc.cluster.local.", i), dns.TypeA)
	}
	out := make([]byte, 0, 4096)
	i := 0
	for b.Loop() {
		w.names.Answer(packets[i%len(packets)], out)
		i++
	}
}

func BenchmarkUpdateOneOf10000(b *testing.B) {
	w, s := bigNames(b, 10000)
	for b.Loop() {
		next := *s
		next.Slices = cloneMap(s.Slices)
		key := model.SliceKey{Namespace: "default", Name: "svc-77-a"}
		changed := *next.Slices[key]
		next.Slices[key] = &changed
		b.StartTimer()
		w.names.Update(&next)
		b.StopTimer()
		s = &next
		b.StartTimer()
	}
}
