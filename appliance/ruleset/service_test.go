package ruleset

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
)

// at parses addresses with ports, one after the other.
func at(s string) (out []netip.AddrPort) {
	for _, a := range strings.Fields(s) {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

func key(name string) model.ServiceKey {
	return model.ServiceKey{Namespace: "shop", Name: name}
}

// front makes a frontend at which everybody is treated the same.
func front(kind service.Kind, where string, to service.Target) service.Frontend {
	a := netip.MustParseAddrPort(where)
	f := service.Frontend{Kind: kind, Addr: a.Addr(), Port: a.Port(), Inside: to, Outside: to}
	if kind == service.NodePort {
		f.Addr = netip.Addr{}
	}
	return f
}

// web is a Service of both families with all kinds of frontends.
func web() *service.Frontends {
	local := func(f service.Frontend, outside service.Target) service.Frontend {
		f.Outside = outside
		return f
	}
	vip := local(front(service.LoadBalancer, "203.0.113.10:80", service.ToCluster), service.ToLocal)
	vip.Sources = prefixes("198.51.100.0/24", "198.51.100.128/25", "192.0.2.7/32")
	return &service.Frontends{Service: key("web"), Ports: []service.Port{
		{
			Name: "http", Protocol: model.TCP, Cluster: at("10.42.1.5:8080 10.42.2.7:8080 10.42.2.8:8080"), Local: at("10.42.1.5:8080"),
			Hairpin: addrs("10.42.1.5"),
			Frontends: []service.Frontend{
				front(service.ClusterIP, "10.96.0.10:80", service.ToCluster), vip,
				local(front(service.NodePort, "0.0.0.0:30080", service.ToCluster), service.ToLocal),
			},
		},
		{
			Name: "http", Protocol: model.TCP, IPv6: true, Cluster: at("[fd00:42:0:2::7]:8080"),
			Frontends: []service.Frontend{
				front(service.ClusterIP, "[fd00:96::10]:80", service.ToCluster),
				local(front(service.NodePort, "0.0.0.0:30080", service.ToCluster), service.NoLocal),
			},
		},
	}}
}

func dns() *service.Frontends {
	return &service.Frontends{Service: key("dns"), Ports: []service.Port{{
		Name: "dns", Protocol: model.UDP, Hashed: true, Cluster: at("10.42.1.6:53 10.42.2.9:53"), Hairpin: addrs("10.42.1.6"),
		Frontends: []service.Frontend{front(service.ClusterIP, "10.96.0.11:53", service.ToCluster)},
	}}}
}

// cart remembers its clients, at an address and at a node port.
func cart() *service.Frontends {
	node := front(service.NodePort, "0.0.0.0:30090", service.ToCluster)
	node.Outside = service.ToLocal
	return &service.Frontends{Service: key("cart"), Ports: []service.Port{{
		Name: "http", Protocol: model.TCP, Affinity: 10800, Cluster: at("10.42.1.5:8080 10.42.2.7:8080 10.42.2.8:8080"), Local: at("10.42.1.5:8080"),
		Frontends: []service.Frontend{front(service.ClusterIP, "10.96.0.13:80", service.ToCluster), node},
	}}}
}

func idle() *service.Frontends {
	return &service.Frontends{Service: key("idle"), Ports: []service.Port{{
		Protocol: model.TCP, Frontends: []service.Frontend{
			front(service.ClusterIP, "10.96.0.12:80", service.Refuse), front(service.ExternalIP, "203.0.113.11:80", service.Refuse),
		},
	}}}
}

func frontends(fs ...*service.Frontends) map[model.ServiceKey]*service.Frontends {
	out := map[model.ServiceKey]*service.Frontends{}
	for _, f := range fs {
		out[f.Service] = f
	}
	return out
}

func servicesInput(fs ...*service.Frontends) ServicesInput {
	return ServicesInput{Frontends: frontends(fs...), PodRanges: prefixes("10.42.1.0/24", "fd00:42:0:1::/64")}
}

func TestServicesGolden(t *testing.T) {
	chosen := servicesInput(web(), idle())
	chosen.NodePortAddresses = prefixes("192.168.9.0/24")
	for name, in := range map[string]ServicesInput{
		"none": servicesInput(), "idle": servicesInput(idle()), "all": servicesInput(web(), idle()), "chosen": chosen,
		"sticky": servicesInput(cart()),
	} {
		t.Run(name, func(t *testing.T) {
			table := new(Services).Table(in)
			if err := table.Check(); err != nil {
				t.Fatal(err)
			}
			golden(t, "services_"+name+".nft", table.String())
		})
	}
	// The elements of a table of hashes are many: its chains only.
	table := new(Services).Table(servicesInput(dns()))
	for _, s := range table.Sets {
		s.Blocks = nil
	}
	golden(t, "services_hashed.nft", table.String())
}

// TestServicesKeepPointers changes one Service of several and wants all else to be the very same.
func TestServicesKeepPointers(t *testing.T) {
	var s Services
	in := servicesInput(web(), dns(), idle())
	first := s.Table(in)
	same := s.Table(in)
	in.Frontends = maps.Clone(in.Frontends)
	copied := s.Table(in)
	for i := range first.Sets {
		if first.Sets[i] != same.Sets[i] || first.Sets[i] != copied.Sets[i] {
			t.Errorf("set %s is another one although nothing changed", first.Sets[i].Name)
		}
	}
	for i := range first.Chains {
		if first.Chains[i] != same.Chains[i] {
			t.Errorf("chain %s is another one although nothing changed", first.Chains[i].Name)
		}
	}

	more := dns()
	more.Ports[0].Cluster = at("10.42.1.6:53 10.42.2.9:53 10.42.2.10:53")
	in.Frontends = maps.Clone(in.Frontends)
	in.Frontends[more.Service] = more
	second := s.Table(in)
	var changed []string
	for _, set := range second.Sets {
		if old := first.Set(set.Name); old != set {
			changed = append(changed, set.Name)
			for name, b := range old.Blocks {
				if name != "shop/dns" && set.Blocks[name] != b {
					t.Errorf("block %s of %s is another one", name, set.Name)
				}
			}
		}
	}
	if got := strings.Join(changed, " "); got != "endpoints4" {
		t.Errorf("sets that changed: %s, want endpoints4 only", got)
	}
	for _, c := range first.Chains {
		if second.Chain(c.Name) != c {
			t.Errorf("chain %s is another one", c.Name)
		}
	}

	fresh := new(Services).Table(in)
	if second.String() != fresh.String() {
		t.Error("with memory the table is another one than without")
	}
	in.Frontends = nil
	if table := s.Table(in); !table.Empty() || len(s.shards) != 0 {
		t.Errorf("after the last Service: %s, %d shards", table.String(), len(s.shards))
	}
}

func TestSpread(t *testing.T) {
	var es []netip.AddrPort
	for i := range 40 {
		es = append(es, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 42, byte(i % 7), byte(i)}), 80))
	}
	for _, n := range []int{2, 3, 7, 8, 31, 40} {
		size := tableSize(n)
		table := spread(es[:n], size)
		count := map[netip.AddrPort]int{}
		for _, e := range table {
			count[e]++
		}
		for _, e := range es[:n] {
			if got, fair := count[e], size/n; got < fair || got > fair+1 {
				t.Errorf("%d endpoints in %d places: %s has %d", n, size, e, got)
			}
		}
		if n == 40 || tableSize(n+1) != size {
			continue
		}
		moved := 0
		for i, e := range spread(es[:n+1], size) {
			if e != table[i] && e != es[n] {
				moved++
			}
		}
		// Ideally only the new endpoint takes places.
		if moved > size/8 {
			t.Errorf("%d to %d endpoints: %d of %d places changed hands among the old ones", n, n+1, moved, size)
		}
	}
	for n, want := range map[int]int{2: 61, 7: 61, 8: 251, 500: 4093, 5000: 16381, 9000: 65521, 70000: 65521} {
		if got := tableSize(n); got != want {
			t.Errorf("a table for %d endpoints has %d places, want %d", n, got, want)
		}
	}
}

// TestServicesIncremental changes Services at random, also so that they move between shards, and compares with a table made
// at once.
func TestServicesIncremental(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var s Services
	in := servicesInput()
	for round := range 60 {
		in.Frontends = maps.Clone(in.Frontends)
		for range 1 + r.IntN(3) {
			i := r.IntN(12)
			f := &service.Frontends{Service: key(strconv.Itoa(i)), Ports: []service.Port{{
				Protocol: model.TCP, Hashed: r.IntN(8) == 0, Affinity: uint32(r.IntN(2)) * 60, Frontends: []service.Frontend{front(service.ClusterIP, fmt.Sprintf("10.96.0.%d:80", i), service.Refuse)},
			}}}
			p := &f.Ports[0]
			for j := range []int{0, 1, 3, 150}[r.IntN(4)] {
				p.Frontends[0].Inside, p.Frontends[0].Outside = service.ToCluster, service.ToCluster
				p.Cluster = append(p.Cluster, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 42, byte(i), byte(j)}), 8080))
			}
			if in.Frontends[f.Service] = f; r.IntN(3) == 0 {
				delete(in.Frontends, f.Service)
			}
		}
		table, fresh := s.Table(in), new(Services).Table(in)
		if got, want := table.String(), fresh.String(); got != want {
			t.Fatalf("round %d: got\n%s\nwant\n%s", round, got, want)
		}
		if err := table.Check(); err != nil {
			t.Fatal(err)
		}
	}
}
