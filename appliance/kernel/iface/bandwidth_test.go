package iface

import (
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/podnet"
)

// transfer sends size bytes by TCP from one namespace to an address in another and returns how long it took until all had arrived.
func transfer(t *testing.T, from, to *os.File, address string, size int) time.Duration {
	t.Helper()
	var listener net.Listener
	var client net.Conn
	var err error
	if err := inNS(int(to.Fd()), func() error { listener, err = net.Listen("tcp", net.JoinHostPort(address, "0")); return err }); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	arrived := make(chan error, 1)
	go func() {
		c, err := listener.Accept()
		if err == nil {
			defer c.Close()
			_, err = io.CopyN(io.Discard, c, int64(size))
		}
		arrived <- err
	}()
	if err := inNS(int(from.Fd()), func() error { client, err = net.Dial("tcp", listener.Addr().String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	start := time.Now()
	if _, err := client.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := <-arrived; err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

// TestBandwidthLimits sends 4 MB against a limit of 40 Mbit/s each way: that takes 0.8 s, without a limit some milliseconds.
func TestBandwidthLimits(t *testing.T) {
	const size, rate, burst = 4_000_000, 40_000_000, 400_000
	n, pod := newNode(t), newNS(t)
	a := attachment(1, 0, "46")
	before := state(t, n.ns)
	n.add(pod, a)
	for _, c := range []struct {
		name          string
		bw            Bandwidth
		toPod, toNode bool // limited
	}{
		{"none", Bandwidth{}, false, false},
		{"ingress", Bandwidth{IngressRate: rate, IngressBurst: burst}, true, false},
		{"egress", Bandwidth{EgressRate: rate, EgressBurst: burst}, false, true},
		{"both", Bandwidth{rate, burst, rate, burst}, true, true},
		{"larger", Bandwidth{100 * rate, 100 * burst, 100 * rate, 100 * burst}, false, false},
		{"none again", Bandwidth{}, false, false},
	} {
		for range 2 {
			if err := n.SetBandwidth(t.Context(), a.HostIf, c.bw); err != nil {
				t.Fatal(err)
			}
			if err := n.CheckBandwidth(t.Context(), a.HostIf, c.bw); err != nil {
				t.Error(err)
			}
		}
		for _, addr := range []string{a.Addresses[0].String(), a.Addresses[1].String()} {
			limited(t, c.name+", to "+addr, c.toPod, func() time.Duration { return transfer(t, n.ns, pod, addr, size) })
		}
		for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
			limited(t, c.name+", from the Pod to "+addr, c.toNode, func() time.Duration { return transfer(t, pod, n.ns, addr, size) })
		}
	}
	if err := n.SetBandwidth(t.Context(), a.HostIf, Bandwidth{rate, burst, rate, burst}); err != nil {
		t.Fatal(err)
	}
	n.del(a)
	n.flush()
	if after := state(t, n.ns); after != before {
		t.Errorf("left after DelPod:\n%s", after)
	}
}

// limited tries up to five times, for a busy machine makes a transfer slower, but never faster.
func limited(t *testing.T, what string, want bool, transfer func() time.Duration) {
	t.Helper()
	least, most := 600*time.Millisecond, 2*time.Second
	if !want {
		least, most = 0, least
	}
	best := time.Duration(math.MaxInt64)
	for try := 0; try < 5 && best > most; try++ {
		best = min(best, transfer())
	}
	if best < least || best > most {
		t.Errorf("%s: %v (limited: %v)", what, best, want)
	}
}

func TestBandwidthCheckNames(t *testing.T) {
	n, pod := newNode(t), newNS(t)
	a := attachment(1, 0, "4")
	n.add(pod, a)
	bw := Bandwidth{8_000_000, 80_000, 16_000_000, 160_000}
	limit := limitLinkName(a.HostIf)
	for _, c := range []struct{ command, want string }{
		{"tc qdisc del dev " + a.HostIf + " root", "token bucket on " + a.HostIf + " is missing"},
		{"tc qdisc replace dev " + limit + " root handle 1: tbf rate 1mbit burst 20kb latency 25ms", "token bucket on " + limit + " has rate 125000"},
		{"tc filter del dev " + a.HostIf + " ingress", "redirection of traffic from " + a.HostIf},
		{"ip link set " + limit + " down", "link " + limit + " is down"},
		{"ip link del " + limit, "link " + limit + " is missing"},
	} {
		if err := n.SetBandwidth(t.Context(), a.HostIf, bw); err != nil {
			t.Fatal(err)
		}
		n.run(c.command)
		if err := n.CheckBandwidth(t.Context(), a.HostIf, bw); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.command, err, c.want)
		}
	}
}

func TestBandwidthRefused(t *testing.T) {
	b := &Backend{}
	for want, bw := range map[string]Bandwidth{
		"ingressBurst is missing": {IngressRate: 8000},
		"egressRate is missing":   {EgressBurst: 8000},
		"less than a byte":        {IngressRate: 7, IngressBurst: 8000},
		"more than the 4 GiB":     {EgressRate: 8000, EgressBurst: 1 << 40},
	} {
		if err := b.SetBandwidth(t.Context(), "weftp0", bw); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", bw, err, want)
		}
	}
}

// TestBandwidthLeftovers covers a host end that is gone, a limit on another plugin's veth, and the burst that runtimes send.
func TestBandwidthLeftovers(t *testing.T) {
	n, pod := newNode(t), newNS(t)
	const runtimeBurst = 1<<32 - 1 // bits; what runtimes give that know only a rate
	bw := Bandwidth{1_000_000, runtimeBurst, 1_000_000, runtimeBurst}
	before := state(t, n.ns)
	n.run(fmt.Sprintf("ip link add cali0 type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), pod.Fd()))
	if err := n.SetBandwidth(t.Context(), "cali0", bw); err != nil {
		t.Fatal(err)
	}
	if err := n.CheckBandwidth(t.Context(), "cali0", bw); err != nil {
		t.Error(err)
	}
	n.run("ip link del cali0")
	for range 2 {
		if err := n.ClearBandwidth(t.Context(), "cali0"); err != nil {
			t.Error(err)
		}
	}
	a := attachment(1, 0, "4")
	n.add(pod, a)
	if err := n.SetBandwidth(t.Context(), a.HostIf, bw); err != nil {
		t.Fatal(err)
	}
	if removed, err := n.SweepBandwidth(t.Context()); err != nil || len(removed) != 0 {
		t.Errorf("SweepBandwidth removed %q of a living Pod, error %v", removed, err)
	}
	n.run("ip link del " + a.HostIf)
	if removed, err := n.SweepBandwidth(t.Context()); err != nil || len(removed) != 1 {
		t.Errorf("SweepBandwidth removed %q, error %v", removed, err)
	}
	n.del(podnet.Attachment{HostIf: a.HostIf})
	n.flush()
	if after := state(t, n.ns); after != before {
		t.Errorf("left:\n%s", after)
	}
}
