package plugins

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft.network/weft/appliance/kernel/netnstest"
)

// hostPort is the one that tests use for TCP and UDP on every address.
const hostPort = 18080

func hostPorts() []portMapping {
	return []portMapping{{hostPort, containerPort, "tcp", ""}, {hostPort, containerPort, "udp", ""}}
}

// asked is one question to a host port and who must have been seen asking; an empty answer means that nobody may answer.
type asked struct {
	from    *netnstest.NS
	who     string
	network string
	to      netip.AddrPort
	id      string
	seen    netip.Addr
}

func (a asked) ask() error {
	if a.id == "" {
		return a.try()
	}
	return a.askFor(patience)
}

// try asks for a moment only.
func (a asked) try() error { return a.askFor(moment) }

func (a asked) askFor(timeout time.Duration) error {
	id, seen, err := askFor(timeout, a.from, a.network, a.to)
	switch {
	case a.id == "" && err == nil:
		return fmt.Errorf("%s to %s/%s: answered by %s, want nobody", a.who, a.to, a.network, id)
	case a.id != "" && (err != nil || id != a.id || seen != a.seen):
		return fmt.Errorf("%s to %s/%s: answered by %q, which saw %s; want %s and %s: %w", a.who, a.to, a.network, id, seen, a.id, a.seen, err)
	}
	return nil
}

// TestHostPorts asks for every way to a host port and for the client's address that arrives there. The source is translated only
// where the container could not answer: from 127.0.0.1, and from itself.
func TestHostPorts(t *testing.T) {
	for _, daemon := range []bool{true, false} {
		t.Run(fmt.Sprintf("weftd %t", daemon), func(t *testing.T) {
			n := newNode(t)
			if daemon {
				n.start()
			}
			list := n.chain("1.0.0")
			web := newContainer(t, "web", append(hostPorts(),
				portMapping{18081, containerPort, "tcp", node4.String()}, portMapping{18081, containerPort, "udp", node4.String()},
				portMapping{18082, containerPort, "tcp", node6.String()}, portMapping{18083, containerPort, "tcp", "127.0.0.1"})...)
			n.mustAdd(list, web)
			gateway4, gateway6 := ownRanges[0].Addr().Next(), ownRanges[1].Addr().Next()
			var all []asked
			for _, network := range []string{"tcp", "udp"} {
				all = append(all,
					asked{from: n.client, who: "client", network: network, to: netip.AddrPortFrom(node4, hostPort), id: "web", seen: client4},
					asked{from: n.client, who: "client", network: network, to: netip.AddrPortFrom(second4, hostPort), id: "web", seen: client4},
					asked{from: n.client, who: "client", network: network, to: netip.AddrPortFrom(node6, hostPort), id: "web", seen: client6},
					asked{from: n.ns, who: "node", network: network, to: netip.AddrPortFrom(node4, hostPort), id: "web", seen: node4},
					asked{from: n.ns, who: "node", network: network, to: netip.AddrPortFrom(node6, hostPort), id: "web", seen: node6},
					asked{from: n.ns, who: "node", network: network, to: netip.AddrPortFrom(localhost, hostPort), id: "web", seen: gateway4},
					asked{from: n.ns, who: "node", network: network, to: netip.AddrPortFrom(netip.IPv6Loopback(), hostPort)},
					asked{from: web.ns, who: "web itself", network: network, to: netip.AddrPortFrom(node4, hostPort), id: "web", seen: gateway4},
					asked{from: web.ns, who: "web itself", network: network, to: netip.AddrPortFrom(node6, hostPort), id: "web", seen: gateway6},
					asked{from: n.client, who: "client", network: network, to: netip.AddrPortFrom(node4, 18081), id: "web", seen: client4},
					asked{from: n.client, who: "client", network: network, to: netip.AddrPortFrom(second4, 18081)},
					asked{from: n.client, who: "client", network: network, to: netip.AddrPortFrom(node6, 18081)})
			}
			all = append(all,
				asked{from: n.client, who: "client", network: "tcp", to: netip.AddrPortFrom(node6, 18082), id: "web", seen: client6},
				asked{from: n.client, who: "client", network: "tcp", to: netip.AddrPortFrom(node4, 18082)},
				asked{from: n.ns, who: "node", network: "tcp", to: netip.AddrPortFrom(localhost, 18083), id: "web", seen: gateway4},
				asked{from: n.client, who: "client", network: "tcp", to: netip.AddrPortFrom(node4, 18083)})
			for _, a := range all {
				if err := a.ask(); err != nil {
					t.Error(err)
				}
			}
			if err := n.check(list, web); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			for range 2 {
				n.no(n.del(list, web))
			}
			for _, a := range all {
				a.id = ""
				if a.network == "tcp" { // there is nobody who could refuse a UDP packet
					if err := a.ask(); err != nil {
						t.Errorf("after DEL: %v", err)
					}
				}
			}
		})
	}
}

// TestHostPortFromNeighbour asks from another container of the same bridge. The kernel must filter bridged packets
// (br_netfilter): otherwise the answer goes straight to the neighbour, which does not know who answers.
func TestHostPortFromNeighbour(t *testing.T) {
	n := newNode(t)
	n.start()
	for _, f := range []string{"ip", "ip6"} {
		n.ns.Run("sysctl", "-q", "-w", "net.bridge.bridge-nf-call-"+f+"tables=1")
	}
	list := n.chain("1.0.0")
	web, neighbour := newContainer(t, "web", hostPorts()...), newContainer(t, "neighbour")
	n.mustAdd(list, web, neighbour)
	for _, network := range []string{"tcp", "udp"} {
		for _, to := range []netip.Addr{node4, node6} {
			if id, _, err := ask(neighbour.ns, network, netip.AddrPortFrom(to, hostPort)); err != nil || id != "web" {
				t.Errorf("neighbour to %s/%s: answered by %q: %v", to, network, id, err)
			}
		}
	}
}

// TestLoopbackStaysClosed has a container send to the node's loopback, for which the way is open once host ports answer on
// 127.0.0.1: only they may, not what else listens there.
func TestLoopbackStaysClosed(t *testing.T) {
	for _, daemon := range []bool{true, false} {
		t.Run(fmt.Sprintf("weftd %t", daemon), func(t *testing.T) {
			n := newNode(t)
			if daemon {
				n.start()
			}
			var secret net.PacketConn
			n.no(n.ns.Do(func() (err error) {
				secret, err = net.ListenPacket("udp", "127.0.0.1:9999")
				return err
			}))
			defer secret.Close()
			list := n.chain("1.0.0")
			web := newContainer(t, "web", hostPorts()...)
			n.mustAdd(list, web)
			web.ns.Sysctl("ipv4/conf/all/route_localnet", "1")
			web.ns.IP(`route del local 127.0.0.0/8 dev lo table local
				route del local 127.0.0.1 dev lo table local
				route add 127.0.0.1 via 10.88.0.1 src 10.88.0.2`)
			// The last one shows that the server hears.
			for _, from := range []*netnstest.NS{web.ns, n.ns} {
				conn, err := dial(from, "udp", netip.MustParseAddrPort("127.0.0.1:9999"), patience)
				n.no(err)
				defer conn.Close()
				_, err = conn.Write([]byte("?"))
				n.no(err)
			}
			n.no(secret.SetReadDeadline(time.Now().Add(patience)))
			_, from, err := secret.ReadFrom(make([]byte, 1))
			if n.no(err); !strings.HasPrefix(from.String(), localhost.String()+":") {
				t.Errorf("a server on the node's 127.0.0.1 hears %s, a container", from)
			}
		})
	}
}

// TestHostPortTaken gives a port to one container only, and says who has it.
func TestHostPortTaken(t *testing.T) {
	for _, daemon := range []bool{true, false} {
		t.Run(fmt.Sprintf("weftd %t", daemon), func(t *testing.T) {
			n := newNode(t)
			if daemon {
				n.start()
			}
			list := n.chain("1.0.0")
			first, second := newContainer(t, "first", hostPorts()...), newContainer(t, "second", hostPorts()...)
			n.mustAdd(list, first)
			_, err := n.add(list, second)
			if err == nil || !strings.Contains(err.Error(), "first") || !strings.Contains(err.Error(), fmt.Sprint(hostPort)) {
				t.Errorf("ADD of a second container with the same host port: %v", err)
			}
			n.no(n.del(list, second)) // as a runtime does after a failed ADD
			if err := (asked{from: n.client, who: "client", network: "tcp", to: netip.AddrPortFrom(node4, hostPort), id: "first", seen: client4}).ask(); err != nil {
				t.Error(err)
			}
			n.no(n.del(list, first))
			n.mustAdd(list, second)
			if err := (asked{from: n.client, who: "client", network: "tcp", to: netip.AddrPortFrom(node4, hostPort), id: "second", seen: client4}).ask(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUDPClientMoves has a client that keeps sending from one socket, whatever happens, as DNS resolvers and syslog do: its
// packets must reach the container that has the host port now.
func TestUDPClientMoves(t *testing.T) {
	for _, daemon := range []bool{true, false} {
		for _, to := range []netip.Addr{node4, node6} {
			t.Run(fmt.Sprintf("weftd %t %s", daemon, to), func(t *testing.T) {
				n := newNode(t)
				if daemon {
					n.start()
				}
				list := n.chain("1.0.0")
				old, next := newContainer(t, "old", hostPorts()...), newContainer(t, "next", hostPorts()...)
				conn, err := dial(n.client, "udp", netip.AddrPortFrom(to, hostPort), 6*patience)
				n.no(err)
				defer conn.Close()
				n.unanswered(conn) // before there is anybody to answer
				n.mustAdd(list, old)
				n.answers(conn, "old")
				n.no(n.del(list, old))
				n.unanswered(conn)
				n.mustAdd(list, next)
				took := n.answers(conn, "next")
				t.Logf("the new container answered %v after ADD", took)
			})
		}
	}
}

// query sends one packet and returns who answers within a moment.
func query(conn net.Conn) (string, error) {
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := conn.Write([]byte("?")); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", err
	}
	id, _, err := whoWas(line)
	return id, err
}

// answers waits until the container answers; all that may come before is what was on the way.
func (n *node) answers(conn net.Conn, want string) time.Duration {
	n.t.Helper()
	return n.eventually("an answer from "+want, time.Second, func() error {
		id, err := query(conn)
		if err == nil && id != want {
			err = fmt.Errorf("%s answers", id)
		}
		return err
	})
}

// unanswered keeps sending for a while in which the kernel would remember the connection.
func (n *node) unanswered(conn net.Conn) {
	n.t.Helper()
	n.eventually("silence after DEL", time.Second, func() error {
		for range 5 {
			if id, err := query(conn); err == nil {
				return fmt.Errorf("%s answers", id)
			}
		}
		return nil
	})
}

// TestForeignFlush repairs host ports that somebody else removed, within a second unless the machine is busy each time.
func TestForeignFlush(t *testing.T) {
	n := newNode(t)
	n.start()
	list := n.chain("1.0.0")
	web := newContainer(t, "web", hostPorts()...)
	n.mustAdd(list, web)
	best := patience
	for _, command := range []string{
		"nft flush table inet weft", "nft delete table inet weft", "nft flush ruleset", "nft flush map inet weft hostport4", "nft flush chain inet weft hostports_in",
	} {
		n.ns.Run("sh", "-c", command)
		start := time.Now()
		for _, a := range []asked{
			{from: n.client, who: "client", network: "tcp", to: netip.AddrPortFrom(node4, hostPort), id: "web", seen: client4},
			{from: n.client, who: "client", network: "tcp", to: netip.AddrPortFrom(node6, hostPort), id: "web", seen: client6},
		} {
			n.eventually("repair after "+command, time.Second, a.try)
		}
		took := time.Since(start)
		best = min(best, took)
		t.Logf("%s: repaired in %v", command, took)
		n.eventually("CHECK after "+command, time.Second, func() error { return n.check(list, web) })
	}
	if best > time.Second {
		t.Errorf("the fastest repair took %v, want a second", best)
	}
}

// TestCheckHostPorts wants CHECK to look into the kernel: a port that is not there, or leads elsewhere, is found.
func TestCheckHostPorts(t *testing.T) {
	for _, command := range []string{
		"nft delete element inet weft hostport4 { tcp . 18080 }",
		"nft flush map inet weft hostport6",
		"nft flush chain inet weft hostports_in",
		"nft delete table inet weft",
	} {
		t.Run(command, func(t *testing.T) {
			n := newNode(t)
			list := n.chain("1.0.0")
			web := newContainer(t, "web", hostPorts()...)
			n.mustAdd(list, web)
			n.no(n.check(list, web))
			n.ns.Run("sh", "-c", command) // nobody is there to repair it
			if err := n.check(list, web); err == nil {
				t.Error("CHECK finds nothing wrong")
			}
			n.no(n.del(list, web))
		})
	}
}

// TestCheckOneFamily has nothing to complain about when the daemon that opened an IPv4 port is gone, or came after it.
func TestCheckOneFamily(t *testing.T) {
	n := newNode(t)
	list := n.list("1.0.0", "four", bridge(hostLocal(ownRanges[:1])), portmap())
	early, late := newContainer(t, "early", portMapping{18081, containerPort, "tcp", ""}), newContainer(t, "late", hostPorts()...)
	n.mustAdd(list, early)
	n.start()
	n.mustAdd(list, late)
	for range 2 {
		for _, c := range []*container{early, late} {
			if err := n.check(list, c); err != nil {
				t.Errorf("weftd %t: CHECK %s: %v", n.daemon != nil, c.id, err)
			}
		}
		n.stop()
	}
}

// TestCheckWhileOthersCome checks one container again and again while others with host ports are attached and detached.
func TestCheckWhileOthersCome(t *testing.T) {
	n := newNode(t)
	n.start()
	list := n.list("1.0.0", "weft", plugin{"type": "weft-cni"}, portmap())
	web := newContainer(t, "web", hostPorts()...)
	n.mustAdd(list, web)
	others, done := []*container{newContainer(t, "a"), newContainer(t, "b")}, make(chan error)
	for i, c := range others {
		c.ports = []portMapping{{19000 + i, containerPort, "tcp", ""}}
		go func() {
			for range 20 {
				_, err := n.add(list, c)
				if err = errors.Join(err, n.del(list, c)); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	failed, all := 0, 0
	var last error
	for left := len(others); left > 0; {
		select {
		case err := <-done:
			n.no(err)
			left--
		default:
			if err := n.check(list, web); err != nil {
				failed, last = failed+1, err
			}
			all++
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d CHECKs of a container that is fine failed: %v", failed, all, last)
	}
}

// TestHostPortsBesideAnotherNetwork opens them although weftd does not run the Pod network: portmap is in that network's list.
func TestHostPortsBesideAnotherNetwork(t *testing.T) {
	n := newNode(t)
	n.ns.Sysctl("ipv6/conf/all/forwarding", "1") // the other network's business, as is the IPv4 one
	n.start(withoutFabric)
	list := n.chain("1.0.0")
	web := newContainer(t, "web", hostPorts()...)
	n.mustAdd(list, web)
	for _, a := range []asked{
		{from: n.client, who: "client", network: "tcp", to: netip.AddrPortFrom(node4, hostPort), id: "web", seen: client4},
		{from: n.client, who: "client", network: "tcp", to: netip.AddrPortFrom(node6, hostPort), id: "web", seen: client6},
	} {
		if err := a.ask(); err != nil {
			t.Error(err)
		}
	}
	n.no(n.check(list, web))
	n.no(n.del(list, web))
}
