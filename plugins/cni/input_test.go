package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/ipam"
)

var errorCases = []struct {
	err  error
	code uint
}{
	{attach.ErrNotReady, 11},
	{context.DeadlineExceeded, 11},
	{context.Canceled, 11},
	{attach.ErrUnknown, 3},
	{attach.ErrNetNSGone, 8},
	{attach.ErrRefused, 7},
	{&ipam.ExhaustedError{Ranges: "10.1.0.0/28", Total: 13, Held: 13}, 101},
	{&ipam.UnavailableError{Addr: netip.MustParseAddr("10.1.0.9"), Why: "it is held by weft/c1/eth0", Held: true}, 102},
	{fmt.Errorf("writing /var/lib/weft/weft.db: the file system is full: %w", &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}), 5},
	{syscall.EROFS, 5},
	{errors.New("link weftp0 is on the node already"), 999},
}

// TestBadInput gives a plugin what no runtime should send. The answer has the code of the specification and says what is wrong;
// the attacher is not asked.
func TestBadInput(t *testing.T) {
	const conf = `{"cniVersion": "1.1.0", "name": "net", "type": "weft-cni"`
	big := conf + `, "x": "` + strings.Repeat("a", MaxInput) + `"}`
	for _, tc := range []struct {
		name, plugin, command string
		env                   map[string]string // an empty value deletes
		stdin                 string
		code                  uint
		want                  string
	}{
		{"empty", "", "ADD", nil, "", 6, "standard input is empty"},
		{"blank", "", "DEL", nil, " \n\t", 6, "standard input is empty"},
		{"no JSON", "", "ADD", nil, "hello", 6, "not valid JSON"},
		{"half a JSON", "", "ADD", nil, conf, 6, "unexpected end of JSON input"},
		{"JSON and more", "", "ADD", nil, conf + "}}", 6, "after top-level value"},
		{"a list", "", "ADD", nil, "[]", 6, "cannot unmarshal array"},
		{"null", "", "ADD", nil, "null", 1, `cniVersion "0.1.0"`},
		{"too large", "", "ADD", nil, big, 6, "larger than 1048576 bytes"},
		{"too large, DEL", "", "DEL", nil, big, 6, "larger than 1048576 bytes"},
		{"deep", "", "ADD", nil, strings.Repeat(`{"a":`, 20000), 6, "exceeded max depth"},
		{"wrong type of a key", "", "ADD", nil, conf + `, "mtu": "1500"}`, 6, "mtu"},
		{"a version from the future", "", "ADD", nil, `{"cniVersion": "9.9.9", "name": "net"}`, 1, "supported are 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"},
		{"a version from the future and its prevResult", "", "DEL", nil, `{"cniVersion": "9.9.9", "name": "net", "prevResult": {"ips": {"new": "form"}}}`, 1, `"9.9.9"`},
		{"a version from the past", "", "ADD", nil, `{"cniVersion": "0.2.0", "name": "net"}`, 1, `cniVersion "0.2.0"`},
		{"no version", "", "ADD", nil, `{"name": "net"}`, 1, `cniVersion "0.1.0"`},
		{"no number", "", "ADD", nil, `{"cniVersion": "x", "name": "net"}`, 1, `cniVersion "x"`},
		{"no name", "", "ADD", nil, `{"cniVersion": "1.1.0"}`, 7, "has no name"},
		{"bad name", "", "ADD", nil, `{"cniVersion": "1.1.0", "name": "../x"}`, 7, "invalid characters found in network name"},
		{"no command", "", "", nil, conf + "}", 4, `CNI_COMMAND "" is unknown`},
		{"unknown command", "", "add", nil, conf + "}", 4, `CNI_COMMAND "add" is unknown`},
		{"not our name", "flannel", "ADD", nil, conf + "}", 7, `"flannel", which is no plugin of weft`},
		{"no container", "", "ADD", map[string]string{"CNI_CONTAINERID": ""}, conf + "}", 4, "CNI_CONTAINERID"},
		{"no namespace", "", "ADD", map[string]string{"CNI_NETNS": ""}, conf + "}", 4, "CNI_NETNS"},
		{"no namespace, CHECK", "", "CHECK", map[string]string{"CNI_NETNS": ""}, conf + "}", 4, "CNI_NETNS"},
		{"nothing", "", "ADD", map[string]string{"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": ""}, conf + "}", 4, "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"},
		{"bad container", "", "ADD", map[string]string{"CNI_CONTAINERID": "a/b"}, conf + "}", 4, "invalid characters in containerID"},
		{"bad container, DEL", "", "DEL", map[string]string{"CNI_CONTAINERID": "-x"}, conf + "}", 4, "invalid characters in containerID"},
		{"long interface", "", "ADD", map[string]string{"CNI_IFNAME": "abcdefghijklmnop"}, conf + "}", 4, "interface name is too long"},
		{"bad interface", "", "ADD", map[string]string{"CNI_IFNAME": "a:b"}, conf + "}", 4, "interface name contains / or :"},
		{"dots", "", "DEL", map[string]string{"CNI_IFNAME": ".."}, conf + "}", 4, "interface name is . or .."},
		{"prevResult of another form", "", "ADD", nil, conf + `, "prevResult": {"ips": [{"address": "nonsense"}]}}`, 6, "prevResult cannot be read"},
		{"prevResult with null", "", "DEL", nil, conf + `, "prevResult": {"interfaces": [null]}}`, 6, "the list interfaces has an element null"},
		{"prevResult with null in other letters", "portmap", "ADD", nil, conf + `, "prevResult": {"IPs": [null]}}`, 6, "the list IPs has an element null"},
		{"prevResult without an address", "", "ADD", nil, conf + `, "prevResult": {"ips": [{}]}}`, 6, "ips[0] has no address"},
		{"prevResult without a destination", "", "ADD", nil, conf + `, "prevResult": {"routes": [{"gw": "10.0.0.1"}]}}`, 6, "routes[0] has no dst"},
		{"small MTU", "", "ADD", nil, conf + `, "mtu": 67}`, 7, "mtu 67 must be 68 to 65535"},
		{"CHECK without prevResult", "", "CHECK", nil, conf + `}`, 7, "CHECK needs prevResult"},
		{"CHECK before 0.4.0", "", "CHECK", nil, `{"cniVersion": "0.3.1", "name": "net"}`, 1, "it came with 0.4.0"},
		{"GC before 1.1.0", "", "GC", nil, `{"cniVersion": "1.0.0", "name": "net"}`, 1, "it came with 1.1.0"},
		{"STATUS before 1.1.0", "", "STATUS", nil, `{"cniVersion": "1.0.0", "name": "net"}`, 1, "it came with 1.1.0"},
		{"GC without the list", "", "GC", nil, conf + `}`, 7, "GC needs cni.dev/valid-attachments"},
		{"GC with another list", "weft-ipam", "GC", nil, conf + `, "cni.dev/valid-attachments": {}}`, 6, "cni.dev/valid-attachments cannot be read"},
		{"portmap alone", "portmap", "ADD", nil, conf + `}`, 7, "portmap must be called as a chained plugin"},
		{"portmap alone, CHECK", "portmap", "CHECK", nil, conf + `}`, 7, "portmap must be called as a chained plugin"},
		{"bandwidth alone", "bandwidth", "ADD", nil, conf + `}`, 7, "bandwidth must be called as a chained plugin"},
		{"bandwidth behind macvlan", "bandwidth", "ADD", nil, conf + `, "ingressRate": 1, "ingressBurst": 1, "prevResult": {"interfaces": [{"name": "eth0", "sandbox": "x"}]}}`, 7, "names no interface on the host"},
		{"portmap without an address", "portmap", "ADD", nil, conf + `, "runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1}]},
			"prevResult": {"interfaces": [{"name": "br0"}], "ips": [{"address": "10.0.0.1/24", "interface": 0}]}}`, 7, "no address of eth0"},
		{"portmap with conditions", "portmap", "ADD", nil, conf + `, "conditionsV4": ["-s", "10.0.0.0/8"], "prevResult": {}}`, 2, "conditionsV4 ([-s 10.0.0.0/8])"},
		{"portmap with conditions for IPv6", "portmap", "CHECK", nil, conf + `, "conditionsV6": ["!", "-d"], "prevResult": {}}`, 2, "conditionsV6"},
		{"portmap with masqAll", "portmap", "ADD", nil, conf + `, "masqAll": true, "prevResult": {}}`, 2, "masqAll (true)"},
		{"host-local without ranges", "host-local", "ADD", nil, conf + `, "ipam": {"type": "host-local"}}`, 7, "ipam.ranges is missing"},
		{"host-local with a bad file", "host-local", "ADD", nil, conf + `, "ipam": {"subnet": "10.5.0.0/24", "resolvConf": "/does/not/exist"}}`, 5, "/does/not/exist"},
		{"host-local with a bad route", "host-local", "ADD", nil, conf + `, "ipam": {"subnet": "10.5.0.0/24", "routes": [{"dst": "10.0.0.0/8"}, null]}}`, 7, "ipam.routes[1] has no dst"},
		{"host-local with an empty route", "host-local", "ADD", nil, conf + `, "ipam": {"subnet": "10.5.0.0/24", "routes": [{}]}}`, 7, "ipam.routes[0] has no dst"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &fakeAttacher{}
			call := Call{Plugin: tc.plugin, Env: testEnv(tc.command), Stdin: []byte(tc.stdin), NSFD: -1}
			if call.Plugin == "" {
				call.Plugin = "weft-cni"
			}
			maps.Copy(call.Env, tc.env)
			r := Serve(context.Background(), call, f)
			var e struct {
				types.Error
				CNIVersion string
			}
			if err := json.Unmarshal(r.Stdout, &e); err != nil {
				t.Fatalf("exit %d, %q: %v", r.Exit, r.Stdout, err)
			}
			if e.Code != tc.code || r.Exit != 1 || !strings.Contains(e.Msg+" "+e.Details, tc.want) {
				t.Errorf("exit %d, code %d, %s %s\nwant code %d, %s", r.Exit, e.Code, e.Msg, e.Details, tc.code, tc.want)
			}
			if len(f.calls) > 0 {
				t.Errorf("the attacher was asked: %v", f.calls)
			}
			if e.CNIVersion == "9.9.9" {
				t.Error("answers in a version that it does not speak")
			}
		})
	}
}

// TestLenient is what must not fail although something is missing.
func TestLenient(t *testing.T) {
	const conf = `{"cniVersion": "1.1.0", "name": "net"`
	for _, tc := range []struct{ plugin, command, stdin, want string }{
		{"weft-cni", "DEL", conf + `}`, "del pod net/c1/eth0"},
		{"weft-cni", "DEL", conf + `, "runtimeConfig": {"portMappings": [{"hostPort": -5}], "mac": "x"}}`, "del pod net/c1/eth0"},
		{"host-local", "DEL", conf + `, "ipam": {}}`, "del ipam net/c1/eth0"},
		{"portmap", "DEL", conf + `, "masqAll": true}`, "close net/c1/eth0"},
		{"bandwidth", "DEL", conf + `}`, ""},
		{"bandwidth", "DEL", conf + `, "prevResult": {}}`, ""},
		{"bandwidth", "ADD", conf + `, "prevResult": {}}`, ""},
		{"loopback", "DEL", conf + `}`, ""},
		{"portmap", "GC", conf + `}`, ""},
		{"host-local", "STATUS", conf + `}`, ""},
		{"weft-cni", "GC", conf + `, "cni.dev/valid-attachments": []}`, "collect pod net, valid []"},
		{"weft-cni", "GC", conf + `, "cni.dev/valid-attachments": null}`, "collect pod net, valid []"},
		{"weft-cni", "GC", conf + `, "cni.dev/attachments": [{"containerID": "c1", "ifname": "eth0"}]}`, "collect pod net, valid [net/c1/eth0]"},
		{"weft", "DEL", conf + `}`, "del pod net/c1/eth0"},
	} {
		f := &fakeAttacher{}
		r := Serve(context.Background(), Call{Plugin: tc.plugin, Env: testEnv(tc.command), Stdin: []byte(tc.stdin), NSFD: -1}, f)
		if got := strings.Join(f.calls, "; "); r.Exit != 0 || got != tc.want {
			t.Errorf("%s %s %s: exit %d, %q, %s; want %q", tc.plugin, tc.command, tc.stdin, r.Exit, got, r.Stdout, tc.want)
		}
	}
}

// TestVersionNeedsNothing: people type it at a terminal.
func TestVersionNeedsNothing(t *testing.T) {
	r := Serve(context.Background(), Call{Plugin: "bandwidth", Env: map[string]string{"CNI_COMMAND": "VERSION"}, NSFD: -1}, nil)
	if r.Exit != 0 {
		t.Errorf("exit %d: %s", r.Exit, r.Stdout)
	}
	wellFormed(t, "VERSION", "", r)
}

// TestOwnNamespace: a Pod's default route in the node's namespace would cut the node off.
func TestOwnNamespace(t *testing.T) {
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	other, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, tc := range []struct {
		fd       int
		command  string
		override string
		code     uint
	}{
		{int(own.Fd()), "ADD", "", 8},
		{int(own.Fd()), "ADD", "0", 8},
		{int(own.Fd()), "ADD", "true", 0},
		{int(own.Fd()), "ADD", "1", 0},
		{int(own.Fd()), "DEL", "", 0},
		{int(other.Fd()), "ADD", "", 0},
		{-1, "ADD", "", 0},
		{100000, "ADD", "", 0},
	} {
		env := testEnv(tc.command)
		env["CNI_NETNS_OVERRIDE"] = tc.override
		r := Serve(context.Background(), Call{Plugin: "weft-cni", Env: env, Stdin: []byte(`{"cniVersion": "1.1.0", "name": "net"}`), NSFD: tc.fd}, &fakeAttacher{})
		var e types.Error
		_ = json.Unmarshal(r.Stdout, &e)
		if e.Code != tc.code {
			t.Errorf("%+v: code %d: %s", tc, e.Code, r.Stdout)
		}
	}
}

func TestParseBody(t *testing.T) {
	for _, tc := range []struct{ body, want string }{
		{"PLUGIN=weft-cni\x00CNI_COMMAND=ADD\x00CNI_ARGS=A=B;C=D\x00\x00{\"a\":\x00}", `weft-cni map[CNI_ARGS:A=B;C=D CNI_COMMAND:ADD] "{\"a\":\x00}"`},
		{"\x00", ` map[] ""`},
		{"CNI_X\x00\x00", ` map[CNI_X:] ""`},
		{"", "error"},
		{"PLUGIN=x", "error"},
		{"PLUGIN=x\x00", "error"},
	} {
		c, err := ParseBody([]byte(tc.body))
		got := fmt.Sprintf("%s %v %q", c.Plugin, c.Env, c.Stdin)
		if err != nil {
			got = "error"
		} else if c.NSFD != -1 {
			t.Error("NSFD is set")
		}
		if got != tc.want {
			t.Errorf("%q: %s, want %s", tc.body, got, tc.want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# a comment\n; another\nnameserver 10.0.0.1\n nameserver fd00::1\nnameserver\ndomain example.org\nsearch a b\nsearch c d\noptions ndots:2 rotate\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	stdin := `{"cniVersion": "1.1.0", "name": "net", "dns": {"nameservers": ["192.0.2.1"]}, "ipam": {"type": "host-local", "subnet": "10.5.0.0/24", "resolvConf": "` + path + `"}}`
	r := Serve(context.Background(), Call{Plugin: "host-local", Env: testEnv("ADD"), Stdin: []byte(stdin), NSFD: -1}, &fakeAttacher{})
	var got struct{ DNS json.RawMessage }
	if err := json.Unmarshal(r.Stdout, &got); err != nil {
		t.Fatal(err)
	}
	var dns bytes.Buffer
	_ = json.Compact(&dns, got.DNS)
	if want := `{"domain":"example.org","nameservers":["10.0.0.1","fd00::1"],"options":["ndots:2","rotate"],"search":["c","d"]}`; dns.String() != want {
		t.Errorf("got %s\nwant %s", dns.String(), want)
	}
}
