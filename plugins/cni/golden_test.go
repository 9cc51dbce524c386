package cni

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"

	"weft.network/weft/appliance/attach"
)

var update = flag.Bool("update", false, "write the files in testdata anew")

var (
	versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
	commands = []string{"ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"}
)

// testEnv are the variables of a runtime that wires the Pod default/web.
func testEnv(command string) map[string]string {
	env := map[string]string{"CNI_COMMAND": command, "CNI_PATH": "/opt/cni/bin"}
	if command == "ADD" || command == "DEL" || command == "CHECK" {
		env["CNI_CONTAINERID"], env["CNI_NETNS"], env["CNI_IFNAME"] = "c1", "/run/netns/c1", "eth0"
		env["CNI_ARGS"] = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1;K8S_POD_INFRA_CONTAINER_ID=c1"
	}
	return env
}

// What a bridge plugin answered, in the form of each version.
func bridgeResult(v string) string {
	ipVersion := func(n string) string {
		if v < "1" {
			return `"version": "` + n + `", `
		}
		return ""
	}
	return `{"cniVersion": "` + v + `",
		"interfaces": [{"name": "cni0", "mac": "02:00:00:00:00:01"}, {"name": "veth1", "mac": "02:00:00:00:00:02"},
			{"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/c1"}],
		"ips": [{` + ipVersion("4") + `"address": "10.5.0.2/24", "gateway": "10.5.0.1", "interface": 2}, {` + ipVersion("6") + `"address": "fd05::2/64", "interface": 2}],
		"routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.5.0.1"]}}`
}

// What weft-cni answered.
func podResult(v string) string {
	return strings.NewReplacer("10.5.0.2/24", "10.1.0.2/32", "fd05::2/64", "fd01::2/128", "02:00:00:00:00:03", "0A:58:0a:01:00:02").Replace(bridgeResult(v))
}

// configuration is what the runtime sends to the plugin.
func configuration(plugin, command, v string) string {
	keys := []string{`"cniVersion": "` + v + `"`, `"name": "net"`, `"type": "` + plugin + `"`}
	add := func(s string) { keys = append(keys, s) }
	switch plugin {
	case "weft-cni":
		add(`"dns": {"search": ["example.org"]}`)
		add(`"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 0, "containerPort": 81}],
			"bandwidth": {"ingressRate": 1000000, "ingressBurst": 100000},
			"dns": {"servers": ["10.96.0.10"], "searches": ["default.svc.cluster.local"], "options": ["ndots:5"]}}`)
	case "host-local", "weft-ipam":
		add(`"ipam": {"type": "` + plugin + `", "ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd05::/64", "gateway": "fd05::99"}]],
			"routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.5.0.9"}], "dataDir": "/tmp/x"}`)
	case "portmap":
		add(`"snat": false, "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.1"}]}`)
	case "bandwidth":
		add(`"ingressRate": 8000, "ingressBurst": 800, "egressRate": 9000, "egressBurst": 900`)
	}
	if chained := plugin == "portmap" || plugin == "bandwidth"; command == "CHECK" || command == "DEL" || chained && command == "ADD" {
		if plugin == "weft-cni" {
			add(`"prevResult": ` + podResult(v))
		} else {
			add(`"prevResult": ` + bridgeResult(v))
		}
	}
	if command == "GC" {
		add(`"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "net1"}]`)
	}
	return "{" + strings.Join(keys, ", ") + "}"
}

func indent(s string) string {
	return "\t" + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n\t") + "\n"
}

// TestGolden calls every plugin with every command in every version. Versions with equal answers share an entry.
func TestGolden(t *testing.T) {
	for _, plugin := range Plugins() {
		t.Run(plugin, func(t *testing.T) {
			var out strings.Builder
			for _, command := range commands {
				entries, order := map[string][]string{}, []string{}
				for _, v := range versions {
					f := &fakeAttacher{}
					call := Call{Plugin: plugin, Env: testEnv(command), Stdin: []byte(configuration(plugin, command, v)), NSFD: -1}
					r := Serve(context.Background(), call, f)
					text := fmt.Sprintf("exit %d\n", r.Exit)
					for _, c := range f.calls {
						text += "asked to " + c + "\n"
					}
					if len(r.Stdout) > 0 {
						text += indent(string(r.Stdout))
					}
					wellFormed(t, command, v, r)
					if command != "VERSION" {
						text = strings.ReplaceAll(text, v, "X.Y.Z")
					}
					if entries[text] == nil {
						order = append(order, text)
					}
					entries[text] = append(entries[text], v)
				}
				for _, text := range order {
					fmt.Fprintf(&out, "== %s %s\n%s\n", command, strings.Join(entries[text], " "), text)
				}
			}
			golden(t, plugin+".txt", out.String())
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("%s line %d (go test -update writes it anew):\n got %s\nwant %s", path, i+1, g[i], w[i])
		}
	}
	t.Fatalf("%s has %d lines, want %d", path, len(g), len(w))
}

// wellFormed reads a reply as a runtime does.
func wellFormed(t testing.TB, command, v string, r Reply) {
	t.Helper()
	if r.Exit != 0 {
		var e struct {
			CNIVersion string
			types.Error
		}
		if err := json.Unmarshal(r.Stdout, &e); err != nil || e.Msg == "" || e.Code == 0 || e.CNIVersion == "" || r.Exit != 1 {
			t.Errorf("%s %s: exit %d with %q: no error of the specification (%v)", command, v, r.Exit, r.Stdout, err)
		}
		return
	}
	switch command {
	case "ADD":
		res, err := create.Create(v, r.Stdout)
		if err != nil {
			t.Errorf("%s %s: the library cannot read %s: %v", command, v, r.Stdout, err)
		} else if res.Version() != v {
			t.Errorf("%s %s: the result has version %s", command, v, res.Version())
		}
	case "VERSION":
		info, err := (&version.PluginDecoder{}).Decode(r.Stdout)
		if err != nil || strings.Join(info.SupportedVersions(), " ") != strings.Join(versions, " ") {
			t.Errorf("VERSION: %v %v", info, err)
		}
	default:
		if len(r.Stdout) > 0 {
			t.Errorf("%s %s: prints %q, want nothing", command, v, r.Stdout)
		}
	}
}

// TestErrorCodes lets the attacher fail in every way it knows.
func TestErrorCodes(t *testing.T) {
	for _, tc := range errorCases {
		for _, command := range []string{"ADD", "CHECK", "DEL", "GC", "STATUS"} {
			f := &fakeAttacher{err: fmt.Errorf("doing something: %w", tc.err)}
			r := Serve(context.Background(), Call{Plugin: "weft-cni", Env: testEnv(command), Stdin: []byte(configuration("weft-cni", command, "1.1.0")), NSFD: -1}, f)
			var e types.Error
			if err := json.Unmarshal(r.Stdout, &e); err != nil || r.Exit != 1 {
				t.Fatalf("%s %v: exit %d, %s", command, tc.err, r.Exit, r.Stdout)
			}
			want := tc.code
			if command == "STATUS" && errors.Is(tc.err, attach.ErrNotReady) {
				want = types.ErrPluginNotAvailable
			}
			if e.Code != want || !strings.Contains(e.Msg+e.Details, tc.err.Error()) {
				t.Errorf("%s %v: code %d (%s), want %d", command, tc.err, e.Code, e.Msg, want)
			}
			wellFormed(t, command, "1.1.0", r)
		}
	}
}
