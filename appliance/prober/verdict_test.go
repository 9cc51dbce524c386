package prober

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/route"
)

var (
	ok     = outcome{fate: passed, rtt: time.Millisecond}
	router = netip.MustParseAddr("192.168.7.1")
)

func TestVerdict(t *testing.T) {
	tunnel := route.Peer{Node: "b", Mode: route.ModeVXLAN, Outer: netip.MustParseAddr("192.168.1.2")}
	tunnel6 := route.Peer{Node: "b", Mode: route.ModeVXLAN, Outer: netip.MustParseAddr("2001:db8::2")}
	native := route.Peer{Node: "b", Mode: route.ModeNative, Outer: netip.MustParseAddr("192.168.1.2")}
	for _, tc := range []struct {
		name    string
		facts   facts
		up      bool
		mtu     int
		finding string
	}{
		{
			"all is well",
			facts{peer: tunnel, small: ok, inner: measured{mtu: 1450}, underlay: measured{mtu: 1500}},
			true, 1450, "",
		},
		{
			"the underlay does not answer probes",
			facts{peer: tunnel, small: ok, inner: measured{mtu: 1450}},
			true, 1450, "",
		},
		{
			"it went away during the check",
			facts{peer: native, small: ok},
			true, 0, "",
		},
		{
			"a router names its MTU",
			facts{peer: native, small: ok, inner: measured{1400, outcome{fate: tooBig, by: router}}},
			true, 1400, "path MTU to node b is 1400, Pods use 1450: set fabric.mtu: 1400 or fix the underlay; packets larger than 1400 are lost (router 192.168.7.1 says so)",
		},
		{
			"a black hole",
			facts{peer: native, small: ok, inner: measured{1399, outcome{}}},
			true, 1399, "path MTU to node b is 1399, Pods use 1450: set fabric.mtu: 1399 or fix the underlay; packets larger than 1399 are lost (no router says so: ICMP is blocked on the way)",
		},
		{
			"the node's own link",
			facts{peer: native, small: ok, inner: measured{1300, outcome{fate: tooBig}}},
			true, 1300, "path MTU to node b is 1300, Pods use 1450: set fabric.mtu: 1300 or fix the underlay; packets larger than 1300 are lost (a link of this node carries no more)",
		},
		{
			"fragments are lost too",
			facts{peer: tunnel, small: ok, inner: measured{1352, outcome{}}, underlay: measured{1402, outcome{fate: tooBig, by: router}}},
			true, 1352, "path MTU to node b is 1352, Pods use 1450: set fabric.mtu: 1352 or fix the underlay; packets larger than 1352 are lost (router 192.168.7.1 says so)",
		},
		{
			"only the tunnel is small",
			facts{peer: tunnel, small: ok, inner: measured{1300, outcome{fate: tooBig}}, underlay: measured{mtu: 1500}},
			true, 1300, "path MTU to node b is 1300, Pods use 1450: set fabric.mtu: 1300 or fix the underlay; packets larger than 1300 are lost (a link of this node carries no more)",
		},
		{
			"too small for fabric.mtu",
			facts{peer: native, small: ok, inner: measured{1000, outcome{}}},
			true, 1000, "path MTU to node b is 1000, Pods use 1450: fix the underlay (fabric.mtu cannot be less than 1280); packets larger than 1000 are lost (no router says so: ICMP is blocked on the way)",
		},
		{
			"the tunnel is fragmented",
			facts{peer: tunnel, small: ok, inner: measured{mtu: 1450}, underlay: measured{1400, outcome{fate: tooBig, by: router}}},
			true, 1350, "path MTU to node b is 1350, Pods use 1450: set fabric.mtu: 1350 or fix the underlay; larger packets are fragmented in the tunnel, because the underlay carries 1400 bytes and they need 1500 (router 192.168.7.1 says so)",
		},
		{
			"the tunnel is fragmented, IPv6 underlay",
			facts{peer: tunnel6, small: ok, inner: measured{mtu: 1450}, underlay: measured{1500, outcome{}}},
			true, 1430, "path MTU to node b is 1430, Pods use 1450: set fabric.mtu: 1430 or fix the underlay; larger packets are fragmented in the tunnel, because the underlay carries 1500 bytes and they need 1520 (no router says so: ICMP is blocked on the way)",
		},
		{
			"broken offload, worked around",
			facts{peer: tunnel, small: ok, inner: measured{mtu: 1450}, underlay: measured{mtu: 1500}, offload: offloadBroken},
			true, 1450, "broken checksum offload on the way to node b, worked around: packets get through the tunnel since tx checksum offload of weft.vx is off",
		},
		{
			"no daemon there",
			facts{peer: tunnel, small: outcome{fate: refused}},
			true, 0, "node b is there, but nothing answers probes at 10.244.2.1 udp/9466: is weftd running there, with the same fabric.probe.port?",
		},
		{
			"VXLAN is blocked",
			facts{peer: tunnel, outer: ok},
			false, 0, "VXLAN (udp/4789) from or to node b does not get through, although the node answers at 192.168.1.2: is the port blocked by a firewall, or in use by something else there?",
		},
		{
			"the tunnel is not there",
			facts{peer: tunnel, outer: ok, small: outcome{fate: unreachable, detail: "refused by this node: network is unreachable"}},
			false, 0, "node b answers at 192.168.1.2, but not at 10.244.2.1 in the Pod network (refused by this node: network is unreachable): a route to it, or its route back, is missing or filtered",
		},
		{
			"VXLAN is blocked, offload cannot be tried",
			facts{peer: tunnel, outer: ok, offload: offloadCleared, offloadError: "operation not supported"},
			false, 0, "VXLAN (udp/4789) from or to node b does not get through, although the node answers at 192.168.1.2: is the port blocked by a firewall, or in use by something else there?" +
				" Whether checksum offload is broken could not be tried: operation not supported",
		},
		{
			"a route is missing",
			facts{peer: native, outer: ok, small: outcome{fate: unreachable, detail: "refused by 192.168.7.1: no route to host"}},
			false, 0, "node b answers at 192.168.1.2, but not at 10.244.2.1 in the Pod network (refused by 192.168.7.1: no route to host): a route to it, or its route back, is missing or filtered (in native mode every router between the nodes must know all Pod ranges)",
		},
		{
			"the machine is up",
			facts{peer: native, outer: outcome{fate: refused}},
			false, 0, "node b is up, but weftd does not answer there: udp/9466 at 192.168.1.2 is closed",
		},
		{
			"nothing at all",
			facts{peer: tunnel},
			false, 0, "node b does not answer, neither at 10.244.2.1 through the Pod network nor at its own address 192.168.1.2: is it down, or is udp/9466 blocked?",
		},
		{
			"no address",
			facts{peer: route.Peer{Node: "b", Mode: route.ModeNative}, outer: outcome{fate: unreachable, detail: "no address to probe"}},
			false, 0, "node b does not answer, neither at 10.244.2.1 through the Pod network nor at its own address (it has none) (no address to probe): is it down, or is udp/9466 blocked?",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := tc.facts
			f.to, f.podMTU, f.tunnel, f.probePort = netip.MustParseAddr("10.244.2.1"), 1450, 4789, 9466
			up, mtu, finding := verdict(f)
			if up != tc.up || mtu != tc.mtu || finding != tc.finding {
				t.Errorf("got  %v %d %s\nwant %v %d %s", up, mtu, finding, tc.up, tc.mtu, tc.finding)
			}
		})
	}
}

func TestSearchMTU(t *testing.T) {
	for _, tc := range []struct {
		name      string
		low, high int
		real      int
		// says is what a router answers to a packet that is too big; 0 for silence.
		says func(size int) int
		hint int
		want int
		most int // probes
	}{
		{"black hole", 128, 1450, 1399, nil, 0, 1399, 11},
		{"black hole just below", 128, 1450, 1449, nil, 0, 1449, 11},
		{"black hole just above the least", 128, 1450, 128, nil, 0, 128, 11},
		{"nothing to search", 128, 129, 128, nil, 0, 128, 0},
		{"jumbo", 128, 9000, 8951, nil, 0, 8951, maxSizes},
		{"more than the bound can find", 128, 65535, 40010, nil, 0, 40000, maxSizes},
		{"a router is right", 128, 1450, 1400, func(int) int { return 1400 }, 1400, 1400, 2},
		{"a router is right, one below", 128, 1450, 1449, func(int) int { return 1449 }, 1449, 1449, 1},
		{"two routers", 128, 1450, 1300, func(size int) int {
			if size > 1400 {
				return 1400
			}
			return 1300
		}, 1400, 1300, 3},
		{"a router says too little", 128, 1450, 1400, nil, 576, 1400, maxSizes},
		{"a router says too much", 128, 1450, 1300, nil, 1440, 1300, maxSizes},
		{"a router says nonsense", 128, 1450, 1300, func(int) int { return 9000 }, 9000, 1300, maxSizes},
	} {
		t.Run(tc.name, func(t *testing.T) {
			probes := 0
			got := searchMTU(tc.low, tc.high, outcome{mtu: tc.hint}, func(size int) outcome {
				if probes++; size <= tc.low || size >= tc.high {
					t.Errorf("probed %d, which is not between %d and %d", size, tc.low, tc.high)
				}
				switch {
				case size <= tc.real:
					return ok
				case tc.says != nil:
					return outcome{fate: tooBig, mtu: tc.says(size), by: router}
				}
				return outcome{}
			})
			if got.mtu != tc.want || probes > tc.most {
				t.Errorf("found %d with %d probes, want %d with at most %d", got.mtu, probes, tc.want, tc.most)
			}
		})
	}
}

type bigError struct{}

func (bigError) Error() string              { return "too big" }
func (bigError) PathMTU() (int, netip.Addr) { return 1400, router }

type closedError struct{ error }

func (closedError) Refused() bool { return true }

func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want outcome
	}{
		{nil, outcome{fate: passed, rtt: time.Second}},
		{fmt.Errorf("probing: %w", bigError{}), outcome{fate: tooBig, mtu: 1400, by: router, detail: "probing: too big"}},
		{fmt.Errorf("probing: %w", closedError{syscall.ECONNREFUSED}), outcome{fate: refused}},
		{fmt.Errorf("probing: %w", os.ErrDeadlineExceeded), outcome{}},
		{context.DeadlineExceeded, outcome{}},
		{syscall.EHOSTUNREACH, outcome{fate: unreachable, detail: "no route to host"}},
		{errors.New("who knows"), outcome{fate: unreachable, detail: "who knows"}},
	} {
		if got := judge(time.Second, tc.err); got != tc.want {
			t.Errorf("%v: got %+v, want %+v", tc.err, got, tc.want)
		}
	}
}
