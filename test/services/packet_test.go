package services

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/kernel/nft"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// lab is the world in namespaces: the node with three Pods, what is behind eth0 (other nodes, their Pods), and what
// is behind eth1 (clients outside).
type lab struct{ node, client, local, local2, others, outside *netnstest.NS }

func newLab(t *testing.T) lab {
	l := lab{netnstest.New(t), netnstest.New(t), netnstest.New(t), netnstest.New(t), netnstest.New(t), netnstest.New(t)}
	for path, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
		// Refusals are what many cases wait for.
		"ipv4/icmp_ratemask": "0", "ipv6/icmp/ratelimit": "0", "ipv4/icmp_msgs_per_sec": "100000", "ipv4/icmp_msgs_burst": "10000",
	} {
		l.node.Sysctl(path, value)
	}
	for _, ns := range []*netnstest.NS{l.node, l.client, l.local, l.local2, l.others, l.outside} {
		ns.Sysctl("ipv6/conf/default/accept_dad", "0") // or link-local addresses are of no use in the first second
	}
	l.pod("weftpclient", l.client, "10.42.1.20")
	l.pod("weftplocal", l.local, "10.42.1.11")
	l.pod("veth12", l.local2, "10.42.1.12") // by another CNI plugin
	netnstest.Veth(l.node, "eth0", l.others, "eth0")
	netnstest.Veth(l.node, "eth1", l.outside, "eth0")
	addAddrs(l.node, "eth0", "192.168.9.1/24")
	addAddrs(l.node, "eth1", "198.51.100.1/24")
	addAddrs(l.others, "eth0", "192.168.9.2/24", "192.168.9.3/24", "10.42.2.11/32", "10.42.2.20/32", "10.42.3.11/32", "203.0.113.200/32")
	addAddrs(l.outside, "eth0", "198.51.100.9/24", "192.0.2.9/32")
	for _, dst := range []string{"10.42.2.0/24", "10.42.3.0/24", "203.0.113.200/32"} {
		route(l.node, dst, "192.168.9.2", "eth0")
	}
	route(l.node, "192.0.2.9/32", "198.51.100.9", "eth1")
	route(l.node, "0.0.0.0/0", "198.51.100.9", "eth1")
	route(l.others, "0.0.0.0/0", "192.168.9.1", "eth0")
	route(l.outside, "0.0.0.0/0", "198.51.100.1", "eth0")
	return l
}

// twin is the IPv6 form of a prefix of the world.
func twin(p netip.Prefix) netip.Prefix {
	if p.Bits() == 0 {
		return netip.MustParsePrefix("::/0")
	}
	return netip.PrefixFrom(pair(p.Addr().String())[1], map[int]int{24: 64, 32: 128}[p.Bits()])
}

func addAddrs(ns *netnstest.NS, link string, list ...string) {
	for _, s := range list {
		p := netip.MustParsePrefix(s)
		ns.IP(fmt.Sprintf("addr add %s dev %s\naddr add %s dev %s nodad", p, link, twin(p), link))
	}
}

func route(ns *netnstest.NS, dst, via, link string) {
	p, gw := netip.MustParsePrefix(dst), pair(via)
	ns.IP(fmt.Sprintf("route add %s via %s dev %s\nroute add %s via %s dev %s", p, gw[0], link, twin(p), gw[1], link))
}

// pod wires a Pod as weft does.
func (l lab) pod(link string, ns *netnstest.NS, address string) {
	netnstest.Veth(l.node, link, ns, "eth0")
	l.node.IP(fmt.Sprintf("link set %s address ee:ee:ee:ee:ee:ee\naddr add fe80::1/64 dev %s nodad", link, link))
	addAddrs(ns, "eth0", address+"/32")
	l.node.IP(fmt.Sprintf("route add %s/32 dev %s\nroute add %s/128 dev %s", address, link, pair(address)[1], link))
	ns.IP(fmt.Sprintf(`route add 169.254.1.1/32 dev eth0 scope link
		route add default via 169.254.1.1 dev eth0 src %s
		neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
		route add default via fe80::1 dev eth0 src %s
		neigh add fe80::1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent`, address, pair(address)[1]))
}

// serve opens servers at the places' addresses, that answer with their address and the client's.
func serve(t *testing.T, ns *netnstest.NS, names ...string) {
	t.Helper()
	for _, name := range names {
		for _, a := range pair(places[name].addr) {
			err := ns.Do(func() error {
				c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 5353)))
				if err != nil {
					return err
				}
				l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 8080)))
				if err != nil {
					return err
				}
				t.Cleanup(func() { c.Close(); l.Close() })
				go answerPackets(c)
				go answerConnections(l)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

func answerPackets(c *net.UDPConn) {
	b := make([]byte, 100)
	for {
		_, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		_, _ = c.WriteToUDPAddrPort([]byte(c.LocalAddr().String()+" "+from.String()), from)
	}
}

func answerConnections(l *net.TCPListener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte(c.LocalAddr().String() + " " + c.RemoteAddr().String()))
		_ = c.Close()
	}
}

// How long to wait for an answer that must come, and for one that must not.
const (
	patience = 5 * time.Second
	silence  = 700 * time.Millisecond
)

// ask opens a connection and returns which server answered and whom it saw.
func ask(ns *netnstest.NS, c conn, patience time.Duration) (server netip.AddrPort, seen netip.Addr, err error) {
	d := net.Dialer{Timeout: patience}
	network := "tcp"
	d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.src, 0))
	if c.protocol == model.UDP {
		network, d.LocalAddr = "udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.src, 0))
	}
	b := make([]byte, 200)
	var n int
	err = ns.Do(func() error {
		k, err := d.DialContext(context.Background(), network, c.dst.String())
		if err != nil {
			return err
		}
		defer k.Close()
		_ = k.SetDeadline(time.Now().Add(patience))
		if network == "udp" {
			if _, err := k.Write([]byte("?")); err != nil {
				return err
			}
		}
		n, err = k.Read(b)
		return err
	})
	if err != nil {
		return server, seen, err
	}
	first, second, _ := strings.Cut(string(b[:n]), " ")
	if server, err = netip.ParseAddrPort(first); err != nil {
		return server, seen, err
	}
	client, err := netip.ParseAddrPort(second)
	return server, client.Addr().Unmap(), err
}

// experiment is one connection to try, and what the oracle says.
type experiment struct {
	what string
	ns   *netnstest.NS
	conn
	want fate
}

// sample chooses experiments so that each kind of fate, source, field, family and protocol is there a few times.
func (l lab) sample(snap *model.Snapshot, what map[model.ServiceKey]string) (out []experiment) {
	from := map[string]*netnstest.NS{
		sources[0].name: l.client, sources[1].name: l.local, sources[2].name: l.others, sources[3].name: l.node,
		sources[4].name: l.others, sources[5].name: l.outside, sources[6].name: l.outside,
	}
	taken := map[string]int{}
	for _, key := range slices.SortedFunc(maps.Keys(snap.Services), func(a, b model.ServiceKey) int { return strings.Compare(a.Name, b.Name) }) {
		s := snap.Services[key]
		o := oracle{&model.Snapshot{Services: map[model.ServiceKey]*model.Service{key: s}, Slices: slicesFor(snap, s)}}
		for i := range s.Ports[:2] { // the kernel of this machine has no SCTP sockets
			for _, dst := range destinations(s, &s.Ports[i]) {
				for _, src := range sources {
					ns := from[src.name]
					if ns == nil {
						continue
					}
					c := conn{protocol: s.Ports[i].Protocol, src: src.addr[map[bool]int{true: 1}[dst.Addr().Is6()]], dst: dst, fromNode: src.fromNode}
					want := o.fate(c)
					_, _, field := o.find(c)
					most := map[bool]int{true: 1, false: 2}[want.drop]
					class := fmt.Sprint(want.kind(), src.name, field, c.protocol, dst.Addr().Is6(), s.ExternalLocal)
					if taken[class]++; want.pass || taken[class] > most {
						continue
					}
					out = append(out, experiment{fmt.Sprintf("%s (%s): %s from %s (%s) to %s", key, what[key], c.protocol, src.name, c.src, dst), ns, c, want})
				}
			}
		}
	}
	return out
}

func TestPackets(t *testing.T) {
	l := newLab(t)
	serve(t, l.local, "local")
	serve(t, l.local2, "local2")
	serve(t, l.node, "host")
	serve(t, l.others, "there", "far", "hostfar", "nowhere")
	snap, what := generate()
	b, err := nft.Open(nft.Options{NetNS: l.node.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if _, err := b.Apply(context.Background(), []ruleset.Table{compileAll(t, snap)}); err != nil {
		t.Fatal(err)
	}
	experiments := l.sample(snap, what)
	queue := make(chan experiment)
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			for e := range queue {
				if why := e.run(); why != "" {
					t.Errorf("%s: %s", e.what, why)
				}
			}
		})
	}
	kinds := map[string]int{}
	for _, e := range experiments {
		kinds[e.want.kind()]++
		queue <- e
	}
	close(queue)
	wg.Wait()
	t.Logf("%d connections: %v", len(experiments), kinds)
	if len(experiments) < 500 {
		t.Errorf("only %d connections: the sample is too small", len(experiments))
	}
}

// run tries the connection and says what is wrong.
func (e experiment) run() string {
	wait := patience
	if e.want.drop {
		wait = silence
	}
	server, seen, err := ask(e.ns, e.conn, wait)
	var timeout net.Error
	// A process whose own packet is not let out is told by the system call, and that is before any answer.
	if e.fromNode && e.protocol == model.UDP && len(e.want.backends) == 0 && errors.Is(err, unix.EPERM) {
		return ""
	}
	switch {
	case err == nil && len(e.want.backends) == 0:
		return fmt.Sprintf("%s answered, want %s", server, e.want.kind())
	case e.want.refuse && !errors.Is(err, unix.ECONNREFUSED):
		return fmt.Sprintf("%v, want a refusal", err)
	case e.want.drop && (!errors.As(err, &timeout) || !timeout.Timeout()):
		return fmt.Sprintf("%v, want silence", err)
	case len(e.want.backends) == 0:
		return ""
	case err != nil:
		return fmt.Sprintf("%v, want one of %v to answer", err, e.want.backends)
	case !slices.Contains(e.want.backends, server):
		return fmt.Sprintf("%s answered, want one of %v", server, e.want.backends)
	}
	masqueraded := oracle{}.masqueraded(e.conn, server.Addr())
	if !masqueraded && seen != e.src || masqueraded && (seen == e.src) != e.fromNode {
		return fmt.Sprintf("%s saw %s, source to be changed: %v", server, seen, masqueraded)
	}
	return ""
}

// TestPacketsStick opens many connections: to one address of a sticky Service all go to one endpoint, to another Service to all of
// them.
func TestPacketsStick(t *testing.T) {
	l := newLab(t)
	serve(t, l.local, "local")
	serve(t, l.others, "there", "far")
	p := pattern{places: []place{ready("local"), ready("there"), ready("far")}}
	snap := &model.Snapshot{Services: map[model.ServiceKey]*model.Service{}, Slices: map[model.SliceKey]*model.EndpointSlice{}}
	for n, kind := range []string{"at random", "sticky", "hashed"} {
		s := plain(n, p)
		s.Type = "LoadBalancer"
		switch kind {
		case "sticky":
			s.AffinityTimeout = 10800
		case "hashed":
			s.Annotations = map[string]string{service.HashAnnotation: "true"}
		}
		nodePorts(s, n)
		for _, a := range pair(fmt.Sprintf("100.64.0.%d", n+1)) {
			s.Ingress = append(s.Ingress, model.ServiceIngress{IP: a})
		}
		snap.Services[s.Key()] = s
		for _, e := range slicesOf(s, p) {
			snap.Slices[e.Key()] = e
		}
	}
	b, err := nft.Open(nft.Options{NetNS: l.node.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if _, err := b.Apply(context.Background(), []ruleset.Table{compileAll(t, snap)}); err != nil {
		t.Fatal(err)
	}
	// The load balancer's address may be one of the node's: then the node's packets to it come from it.
	addAddrs(l.node, "lo", "100.64.0.1/32", "100.64.0.2/32", "100.64.0.3/32")
	for n, want := range []int{3, 1, 1} {
		for _, i := range []int{0, 1} {
			vip := pair(fmt.Sprintf("100.64.0.%d", n+1))[i]
			for _, dst := range []netip.AddrPort{netip.AddrPortFrom(vip, 80), netip.AddrPortFrom(nodeAddrs[i], uint16(30000+n))} {
				seen := map[netip.Addr]int{}
				for range 40 {
					server, _, err := ask(l.outside, conn{model.TCP, pair("198.51.100.9")[i], dst, false}, patience)
					if err != nil {
						t.Fatal(err)
					}
					seen[server.Addr()]++
				}
				if len(seen) != want {
					t.Errorf("Service %d at %s, 40 connections: %v, want %d endpoints", n, dst, seen, want)
				}
			}
			server, client, err := ask(l.node, conn{model.TCP, vip, netip.AddrPortFrom(vip, 80), true}, patience)
			if err != nil || server.Addr() != podAddr(i) && client == vip {
				t.Errorf("the node from %s to itself: answered by %s, which saw %s (%v)", vip, server, client, err)
			}
		}
	}
}

// podAddr is the endpoint on this node.
func podAddr(family int) netip.Addr { return pair(places["local"].addr)[family] }
