package plugins

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"weft.network/weft/appliance/kernel/netnstest"
)

// TestDelLate takes a chain down when the namespace, the daemon, or both are gone, and twice.
func TestDelLate(t *testing.T) {
	for _, tc := range []struct {
		name            string
		netnsGone, stop bool
	}{
		{"namespace gone", true, false},
		{"weftd stopped", false, true},
		{"both gone", true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.start()
			list := n.chain("1.0.0")
			c, end := mortal(t, "mortal", hostPorts()...)
			c.limit = limits()
			n.mustAdd(list, c)
			if n.elements() == 0 || len(n.leases()) != 1 {
				t.Fatalf("%d host ports, leases %v: the chain did nothing", n.elements(), n.leases())
			}
			if tc.netnsGone {
				end()
			}
			if tc.stop {
				n.stop()
			}
			for range 2 {
				n.no(n.del(list, c))
			}
			n.nothingLeft()
			if left := n.elements(); left != 0 {
				t.Errorf("%d host ports are left in the kernel", left)
			}
			if tc.stop {
				n.start()
			}
			n.holds()
			if left := n.elements(); left != 0 {
				t.Errorf("%d host ports came back", left)
			}
		})
	}
}

// elements counts the host ports in the kernel.
func (n *node) elements() (count int) {
	n.t.Helper()
	var ruleset struct {
		Nftables []struct {
			Map *struct {
				Name string
				Elem []any
			}
		}
	}
	n.no(json.Unmarshal([]byte(n.ns.Run("nft", "-j", "list", "ruleset")), &ruleset))
	for _, o := range ruleset.Nftables {
		if o.Map != nil && strings.HasPrefix(o.Map.Name, "hostport") {
			count += len(o.Map.Elem)
		}
	}
	return count
}

// TestLoopback sets lo up, with and without a daemon, and notices when it is down.
func TestLoopback(t *testing.T) {
	for _, daemon := range []bool{true, false} {
		t.Run(fmt.Sprintf("weftd %t", daemon), func(t *testing.T) {
			n := newNode(t)
			if daemon {
				n.start()
			}
			list := n.list("1.0.0", "lo", plugin{"type": "loopback"})
			c := &container{id: "c", ns: netnstest.New(t)}
			c.netns = c.ns.Path()
			rt := c.conf()
			rt.IfName = "lo"
			c.ns.IP("link set lo down")
			err := n.ns.Do(func() error {
				_, err := n.cni().AddNetworkList(n.ctx, list, rt)
				return err
			})
			n.no(err)
			c.serve(t)
			for _, a := range []netip.Addr{localhost, netip.IPv6Loopback()} {
				if id, _, err := ask(c.ns, "tcp", netip.AddrPortFrom(a, containerPort)); err != nil || id != "c" {
					t.Errorf("%s: answered by %q: %v", a, id, err)
				}
			}
			check := func() error {
				return n.ns.Do(func() error { return n.cni().CheckNetworkList(n.ctx, list, rt) })
			}
			n.no(check())
			c.ns.IP("link set lo down")
			if err := check(); err == nil {
				t.Error("CHECK does not see that lo is down")
			}
			for range 2 {
				n.no(n.ns.Do(func() error { return n.cni().DelNetworkList(n.ctx, list, rt) }))
			}
		})
	}
}

// TestResultVersions wants the result in the version of the configuration. Debian's bridge does not know 1.1.0 yet, so that
// weft's own main plugin stands in for it there.
func TestResultVersions(t *testing.T) {
	for version, golden := range map[string]string{
		"0.3.1": `{"address":"10.88.0.2/24","gateway":"10.88.0.1","interface":2,"version":"4"}`,
		"0.4.0": `{"address":"10.88.0.2/24","gateway":"10.88.0.1","interface":2,"version":"4"}`,
		"1.0.0": `{"address":"10.88.0.2/24","gateway":"10.88.0.1","interface":2}`,
		"1.1.0": `{"address":"10.77.0.2/32","gateway":"169.254.1.1","interface":1}`,
	} {
		t.Run(version, func(t *testing.T) {
			n := newNode(t)
			n.start()
			list := n.chain(version)
			if version == "1.1.0" {
				list = n.list(version, "weft", plugin{"type": "weft-cni"}, bandwidth(), portmap())
			}
			c := newContainer(t, "c", hostPorts()...)
			c.limit = limits()
			n.mustAdd(list, c)
			text := n.cached(c)
			if !strings.Contains(text, `"cniVersion":"`+version+`"`) || !strings.Contains(text, golden) {
				t.Errorf("the result is %s, want version %s and %s", text, version, golden)
			}
			if hasMTU := strings.Contains(text, `"mtu"`); hasMTU != (version == "1.1.0") {
				t.Errorf("the result is %s: interfaces have an mtu since 1.1.0", text)
			}
			for _, a := range []asked{
				{from: n.client, who: "client", network: "tcp", to: netip.AddrPortFrom(node4, hostPort), id: "c", seen: client4},
				{from: n.client, who: "client", network: "tcp", to: netip.AddrPortFrom(node6, hostPort), id: "c", seen: client6},
			} {
				if err := a.ask(); err != nil {
					t.Error(err)
				}
			}
			if err := n.check(list, c); (err != nil) != (version == "0.3.1") { // CHECK came with 0.4.0
				t.Errorf("CHECK: %v", err)
			}
			n.no(n.del(list, c))
			if left := n.leases(); len(left) > 0 {
				t.Errorf("leases after DEL: %v", left)
			}
			n.nothingLeft()
		})
	}
}

// cached returns the result of ADD as libcni keeps it, which is what the last plugin printed.
func (n *node) cached(c *container) string {
	n.t.Helper()
	files, err := os.ReadDir(n.path("cache/results"))
	n.no(err)
	for _, f := range files {
		text, err := os.ReadFile(n.path("cache/results/" + f.Name()))
		n.no(err)
		var entry struct {
			ContainerID string          `json:"containerId"`
			Result      json.RawMessage `json:"result"`
		}
		if n.no(json.Unmarshal(text, &entry)); entry.ContainerID == c.id {
			return string(entry.Result)
		}
	}
	n.t.Fatalf("libcni has no result of %s", c.id)
	return ""
}
