package nft

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/model"
)

// lab is one node with one Pod, and a machine outside; the node has the fabric's rules.
//
//	pod 10.42.1.5 fd00:42:0:1::5 --- weftp0 node eth0 192.168.9.1 fd00:9::1 --- outside 192.168.9.254 fd00:9::254
//	                                                 its other addresses: peer 192.168.9.2, another Pod 10.42.7.7 fd00:42:0:7::7
type lab struct{ node, pod, outside *netnstest.NS }

func newLab(t *testing.T) lab {
	l := lab{netnstest.New(t), netnstest.New(t), netnstest.New(t)}
	for path, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
	} {
		l.node.Sysctl(path, value)
	}
	netnstest.Veth(l.node, "weftp0", l.pod, "eth0")
	netnstest.Veth(l.node, "eth0", l.outside, "eth0")
	l.node.Sysctl("ipv4/conf/weftp0/route_localnet", "1")
	l.node.IP(`link set weftp0 address ee:ee:ee:ee:ee:ee
		addr add fe80::1/64 dev weftp0 nodad
		route add 10.42.1.5/32 dev weftp0
		route add fd00:42:0:1::5/128 dev weftp0
		addr add 192.168.9.1/24 dev eth0
		addr add fd00:9::1/64 dev eth0 nodad
		route add 10.42.7.0/24 via 192.168.9.254
		route add fd00:42:0:7::/64 via fd00:9::254`)
	l.pod.IP(`addr add 10.42.1.5/32 dev eth0
		addr add fd00:42:0:1::5/128 dev eth0 nodad
		route add 169.254.1.1/32 dev eth0 scope link
		route add default via 169.254.1.1 dev eth0 src 10.42.1.5
		neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
		route add default via fe80::1 dev eth0 src fd00:42:0:1::5
		neigh add fe80::1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent`)
	l.outside.IP(`addr add 192.168.9.254/24 dev eth0
		addr add 192.168.9.2/24 dev eth0
		addr add fd00:9::254/64 dev eth0 nodad
		addr add 10.42.7.7/32 dev eth0
		addr add fd00:42:0:7::7/128 dev eth0 nodad
		route add 10.42.1.0/24 via 192.168.9.1
		route add fd00:42:0:1::/64 via fd00:9::1`)
	return l
}

// listen opens servers that answer each UDP packet, or TCP connection, with the address that it came from. UDP servers
// need an address of their own, or they answer from another one.
func listen(t *testing.T, ns *netnstest.NS, network string, addresses ...string) {
	t.Helper()
	for _, a := range addresses {
		listenOne(t, ns, network, a)
	}
}

func listenOne(t *testing.T, ns *netnstest.NS, network, address string) {
	t.Helper()
	err := ns.Do(func() error {
		if network == "udp" {
			c, err := net.ListenPacket(network, address)
			if err == nil {
				t.Cleanup(func() { c.Close() })
				go answerPackets(c)
			}
			return err
		}
		l, err := net.Listen(network, address)
		if err == nil {
			t.Cleanup(func() { l.Close() })
			go answerConnections(l)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func answerPackets(c net.PacketConn) {
	b := make([]byte, 100)
	for {
		_, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = c.WriteTo([]byte(from.String()), from)
	}
}

func answerConnections(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte(c.RemoteAddr().String()))
		_ = c.Close()
	}
}

// How long to listen for an answer that must come, and for one that must not.
const (
	patience = 20 * time.Second
	moment   = 500 * time.Millisecond
	again    = 2 * time.Second // a datagram may be lost where neighbours are looked for
)

// ask sends from a local address, or any if that is empty, and returns which address the server saw; invalid if none answered.
func ask(ns *netnstest.NS, network, local, server string, wait time.Duration) (seen netip.Addr, err error) {
	d := net.Dialer{Timeout: wait}
	if local != "" {
		ip := net.ParseIP(local)
		if d.LocalAddr = (&net.TCPAddr{IP: ip}); network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: ip}
		}
	}
	err = ns.Do(func() error {
		c, err := d.DialContext(context.Background(), network, server)
		if err != nil {
			return err
		}
		defer c.Close()
		b := make([]byte, 100)
		var n int
		for end := time.Now().Add(wait); ; {
			if network == "udp" {
				if _, err := c.Write([]byte("?")); err != nil {
					return err
				}
			}
			_ = c.SetReadDeadline(time.Now().Add(min(wait, again)))
			if n, err = c.Read(b); err == nil {
				break
			}
			if time.Now().After(end) || !errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
		}
		addr, err := netip.ParseAddrPort(string(b[:n]))
		seen = addr.Addr().Unmap()
		return err
	})
	return seen, err
}

// question is one row of the tables below.
type question struct {
	what           string
	from           *netnstest.NS
	network, local string
	server         string
	want           string // the address that the server sees; empty: no answer
}

func run(t *testing.T, questions []question) {
	t.Helper()
	for _, q := range questions {
		wait := patience
		if q.want == "" {
			wait = moment
		}
		seen, err := ask(q.from, q.network, q.local, q.server, wait)
		switch {
		case q.want == "" && err == nil:
			t.Errorf("%s: answered, the server saw %s", q.what, seen)
		case q.want != "" && (err != nil || seen.String() != q.want):
			t.Errorf("%s: the server saw %s (%v), want %s", q.what, seen, err, q.want)
		}
	}
}

func TestPacketsMasquerade(t *testing.T) {
	l := newLab(t)
	listen(t, l.outside, "udp", "192.168.9.254:7", "[fd00:9::254]:7", "10.42.7.7:7", "[fd00:42:0:7::7]:7")
	listen(t, l.node, "udp", ":7")
	apply(t, reopen(t, l.node), fabric())
	run(t, []question{
		{"to the outside", l.pod, "udp", "", "192.168.9.254:7", "192.168.9.1"},
		{"to the outside, IPv6", l.pod, "udp", "", "[fd00:9::254]:7", "fd00:9::1"},
		{"to another Pod", l.pod, "udp", "", "10.42.7.7:7", "10.42.1.5"},
		{"to another Pod, IPv6", l.pod, "udp", "", "[fd00:42:0:7::7]:7", "fd00:42:0:1::5"},
		{"to its own node", l.pod, "udp", "", "192.168.9.1:7", "10.42.1.5"},
		{"the node's own packets", l.node, "udp", "", "192.168.9.254:7", "192.168.9.1"},
	})
}

func TestPacketsSpoofed(t *testing.T) {
	l := newLab(t)
	l.pod.IP(`addr add 10.42.1.99/32 dev eth0
		addr add fd00:42:0:1::99/128 dev eth0 nodad`)
	l.node.IP(`route add 10.42.1.99/32 dev lo
		route add fd00:42:0:1::99/128 dev lo`)
	listen(t, l.outside, "udp", ":7")
	listen(t, l.node, "udp", ":7")
	apply(t, reopen(t, l.node), fabric(webPorts()))
	run(t, []question{
		{"its own address", l.pod, "udp", "10.42.1.5", "192.168.9.254:7", "192.168.9.1"},
		{"another's", l.pod, "udp", "10.42.1.99", "192.168.9.254:7", ""},
		{"another's, to the node", l.pod, "udp", "10.42.1.99", "192.168.9.1:7", ""},
		{"its own, IPv6", l.pod, "udp", "fd00:42:0:1::5", "[fd00:9::254]:7", "fd00:9::1"},
		{"another's, IPv6", l.pod, "udp", "fd00:42:0:1::99", "[fd00:9::254]:7", ""},
		{"not a Pod's link", l.outside, "udp", "", "192.168.9.1:7", "192.168.9.254"},
	})
	if got := counter(l.node, "not the address of this Pod"); got != "3" {
		t.Errorf("the guard counted %s packets, want 3", got)
	}
	// Neighbour discovery: without the permanent entry, the Pod must ask.
	l.pod.IP(`neigh del fe80::1 dev eth0
		addr flush dev eth0 to fd00:42:0:1::99`)
	run(t, []question{{"after neighbour discovery", l.pod, "udp", "fd00:42:0:1::5", "[fd00:9::254]:7", "fd00:9::1"}})

	// A Pod that aims at the node's loopback, which route_localnet lets in.
	listen(t, l.node, "udp", "127.0.0.1:9")
	l.pod.Sysctl("ipv4/conf/all/route_localnet", "1")
	l.pod.IP(`link set lo down
		addr flush dev lo
		route add 127.0.0.0/8 via 169.254.1.1 dev eth0 src 10.42.1.5`)
	run(t, []question{{"to the node's loopback", l.pod, "udp", "10.42.1.5", "127.0.0.1:9", ""}})
	if got := counter(l.node, "the node's loopback is not for Pods"); got != "1" {
		t.Errorf("the guard counted %s packets to loopback, want 1", got)
	}
}

// counter returns how many packets the rule with that comment counted.
func counter(ns *netnstest.NS, comment string) string {
	for line := range strings.Lines(ns.Run("nft", "list", "table", "inet", "weft")) {
		if _, after, ok := strings.Cut(line, "counter packets "); ok && strings.Contains(line, comment) {
			n, _, _ := strings.Cut(after, " ")
			return n
		}
	}
	return "no such rule"
}

func TestPacketsTunnel(t *testing.T) {
	l := newLab(t)
	listen(t, l.node, "udp", ":4789")
	listen(t, l.outside, "udp", "192.168.9.2:4789", "192.168.9.254:4789", "192.168.9.2:4790")
	apply(t, reopen(t, l.node), fabric())
	run(t, []question{
		{"from a node", l.outside, "udp", "192.168.9.2", "192.168.9.1:4789", "192.168.9.2"},
		{"from a stranger", l.outside, "udp", "192.168.9.254", "192.168.9.1:4789", ""},
		{"from a stranger, IPv6", l.outside, "udp", "fd00:9::254", "[fd00:9::1]:4789", ""},
		{"from a Pod to a tunnel end", l.pod, "udp", "", "192.168.9.2:4789", ""},
		{"from a Pod to another port", l.pod, "udp", "", "192.168.9.2:4790", "192.168.9.1"},
		{"from a Pod to somebody else", l.pod, "udp", "", "192.168.9.254:4789", "192.168.9.1"},
		{"from the node", l.node, "udp", "", "192.168.9.2:4789", "192.168.9.1"},
	})
	if got := counter(l.node, "not a node of this cluster"); got != "2" {
		t.Errorf("%s packets of strangers counted, want 2", got)
	}
	if entries := l.node.Run("conntrack", "-L", "-p", "udp", "--dport", "4789", "-d", "192.168.9.2"); strings.Contains(entries, "192.168.9.1") {
		t.Errorf("the tunnel is tracked:\n%s", entries)
	}
}

func TestPacketsHostPorts(t *testing.T) {
	l := newLab(t)
	listen(t, l.pod, "tcp", ":80")
	listen(t, l.pod, "udp", ":53")
	b := reopen(t, l.node)
	ports := webPorts()
	apply(t, b, fabric(ports))
	questions := []question{
		{"from outside", l.outside, "tcp", "", "192.168.9.1:8080", "192.168.9.254"},
		{"from outside, IPv6", l.outside, "tcp", "", "[fd00:9::1]:8080", "fd00:9::254"},
		{"UDP on one address", l.outside, "udp", "192.168.9.254", "192.168.9.1:53", "192.168.9.254"},
		{"UDP on another address", l.outside, "udp", "", "[fd00:9::1]:53", ""},
		{"from the node to its address", l.node, "tcp", "", "192.168.9.1:8080", "192.168.9.1"},
		{"from the node to 127.0.0.1", l.node, "tcp", "", "127.0.0.1:8080", "192.168.9.1"},
		{"from the Pod to itself", l.pod, "tcp", "", "192.168.9.1:8080", "192.168.9.1"},
		{"from the Pod to itself, IPv6", l.pod, "tcp", "", "[fd00:9::1]:8080", "fd00:9::1"},
		{"not through: another machine's port", l.node, "tcp", "", "192.168.9.254:8080", ""},
	}
	run(t, questions)
	if _, err := ask(l.node, "tcp", "", "[::1]:8080", patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("[::1]:8080 on the node: %v, want connection refused", err)
	}
	// Somebody flushes the rules; the repaired ones work the same.
	l.node.Run("nft", "flush", "ruleset")
	b.Invalidate()
	apply(t, b, fabric(ports))
	run(t, questions)
	// Without source NAT the Pod sees 127.0.0.1, which it cannot answer.
	raw := *ports
	raw.NoSNAT = true
	apply(t, b, fabric(&raw))
	run(t, []question{
		{"from the node to 127.0.0.1, no SNAT", l.node, "udp", "", "127.0.0.1:53", ""},
		{"from outside, no SNAT", l.outside, "tcp", "", "192.168.9.1:8080", "192.168.9.254"},
	})
	apply(t, b, fabric())
	run(t, []question{{"after the Pod has gone", l.outside, "tcp", "", "192.168.9.1:8080", ""}})
	_ = model.TCP
}
