package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/lab"
)

// convergeTime is how long news of the cluster may take to reach every kernel.
const convergeTime = 3 * time.Second

// TestNodesComeAndGo: nodes are added, change their address and go, and no daemon is restarted.
func TestNodesComeAndGo(t *testing.T) {
	for _, tc := range []struct {
		mode    string
		subnets int
	}{{"auto", 1}, {"vxlan", 2}, {"native", 2}, {"auto", 2}} {
		t.Run(fmt.Sprintf("%s %d", tc.mode, tc.subnets), func(t *testing.T) {
			s := tell(t, lab.Options{Nodes: 2, Mode: tc.mode, Subnets: tc.subnets})
			a, b := s.run("node1", "a")[0], s.run("node2", "b")[0]
			s.reaches(a, b)
			daemons := []lab.Process{s.daemon("node1"), s.daemon("node2")}

			third, err := s.AddNode(s.ctx)
			s.no(err)
			c := s.run(third.Name, "c")[0]
			s.converges("a new node", a, b, c)

			before, err := s.Node("node2")
			s.no(err)
			s.no(s.Readdress("node2"))
			took := s.converges("a node with another address", a, b, c)
			t.Logf("another address of node2: everybody reaches everybody after %v", took)
			s.forgotten("node1", before.Addresses...)

			s.no(s.RemoveNode(s.ctx, third.Name))
			s.forgotten("node1", third.Addresses...)
			for _, p := range third.PodCIDRs {
				s.forgotten("node1", p.Addr())
			}
			s.converges("one node less", a, b)

			// A node of the same name and ranges that is another machine.
			fourth, err := s.AddNode(s.ctx, third.PodCIDRs...)
			s.no(err)
			d := s.run(fourth.Name, "d")[0]
			s.converges("a node in the place of another", a, b, d)

			if now := []lab.Process{s.daemon("node1"), s.daemon("node2")}; !slices.Equal(daemons, now) || !now[0].Alive() || !now[1].Alive() {
				t.Errorf("the daemons were %v and are %v", daemons, now)
			}
			for _, node := range []string{"node1", "node2", fourth.Name} {
				s.clean(node)
			}
		})
	}
}

func (s *story) daemon(node string) lab.Process {
	s.t.Helper()
	n, err := s.Node(node)
	s.no(err)
	return n.Daemon
}

// converges waits until all Pods reach each other.
func (s *story) converges(why string, pods ...*lab.Pod) time.Duration {
	s.t.Helper()
	return s.eventually("Pods that reach each other after "+why, convergeTime, func() error {
		for _, p := range pods {
			if err := s.tryReach(p, pods...); err != nil {
				return err
			}
		}
		return nil
	})
}

// forgotten waits until nothing in a node's kernel names the addresses.
func (s *story) forgotten(node string, addresses ...netip.Addr) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("a kernel without %v", addresses), convergeTime, func() error {
		for _, line := range strings.Split(s.kernel(node), "\n") {
			for _, word := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" ,/{}", r) }) {
				if a, err := netip.ParseAddr(word); err == nil && slices.Contains(addresses, a) {
					return errors.New(line)
				}
			}
		}
		return nil
	})
}

// TestModeChange: the mode changes at run time on all nodes, and Pods go on: also those that were there before.
func TestModeChange(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 3, Subnets: 2, Mode: "native"})
	pods := []*lab.Pod{s.run("node1", "a")[0], s.run("node2", "b")[0], s.run("node3", "c")[0]}
	s.converges("the start", pods...)
	for _, tc := range []struct{ mode, node2, node3 string }{
		{"vxlan", "weft.vx", "weft.vx"}, {"auto", "weft.vx", "eth0"}, {"native", "eth0", "eth0"}, {"auto", "weft.vx", "eth0"},
	} {
		s.no(s.SetMode(s.ctx, tc.mode))
		took := s.eventually("mode "+tc.mode+" on node1", convergeTime, func() error {
			if got := s.linkTo("node1", pods[1].Address(4)); got != tc.node2 {
				return fmt.Errorf("node1 reaches node2's Pods by %s, want %s", got, tc.node2)
			}
			if got := s.linkTo("node1", pods[2].Address(6)); got != tc.node3 {
				return fmt.Errorf("node1 reaches node3's Pods by %s, want %s", got, tc.node3)
			}
			return nil
		})
		took += s.converges("mode "+tc.mode, pods...)
		t.Logf("mode %s: everybody reaches everybody after %v", tc.mode, took)
		// Pods from before the change must neither send too large packets nor be cut off from large ones.
		s.eventually("the Pods' MTU of mode "+tc.mode, convergeTime, func() error {
			if want, got := s.status("node1").Fabric.MTU, s.podMTU("a"); got != want {
				return fmt.Errorf("Pod a has MTU %d, want %d", got, want)
			}
			return nil
		})
		for _, p := range pods[1:] {
			for _, at := range p.Addresses {
				tr, err := s.transfer("a", "get", "--count", fmt.Sprintf("http://%s/bytes?n=200000", netip.AddrPortFrom(at, lab.HTTPPort)))
				s.no(err)
				if tr[0].Bytes != 200000 {
					t.Errorf("mode %s: %d of 200000 bytes from %s", tc.mode, tr[0].Bytes, at)
				}
			}
		}
		s.eventually("the tunnel link of mode "+tc.mode, convergeTime, func() error {
			if tunnel := strings.Contains(s.out("node1", "ip -br link"), "weft.vx"); tunnel != (tc.mode != "native") {
				return fmt.Errorf("it is there: %v", tunnel)
			}
			return nil
		})
	}
}

// TestPodCIDRChanges: a range that changes under running Pods is a warning, not an outage.
func TestPodCIDRChanges(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	a, b := s.run("node1", "a")[0], s.run("node2", "b")[0]
	s.no(s.SetPodCIDRs("node1", netip.MustParsePrefix("10.244.91.0/24"), netip.MustParsePrefix("fd00:10:244:91::/64")))
	s.eventually("a warning", convergeTime, func() error {
		warnings := strings.Join(s.status("node1").Warnings, "\n")
		for _, word := range []string{"10.244.91.0/24", "default/a", "10.244.1.2"} {
			if !strings.Contains(warnings, word) {
				return fmt.Errorf("no warning names %s: %q", word, warnings)
			}
		}
		return nil
	})
	s.t.Log(s.status("node1").Warnings)
	// The Pod from before is still reached on its own node, and new ones get addresses of the new range, reachable from everywhere.
	neighbour := s.run("node1", "neighbour")[0]
	if !netip.MustParsePrefix("10.244.91.0/24").Contains(neighbour.Address(4)) {
		t.Errorf("a new Pod got %v, which is not of the new range", neighbour.Addresses)
	}
	s.reaches(neighbour, a)
	s.reaches(a, neighbour)
	s.converges("the new range", neighbour, b)
	s.delete("a")
	s.clean("node1")
}
