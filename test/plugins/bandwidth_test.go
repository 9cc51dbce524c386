package plugins

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/kernel/netnstest"
)

const megabit = 1_000_000

// limits of the tests in bits: small enough that a megabyte shows them, and different, so that they cannot be mixed up.
func limits() *limit {
	return &limit{IngressRate: 32 * megabit, IngressBurst: megabit / 2, EgressRate: 16 * megabit, EgressBurst: megabit / 2}
}

// TestBandwidth measures what gets through. The first burst is free, and TCP does not use all of a small bucket.
func TestBandwidth(t *testing.T) {
	for _, daemon := range []bool{true, false} {
		t.Run(fmt.Sprintf("weftd %t", daemon), func(t *testing.T) {
			n := newNode(t)
			if daemon {
				n.start()
			}
			list := n.chain("1.0.0")
			slow, fast := newContainer(t, "slow", hostPorts()...), newContainer(t, "fast")
			slow.limit = limits()
			n.mustAdd(list, slow, fast)
			for _, way := range []struct {
				verb string
				rate float64
			}{{"put", 32 * megabit}, {"get", 16 * megabit}} {
				if free := n.fastest(n.ns, way.verb, netip.AddrPortFrom(fast.addrs[0], containerPort), 3*way.rate); free < 3*way.rate {
					t.Errorf("%s without a limit: %.1f Mbit/s", way.verb, free/megabit)
				}
				for _, to := range []netip.AddrPort{netip.AddrPortFrom(node4, hostPort), netip.AddrPortFrom(node6, hostPort)} {
					got := n.fastest(n.client, way.verb, to, 0.4*way.rate)
					t.Logf("%s at %s: %.1f Mbit/s, the limit is %.0f", way.verb, to, got/megabit, way.rate/megabit)
					if got > 1.2*way.rate || got < 0.4*way.rate {
						t.Errorf("%s at %s: %.1f Mbit/s, the limit is %.0f", way.verb, to, got/megabit, way.rate/megabit)
					}
				}
			}
			if err := n.check(list, slow); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			for range 2 {
				n.no(n.del(list, slow))
			}
			n.nothingLeft()
		})
	}
}

// fastest moves a megabyte until that is as fast as wanted, five times at most, and returns the best rate: a busy machine makes it
// slower, never faster.
func (n *node) fastest(from *netnstest.NS, verb string, to netip.AddrPort, want float64) (best float64) {
	n.t.Helper()
	for try := 0; try < 5 && best < want; try++ {
		got, err := transfer(from, verb, to, 1<<20)
		if err != nil {
			n.t.Errorf("%s at %s: %v", verb, to, err)
			break
		}
		best = max(best, got)
	}
	return best
}

// nothingLeft fails when a device of the bandwidth plugin stays behind. A daemon removes them in groups.
func (n *node) nothingLeft() {
	n.t.Helper()
	n.eventually("the removal of the limit", 2*time.Second, func() error {
		if out := n.ns.Run("ip", "-o", "link", "show", "type", "ifb"); out != "" {
			return fmt.Errorf("left behind: %s", out)
		}
		return nil
	})
}

// TestCheckBandwidth takes away one part of the limit at a time.
func TestCheckBandwidth(t *testing.T) {
	for _, daemon := range []bool{true, false} {
		t.Run(fmt.Sprintf("weftd %t", daemon), func(t *testing.T) {
			n := newNode(t)
			if daemon {
				n.start()
			}
			list := n.chain("1.0.0")
			for i, command := range []string{
				"tc qdisc del dev HOST root",
				"tc qdisc replace dev HOST root tbf rate 99mbit burst 10kb latency 25ms",
				"tc qdisc del dev HOST clsact",
				"tc filter del dev HOST ingress",
				"tc qdisc del dev IFB root",
				"ip link set IFB down",
				"ip link del IFB",
			} {
				c := newContainer(t, fmt.Sprint("c", i))
				c.limit = limits()
				res, err := n.add(list, c)
				n.no(err)
				n.no(n.check(list, c))
				fields := strings.Fields(n.ns.Run("ip", "-o", "link", "show", "type", "ifb"))
				if len(fields) < 2 {
					t.Fatalf("no ifb device: %v", fields)
				}
				command = strings.NewReplacer("HOST", res.Interfaces[1].Name, "IFB", strings.TrimSuffix(fields[1], ":")).Replace(command)
				n.ns.Run("sh", "-c", command)
				if err := n.check(list, c); err == nil {
					t.Errorf("CHECK finds nothing wrong after %s", command)
				}
				n.no(n.del(list, c))
				n.nothingLeft()
			}
		})
	}
}
