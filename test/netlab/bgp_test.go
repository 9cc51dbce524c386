package netlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/lab"
)

// The addresses that these stories tell routers about: nobody has them on a segment, so only BGP leads there.
const (
	vip4 = "203.0.113.10"
	vip6 = "2001:db8:f::10"
)

// peer writes a BGPPeer that tries again every second; more are further lines of its spec.
func (s *story) peer(name, address string, asn int, more ...string) {
	s.t.Helper()
	s.write("peer-"+name+".yaml", fmt.Sprintf(`apiVersion: weft.network/v1alpha1
kind: BGPPeer
metadata: {name: %s}
spec:
  peerAddress: %q
  peerASN: %d
  connectRetrySeconds: 1
  holdSeconds: 9
  %s
`, name, address, asn, strings.Join(more, "\n  ")))
}

// announce writes the Service vip with its two addresses and these Pods behind it.
func (s *story) announce(policy string, pods ...*lab.Pod) {
	s.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: v1
kind: Service
metadata: {name: vip, namespace: default}
spec:
  type: LoadBalancer
  loadBalancerClass: weft.network/bgp
  externalTrafficPolicy: %s
  clusterIPs: [10.96.0.90, "fd00:10:96::90"]
  ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]
status: {loadBalancer: {ingress: [{ip: %s}, {ip: "%s"}]}}
`, policy, vip4, vip6)
	for _, f := range []int{4, 6} {
		fmt.Fprintf(&b, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: vip-ipv%[1]d, namespace: default, labels: {kubernetes.io/service-name: vip}}
addressType: IPv%[1]d
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [`, f)
		for _, p := range pods {
			fmt.Fprintf(&b, "{addresses: [%q], conditions: {ready: true}, nodeName: %s},", p.Address(f), p.Node)
		}
		b.WriteString("]\n")
	}
	s.write("vip.yaml", b.String())
}

func subset(of, list []string) bool {
	for _, x := range list {
		if !slices.Contains(of, x) {
			return false
		}
	}
	return true
}

// sessions is what a node says of its sessions.
func (s *story) sessions(node string) (st appliance.BGPStatus) {
	s.t.Helper()
	s.no(json.Unmarshal([]byte(s.weft(node, "bgp", "peers", "-o", "json")), &st))
	return st
}

// untilSession waits until a node's session with a peer is in a state, for a reason.
func (s *story) untilSession(node, peer, state, why string) appliance.BGPPeerStatus {
	s.t.Helper()
	var found appliance.BGPPeerStatus
	s.eventually(fmt.Sprintf("%s: the session with %s is %s", node, peer, state), bgpWait, func() error {
		for _, p := range s.sessions(node).Peers {
			if p.Name == peer && p.State == state && strings.Contains(p.Why, why) {
				found = p
				return nil
			}
		}
		return fmt.Errorf("%+v", s.sessions(node).Peers)
	})
	return found
}

func (s *story) outsideReaches(vips ...string) {
	s.t.Helper()
	s.eventually("the machine outside reaches the Service", bgpWait, func() error {
		for _, v := range vips {
			if _, err := s.get(lab.Outside, netip.MustParseAddr(v), 80); err != nil {
				return err
			}
		}
		return nil
	})
}

// birdNode is the router's side of an external session with a node.
func birdNode(number int, more string) string {
	return fmt.Sprintf(`protocol bgp node%d {
  local 172.30.1.1 as 64600;
  neighbor 172.30.1.%d as 64512;
  graceful restart on;
  connect delay time 1; connect retry time 2; error wait time 1, 2; hold time 9;
  ipv4 { import all; export none; };
  ipv6 { import all; export none; };
  %s
}
`, number, 10+number, more)
}

// TestBGPWithBIRD is an external session of three nodes with BIRD 2: both families in one session, equal-cost paths to three nodes, local
// endpoints, drain by label and by hand, and a restart of weftd under traffic from outside.
func TestBGPWithBIRD(t *testing.T) {
	s := tellBGP(t, lab.Options{Nodes: 3})
	for _, node := range []string{"node1", "node2", "node3"} {
		if st := s.sessions(node); st.On || len(st.Peers) > 0 {
			t.Fatalf("%s speaks BGP without a peer: %+v", node, st)
		}
	}
	if out := s.out("node1", "ss -Hltn sport = :179"); out != "" {
		t.Fatalf("a port is open without a peer: %s", out)
	}
	web := []*lab.Pod{s.run("node1", "web1")[0], s.run("node2", "web2")[0]}
	r := s.bird(birdNode(1, "") + birdNode(2, "") + birdNode(3, ""))
	s.announce("Cluster", web...)
	s.peer("tor", "172.30.1.1", 64600, `advertise: {communities: ["64512:100"], largeCommunities: ["64512:1:2"]}`)
	nodes4 := []string{"172.30.1.11", "172.30.1.12", "172.30.1.13"}
	nodes6 := []string{"fd00:172:30:1::11", "fd00:172:30:1::12", "fd00:172:30:1::13"}
	r.untilHops(vip4+"/32", nodes4...)
	r.untilHops(vip6+"/128", nodes6...)
	r.until("the communities", []string{"show", "route", "for", vip4 + "/32", "all"}, "BGP.community: (64512,100)", "BGP.large_community: (64512, 1, 2)")
	if out := s.out(lab.Router, "ip -4 route show "+vip4); strings.Count(out, "nexthop") != 3 {
		t.Errorf("the router does not spread over three nodes: %s", out)
	}
	s.outsideReaches(vip4, vip6)
	if p := s.untilSession("node1", "tor", "Established", ""); !strings.Contains(p.GracefulRestart, "the peer") || p.Source != netip.MustParseAddr("172.30.1.11") || p.Advertised != 2 {
		t.Errorf("the session is %+v", p)
	}

	// Only nodes with a ready endpoint of their own.
	s.announce("Local", web...)
	r.untilHops(vip4+"/32", nodes4[:2]...)
	s.announce("Local", web[0])
	t.Logf("withdrawn %v after the last local endpoint was gone", r.untilHops(vip4+"/32", nodes4[0]))
	r.untilHops(vip6+"/128", nodes6[0])
	if a, err := s.get(lab.Outside, netip.MustParseAddr(vip4), 80); err != nil || a.Pod != "default/web1" || !a.Client.Is4() {
		t.Errorf("from outside: %+v %v", a, err)
	}
	s.announce("Local")
	r.untilHops(vip4 + "/32")
	s.announce("Cluster", web...)
	r.untilHops(vip4+"/32", nodes4...)

	// Before maintenance.
	s.no(s.SetLabels("node3", map[string]string{"weft.network/drain": ""}))
	r.untilHops(vip4+"/32", nodes4[:2]...)
	s.no(s.SetLabels("node3", nil))
	r.untilHops(vip4+"/32", nodes4...)
	s.weft("node2", "bgp", "drain")
	r.untilHops(vip4+"/32", nodes4[0], nodes4[2])
	s.restartDaemon("node2", unix.SIGTERM)
	s.untilSession("node2", "tor", "Established", "")
	if st := s.sessions("node2"); st.Drained != "weft bgp drain" {
		t.Errorf("node2 has forgotten that it is drained: %+v", st)
	}
	r.untilHops(vip4+"/32", nodes4[0], nodes4[2])
	s.weft("node2", "bgp", "undrain")
	r.untilHops(vip4+"/32", nodes4...)

	s.gracefulRestart(r, vip4+"/32", nodes4)

	// No peer, no speaker.
	s.remove("peer-tor.yaml")
	r.untilHops(vip4 + "/32")
	s.eventually("the port is closed", bgpWait, func() error {
		if out := s.out("node1", "ss -Hltn sport = :179"); out != "" {
			return errors.New(out)
		}
		return nil
	})
}

// gracefulRestart kills weftd on every node in turn, with traffic from outside to both addresses: nothing is lost, and the router never
// loses a path.
func (s *story) gracefulRestart(r *router, prefix string, hops []string) {
	s.t.Helper()
	var loads []*traffic
	for _, v := range []string{vip4, vip6} {
		loads = append(loads, s.traffic(lab.Outside, netip.AddrPortFrom(netip.MustParseAddr(v), 80)))
	}
	for i, node := range []string{"node1", "node2", "node3"} {
		sig := unix.SIGKILL
		if i == 1 {
			sig = unix.SIGTERM
		}
		s.no(s.KillDaemon(s.ctx, node, sig))
		if got := r.hops(prefix); len(got) != len(hops) {
			s.t.Errorf("weftd of %s was stopped, and the router has %v", node, got)
		}
		s.no(s.StartDaemon(s.ctx, node))
		s.no(s.WaitReady(s.ctx, node))
		s.untilSession(node, "tor", "Established", "")
		if got := r.hops(prefix); len(got) != len(hops) {
			s.t.Errorf("weftd of %s came back, and the router has %v", node, got)
		}
	}
	for _, l := range loads {
		l.finish(s)
	}
	r.untilHops(prefix, hops...)
}

// remove takes a file out of the folder that is the lab's API.
func (s *story) remove(name string) {
	s.t.Helper()
	s.no(unix.Unlink(s.Dir + "/manifests/" + name))
}

// TestBGPTrouble is all that keeps a session from being, each with the reason where an administrator looks, and the way out.
func TestBGPTrouble(t *testing.T) {
	s := tellBGP(t, lab.Options{Nodes: 1})
	s.announce("Cluster", s.run("node1", "web1")...)
	r := s.bird(birdNode(1, `password "right";`))
	secret := func(text string) {
		s.write("secret.yaml", fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: weft-bgp, namespace: kube-system}\nstringData: {tor: %q}\n", text))
	}
	down := func() {
		t.Helper()
		if got := r.hops(vip4 + "/32"); len(got) > 0 {
			t.Errorf("the router has %v", got)
		}
	}
	const ref = "passwordSecretRef: {name: weft-bgp, key: tor}"
	s.peer("tor", "172.30.1.1", 64600, ref)
	s.untilSession("node1", "tor", "Refused", "Secret kube-system/weft-bgp does not exist")
	secret("")
	s.untilSession("node1", "tor", "Refused", `has nothing under the key "tor"`)
	down()
	secret("wrong")
	s.eventually("a try with the wrong password", bgpWait, func() error {
		for _, p := range s.sessions("node1").Peers {
			if p.State == "Active" && p.Password && strings.Contains(p.Why, "a wrong password looks the same") {
				return nil
			}
		}
		return fmt.Errorf("%+v", s.sessions("node1").Peers)
	})
	s.hold(4*time.Second, down)
	secret("right")
	s.untilSession("node1", "tor", "Established", "")
	r.untilHops(vip4+"/32", "172.30.1.11")

	// The router's password goes away, and ours.
	r.configure(birdNode(1, ""))
	s.untilSession("node1", "tor", "Active", "")
	s.peer("tor", "172.30.1.1", 64600)
	s.untilSession("node1", "tor", "Established", "")

	// An AS number that is not the router's.
	s.peer("tor", "172.30.1.1", 64999)
	s.untilSession("node1", "tor", "Active", "bad peer AS")
	down()
	s.peer("tor", "172.30.1.1", 64600)
	s.untilSession("node1", "tor", "Established", "")

	// More routes than we will have.
	many := "protocol static {\n ipv4;\n route 10.101.0.0/24 blackhole; route 10.102.0.0/24 blackhole; route 10.103.0.0/24 blackhole;\n}\n"
	r.configure(many + strings.Replace(birdNode(1, ""), "ipv4 { import all; export none; }", "ipv4 { import all; export where source = RTS_STATIC; }", 1))
	s.peer("tor", "172.30.1.1", 64600, "import: [{prefix: 10.0.0.0/8, le: 24}, {prefix: 0.0.0.0/0}]")
	s.eventually("the node takes routes", bgpWait, func() error {
		if out := s.out("node1", "ip -4 route show 10.102.0.0/24"); !strings.Contains(out, "via 172.30.1.1 dev eth0 proto 87 metric 4200") {
			return fmt.Errorf("the node has %q", out)
		}
		return nil
	})
	s.peer("tor", "172.30.1.1", 64600, "maxPrefixes: 2", "import: [{prefix: 10.0.0.0/8, le: 24}]")
	s.untilSession("node1", "tor", "Idle", "more than maxPrefixes (2)")
	s.eventually("the routes go", bgpWait, func() error {
		if out := s.out("node1", "ip -4 route show 10.102.0.0/24"); out != "" {
			return errors.New(out)
		}
		return nil
	})
	s.peer("tor", "172.30.1.1", 64600, "maxPrefixes: 3")
	s.untilSession("node1", "tor", "Established", "")

	// A second one for the same router, and one for the node itself.
	s.peer("again", "172.30.1.1", 64600)
	s.untilSession("node1", "tor", "Refused", `BGPPeer "again" has the same address`)
	s.remove("peer-again.yaml")
	s.peer("myself", "172.30.1.11", 64512)
	s.untilSession("node1", "myself", "Refused", "an address of the node itself")
	s.untilSession("node1", "tor", "Established", "")

	// BIRD's word for it.
	r.until("BIRD sees the session", []string{"show", "protocols", "all", "node1"}, "Established", "Neighbor AS:      64512")
}

// hold checks a condition again and again for a while.
func (s *story) hold(d time.Duration, check func()) {
	end := time.After(d)
	for {
		select {
		case <-end:
			return
		case <-time.After(100 * time.Millisecond):
			check()
		}
	}
}

// frrHops reads the next hops from FRR's JSON.
func frrHops(text string) (out []string) {
	var answer struct {
		Paths []struct {
			Valid    bool
			Nexthops []struct {
				IP       string `json:"ip"`
				Afi      string
				Scope    string
				Hostname string
			}
		}
	}
	if json.Unmarshal([]byte(text), &answer) != nil {
		return nil
	}
	for _, p := range answer.Paths {
		for _, h := range p.Nexthops {
			if h.Scope != "link-local" {
				out = append(out, h.IP)
			}
		}
	}
	return out
}

// TestBGPHostilePeer: a peer sends a message of an unknown type, which gobgp dies of. That ends one process: Pods, DNS and Services do
// not notice, the router keeps the routes, and the next process goes on.
func TestBGPHostilePeer(t *testing.T) {
	s := tellBGP(t, lab.Options{Nodes: 1})
	web := s.run("node1", "web1")
	s.announce("Cluster", web...)
	r := s.bird(birdNode(1, "") + "protocol static {\n ipv4;\n route 10.101.0.0/24 blackhole;\n}\n")
	s.peer("tor", "172.30.1.1", 64600)
	s.peer("hostile", "198.51.100.2", 64666, "multihopTTL: 5", "passive: true")
	r.untilHops(vip4+"/32", "172.30.1.11")
	s.outsideReaches(vip4)
	pid := s.sessions("node1").PID
	daemon := s.status("node1").Node.PID
	load := s.traffic(lab.Outside, addrPort(mustAddr(vip4), 80))
	s.eventually("the speaker dies", bgpWait, func() error {
		// Sixteen bytes of ones, a length of 19, type 255.
		_, err := s.Output(s.ctx, lab.Outside, "bash", "-c", `exec 3<>/dev/tcp/172.30.1.11/179; printf '\377%.0s' {1..16} >&3; printf '\000\023\377' >&3; sleep 0.2`)
		if err != nil {
			return err
		}
		if now := s.sessions("node1").PID; now == pid {
			return errors.New("it lives")
		}
		return nil
	})
	if got := r.hops(vip4 + "/32"); len(got) != 1 {
		t.Errorf("the router has %v", got)
	}
	s.untilSession("node1", "tor", "Established", "")
	s.hold(time.Second, func() {
		if got := r.hops(vip4 + "/32"); len(got) != 1 {
			t.Errorf("the router has %v", got)
		}
	})
	load.finish(s)
	st := s.status("node1")
	if st.Node.PID != daemon {
		t.Error("weftd itself has died")
	}
	if bgp := s.sessions("node1"); bgp.Starts < 2 || bgp.Error != "" {
		t.Errorf("after the crash: %+v", bgp)
	}
}
