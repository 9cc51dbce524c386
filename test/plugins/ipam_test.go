package plugins

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"weft.network/weft/appliance/model"
)

// TestIPAM gives addresses to the reference plugins, and takes them back.
func TestIPAM(t *testing.T) {
	for _, tc := range []struct {
		name   string
		daemon bool
		main   plugin
		ipam   string
		ranges []netip.Prefix
	}{
		{"bridge weft-ipam", true, bridge(plugin{"type": "weft-ipam"}), "weft-ipam", nodeRanges},
		{"bridge host-local", true, bridge(hostLocal(ownRanges)), "host-local", ownRanges},
		{"bridge host-local without weftd", false, bridge(hostLocal(ownRanges)), "host-local", ownRanges},
		{"macvlan host-local", true, plugin{"type": "macvlan", "master": "up0", "ipam": hostLocal(ownRanges)}, "host-local", ownRanges},
		{"macvlan host-local without weftd", false, plugin{"type": "macvlan", "master": "up0", "ipam": hostLocal(ownRanges)}, "host-local", ownRanges},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			if tc.daemon {
				n.start()
			}
			list := n.list("1.0.0", "one", tc.main)
			cs := []*container{newContainer(t, "a"), newContainer(t, "b"), newContainer(t, "c")}
			n.addAtOnce(list, cs)
			unique(t, tc.ranges, cs)
			meet(t, cs...)
			n.reachesFromNode(tc.main, cs)
			for _, c := range cs {
				if err := n.check(list, c); err != nil {
					t.Errorf("CHECK %s: %v", c.id, err)
				}
			}
			n.takeBack(list, tc.ipam, tc.daemon, cs)
		})
	}
}

// addAtOnce attaches containers as kubelet does, without waiting for one before the next.
func (n *node) addAtOnce(list *libcni.NetworkConfigList, cs []*container) {
	n.t.Helper()
	errs := make([]error, len(cs))
	var wg sync.WaitGroup
	for i, c := range cs {
		wg.Go(func() { _, errs[i] = n.add(list, c) })
	}
	wg.Wait()
	for _, err := range errs {
		n.no(err)
	}
}

// unique fails unless every container has one address from each range that nobody else has, also on its interface.
func unique(t testing.TB, ranges []netip.Prefix, cs []*container) {
	t.Helper()
	owner := map[netip.Addr]string{}
	for _, c := range cs {
		if len(c.addrs) != len(ranges) {
			t.Fatalf("%s has %v, want an address from each of %v", c.id, c.addrs, ranges)
		}
		for i, a := range c.addrs {
			if !ranges[i].Contains(a) {
				t.Errorf("%s has %s, which is not in %s", c.id, a, ranges[i])
			}
			if other, taken := owner[a]; taken {
				t.Errorf("%s and %s both have %s", c.id, other, a)
			}
			owner[a] = c.id
			c.ns.Run("ip", "route", "get", "from", a.String(), ranges[i].Addr().Next().String()) // the address is there
		}
	}
}

// reachesFromNode asks the containers from the node itself; with macvlan the node is not on their network.
func (n *node) reachesFromNode(main plugin, cs []*container) {
	n.t.Helper()
	if main["type"] != "bridge" {
		return
	}
	for _, c := range cs {
		for _, a := range c.addrs {
			if id, _, err := ask(n.ns, "tcp", netip.AddrPortFrom(a, containerPort)); err != nil || id != c.id {
				n.t.Errorf("the node to %s at %s: answered by %q: %v", c.id, a, id, err)
			}
		}
	}
}

// takeBack detaches one container twice, has another one collected, and looks for what is left each time.
func (n *node) takeBack(list *libcni.NetworkConfigList, ipam string, daemon bool, cs []*container) {
	t := n.t
	t.Helper()
	for range 2 {
		if err := n.del(list, cs[0]); err != nil {
			t.Errorf("DEL %s: %v", cs[0].id, err)
		}
	}
	// A main plugin of this age does not pass GC on: this is what a newer one sends. Other networks are none of its business.
	gc := plugin{
		"cniVersion": "1.1.0", "type": list.Plugins[0].Network.Type, "ipam": plugin{"type": ipam}, "runDir": n.path("run"), "stateDir": n.path("state"),
		"cni.dev/valid-attachments": []types.GCAttachment{{ContainerID: "c", IfName: "eth0"}},
	}
	for _, network := range []string{"another", "one"} {
		gc["name"] = network
		n.no(n.call(ipam, "GC", gc))
		if network == "another" {
			n.no(n.check(list, cs[1]))
		}
	}
	if err := n.check(list, cs[1]); err == nil {
		t.Error("CHECK finds nothing wrong with a container whose lease was collected")
	}
	if err := n.check(list, cs[2]); err != nil {
		t.Errorf("CHECK of a container that GC named as valid: %v", err)
	}
	if !daemon {
		n.start() // it takes over what was given without it
	}
	n.holds(cs[2])
	if err := n.check(list, cs[2]); err != nil {
		t.Errorf("CHECK after everything else is gone: %v", err)
	}
	for _, c := range cs {
		n.no(n.del(list, c))
	}
	n.holds()
}

// holds fails unless the leases are exactly those of the containers.
func (n *node) holds(cs ...*container) {
	n.t.Helper()
	var want, have []string
	for _, c := range cs {
		want = append(want, fmt.Sprint(c.id, c.addrs))
	}
	for _, l := range n.leases() {
		have = append(have, fmt.Sprint(l.ContainerID, l.Addresses))
		if l.Kind != model.LeaseIPAM {
			n.t.Errorf("the lease of %s has kind %s", l.ContainerID, l.Kind)
		}
	}
	slices.Sort(have)
	if !slices.Equal(have, want) {
		n.t.Errorf("leases are %v, want %v", have, want)
	}
}

// TestCollectByRuntime has libcni find what is missing, which it does for every version of the specification.
func TestCollectByRuntime(t *testing.T) {
	n := newNode(t)
	n.start()
	list := n.chain("1.0.0")
	gone, stays := newContainer(t, "gone"), newContainer(t, "stays")
	gone.ports = []portMapping{{18080, containerPort, "tcp", ""}}
	n.mustAdd(list, gone, stays)
	err := n.ns.Do(func() error {
		return n.cni().GCNetworkList(n.ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "stays", IfName: "eth0"}}})
	})
	n.no(err)
	n.holds(stays)
	n.no(n.check(list, stays))
	if id, _, err := ask(n.client, "tcp", netip.AddrPortFrom(node4, 18080)); err == nil {
		t.Errorf("the host port of a container that was collected is answered by %s", id)
	}
}

// TestCollectChain sends the verb GC itself through a list in which every plugin knows it.
func TestCollectChain(t *testing.T) {
	n := newNode(t)
	n.start()
	list := n.list("1.1.0", "weft", plugin{"type": "weft-cni"}, bandwidth(), portmap())
	gone, stays := newContainer(t, "gone"), newContainer(t, "stays")
	n.mustAdd(list, gone, stays)
	meet(t, gone, stays)
	n.no(n.ns.Do(func() error {
		return n.cni().GCNetworkList(n.ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "stays", IfName: "eth0"}}})
	}))
	n.no(n.ns.Do(func() error { return n.cni().GetStatusNetworkList(n.ctx, list) }))
	if left := n.leases(); len(left) != 1 || left[0].ContainerID != "stays" {
		t.Errorf("leases after GC: %v, want that of stays alone", left)
	}
	n.no(n.check(list, stays))
}

// TestHostLocalTakesOver: a container that the reference host-local served runs on when weft takes that plugin's place, keeps its
// address for itself, and gives it back with its DEL.
func TestHostLocalTakesOver(t *testing.T) {
	for _, daemon := range []bool{true, false} {
		t.Run(fmt.Sprintf("weftd %t", daemon), func(t *testing.T) {
			n := newNode(t)
			if daemon {
				n.start()
			}
			ipam := hostLocal(ownRanges)
			ipam["dataDir"] = n.path("networks")
			list := n.list("1.0.0", "one", bridge(ipam))
			old, next, later := newContainer(t, "old"), newContainer(t, "next"), newContainer(t, "later")
			link := n.path("bin/host-local")
			n.no(os.Remove(link)) // the runtime finds the reference plugin in its second folder
			n.mustAdd(list, old)
			given := old.addrs
			if files, err := os.ReadDir(n.path("networks/one")); err != nil || len(files) < len(given) {
				t.Fatalf("the reference plugin was not called: %v, %v", files, err)
			}
			n.no(os.Symlink(weft, link))
			n.mustAdd(list, next)
			unique(t, ownRanges, []*container{old, next})
			meet(t, old, next)
			n.no(n.del(list, old))
			for _, a := range given {
				if _, err := os.Stat(n.path("networks/one/" + a.String())); err == nil {
					t.Errorf("%s is still kept from others", a)
				}
			}
			n.mustAdd(list, later)
			unique(t, ownRanges, []*container{next, later})
		})
	}
}
