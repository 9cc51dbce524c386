package netlab

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/lab"
)

// TestRepair: whatever somebody else removes of weft's in the kernel is there again within a second, and is counted.
func TestRepair(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2, Mode: "vxlan"})
	pod, far := s.runSpecs("node1", lab.PodSpec{Name: "pod", Ports: ports(t, "8088:8080")})[0], s.run("node2", "far")[0]
	link := s.podLinks("node1")[0]
	vtep := regexp.MustCompile(`([0-9a-f:]{17}) dst 172.30.1.12`).FindStringSubmatch(s.out("node1", "bridge fdb show dev weft.vx"))
	if vtep == nil {
		t.Fatalf("no forwarding entry for node2: %s", s.out("node1", "bridge fdb show dev weft.vx"))
	}
	late, rounds := 0, 0
	for _, command := range []string{
		"ip route del 10.244.2.0/24",
		"ip -6 route del fd00:10:244:2::/64",
		"ip route del unreachable 10.244.1.0/24",
		"ip route del " + pod.Address(4).String(),
		"ip -6 route del " + pod.Address(6).String(),
		"ip route flush proto 87",
		"ip neigh del 10.244.2.1 dev weft.vx",
		"ip neigh del fd00:10:244:2::1 dev weft.vx",
		"ip neigh flush dev weft.vx nud permanent",
		"ip neigh del " + pod.Address(4).String() + " dev " + link,
		"bridge fdb del " + vtep[1] + " dev weft.vx self",
		"ip address del 10.244.1.1/32 dev weft0",
		"ip address flush dev weft0 scope global",
		"ip link set weft0 down",
		"ip link set weft.vx down",
		"ip link set " + link + " down",
		"ip link set weft.vx mtu 1300",
		"ip link del weft.vx",
		"ip link del weft0",
		"nft delete table inet weft",
		"nft flush table inet weft",
		"nft flush chain inet weft postrouting",
		"nft flush set inet weft tunnel_peers4",
		"nft flush ruleset",
	} {
		s.quiet("node1")
		before, repairs := s.kernel("node1"), s.status("node1").Fabric.Repairs
		s.out("node1", command)
		took := s.eventually("a repair after "+command, repairTime, func() error {
			if now := s.kernel("node1"); now != before {
				return fmt.Errorf("the kernel differs:\n%s", difference(before, now))
			}
			return nil
		})
		if rounds++; took > repairTime {
			late++
		}
		s.eventually("a count of the repair after "+command, repairTime, func() error {
			if s.status("node1").Fabric.Repairs == repairs {
				return fmt.Errorf("still %d repairs", repairs)
			}
			return nil
		})
		t.Logf("%-55s repaired within %3d ms", command, took.Milliseconds())
		s.reaches(pod, far)
		s.reaches(far, pod)
	}
	if late > rounds/2 { // a busy machine is late now and then, and the audit always
		t.Errorf("%d of %d repairs took more than %v", late, rounds, repairTime)
	}
}

// quiet waits until weftd has digested all news: a repair in a round that was due anyway would not be counted.
func (s *story) quiet(node string) {
	s.t.Helper()
	rounds, since := uint64(0), time.Now()
	s.eventually("a quiet weftd", 10*time.Second, func() error {
		if now := s.status(node).Fabric.Rounds; now != rounds {
			rounds, since = now, time.Now()
		}
		if time.Since(since) < 150*time.Millisecond {
			return errors.New("rounds go on")
		}
		return nil
	})
}

// TestForeignRoute: weft does not fight over a route that another program has set in the place of its own: it says who is in the
// way, and sets its own again when that one is gone.
func TestForeignRoute(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2, Mode: "vxlan"})
	pod, far := s.run("node1", "pod")[0], s.run("node2", "far")[0]
	before := s.kernel("node1")
	s.out("node1", "ip route replace 10.244.2.0/24 via 172.30.1.1 dev eth0")
	s.eventually("an error that names the route", repairTime, func() error {
		if said := s.status("node1").Fabric.Error; !strings.Contains(said, "10.244.2.0/24 via 172.30.1.1 dev eth0") {
			return fmt.Errorf("the error is %q", said)
		}
		return nil
	})
	// The rest of the network does not suffer.
	s.run("node1", "other")
	s.out("node1", "ip route del 10.244.2.0/24 via 172.30.1.1")
	s.delete("other")
	// That somebody else's route goes is no event of ours: weft tries again, at longer and longer intervals up to 5 s.
	s.eventually("weft's own route", 10*time.Second, func() error {
		if now := s.kernel("node1"); now != before {
			return fmt.Errorf("the kernel differs:\n%s", difference(before, now))
		}
		return nil
	})
	s.reaches(pod, far)
}

// kernel is everything of a node's network that weft answers for, in a form that does not change by itself.
func (s *story) kernel(node string) string {
	s.t.Helper()
	out, err := s.Output(s.ctx, node, "sh", "-c", script)
	s.no(err)
	out = regexp.MustCompile(`@if\d+|@NONE`).ReplaceAllString(out, "")
	out = regexp.MustCompile(`(?m)^(weft0 .*)(..:){5}..`).ReplaceAllString(out, "$1") // a bridge gets any address
	lines := strings.Split(out, "\n")
	for i, l := range lines {
		lines[i] = strings.Join(strings.Fields(l), " ")
	}
	return strings.Join(lines, "\n")
}

// script prints without what counts or ages.
var script = strings.Join([]string{
	"ip -br link | sort",
	"ip -br address show scope global | sort",
	"ip route | sort",
	"ip -6 route | grep -v ^fe80 | sort",
	"ip neigh show nud permanent | sort",
	"ip -6 neigh show nud permanent | sort",
	"bridge fdb show dev weft.vx",
	"ip -d -j link show weft.vx | grep -o mtu..[0-9]*",
	"nft -s list ruleset | sort", // chains come in the order in which they were made
}, "\n")

// difference shows the lines that only one of two texts has.
func difference(before, after string) string {
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	var out []string
	for _, l := range a {
		if !slices.Contains(b, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}
