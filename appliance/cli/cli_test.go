package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance"
)

var update = flag.Bool("update", false, "rewrite the golden files; commit only what you understand")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// try runs one command line and returns its output, error text and exit code.
func try(args ...string) (out, stderr string, code int) {
	var o, e bytes.Buffer
	app := newApp(&o)
	app.ErrWriter = &e
	code = run(context.Background(), app, flagsFirst(app, append([]string{"weft"}, args...), "exec"), &e)
	return o.String(), e.String(), code
}

// TestHelp keeps the help of every command under a reader's eye: flags multiply.
func TestHelp(t *testing.T) {
	var b strings.Builder
	var walk func(path []string, cmds []*cli.Command)
	walk = func(path []string, cmds []*cli.Command) {
		for _, c := range cmds {
			if c.Hidden || c.Name == "help" {
				continue
			}
			full := append(slices.Clone(path), c.Name)
			out, stderr, code := try(append(full, "--help")...)
			if code != 0 || stderr != "" {
				t.Errorf("%v --help: exit %d, %s", full, code, stderr)
			}
			b.WriteString("$ weft " + strings.Join(full, " ") + " --help\n" + out + "\n")
			walk(full, c.Subcommands)
		}
	}
	walk(nil, newApp(&bytes.Buffer{}).Commands)
	golden(t, "help.txt", b.String())
}

func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"status --colour", 2, "weft status --help"},
		{"status now", 2, `unexpected argument "now"`},
		{"status --run-dir /nonexistent", 1, "weftd is not running"},
		{"ipam list -o yaml --run-dir /nonexistent", 1, "weftd is not running"},
		{"ipam release", 2, "needs one ADDRESS"},
		{"ipam release 10.0.0", 2, "not an IP address"},
		{"completion tcsh", 2, "bash, zsh or fish"},
		{"weftd --config /nonexistent/weft.yaml", 2, "no such file"},
		{"weftd --roles fabric,proxy", 2, "proxy"},
		{"config --check testdata/bad.yaml", 1, `line 2: unknown key "fabrik"`},
		{"lab exec node1", 2, "needs a node or Pod and a command"},
		{"lab mode vxlam --name nosuchlab", 2, "one of auto, native, vxlan"},
		{"lab mode --name nosuchlab", 2, "one of auto, native, vxlan"},
		{"lab mode auto vxlan --name nosuchlab", 2, "one of auto, native, vxlan"},
		{"lab mode vxlan --name nosuchlab", 1, "nosuchlab"},
		{"ipam foo", 2, `there is no command "foo"`},
		{"policy foo", 2, `there is no command "foo"`},
		{"trace a b --state-dir /nonexistent --run-dir /nonexistent --proto foo", 2, "tcp, udp or sctp"},
		{"policy list --state-dir /nonexistent --run-dir /nonexistent", 1, "weftd does not run and has left no store in /nonexistent"},
		{"lab run --name nosuchlab x --node n", 1, "no lab"},
		{"lab run x --name nosuchlab", 1, "nosuchlab"},
	} {
		_, stderr, code := try(strings.Fields(tc.args)...)
		if code != tc.code || !strings.Contains(stderr, tc.want) {
			t.Errorf("%s: exit %d, %q; want %d, %q", tc.args, code, stderr, tc.code, tc.want)
		}
		if strings.Count(strings.TrimSpace(stderr), "\n") > 0 {
			t.Errorf("%s: more than one line: %q", tc.args, stderr)
		}
	}
}

func TestFlagsFirst(t *testing.T) {
	app := newApp(&bytes.Buffer{})
	for in, want := range map[string]string{
		"weft lab run web --node node2 -o json":    "weft lab run --node node2 -o json web",
		"weft lab run web --node=node2 --pause db": "weft lab run --node=node2 --pause web db",
		"weft lab exec node1 -- ip -6 route":       "weft lab exec node1 -- ip -6 route",
		"weft lab exec node1 ip -6 route":          "weft lab exec node1 ip -6 route",
		"weft ipam release 10.0.0.1 --force":       "weft ipam release --force 10.0.0.1",
		"weft ipam release -- --force":             "weft ipam release -- --force",
		"weft lab-pod get --size 8 URL":            "weft lab-pod get --size 8 URL",
		"weft --version":                           "weft --version",
	} {
		if got := strings.Join(flagsFirst(app, strings.Fields(in), "exec"), " "); got != want {
			t.Errorf("%s\n got %s\nwant %s", in, got, want)
		}
	}
}

func TestStatusText(t *testing.T) {
	start := time.Now()
	s := appliance.Status{
		Node:   appliance.NodeStatus{Name: "n1", Version: "v1", Ready: true, Since: start, Roles: []string{"fabric"}, PID: 42},
		Source: appliance.SourceStatus{Kind: "kubernetes", Server: "192.0.2.1:6443", Connected: false, Since: start, Error: "connection refused", Nodes: 3, Revision: 9, Stored: true},
		Store:  appliance.StoreStatus{Path: "/var/lib/weft/weft.db", Bytes: 65536, Leases: 2},
		Pods:   2, IPAM: appliance.IPAMStatus{Total: 253, Held: 2, Cooling: 1},
		Fabric: appliance.FabricStatus{
			Mode: "auto", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, MTU: 1450, Rounds: 5, Repairs: 1,
			Peers: []appliance.PeerStatus{
				{Node: "n2", Mode: "native", Outer: netip.MustParseAddr("192.0.2.2"), RTT: 321 * time.Microsecond, MTU: 1500, LastSeen: start},
				{Node: "n3", Mode: "vxlan", Problem: "it has no Pod range yet"},
			},
		},
		Warnings: []string{"something to know"},
	}
	var b bytes.Buffer
	p := newPrinter(&b)
	printStatus(p, &s)
	if err := p.w.Flush(); err != nil {
		t.Fatal(err)
	}
	golden(t, "status.txt", b.String())
	if strings.Contains(b.String(), "\x1b") {
		t.Error("colours in something that is no terminal")
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		out, _, code := try("completion", shell)
		if code != 0 || !strings.Contains(out, "weft") {
			t.Errorf("%s: exit %d, %q", shell, code, out)
		}
	}
}

func TestConfigPrintsValidFile(t *testing.T) {
	out, _, code := try("config")
	if code != 0 || !strings.Contains(out, "#fabric:") {
		t.Fatalf("exit %d: %s", code, out)
	}
	file := filepath.Join(t.TempDir(), "weft.yaml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, stderr, code := try("config", "--check", file); code != 0 || !strings.Contains(out, "is fine") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"-o json", 0, `"reconcileInterval": "1m0s"`},
		{"-o json", 0, `"vni": 22342`},
		{"-o xml", 2, ""},
		{"-o json --check " + file, 0, `"ok": true`},
		{"-o json --check testdata/bad.yaml", 1, `"error": "testdata/bad.yaml: line 2: unknown key`},
	} {
		out, stderr, code := try(append([]string{"config"}, strings.Fields(tc.args)...)...)
		if code != tc.code || !strings.Contains(out, tc.want) || code != 2 && !json.Valid([]byte(out)) {
			t.Errorf("config %s: exit %d: %s%s", tc.args, code, out, stderr)
		}
	}
}
