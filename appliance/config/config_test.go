package config

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string // parts of the error; none means it must parse
	}{
		{"empty", "", nil},
		{"all of the fabric", "fabric: {mode: vxlan, mtu: 1400, vxlan: {vni: 7, port: 8472}, probe: {interval: 3s}}", nil},
		{"ranges", "podCIDRs: [10.42.0.0/24, 'fd00:42::/64']\nnodeAddresses: [192.168.1.5]\n", nil},
		{"both families", "nodeAddresses: [192.168.1.5, 'fd00::5']\nlisten: '[::]:9465'\n", nil},
		{"end of the document", "pprof: true\n...\n", nil},
		{"an empty second document", "pprof: true\n---\n", nil},
		{"second document", "pprof: true\n---\nfabric: {mode: vxlan}\n", []string{"line 2", "second YAML document"}},
		{"two of a family", "nodeAddresses: [192.168.1.5, 'fd00::5', 192.168.1.6]", []string{"nodeAddresses[2]: 192.168.1.6", "one IPv4 and one IPv6"}},
		{"listen without address", "listen: 9465", []string{"listen: 9465", "127.0.0.1:9465"}},
		{"listen at no port", "listen: 127.0.0.1:99999", []string{"listen: 127.0.0.1:99999"}},
		{"duration without unit", "ipam:\n  coolOff: 30\n", []string{"line 2: 30: a duration needs its unit: write 30s"}},
		{"unknown key", "listen: 127.0.0.1:1\nfabrik: {}\n", []string{"line 2", `unknown key "fabrik"`}},
		{"unknown nested key", "fabric:\n  mode: auto\n  mut: 1400\n", []string{"line 3", `unknown key "mut"`}},
		{"two mistakes at once", "fabrik: {}\nfoo: 1\n", []string{"line 1", "line 2"}},
		{"mode", "fabric: {mode: ipip}", []string{"fabric.mode", "ipip", "auto, native or vxlan"}},
		{"mtu", "fabric: {mtu: 900}", []string{"fabric.mtu", "1280"}},
		{"vni", "fabric: {vxlan: {vni: 16777216}}", []string{"fabric.vxlan.vni"}},
		{"host bits", "podCIDRs: [10.42.0.1/24]", []string{"podCIDRs[0]", "10.42.0.0/24"}},
		{"overlap", "podCIDRs: [10.42.0.0/16]\nserviceCIDRs: [10.42.3.0/24]", []string{"podCIDRs", "overlaps", "10.42.3.0/24"}},
		{"node port addresses", "services: {nodePortAddresses: [primary, 10.0.0.0/8, 'fd00::/8']}", nil},
		{"node port address", "services: {nodePortAddresses: [10.0.0.1]}", []string{"services.nodePortAddresses[0]", "10.0.0.1", "primary"}},
		{"node port host bits", "services: {nodePortAddresses: [primary, 10.0.0.1/8]}", []string{"services.nodePortAddresses[1]", "10.0.0.0/8"}},
		{"node port loopback", "services: {nodePortAddresses: [127.0.0.0/8]}", []string{"loopback"}},
		{"role", "roles: [fabric, proxy]", []string{"roles", "proxy"}},
		{"not a prefix", "podCIDRs: [10.42.0.0]", []string{`line 1: podCIDRs[0]: "10.42.0.0" is not a range such as`}},
		{"not a prefix further down", "pprof: true\nmasquerade:\n  exclude:\n  - 10.0.0.0/8\n  - foo\n", []string{`line 5: masquerade.exclude[1]: "foo" is not a range`}},
		{"not an address", "log: {level: info}\nnodeAddresses: [10.0.0.1, 10.0.0.300]", []string{`line 2: nodeAddresses[1]: "10.0.0.300" is not an address`}},
		{"not yaml", "fabric: [", []string{"line 1"}},
		{"duration", "fabric: {probe: {interval: fast}}", []string{"line 1", "fast"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(tc.text))
			if tc.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q lacks %q", err, part)
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("fabric: {mode: vxlan}\npodCIDRs: [10.0.0.0/8]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := Parse(data); err == nil && c.Validate() != nil {
			t.Fatal("parsed a configuration that is not valid")
		}
	})
}
