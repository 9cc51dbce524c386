package netlab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// settings replaces the lines after the lab's own in a node's weft.yaml, and tells weftd to read it again.
func (s *story) settings(node, lines string) {
	s.t.Helper()
	path := filepath.Join(s.Dir, node, "etc/weft/weft.yaml")
	text, err := os.ReadFile(path)
	s.no(err)
	const mark = "# of the story\n"
	own, _, _ := strings.Cut(string(text), mark)
	s.no(os.WriteFile(path, []byte(own+mark+lines), 0o600))
	s.no(s.KillDaemon(s.ctx, node, unix.SIGHUP))
}

// lacks waits until the router has no route at all for each of these prefixes.
func (r *router) lacks(prefixes ...string) {
	r.s.t.Helper()
	for _, p := range prefixes {
		r.untilHops(p)
	}
}

// session reads what BIRD says of one protocol.
func (r *router) session(name string, parts ...string) {
	r.s.t.Helper()
	r.until("BIRD says of "+name+" what it should", []string{"show", "protocols", "all", name}, parts...)
}

// connection waits until a node has an established connection whose own or other port is 179.
func (s *story) connection(node, filter string, parts ...string) {
	s.t.Helper()
	s.eventually(node+" has a connection "+filter, bgpWait, func() error {
		out, err := s.Output(s.ctx, node, "bash", "-c", "ss -Htn state established '"+filter+"'")
		if err != nil {
			return err
		}
		for _, p := range parts {
			if !strings.Contains(out, p) {
				return fmt.Errorf("%q is not in %q", p, out)
			}
		}
		return nil
	})
}

// birdPeer is one BGP protocol of BIRD with both ends named, and further lines.
func birdPeer(name, local, neighbour, lines string) string {
	return fmt.Sprintf(`protocol bgp %s {
  local %s; neighbor %s;
  graceful restart on;
  connect delay time 1; connect retry time 2; error wait time 1, 2;
  %s
}
`, name, local, neighbour, lines)
}

const birdFamilies = "ipv4 { import all; export none; }; ipv6 { import all; export none; };"

// TestBGPFields reads back from the router what the fields of a BGPPeer have made of a session, external with node1 and internal
// with node2, while the same session is changed from one form into the next.
func TestBGPFields(t *testing.T) {
	s := tellBGP(t, lab.Options{Nodes: 2})
	s.out("node1", "ip addr add 172.30.1.111/24 dev eth0")
	web := s.run("node1", "web1")
	s.announce("Cluster", web...)
	for _, node := range []string{"node1", "node2"} {
		s.no(s.SetLabels(node, map[string]string{"me": node}))
	}
	external := func(end, more string) string {
		return birdPeer("outer", "172.30.1.1 as 64600", end+" as 64512", birdFamilies+more)
	}
	internal := birdPeer("inner", "172.30.1.1 as 64512", "172.30.1.12 as 64512", birdFamilies+"hold time 240;")
	r := s.bird(external("172.30.1.11", "hold time 240;") + internal)
	outer := func(more ...string) {
		s.peer("outer", "172.30.1.1", 64600, append([]string{"nodeSelector: {me: node1}"}, more...)...)
	}

	// Timers are the smaller of both ends'; each kind of session has its own metric; ours connects to nobody when it is passive.
	const metrics = `advertise: {med: 50, localPreference: 200, communities: ["64512:7"], largeCommunities: ["64512:7:9"]}`
	outer("passive: true", "keepaliveSeconds: 2", metrics)
	s.peer("inner", "172.30.1.1", 64512, "nodeSelector: {me: node2}", metrics)
	r.session("outer", "Established", "/9", "/3", "Neighbor address: 172.30.1.11")
	s.connection("node1", "( sport = :179 )", "172.30.1.11:179", "172.30.1.1:")
	one := []string{"show", "route", "for", vip4 + "/32", "protocol", "outer", "all"}
	r.until("what an external peer is told", one, "BGP.med: 50", "BGP.as_path: 64512", "BGP.community: (64512,7)", "BGP.large_community: (64512, 7, 9)")
	two := []string{"show", "route", "for", vip4 + "/32", "protocol", "inner", "all"}
	r.until("what an internal peer is told", two, "BGP.local_pref: 200", "BGP.as_path: \n", "BGP.community: (64512,7)", "BGP.large_community: (64512, 7, 9)")
	if text, err := r.ask(two...); err != nil || strings.Contains(text, "BGP.med") {
		t.Errorf("an internal peer is told a MED: %v %s", err, text)
	}
	if p := s.untilSession("node1", "outer", "Established", ""); p.Hold != 9 {
		t.Errorf("the hold time agreed on is %d", p.Hold)
	}

	// A router that has the shorter hold time, and that leaves connecting to us; from the address that we choose.
	r.configure(external("172.30.1.111", "hold time 6; keepalive time 1; passive on;") + internal)
	outer("sourceAddress: 172.30.1.111")
	r.session("outer", "Established", "/6", "/1", "Neighbor address: 172.30.1.111")
	s.connection("node1", "( dport = :179 )", "172.30.1.111:", "172.30.1.1:179")
	if p := s.untilSession("node1", "outer", "Established", ""); p.Hold != 6 || p.Source != mustAddr("172.30.1.111") {
		t.Errorf("%+v", p)
	}
	r.untilHops(vip4+"/32", "172.30.1.111", "172.30.1.12")

	// What is filtered is not at the router, and the other peer has it.
	outer("sourceAddress: 172.30.1.111", `export: [{prefix: "::/0", le: 128, action: reject}]`)
	r.untilHops(vip6+"/128", "fd00:172:30:1::12")
	r.untilHops(vip4+"/32", "172.30.1.111", "172.30.1.12")
	outer("sourceAddress: 172.30.1.111", "export: [{prefix: "+vip4+"/32, action: reject}]")
	r.untilHops(vip4+"/32", "172.30.1.12")
	r.untilHops(vip6+"/128", "fd00:172:30:1::11", "fd00:172:30:1::12")
	outer("sourceAddress: 172.30.1.111", "advertise: {loadBalancer: false}")
	r.untilHops(vip6+"/128", "fd00:172:30:1::12")
	outer("sourceAddress: 172.30.1.111", "families: [ipv6]")
	r.session("outer", "Established", "Route change stats")
	r.untilHops(vip6+"/128", "fd00:172:30:1::11", "fd00:172:30:1::12")
	r.untilHops(vip4+"/32", "172.30.1.12")

	// Packets of a router further away than it should be are dropped, and both have the session when both say the same.
	r.configure(external("172.30.1.11", "hold time 9;") + internal)
	outer("ttlSecurityHops: 1")
	s.untilSession("node1", "outer", "Active", "")
	s.hold(3*time.Second, func() {
		if got := r.hops(vip4 + "/32"); len(got) != 1 {
			t.Errorf("the router sends with a low TTL, and has %v", got)
		}
	})
	r.configure(external("172.30.1.11", "hold time 9; ttl security on;") + internal)
	s.untilSession("node1", "outer", "Established", "")
	r.untilHops(vip4+"/32", "172.30.1.11", "172.30.1.12")
}

// TestBGPListenOff: with bgp.listen false nothing listens, and sessions come up because we connect. bgp.aggregate then gathers
// addresses, except for those that only some nodes may have.
func TestBGPListenOff(t *testing.T) {
	s := tellBGP(t, lab.Options{Nodes: 2, Settings: "# of the story\nbgp: {listen: false}\n"})
	web := s.run("node1", "web1")
	s.announce("Cluster", web...)
	r := s.bird(birdNode(1, "passive on;") + birdNode(2, "passive on;"))
	s.peer("tor", "172.30.1.1", 64600)
	r.untilHops(vip4+"/32", "172.30.1.11", "172.30.1.12")
	for _, node := range []string{"node1", "node2"} {
		if out := s.out(node, "ss -Hltn sport = :179"); out != "" {
			t.Errorf("%s listens: %s", node, out)
		}
		s.connection(node, "( dport = :179 )", "172.30.1.1:179")
	}
	if out := s.weft("node1", "bgp", "peers"); !strings.Contains(out, "listening nowhere") {
		t.Errorf("weft bgp peers says\n%s", out)
	}

	for _, node := range []string{"node1", "node2"} {
		s.settings(node, "bgp: {listen: false, aggregate: [203.0.113.0/27, \"2001:db8:f::/64\"]}\n")
	}
	r.untilHops("203.0.113.0/27", "172.30.1.11", "172.30.1.12")
	r.untilHops("2001:db8:f::/64", "fd00:172:30:1::11", "fd00:172:30:1::12")
	s.eventually("the single address is gone from the router", bgpWait, func() error {
		text, err := r.ask("show", "route", "where", "net", "~", "203.0.113.0/24")
		if err == nil && strings.Contains(text, vip4) {
			err = fmt.Errorf("it has %s", text)
		}
		return err
	})
	s.outsideReaches(vip4, vip6)
	s.announce("Local", web...)
	r.untilHops(vip4+"/32", "172.30.1.11")
	r.untilHops(vip6+"/128", "fd00:172:30:1::11")
	r.lacks("203.0.113.0/27", "2001:db8:f::/64") // nobody tells a range for an address that only one node may have

	// It listens again when it may.
	for _, node := range []string{"node1", "node2"} {
		s.settings(node, "bgp: {}\n")
	}
	r.configure(birdNode(1, "") + birdNode(2, ""))
	s.eventually("the port is open", bgpWait, func() error {
		if out := s.out("node1", "ss -Hltn sport = :179"); out == "" {
			return fmt.Errorf("nothing listens")
		}
		return nil
	})
	r.untilHops(vip4+"/32", "172.30.1.11")
}

// TestBGPMultihop is a session over the router between, with the number of hops guarded, and rules about what is taken.
func TestBGPMultihop(t *testing.T) {
	s := tellBGP(t, lab.Options{Nodes: 1})
	web := s.run("node1", "web1")
	s.announce("Cluster", web...)
	const routes = "protocol static {\n ipv4;\n route 10.101.1.0/24 blackhole; route 10.101.2.0/24 blackhole; route 10.101.0.0/16 blackhole; route 10.102.1.0/24 blackhole;\n}\n"
	far := func(more string) string {
		return routes + birdPeer("far", "198.51.100.2 as 64700", "172.30.1.11 as 64512",
			"hold time 9; ipv4 { import all; export where source = RTS_STATIC; }; ipv6 { import all; export none; };"+more)
	}
	r := s.birdAt(lab.Outside, far("multihop 2;"))
	s.peer("far", "198.51.100.2", 64700)
	s.untilSession("node1", "far", "Active", "no connection")
	if got := s.sessions("node1"); !strings.Contains(strings.Join(got.Problems, "\n"), "set multihopTTL") {
		t.Errorf("nothing says that the peer is too far away: %v", got.Problems)
	}
	const rules = `import: [{prefix: 10.101.2.0/24, action: reject}, {prefix: 10.101.0.0/16, ge: 24, le: 24}]`
	s.peer("far", "198.51.100.2", 64700, "multihopTTL: 2", rules)
	r.session("far", "Established", "external multihop", "/9")
	r.untilHops(vip4+"/32", "172.30.1.11")
	s.untilRoute("node1", "10.101.1.0/24", "via 172.30.1.1 dev eth0 proto 87")
	for _, p := range []string{"10.101.2.0/24", "10.101.0.0/16", "10.102.1.0/24"} {
		s.untilRoute("node1", p, "")
	}
	received := s.weft("node1", "bgp", "received", "far")
	for _, p := range []string{"10.101.2.0/24", "10.101.0.0/16", "10.102.1.0/24"} {
		if !strings.Contains(lineWith(received, p), "not taken") {
			t.Errorf("weft bgp received does not say that %s is left out:\n%s", p, received)
		}
	}
	if line := lineWith(received, "10.101.1.0/24"); line == "" || strings.Contains(line, "not taken") {
		t.Errorf("weft bgp received:\n%s", received)
	}

	// Rules change under the session.
	since := s.untilSession("node1", "far", "Established", "").Since
	s.peer("far", "198.51.100.2", 64700, "multihopTTL: 2", "import: [{prefix: 10.102.0.0/16, le: 24}]")
	s.untilRoute("node1", "10.102.1.0/24", "via 172.30.1.1 dev eth0 proto 87")
	s.untilRoute("node1", "10.101.1.0/24", "")
	if p := s.untilSession("node1", "far", "Established", ""); !p.Since.Equal(since) {
		t.Errorf("new rules have ended the session of %s; it is of %s", since, p.Since)
	}

	// One hop more than it may be.
	r.configure(far("multihop 2; ttl security on;"))
	s.peer("far", "198.51.100.2", 64700, "ttlSecurityHops: 1")
	s.untilSession("node1", "far", "Active", "")
	r.lacks(vip4 + "/32")
	s.peer("far", "198.51.100.2", 64700, "ttlSecurityHops: 2")
	s.untilSession("node1", "far", "Established", "")
	r.untilHops(vip4+"/32", "172.30.1.11")
}

// lineWith returns the first line that has a word.
func lineWith(text, word string) string {
	for _, line := range strings.Split(text, "\n") {
		for _, w := range strings.Fields(line) {
			if w == word {
				return line
			}
		}
	}
	return ""
}

// TestBGPMeshPassword: nodes speak with each other only once the password is there, with it in every segment, and not with a node that has
// another one.
func TestBGPMeshPassword(t *testing.T) {
	s := tellBGP(t, lab.Options{Nodes: 3, Settings: "# of the story\nbgp: {mesh: \"on\", meshPasswordSecretRef: {name: weft-bgp, key: mesh}}\n"})
	s.untilSession("node1", "node2", "Refused", "Secret kube-system/weft-bgp does not exist")
	if out := s.out("node1", "ss -Hltn sport = :179"); out != "" {
		t.Errorf("a port is open without the password: %s", out)
	}
	secret := func(text string) {
		s.write("secret.yaml", fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: weft-bgp, namespace: kube-system}\nstringData: {mesh: %q}\n", text))
	}
	secret("")
	s.untilSession("node1", "node2", "Refused", `has nothing under the key "mesh"`)
	secret("of the mesh")
	for _, pair := range [][2]string{{"node1", "node2"}, {"node1", "node3"}, {"node2", "node3"}} {
		if p := s.untilSession(pair[0], pair[1], "Established", ""); !p.Password || !p.Node {
			t.Errorf("%+v", p)
		}
	}
	needs(t, "/usr/bin/tcpdump")
	captured := make(chan string, 1)
	go func() { // the first messages of the sessions with the next password, or at the latest their keepalives
		out, _ := s.Output(s.ctx, "node1", "tcpdump", "--immediate-mode", "-lnv", "-c", "4", "-i", "eth0", "tcp port 179 and tcp[tcpflags] & tcp-push != 0")
		captured <- out
	}()
	secret("the next of the mesh")
	if out := <-captured; strings.Count(out, "md5") < 4 {
		t.Errorf("segments without a signature:\n%s", out)
	}
	s.untilSession("node1", "node2", "Established", "")

	// From files, of which node3 has another.
	for _, node := range []string{"node1", "node2", "node3"} {
		text := "of a file\n"
		if node == "node3" {
			text = "of another\n"
		}
		s.no(os.WriteFile(filepath.Join(s.Dir, node, "etc/weft/mesh"), []byte(text), 0o600))
		s.settings(node, "bgp: {mesh: \"on\", meshPasswordFile: /etc/weft/mesh}\n")
	}
	s.untilSession("node1", "node3", "Active", "a wrong password looks the same")
	s.untilSession("node2", "node3", "Active", "a wrong password looks the same")
	s.untilSession("node1", "node2", "Established", "")
	lonely := func() error {
		for _, p := range s.sessions("node3").Peers {
			if p.State == "Established" {
				return fmt.Errorf("node3 has a session with the wrong password: %+v", p)
			}
		}
		return nil
	}
	s.eventually("node3 has no session", bgpWait, lonely)
	s.hold(3*time.Second, func() { s.no(lonely()) })
	s.no(os.WriteFile(filepath.Join(s.Dir, "node3", "etc/weft/mesh"), []byte("of a file\n"), 0o600))
	s.settings("node3", "bgp: {mesh: \"on\", meshPasswordFile: /etc/weft/mesh}\n")
	s.untilSession("node1", "node3", "Established", "")
	s.untilSession("node2", "node3", "Established", "")

	// A Secret that nobody has named before weftd was told to read its settings again.
	for _, node := range []string{"node1", "node2", "node3"} {
		s.settings(node, "bgp: {mesh: \"on\", meshPasswordSecretRef: {name: later, key: mesh}}\n")
	}
	s.untilSession("node1", "node2", "Refused", "Secret kube-system/later does not exist")
	s.write("later.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: later, namespace: kube-system}\nstringData: {mesh: of another Secret}\n")
	for _, node := range []string{"node2", "node3"} {
		s.untilSession("node1", node, "Established", "")
	}
}
