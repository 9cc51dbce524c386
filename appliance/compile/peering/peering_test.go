package peering

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"weft.network/weft/appliance/model"
)

var update = flag.Bool("update", false, "rewrite the golden files; commit only what you understand")

// scenario is one testdata/*.yaml file, seen from node a.
type scenario struct {
	Config struct {
		ASN       uint32
		Mesh      bool
		Limit     int
		Native    bool
		NoListen  bool `yaml:"noListen"`
		Drained   bool
		Aggregate []netip.Prefix
		Subnets   []netip.Prefix
		Advertise model.BGPAdvertiseSpec
		Files     map[string]string
		Secret    *model.SecretRef // of the mesh
		File      string
	}
	Nodes []struct {
		Name      string
		Addresses []netip.Addr
		PodCIDRs  []netip.Prefix `yaml:"podCIDRs"`
		Labels    map[string]string
	}
	Peers []struct {
		Name              string
		model.BGPPeerSpec `yaml:",inline"`
	}
	Secrets  map[string]map[string]string
	Services []struct {
		Name      string
		IPs       []netip.Addr `yaml:"ips"` // of the load balancer
		External  []netip.Addr
		Cluster   []netip.Addr
		Local     bool
		Class     string
		Proxy     bool
		Endpoints []string // node, or node/not-ready, or node/terminating
	}
}

func load(t *testing.T, file string) (*model.Snapshot, Config) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s scenario
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	dec.KnownFields(true)
	if err := dec.Decode(&s); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	snap := &model.Snapshot{
		Nodes: map[string]*model.Node{}, BGPPeers: map[string]*model.BGPPeer{}, Secrets: map[model.SecretKey]*model.Secret{},
		Services: map[model.ServiceKey]*model.Service{}, Slices: map[model.SliceKey]*model.EndpointSlice{},
	}
	for _, n := range s.Nodes {
		snap.Nodes[n.Name] = &model.Node{Name: n.Name, Addresses: n.Addresses, PodCIDRs: n.PodCIDRs, Labels: n.Labels}
	}
	for _, p := range s.Peers {
		peer, errs := p.Resolve(p.Name)
		if errs != nil {
			t.Fatal(errs)
		}
		snap.BGPPeers[p.Name] = peer
	}
	for name, data := range s.Secrets {
		secret := &model.Secret{Namespace: "kube-system", Name: name, Data: map[string][]byte{}}
		for k, v := range data {
			secret.Data[k] = []byte(v)
		}
		snap.Secrets[secret.Key()] = secret
	}
	for _, v := range s.Services {
		svc := &model.Service{Namespace: "default", Name: v.Name, ExternalIPs: v.External, ClusterIPs: v.Cluster, ExternalLocal: v.Local, LoadBalancerClass: v.Class}
		for _, ip := range v.IPs {
			svc.Ingress = append(svc.Ingress, model.ServiceIngress{IP: ip, Proxy: v.Proxy})
		}
		snap.Services[svc.Key()] = svc
		slice := &model.EndpointSlice{Namespace: "default", Name: v.Name + "-1", Service: v.Name}
		for _, e := range v.Endpoints {
			node, state, _ := strings.Cut(e, "/")
			slice.Endpoints = append(slice.Endpoints, model.Endpoint{Node: node, Ready: state == "", Serving: state != "not-ready", Terminating: state == "terminating"})
		}
		snap.Slices[slice.Key()] = slice
	}
	advertise, errs := s.Config.Advertise.Resolve("")
	if errs != nil {
		t.Fatal(errs)
	}
	cfg := Config{
		NodeName: "a", ASN: s.Config.ASN, Port: 179, Listen: !s.Config.NoListen, Mesh: s.Config.Mesh, MeshLimit: 100, Native: s.Config.Native,
		MeshSecret: s.Config.Secret, MeshFile: s.Config.File,
		Advertise: advertise, Aggregate: s.Config.Aggregate, SecretNamespace: "kube-system", Drained: s.Config.Drained,
		Subnets: s.Config.Subnets, Files: map[string]Password{},
	}
	if s.Config.Limit > 0 {
		cfg.MeshLimit = s.Config.Limit
	}
	for path, text := range s.Config.Files {
		cfg.Files[path] = Password{Text: text}
	}
	return snap, cfg
}

func TestCompileGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			snap, cfg := load(t, file)
			speaker := Compile(snap, cfg)
			got := speaker.Text()
			golden := strings.TrimSuffix(file, ".yaml") + ".bgp"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s: got\n%s\nwant\n%s", golden, got, want)
			}
			again := Compile(snap, cfg)
			if again.Text() != got {
				t.Error("a second run gives something else")
			}
		})
	}
}

// TestMeshAgrees checks that both ends of each session in a mesh want it, of the same family, at each other's addresses.
func TestMeshAgrees(t *testing.T) {
	for _, tc := range []struct {
		nodes, limit int
		reflectors   []int
	}{{5, 100, nil}, {5, 3, nil}, {6, 3, []int{1}}, {6, 100, []int{0, 4}}} {
		snap := &model.Snapshot{Nodes: map[string]*model.Node{}}
		for i := range tc.nodes {
			n := &model.Node{Name: fmt.Sprintf("n%d", i), Labels: map[string]string{}}
			v4, v6 := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))
			switch i % 3 {
			case 0:
				n.Addresses = []netip.Addr{v4, v6}
			case 1:
				n.Addresses = []netip.Addr{v6, v4}
			case 2:
				n.Addresses = []netip.Addr{v6}
			}
			snap.Nodes[n.Name] = n
		}
		for _, i := range tc.reflectors {
			snap.Nodes[fmt.Sprintf("n%d", i)].Labels[ReflectorLabel] = "true"
		}
		wants, waits := map[[2]string]bool{}, map[[2]string]bool{}
		for name := range snap.Nodes {
			s := Compile(snap, Config{NodeName: name, Port: 179, Listen: true, Mesh: true, MeshLimit: tc.limit, Native: true})
			for _, nb := range s.Neighbours {
				wants[[2]string{name, nb.Name}], waits[[2]string{name, nb.Name}] = nb.Address.Is4(), nb.Passive
			}
		}
		if len(wants) == 0 {
			t.Errorf("%+v: no sessions", tc)
		}
		for pair, v4 := range wants {
			if back, ok := wants[[2]string{pair[1], pair[0]}]; !ok || back != v4 {
				t.Errorf("%+v: %v is wanted by one end only", tc, pair)
			}
			if waits[pair] == waits[[2]string{pair[1], pair[0]}] {
				t.Errorf("%+v: %v: both ends connect, or both wait", tc, pair)
			}
		}
	}
}

// TestGroupNamesStay makes sure that a peer that comes does not rename the group of another, which would tell all routes anew.
func TestGroupNamesStay(t *testing.T) {
	snap, cfg := load(t, "testdata/peers.yaml")
	before := Compile(snap, cfg)
	extra, errs := (&model.BGPPeerSpec{PeerAddress: "192.0.2.77", PeerASN: 5, Advertise: model.BGPAdvertiseSpec{Communities: []string{"1:1"}}}).Resolve("aaa")
	if errs != nil {
		t.Fatal(errs)
	}
	snap.BGPPeers["aaa"] = extra
	after := Compile(snap, cfg)
	names := map[string]string{}
	for _, n := range after.Neighbours {
		names[n.Name] = n.Group
	}
	for _, n := range before.Neighbours {
		if names[n.Name] != n.Group {
			t.Errorf("neighbour %s moved from group %s to %s", n.Name, n.Group, names[n.Name])
		}
	}
}

func TestNoNode(t *testing.T) {
	s := Compile(&model.Snapshot{}, Config{NodeName: "a", Mesh: true})
	if len(s.Neighbours) > 0 || s.Text() != "no speaker\n" {
		t.Errorf("got %s", s.Text())
	}
	Compile(nil, Config{NodeName: "a"})
}
