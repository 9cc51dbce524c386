package route

import (
	"flag"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"weft.network/weft/appliance/model"
)

var update = flag.Bool("update", false, "rewrite the golden files; commit only what you understand")

// scenario is one testdata/*.yaml file.
type scenario struct {
	Config struct {
		Mode string
		MTU  int
	}
	Links []struct {
		Name      string
		MTU       int
		Addresses []netip.Prefix
	}
	Nodes []struct {
		Name      string
		Addresses []netip.Addr
		PodCIDRs  []netip.Prefix `yaml:"podCIDRs"`
	}
	Learned map[netip.Prefix]netip.Addr
	Hops    map[netip.Addr]struct {
		Via  netip.Addr
		Link string
	}
}

func load(t *testing.T, file string) (*model.Snapshot, Config, Underlay) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s scenario
	if err := yaml.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	snap := &model.Snapshot{Nodes: map[string]*model.Node{}}
	for _, n := range s.Nodes {
		snap.Nodes[n.Name] = &model.Node{Name: n.Name, Addresses: n.Addresses, PodCIDRs: n.PodCIDRs}
	}
	var under Underlay
	for _, l := range s.Links {
		under.Links = append(under.Links, UnderlayLink{Name: l.Name, MTU: l.MTU, Addresses: l.Addresses})
	}
	cfg := Config{NodeName: "a", Mode: Mode(s.Config.Mode), MTU: s.Config.MTU, VNI: 22342, Port: 4789, Masquerade: true}
	for _, prefix := range slices.SortedFunc(maps.Keys(s.Learned), func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) }) {
		cfg.Learned = append(cfg.Learned, model.LearnedRoute{Prefix: prefix, NextHop: s.Learned[prefix], Node: prefix == netip.MustParsePrefix("192.0.2.0/24")})
	}
	under.Hops = map[netip.Addr]Hop{}
	for addr, h := range s.Hops {
		under.Hops[addr] = Hop{Via: h.Via, Link: h.Link}
	}
	return snap, cfg, under
}

func TestCompileGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			snap, cfg, under := load(t, file)
			state := Compile(snap, cfg, under)
			again := Compile(snap, cfg, under)
			if !reflect.DeepEqual(state, again) {
				t.Error("the same input gave two results")
			}
			golden := file[:len(file)-len("yaml")] + "ip"
			if *update {
				if err := os.WriteFile(golden, []byte(state.Text()), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got := state.Text(); got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestDisjoint(t *testing.T) {
	var in []netip.Prefix
	for _, s := range []string{"10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8", "fd00::1/64", "192.168.0.0/24", "192.168.1.0/24", "0.0.0.0/1"} {
		in = append(in, netip.MustParsePrefix(s))
	}
	out := Disjoint(in)
	for i, a := range out {
		for _, b := range out[i+1:] {
			if a.Overlaps(b) {
				t.Errorf("%s overlaps %s", a, b)
			}
		}
	}
	for _, p := range in {
		covered := false
		for _, q := range out {
			covered = covered || q.Overlaps(p) && q.Bits() <= p.Bits()
		}
		if !covered {
			t.Errorf("%s is lost", p)
		}
	}
}

func TestTunnelMACIsUnicast(t *testing.T) {
	seen := map[model.MAC]string{}
	for _, n := range []string{"a", "b", "node-1", "node-2", "", "node.example.org"} {
		m := TunnelMAC(n)
		if m[0]&1 != 0 || m[0]&2 == 0 {
			t.Errorf("%s: %s is not a locally administered unicast address", n, m)
		}
		if other, ok := seen[m]; ok {
			t.Errorf("%q and %q share %s", n, other, m)
		}
		seen[m] = n
	}
}
