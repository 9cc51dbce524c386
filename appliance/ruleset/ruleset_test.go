package ruleset

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft.network/weft/appliance/model"
)

var update = flag.Bool("update", false, "rewrite testdata")

// golden compares text with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from what is printed now; look at it, then run with -update:\n%s", path, got)
	}
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// hostPorts makes the mappings of one Pod.
func hostPorts(pod string, addresses string, mappings ...model.PortMapping) *model.HostPorts {
	return &model.HostPorts{
		AttachmentKey: model.AttachmentKey{Network: "weft", ContainerID: pod, IfName: "eth0"},
		Pod:           model.PodRef{Namespace: "shop", Name: pod},
		Addresses:     addrs(strings.Fields(addresses)...), Mappings: mappings,
	}
}

// FullInput asks for every part of the fabric, in both families.
func fullInput() FabricInput {
	return FabricInput{
		PodRanges:    prefixes("10.42.1.0/24", "fd00:42:0:1::/64"),
		NoMasquerade: prefixes("10.42.0.0/16", "10.43.0.0/16", "192.168.9.0/24", "192.168.9.128/25", "fd00:42::/48", "fd00:43::/112"),
		Masquerade:   true, TunnelPort: 4789, TunnelSources: addrs("192.168.9.2", "192.168.10.7"),
		HostPorts: []*model.HostPorts{
			hostPorts("web-0", "10.42.1.5 fd00:42:0:1::5",
				model.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: model.TCP},
				model.PortMapping{HostPort: 53, ContainerPort: 5353, Protocol: model.UDP, HostIP: netip.MustParseAddr("192.168.9.1")}),
			hostPorts("db-0", "10.42.1.6", model.PortMapping{HostPort: 5432, ContainerPort: 5432, Protocol: model.TCP, HostIP: netip.MustParseAddr("0.0.0.0")}),
		},
	}
}

func TestFabricGolden(t *testing.T) {
	for _, c := range []struct {
		name string
		in   FabricInput
	}{
		{"empty", FabricInput{}},
		{"masquerade", FabricInput{PodRanges: prefixes("10.42.1.0/24"), NoMasquerade: prefixes("10.42.0.0/16"), Masquerade: true}},
		{"tunnel6", FabricInput{TunnelPort: 8472, TunnelSources: addrs("fd00::2")}},
		{"full", fullInput()},
	} {
		t.Run(c.name, func(t *testing.T) {
			table, conflicts := Fabric(c.in)
			if err := table.Check(); err != nil || len(conflicts) > 0 {
				t.Fatal(err, conflicts)
			}
			golden(t, "fabric_"+c.name+".nft", table.String())
		})
	}
}

func TestHostPortConflict(t *testing.T) {
	one := model.PortMapping{HostPort: 80, ContainerPort: 80, Protocol: model.TCP}
	on := model.PortMapping{HostPort: 80, ContainerPort: 80, Protocol: model.TCP, HostIP: netip.MustParseAddr("192.168.9.1")}
	table, conflicts := Fabric(FabricInput{HostPorts: []*model.HostPorts{
		hostPorts("old", "10.42.1.5", one), hostPorts("new", "10.42.1.6", one), hostPorts("other", "10.42.1.7", on),
	}})
	if err := table.Check(); err != nil {
		t.Fatal(err)
	}
	want := "hostPort 80/tcp (IPv4) on every address belongs to shop/old, so shop/new does not get it; choose another hostPort or node"
	if len(conflicts) != 1 || conflicts[0].String() != want {
		t.Errorf("conflicts %v, want %s", conflicts, want)
	}
	if got := table.Set("hostport4").Len() + table.Set("hostport_ip4").Len(); got != 2 {
		t.Errorf("%d mappings, want 2", got)
	}
}

func TestCheck(t *testing.T) {
	e := Element{Key: Port(1), Data: Addr(netip.MustParseAddr("10.0.0.1"))}
	m := &Set{Name: "m", Key: []Type{TypeInetService}, Data: []Type{TypeIPv4Addr}, Blocks: map[string]*Block{"a": {[]Element{e}}, "b": {[]Element{e}}}}
	s := &Set{Name: "s", Key: []Type{TypeInetService}, Blocks: map[string]*Block{"a": {[]Element{{Key: Port(1)}}}, "b": {[]Element{{Key: Port(1)}}}}}
	for _, c := range []struct {
		name string
		set  *Set
		want string
	}{
		{"two owners in a map", m, `element 1 of map m is wanted by both "a" and "b"`},
		{"two owners in a set", s, ""},
		{"wrong key", &Set{Name: "s", Key: []Type{TypeIPv4Addr}, Blocks: Single(Element{Key: "ab"})}, "element of 2 bytes in set s, whose keys (ipv4_addr) have 4"},
		{"range", &Set{Name: "s", Key: []Type{TypeInetService}, Blocks: Single(Element{Key: Port(1), End: Port(5)})}, "element 1-5 of set s: ranges belong to interval sets, and only there"},
		{"verdict", &Set{Name: "s", Key: []Type{TypeInetService}, Blocks: Single(Element{Key: Port(1), Verdict: Drop})}, "element 1 of set s: a verdict belongs to verdict maps, and only there"},
		{"data", &Set{Name: "m", Key: []Type{TypeInetService}, Data: []Type{TypeMark}, Blocks: Single(Element{Key: Port(1)})}, "element 1 of set m has 0 bytes of data instead of 4"},
		{"comment", &Set{Name: "s", Key: []Type{TypeInetService}, Blocks: Single(Element{Key: Port(1), Comment: `"`})}, "element 1 of set s has a comment that is too long or has a quote in it"},
	} {
		table := Table{Sets: []*Set{c.set}}
		got := ""
		if err := table.Check(); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
