package conntrack

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	ct "github.com/ti-mo/conntrack"

	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/model"
)

// entry is one connection to put into the kernel.
type entry struct {
	name     string
	proto    model.Protocol
	src, dst string // address:port
	backend  string // address:port; equal to dst if it is not translated
}

var entries = []entry{
	{"dns to a", model.UDP, "10.42.0.5:1000", "10.96.0.10:53", "10.42.0.7:53"},
	{"dns to b", model.UDP, "10.42.0.5:1001", "10.96.0.10:53", "10.42.0.8:53"},
	{"dns to nobody", model.UDP, "10.42.0.5:1002", "10.96.0.10:53", "10.96.0.10:53"},
	{"dns over tcp", model.TCP, "10.42.0.5:1000", "10.96.0.10:53", "10.42.0.7:53"},
	{"dns, IPv6", model.UDP, "[fd00::5]:1000", "[fd00:96::10]:53", "[fd00::7]:53"},
	{"host port", model.UDP, "192.168.9.254:1000", "192.168.9.1:5353", "10.42.0.7:53"},
	{"sctp", model.SCTP, "10.42.0.5:1000", "10.96.0.11:99", "10.42.0.9:99"},
}

// fill puts entries into the table of a namespace.
func fill(t testing.TB, ns *netnstest.NS, entries []entry) {
	t.Helper()
	conn, err := ct.Dial(&netlink.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, e := range entries {
		src, dst, backend := netip.MustParseAddrPort(e.src), netip.MustParseAddrPort(e.dst), netip.MustParseAddrPort(e.backend)
		f := ct.NewFlow(uint8(e.proto), ct.StatusConfirmed, src.Addr(), dst.Addr(), src.Port(), dst.Port(), 300, 0)
		f.TupleReply.IP.SourceAddress, f.TupleReply.Proto.SourcePort = backend.Addr(), backend.Port()
		if e.proto == model.TCP {
			f.ProtoInfo.TCP = &ct.ProtoInfoTCP{State: 3}
		}
		if err := conn.Create(f); err != nil {
			t.Fatalf("%s: %v", e.name, err)
		}
	}
}

// left lists the entries that are still there.
func left(t testing.TB, ns *netnstest.NS, all []entry) (names []string) {
	t.Helper()
	conn, err := ct.Dial(&netlink.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	flows, err := conn.Dump(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		for _, f := range flows {
			src := netip.AddrPortFrom(f.TupleOrig.IP.SourceAddress, f.TupleOrig.Proto.SourcePort)
			dst := netip.AddrPortFrom(f.TupleOrig.IP.DestinationAddress, f.TupleOrig.Proto.DestinationPort)
			if src.String() == e.src && dst.String() == e.dst && f.TupleOrig.Proto.Protocol == uint8(e.proto) {
				names = append(names, e.name)
			}
		}
	}
	return names
}

func TestForget(t *testing.T) {
	addr := netip.MustParseAddr
	for _, c := range []struct {
		name    string
		filters []Filter
		gone    []string
	}{
		{"a backend", []Filter{{Proto: model.UDP, Dst: addr("10.96.0.10"), DstPort: 53, Backend: addr("10.42.0.7"), BackendPort: 53}}, []string{"dns to a"}},
		{"a backend of any Service", []Filter{{Proto: model.UDP, Backend: addr("10.42.0.7")}}, []string{"dns to a", "host port"}},
		{"a backend, any protocol", []Filter{{Backend: addr("10.42.0.7")}}, []string{"dns to a", "dns over tcp", "host port"}},
		{"a Service", []Filter{{Proto: model.UDP, Dst: addr("10.96.0.10"), DstPort: 53}}, []string{"dns to a", "dns to b", "dns to nobody"}},
		{"what began before there was a backend", []Filter{{Proto: model.UDP, Dst: addr("10.96.0.10"), DstPort: 53, Untranslated: true}}, []string{"dns to nobody"}},
		{"IPv6", []Filter{{Proto: model.UDP, Dst: addr("fd00:96::10"), DstPort: 53}}, []string{"dns, IPv6"}},
		{"a host port on any address", []Filter{{Proto: model.UDP, DstPort: 5353}}, []string{"host port"}},
		{"a source", []Filter{{Src: addr("fd00::5")}}, []string{"dns, IPv6"}},
		{"several at once", []Filter{{Proto: model.UDP, Backend: addr("10.42.0.8")}, {Proto: model.SCTP, Backend: addr("10.42.0.9")}, {Proto: model.UDP, Backend: addr("fd00::7")}}, []string{"dns to b", "sctp", "dns, IPv6"}},
		{"a mapped address", []Filter{{Proto: model.UDP, Backend: addr("::ffff:10.42.0.8")}}, []string{"dns to b"}},
		{"nothing", []Filter{{Proto: model.UDP, Dst: addr("10.96.0.10"), DstPort: 54}}, nil},
		{"no filter", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := netnstest.New(t)
			fill(t, ns, entries)
			table := Open(ns.FD())
			err := ns.Do(func() error {
				n, limit, err := Usage()
				if n != len(entries) || limit < n {
					t.Errorf("usage %d of %d", n, limit)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			n, err := table.Forget(context.Background(), c.filters...)
			if err != nil || n != len(c.gone) {
				t.Errorf("forgot %d, %v; want %d", n, err, len(c.gone))
			}
			want := map[string]bool{}
			for _, e := range entries {
				want[e.name] = true
			}
			for _, name := range c.gone {
				delete(want, name)
			}
			got := left(t, ns, entries)
			for _, name := range got {
				if !want[name] {
					t.Errorf("%q is still there", name)
				}
			}
			if len(got) != len(want) {
				t.Errorf("left %q, want %v", got, want)
			}
			if n, err := table.Forget(context.Background(), c.filters...); err != nil || n != 0 {
				t.Errorf("the second time forgot %d, %v", n, err)
			}
		})
	}
}

func TestForgetRefusesAll(t *testing.T) {
	if _, err := Open(0).Forget(context.Background(), Filter{Proto: model.UDP, Untranslated: true}); err == nil {
		t.Error("a filter that matches everything was taken")
	}
}

// TestForgetLarge looks for a few entries among many.
func TestForgetLarge(t *testing.T) {
	ns := netnstest.New(t)
	var many []entry
	for i := range 20000 {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 42, byte(i >> 8), byte(i)}), 1000).String()
		many = append(many, entry{"tcp", model.TCP, src, "10.96.0.1:443", "192.168.9.1:6443"})
	}
	fill(t, ns, many)
	fill(t, ns, entries)
	table := Open(ns.FD())
	for _, f := range []Filter{{Proto: model.UDP, Backend: netip.MustParseAddr("10.42.0.7")}, {Backend: netip.MustParseAddr("10.42.0.9")}} {
		start := time.Now()
		n, err := table.Forget(context.Background(), f)
		if err != nil || n == 0 {
			t.Errorf("%+v: forgot %d, %v", f, n, err)
		}
		t.Logf("%+v among %d: %v", f, len(many), time.Since(start))
	}
}
