// Package plugins tests the plugins in weft's binary behind other people's main plugins, as a runtime calls them.
package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/model"
)

// referencePlugins is where Debian's containernetworking-plugins puts them.
const referencePlugins = "/usr/lib/cni"

// weft is the binary under test.
var weft string

func TestMain(m *testing.M) { os.Exit(build(m)) }

// build makes the binary, unless WEFT_BIN names one, and runs the tests.
func build(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run() // every test skips or fails by itself
	}
	if weft = os.Getenv("WEFT_BIN"); weft != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "weft-plugins-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	weft = filepath.Join(dir, "weft")
	cmd := exec.Command("go", "build", "-o", weft, "weft.network/weft")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building weft: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// Addresses of the node's uplink, the client behind it, and the node's Pod ranges.
var (
	node4, node6     = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	second4          = netip.MustParseAddr("192.0.2.3") // another one of the node
	client4, client6 = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	localhost        = netip.MustParseAddr("127.0.0.1")
	nodeRanges       = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("fd77::/64")}
	ownRanges        = []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24"), netip.MustParsePrefix("fd88::/64")}
)

const manifest = `
apiVersion: v1
kind: Node
metadata: {name: node1, uid: node-1}
spec: {podCIDR: 10.77.0.0/24, podCIDRs: [10.77.0.0/24, "fd77::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: "2001:db8::1"}]}
`

// node is a machine made of a network namespace, its folders, and perhaps a weftd; client is another machine on its uplink.
type node struct {
	t      testing.TB
	ctx    context.Context
	ns     *netnstest.NS
	client *netnstest.NS
	dir    string
	daemon *exec.Cmd
	done   chan struct{}
}

func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{t: t, ns: netnstest.New(t), client: netnstest.New(t), dir: t.TempDir()}
	if _, err := os.Stat(referencePlugins); err != nil {
		if os.Getenv("WEFT_TEST_MUST_RUN") == "1" {
			t.Fatalf("the reference plugins are missing, and WEFT_TEST_MUST_RUN=1 forbids skipping: %v", err)
		}
		t.Skipf("the reference plugins (package containernetworking-plugins) are missing: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	t.Cleanup(cancel)
	n.ctx = ctx
	for _, d := range []string{"manifests", "state", "run", "conf", "bin", "cache"} {
		n.no(os.Mkdir(n.path(d), 0o755))
	}
	n.no(os.WriteFile(n.path("manifests/node.yaml"), []byte(manifest), 0o644))
	for _, name := range []string{"weft", "weftd", "weft-cni", "weft-ipam", "host-local", "portmap", "bandwidth", "loopback"} {
		n.no(os.Symlink(weft, n.path("bin/"+name)))
	}
	quick(n.ns)
	quick(n.client)
	netnstest.Veth(n.ns, "up0", n.client, "up0")
	n.ns.IP("addr add 192.0.2.1/24 dev up0\naddr add 192.0.2.3/24 dev up0\naddr add 2001:db8::1/64 dev up0")
	n.client.IP("addr add 192.0.2.2/24 dev up0\naddr add 2001:db8::2/64 dev up0")
	// A bridge whose address was never set takes the lowest of its ports', another one with each container; the reference
	// plugin's CHECK of the earlier ones then fails.
	n.ns.IP("link add cni0 address 02:00:00:00:00:c0 type bridge")
	return n
}

// quick makes IPv6 addresses usable at once: a second of duplicate address detection for each interface would be most of a test.
func quick(ns *netnstest.NS) { ns.Sysctl("ipv6/conf/default/accept_dad", "0") }

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) no(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// start runs weftd until stop or the end of the test, and waits until it answers and the node is ready.
func (n *node) start(flags ...string) {
	n.t.Helper()
	log, err := os.OpenFile(n.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	n.no(err)
	defer log.Close()
	args := []string{
		"--manifests", n.path("manifests"), "--node-name", "node1", "--state-dir", n.path("state"), "--run-dir", n.path("run"),
		"--cni-conf-dir", n.path("conf"), "--cni-bin-dir", n.path("bin"), "--listen", "",
	}
	n.daemon = exec.Command(n.path("bin/weftd"), append(args, flags...)...)
	n.daemon.Stdout, n.daemon.Stderr = log, log
	// It must not outlive the test, also when that is killed. The signal comes when the thread that forked ends.
	n.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	n.done = make(chan struct{})
	started := make(chan error, 1)
	go func(cmd *exec.Cmd, done chan struct{}) {
		runtime.LockOSThread()
		defer close(done)
		err := unix.Setns(n.ns.FD(), unix.CLONE_NEWNET)
		if err == nil {
			err = cmd.Start()
		}
		if started <- err; err == nil {
			_ = cmd.Wait() // a signal of ours ended it
		}
	}(n.daemon, n.done)
	n.no(<-started)
	n.t.Cleanup(n.stop)
	sign := "conf/10-weft.conflist"
	if slices.Contains(flags, withoutFabric) {
		sign = "run/weft.sock" // the conflist is another network's
	}
	n.eventually("weftd being ready", 5*time.Second, func() error {
		_, err := os.Stat(n.path(sign))
		return err
	})
}

// withoutFabric is the flag for a weftd next to another Pod network.
const withoutFabric = "--roles=services"

// stop ends weftd and waits for its end.
func (n *node) stop() {
	if n.daemon == nil {
		return
	}
	_ = n.daemon.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.done:
	case <-time.After(patience):
		n.t.Error("weftd did not stop")
		_ = n.daemon.Process.Kill()
		<-n.done
	}
	n.daemon = nil
	n.no(os.RemoveAll(n.path("conf/10-weft.conflist"))) // so that the next start can be waited for
	if n.t.Failed() {
		log, _ := os.ReadFile(n.path("log"))
		n.t.Logf("log of weftd:\n%s", log)
	}
}

// patience is what a test waits for something that must come, on a machine that may have stopped for seconds.
const patience = 30 * time.Second

// eventually waits until the condition holds and returns how long that took; why it did not is in the failure. A promise that was
// not kept is only logged: a busy machine breaks it too.
func (n *node) eventually(what string, within time.Duration, condition func() error) time.Duration {
	n.t.Helper()
	start := time.Now()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		late := time.Since(start) > patience
		err := condition()
		if took := time.Since(start); err == nil {
			if took > within {
				n.t.Logf("%s took %v, want %v", what, took, within)
			}
			return took
		}
		if late {
			n.t.Fatalf("%s took longer than %v: %v", what, patience, err)
		}
		<-ticker.C
	}
}

// plugin is one entry of a network configuration list.
type plugin map[string]any

// list makes a configuration list; every plugin is told where weft is.
func (n *node) list(version, name string, plugins ...plugin) *libcni.NetworkConfigList {
	n.t.Helper()
	for _, p := range plugins {
		p["runDir"], p["stateDir"] = n.path("run"), n.path("state")
	}
	text, err := json.Marshal(map[string]any{"cniVersion": version, "name": name, "plugins": plugins})
	n.no(err)
	list, err := libcni.ConfListFromBytes(text)
	n.no(err)
	return list
}

// bridge has hairpinMode, without which a kernel that filters bridged packets cannot send one back to where it came from.
func bridge(ipam plugin) plugin {
	return plugin{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": ipam}
}

// hostLocal gives addresses from the ranges, with a default route for each family.
func hostLocal(ranges []netip.Prefix) plugin {
	var sets [][]plugin
	for _, r := range ranges {
		sets = append(sets, []plugin{{"subnet": r.String()}})
	}
	return plugin{"type": "host-local", "ranges": sets, "routes": []plugin{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}}
}

func bandwidth() plugin {
	return plugin{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}}
}

func portmap() plugin {
	return plugin{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}}
}

// chain is what stage 2 of most clusters looks like: a bridge with its own ranges, limits, and host ports.
func (n *node) chain(version string) *libcni.NetworkConfigList {
	return n.list(version, "chained", bridge(hostLocal(ownRanges)), bandwidth(), portmap())
}

// cni is the runtime's side. One is not made for several calls at a time.
func (n *node) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{n.path("bin"), referencePlugins}, n.path("cache"), nil)
}

// add attaches a container and returns what the list answered.
func (n *node) add(list *libcni.NetworkConfigList, c *container) (*types100.Result, error) {
	var res *types100.Result
	err := n.ns.Do(func() error {
		r, err := n.cni().AddNetworkList(n.ctx, list, c.conf())
		if err != nil {
			return err
		}
		res, err = types100.NewResultFromResult(r)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ADD %s: %w", c.id, err)
	}
	c.addrs = nil
	for _, ip := range res.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		c.addrs = append(c.addrs, a.Unmap())
	}
	return res, nil
}

// mustAdd attaches containers.
func (n *node) mustAdd(list *libcni.NetworkConfigList, cs ...*container) {
	n.t.Helper()
	for _, c := range cs {
		_, err := n.add(list, c)
		n.no(err)
	}
}

func (n *node) check(list *libcni.NetworkConfigList, c *container) error {
	return n.ns.Do(func() error { return n.cni().CheckNetworkList(n.ctx, list, c.conf()) })
}

func (n *node) del(list *libcni.NetworkConfigList, c *container) error {
	return n.ns.Do(func() error { return n.cni().DelNetworkList(n.ctx, list, c.conf()) })
}

// call executes one plugin as another one delegates to it.
func (n *node) call(name, command string, conf plugin) error {
	stdin, err := json.Marshal(conf)
	n.no(err)
	cmd, start := n.ns.Command(n.path("bin/" + name))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_PATH="+n.path("bin"))
	var out strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(string(stdin)), &out, &out
	if err = errors.Join(start(), err); err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, command, err, out.String())
	}
	return nil
}

// leases asks the operator's command.
func (n *node) leases() (out []*model.Lease) {
	n.t.Helper()
	text := n.ns.Run(n.path("bin/weft"), "ipam", "list", "-o", "json", "--run-dir", n.path("run"))
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		n.t.Fatalf("weft ipam list printed %q: %v", text, err)
	}
	return out
}
