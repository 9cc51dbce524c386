package cni

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// TestRequest shows what a configuration asks for ("error: " and a part of the text when it is refused with code 7).
func TestRequest(t *testing.T) {
	for _, tc := range []struct{ plugin, args, keys, want string }{
		{"weft-cni", "", ``, "add pod, net/c1/eth0, netns /run/netns/c1"},
		{"weft-cni", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=c", ``, "pod a/b uid c"},
		{"weft-cni", "K8S_POD_NAME=b;nonsense;;=;x=", `"mtu": 1280`, "pod /b uid , netns /run/netns/c1, mtu 1280"},
		{"weft-cni", "", `"mtu": 0, "snat": false`, "netns /run/netns/c1, no snat"},
		{"weft-cni", "", `"unknown": {"key": []}`, "netns /run/netns/c1"},
		{"weft-cni", "", `"mtu": -1`, "error: mtu -1 must be 68 to 65535"},
		{"weft-cni", "", `"mtu": 65536`, "error: mtu 65536 must be 68 to 65535"},

		// Addresses asked for: the first form that is used wins.
		{"weft-cni", "", `"runtimeConfig": {"ips": ["10.1.0.9/24", "fd01::9", "::ffff:10.1.0.8"]}`, "want [10.1.0.9 fd01::9 10.1.0.8]"},
		{"weft-cni", "IP=10.1.0.7", `"runtimeConfig": {"ips": ["10.1.0.9"]}, "args": {"cni": {"ips": ["10.1.0.8"]}}`, "want [10.1.0.9]"},
		{"weft-cni", "IP=10.1.0.7", `"args": {"cni": {"ips": ["10.1.0.8/24"]}}`, "want [10.1.0.8]"},
		{"weft-cni", "IgnoreUnknown=1;IP=10.1.0.7/24,fd01::7", ``, "want [10.1.0.7 fd01::7]"},
		{"weft-cni", "IP=", `"args": {"cni": {}}, "runtimeConfig": {"ips": []}`, "netns /run/netns/c1"},
		{"weft-cni", "", `"runtimeConfig": {"ips": ["10.1.0"]}`, `error: runtimeConfig.ips: "10.1.0" is not an IP address`},
		{"weft-cni", "", `"runtimeConfig": {"ips": ["fe80::1%eth0"]}`, `error: runtimeConfig.ips: "fe80::1%eth0" is not an IP address`},
		{"weft-cni", "IP=x", ``, `error: IP in CNI_ARGS: "x" is not an IP address`},
		{"weft-cni", "", `"args": {"cni": {"ips": [""]}}`, `error: args.cni.ips: "" is not an IP address`},

		{"weft-cni", "", `"runtimeConfig": {"mac": "02:11:22:33:44:55"}`, "mac 02:11:22:33:44:55"},
		{"weft-cni", "MAC=02-11-22-33-44-66", ``, "mac 02:11:22:33:44:66"},
		{"weft-cni", "MAC=02:00:00:00:00:01", `"runtimeConfig": {"mac": "02:11:22:33:44:55"}`, "mac 02:11:22:33:44:55"},
		{"weft-cni", "", `"runtimeConfig": {"mac": "01:00:5e:00:00:01"}`, `error: runtimeConfig.mac: MAC address "01:00:5e:00:00:01" is zero or a group address`},
		{"weft-cni", "", `"runtimeConfig": {"mac": "x"}`, `error: runtimeConfig.mac: MAC address "x" is not of the form`},

		{
			"weft-cni", "", `"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "TCP"}, {"hostPort": 65535, "containerPort": 65535, "protocol": "sctp"}, {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "::"}, {"hostPort": 1, "containerPort": 1, "hostIP": "fd00::1"}, {"hostPort": 0, "containerPort": 99}]}`,
			"ports *:80->8080/tcp *:65535->65535/sctp *:53->53/udp fd00::1:1->1/tcp",
		},
		{"weft-cni", "", `"runtimeConfig": {"portMappings": [{"hostPort": 65536, "containerPort": 1}]}`, "error: runtimeConfig.portMappings[0]: hostPort 65536 must be 1 to 65535"},
		{"weft-cni", "", `"runtimeConfig": {"portMappings": [{"hostPort": -1, "containerPort": 1}]}`, "error: portMappings[0]: hostPort -1"},
		{"weft-cni", "", `"runtimeConfig": {"portMappings": [{"hostPort": 1}]}`, "error: portMappings[0]: containerPort 0 must be 1 to 65535"},
		{"weft-cni", "", `"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]}`, `error: portMappings[0]: protocol "icmp" is not tcp, udp or sctp`},
		{"weft-cni", "", `"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "here"}]}`, `error: portMappings[0]: hostIP "here" is not an IP address`},

		{"weft-cni", "", `"runtimeConfig": {"bandwidth": {"ingressRate": 8, "ingressBurst": 9, "egressRate": 10, "egressBurst": 11}}`, "limit in 8/9 out 10/11"},
		{"weft-cni", "", `"ingressRate": 1, "ingressBurst": 2, "runtimeConfig": {"bandwidth": {"egressRate": 10, "egressBurst": 11}}`, "limit in 0/0 out 10/11"},
		{"weft-cni", "", `"runtimeConfig": {"bandwidth": {"ingressRate": 8}}`, "error: bandwidth: ingressRate 8 and ingressBurst 0: set both or none"},
		{"weft-cni", "", `"egressBurst": 8`, "error: bandwidth: egressRate 0 and egressBurst 8: set both or none"},

		{"weft-cni", "", `"runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/28"}]]}`, "range 10.1.0.0/28 10.1.0.1-10.1.0.14 but [10.1.0.1]"},
		{"weft-cni", "", `"ipam": {"type": "other"}`, "netns /run/netns/c1"},
		{"weft-ipam", "", `"ipam": {"type": "weft-ipam"}`, "add ipam, net/c1/eth0, netns /run/netns/c1"},

		// host-local as its documentation has it.
		{"host-local", "", `"ipam": {"subnet": "10.5.0.0/24"}`, "range 10.5.0.0/24 10.5.0.1-10.5.0.254 but [10.5.0.1]"},
		{"host-local", "", `"ipam": {"subnet": "10.5.0.0/24", "rangeStart": "10.5.0.10", "rangeEnd": "10.5.0.20", "gateway": "10.5.0.254"}`, "range 10.5.0.0/24 10.5.0.10-10.5.0.20 but [10.5.0.254]"},
		{"host-local", "", `"ipam": {"subnet": "10.5.0.0/24", "ranges": [[{"subnet": "fd05::/64"}]]}`, "range 10.5.0.0/24 10.5.0.1-10.5.0.254 but [10.5.0.1], range fd05::/64"},
		{
			"host-local", "", `"ipam": {"ranges": [[{"subnet": "10.5.0.0/24"}, {"subnet": "10.6.0.0/24", "rangeEnd": "10.6.0.9"}]]}`,
			"range 10.5.0.0/24 10.5.0.1-10.5.0.254 but [10.5.0.1] or 10.6.0.0/24 10.6.0.1-10.6.0.9 but [10.6.0.1]",
		},
		{"host-local", "", `"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}, "ipam": {"ranges": [[{"subnet": "fd05::/64"}]]}`, "range 10.7.0.0/24 10.7.0.1-10.7.0.254 but [10.7.0.1], range fd05::/64"},
		{"host-local", "IP=10.5.0.9", `"ipam": {"subnet": "10.5.0.0/24"}`, "want [10.5.0.9]"},
		{"host-local", "", `"ipam": {"subnet": "10.5.0.0/24", "dataDir": "/x"}, "runtimeConfig": {"mac": "x"}`, "range 10.5.0.0/24"},
		{"host-local", "", `"ipam": {"ranges": [[{"subnet": "10.5.0.0/24", "rangeEnd": "10.5.0.9"}, {"subnet": "10.5.0.0/24", "rangeStart": "10.5.0.10"}]]}`, "range 10.5.0.0/24 10.5.0.1-10.5.0.9 but [10.5.0.1] or 10.5.0.0/24 10.5.0.10-10.5.0.254"},
		{"host-local", "", `"ipam": {"subnet": "10.5.0.0"}`, `error: ipam.subnet[0][0]: subnet "10.5.0.0" is not a prefix like 10.0.0.0/24`},
		{"host-local", "", `"ipam": {"subnet": "::ffff:10.5.0.0/120"}`, `is not a prefix`},
		{"host-local", "", `"ipam": {"subnet": "10.5.0.0/31"}`, "error: subnet 10.5.0.0/31 is too small"},
		{"host-local", "", `"ipam": {"subnet": "10.5.0.0/24", "rangeStart": "10.6.0.1"}`, "error: rangeStart or rangeEnd 10.6.0.1 is outside the subnet 10.5.0.0/24"},
		{"host-local", "", `"ipam": {"subnet": "10.5.0.0/24", "rangeStart": "10.5.0.9", "rangeEnd": "10.5.0.8"}`, "error: rangeStart 10.5.0.9 comes after rangeEnd 10.5.0.8"},
		{"host-local", "", `"ipam": {"subnet": "10.5.0.0/24", "gateway": "gw"}`, `error: gateway "gw" is not an IP address`},
		{"host-local", "", `"ipam": {"ranges": [[]]}`, "error: ipam.ranges[0] is empty"},
		{"host-local", "", `"ipam": {"ranges": []}`, "error: ipam.ranges is missing"},
		{"host-local", "", `"ipam": {"ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "10.5.0.128/25"}]]}`, "error: ipam.ranges[1][0]: 10.5.0.128/25 overlaps another range"},
		{"host-local", "", `"ipam": {"ranges": [[{"subnet": "10.5.0.0/24"}, {"subnet": "10.0.0.0/8"}]]}`, "error: ipam.ranges[0][1]: 10.0.0.0/8 overlaps another range"},
		{"host-local", "", `"ipam": {"subnet": "10.5.0.0/24", "ranges": [[{"subnet": "10.5.0.0/25"}]]}`, "error: ipam.ranges[0][0]: 10.5.0.0/25 overlaps another range"},
		{"host-local", "", `"ipam": {"ranges": [[{"subnet": "10.5.0.0/24"}]]}, "runtimeConfig": {"ipRanges": [[{"subnet": "10.5.0.0/16"}]]}`, "error: ipam.ranges[0][0]: 10.5.0.0/24 overlaps another range"},
		{"host-local", "", `"ipam": {"ranges": [[{"subnet": "10.5.0.0/24"}, {"subnet": "fd05::/64"}]]}`, "error: ipam.ranges[0][1]: fd05::/64 is of another family"},

		// Chained plugins.
		{
			"portmap", "", `"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080}]}, "prevResult": {"ips": [{"address": "10.5.0.2/24"}, {"address": "10.5.0.3/24"}, {"address": "fd05::2/64"}]}`,
			"open net/c1/eth0 to [10.5.0.2 fd05::2]: *:80->8080/tcp",
		},
		{
			"portmap", "", `"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080}]}, "prevResult": {"interfaces": [{"name": "br0"}, {"name": "net1", "sandbox": "x"}, {"name": "eth0", "sandbox": "x"}],
			"ips": [{"address": "10.5.0.1/24", "interface": 0}, {"address": "10.5.0.2/24", "interface": 1}, {"address": "10.5.0.3/24", "interface": 2}, {"address": "fd05::3/64", "interface": 7}]}`,
			"open net/c1/eth0 to [10.5.0.3 fd05::3]: *:80->8080/tcp",
		},
		{
			"portmap", "", `"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080}]}, "prevResult": {"interfaces": [{"name": "eth0"}, {"name": "eth0", "sandbox": "x"}],
			"ips": [{"address": "10.5.0.1/24", "interface": 0}, {"address": "10.5.0.2/24", "interface": 1}]}`,
			"open net/c1/eth0 to [10.5.0.2]: *:80->8080/tcp",
		},
		{"portmap", "", `"conditionsV4": [], "prevResult": {}`, ""},
		{"bandwidth", "", `"ingressRate": 8, "ingressBurst": 9, "prevResult": {"interfaces": [{"name": "a"}, {"name": "b"}, {"name": "eth0", "sandbox": "x"}, {"name": "ifb"}]}`, "limit b to in 8/9 out 0/0"},
		{"bandwidth", "", `"ingressRate": 8, "ingressBurst": 9, "prevResult": {"interfaces": [{"name": "a"}]}`, "limit a to in 8/9 out 0/0"},
	} {
		stdin := `{"cniVersion": "1.1.0", "name": "net"`
		if tc.keys != "" {
			stdin += ", " + tc.keys
		}
		env := testEnv("ADD")
		env["CNI_ARGS"] = tc.args
		f := &fakeAttacher{}
		r := Serve(context.Background(), Call{Plugin: tc.plugin, Env: env, Stdin: []byte(stdin + "}"), NSFD: -1}, f)
		got := strings.Join(f.calls, "; ")
		want, isError := strings.CutPrefix(tc.want, "error: ")
		if r.Exit != 0 {
			var e types.Error
			if err := json.Unmarshal(r.Stdout, &e); err != nil || e.Code != 7 {
				t.Errorf("%s %s %s: code %d, want 7: %s", tc.plugin, tc.args, tc.keys, e.Code, r.Stdout)
			}
			got = e.Msg
			isError = isError || strings.HasPrefix(want, "is not")
		}
		if (r.Exit != 0) != isError || !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s %s %s\n got %s\nwant %s", tc.plugin, tc.args, tc.keys, got, tc.want)
		}
	}
}

// TestCheckCompares lets prevResult differ from what is held.
func TestCheckCompares(t *testing.T) {
	good := podResult("1.1.0")
	for _, tc := range []struct{ plugin, prev, want string }{
		{"weft-cni", good, ""},
		{"weft-cni", strings.Replace(good, "10.1.0.2/32", "10.1.0.3/32", 1), "attachment net/c1/eth0 holds 10.1.0.2, but ADD answered [10.1.0.3 fd01::2]"},
		{"weft-cni", strings.Replace(good, "0A:58:0a:01:00:02", "02:00:00:00:00:09", 1), "interface eth0 has MAC address 0a:58:0a:01:00:02, but ADD answered 02:00:00:00:00:09"},
		{"weft-cni", strings.Replace(good, "0A:58:0a:01:00:02", "", 1), ""},
		// A later plugin may have added an address.
		{"weft-cni", strings.Replace(good, `"ips": [`, `"ips": [{"address": "192.0.2.1/24"}, `, 1), ""},
		{"weft-ipam", good, ""},
		{"weft-ipam", bridgeResult("1.1.0"), "attachment net/c1/eth0 holds 10.1.0.2, but ADD answered [10.5.0.2 fd05::2]"},
	} {
		stdin := `{"cniVersion": "1.1.0", "name": "net", "prevResult": ` + tc.prev + `}`
		r := Serve(context.Background(), Call{Plugin: tc.plugin, Env: testEnv("CHECK"), Stdin: []byte(stdin), NSFD: -1}, &fakeAttacher{})
		var e types.Error
		_ = json.Unmarshal(r.Stdout, &e)
		if e.Msg != tc.want || (r.Exit != 0) != (tc.want != "") {
			t.Errorf("%s %s\n got %d %s\nwant %s", tc.plugin, tc.prev, r.Exit, e.Msg, tc.want)
		}
	}
}
