package l2

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/announce"
	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/model"
)

var (
	vip4 = netip.MustParseAddr("192.0.2.80")
	vip6 = netip.MustParseAddr("2001:db8::80")
)

// patience is far more than any of this takes.
const patience = 20 * time.Second

// pair makes two namespaces on one wire, with a port at the first one's end.
func pair(t *testing.T) (p *Port, node, host *netnstest.NS) {
	node, host = netnstest.New(t), netnstest.New(t)
	netnstest.Veth(node, "eth0", host, "eth0")
	node.IP("addr add 192.0.2.1/24 dev eth0 \n addr add 2001:db8::1/64 dev eth0 nodad")
	host.IP("addr add 192.0.2.2/24 dev eth0 \n addr add 2001:db8::2/64 dev eth0 nodad")
	return openPort(t, node), node, host
}

func openPort(t *testing.T, n *netnstest.NS) (p *Port) {
	err := n.Do(func() (err error) {
		p, err = Open("eth0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func set(t *testing.T, p *Port, held, watched []netip.Addr) {
	t.Helper()
	if err := p.Set(held, watched); err != nil {
		t.Fatal(err)
	}
}

// wait returns the first event that fits.
func wait(t *testing.T, p *Port, what string, fits func(announce.Heard) bool) announce.Heard {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		select {
		case e := <-p.Events():
			if fits(e) {
				return e
			}
		case <-ctx.Done():
			t.Fatalf("no event: %s", what)
		}
	}
}

// TestAnswers: arping and ndisc6, written by others, find a held address, and no other.
func TestAnswers(t *testing.T) {
	p, _, host := pair(t)
	out, err := host.Try("arping", "-c", "1", "-w", "1", "-I", "eth0", vip4.String())
	if err == nil {
		t.Fatalf("an address that nobody holds answers: %s", out)
	}
	set(t, p, []netip.Addr{vip4, vip6}, nil)
	out = host.Run("arping", "-c", "2", "-w", "15", "-I", "eth0", vip4.String())
	if !strings.Contains(strings.ToLower(out), p.MAC().String()) {
		t.Errorf("arping: %s", out)
	}
	if out, err := host.Try("arping", "-D", "-c", "1", "-w", "15", "-I", "eth0", vip4.String()); err == nil {
		t.Errorf("a host that asks before it takes the address is not told that it is taken: %s", out)
	}
	out = host.Run("ndisc6", "-1", "-r", "15", "-w", "1000", vip6.String(), "eth0")
	if !strings.Contains(strings.ToLower(out), p.MAC().String()) {
		t.Errorf("ndisc6: %s", out)
	}
	if p.Answered() < 3 {
		t.Errorf("counted %d answers", p.Answered())
	}
	set(t, p, nil, []netip.Addr{vip4, vip6})
	if out, err := host.Try("arping", "-c", "1", "-w", "1", "-I", "eth0", vip4.String()); err == nil {
		t.Errorf("an address that was let go answers: %s", out)
	}
	if out, err := host.Try("ndisc6", "-1", "-r", "1", "-w", "500", vip6.String(), "eth0"); err == nil {
		t.Errorf("an address that was let go answers: %s", out)
	}
}

// TestDuplicateAddressDetection: the kernel of a host that wants a held address learns that it is taken.
func TestDuplicateAddressDetection(t *testing.T) {
	p, _, host := pair(t)
	set(t, p, []netip.Addr{vip6}, nil)
	host.IP("addr add 2001:db8::80/64 dev eth0")
	deadline := time.Now().Add(patience)
	for !strings.Contains(host.Run("ip", "-6", "addr", "show", "dev", "eth0"), "dadfailed") {
		if time.Now().After(deadline) {
			t.Fatal("the host uses the address all the same")
		}
		<-time.After(50 * time.Millisecond)
	}
}

// TestAnnounce: neighbours that knew the address elsewhere send here from then on.
func TestAnnounce(t *testing.T) {
	p, _, host := pair(t)
	host.IP("neigh replace 192.0.2.80 lladdr 02:00:00:00:00:99 dev eth0 nud reachable \n neigh replace 2001:db8::80 lladdr 02:00:00:00:00:99 dev eth0 nud reachable")
	deadline := time.Now().Add(patience)
	for _, addr := range []netip.Addr{vip4, vip6} {
		for !strings.Contains(host.Run("ip", "neigh", "show", addr.String(), "dev", "eth0"), p.MAC().String()) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s", addr, host.Run("ip", "neigh"))
			}
			if err := p.Announce(addr); err != nil {
				t.Fatal(err)
			}
			<-time.After(20 * time.Millisecond)
		}
	}
}

// TestStranger: a host that uses a watched address is noticed, whatever it says: when it is asked, when it asks, when it boasts.
func TestStranger(t *testing.T) {
	p, _, host := pair(t)
	set(t, p, nil, []netip.Addr{vip4, vip6})
	host.IP("addr add 192.0.2.80/24 dev eth0 \n addr add 2001:db8::80/64 dev eth0 nodad")
	mac, err := model.ParseMAC(strings.Fields(host.Run("ip", "-br", "link", "show", "eth0"))[2])
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []netip.Addr{vip4, vip6} {
		if err := p.Probe(addr); err != nil {
			t.Fatal(err)
		}
		wait(t, p, "the answer to a probe for "+addr.String(), func(e announce.Heard) bool { return e.Addr == addr && e.From == mac })
	}
	host.Run("arping", "-U", "-c", "1", "-I", "eth0", vip4.String())
	wait(t, p, "a gratuitous ARP", func(e announce.Heard) bool { return e.Addr == vip4 && e.From == mac })
	_, _ = host.Try("arping", "-c", "1", "-w", "1", "-s", vip4.String(), "-I", "eth0", "192.0.2.77")
	wait(t, p, "a question from the address", func(e announce.Heard) bool { return e.Addr == vip4 && e.From == mac })
}

// TestHello: what one port says another one hears, and not itself.
func TestHello(t *testing.T) {
	p, _, host := pair(t)
	q := openPort(t, host)
	if err := p.Hello([]byte("from p")); err != nil {
		t.Fatal(err)
	}
	if err := q.Hello([]byte("from q")); err != nil {
		t.Fatal(err)
	}
	heard := func(from *Port) func(announce.Heard) bool {
		return func(e announce.Heard) bool {
			return strings.HasPrefix(string(e.Hello), "from ") && e.From == from.MAC()
		}
	}
	if e := wait(t, q, "a hello", heard(p)); !strings.HasPrefix(string(e.Hello), "from p") {
		t.Errorf("heard %q", e.Hello)
	}
	if e := wait(t, p, "a hello", heard(q)); !strings.HasPrefix(string(e.Hello), "from q") {
		t.Errorf("heard %q", e.Hello)
	}
}

// TestClose: a port that is closed ends its channel, also when the link went first.
func TestClose(t *testing.T) {
	p, node, _ := pair(t)
	node.IP("link del eth0")
	p.Close()
	p.Close()
	for range p.Events() {
	}
}

func TestOpenErrors(t *testing.T) {
	n := netnstest.New(t)
	for name, want := range map[string]string{"none0": "none0", "lo": "no Ethernet address"} {
		err := n.Do(func() error { _, err := Open(name); return err })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
