package netlab

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// frrReflector is FRR as reflector of an internal session with each node, in the router between their subnets.
const frrReflector = `hostname router
router bgp 64512
 bgp router-id 172.30.0.1
 bgp cluster-id 172.30.0.1
 no bgp default ipv4-unicast
 bgp graceful-restart
 neighbor nodes peer-group
 neighbor nodes remote-as 64512
 neighbor nodes timers 3 9
 neighbor nodes timers connect 2
 neighbor nodes password right
 neighbor 172.30.1.11 peer-group nodes
 neighbor 172.30.2.12 peer-group nodes
 neighbor 172.30.1.13 peer-group nodes
 address-family ipv4 unicast
  neighbor nodes activate
  neighbor nodes route-reflector-client
  maximum-paths ibgp 8
 exit-address-family
 address-family ipv6 unicast
  neighbor nodes activate
  neighbor nodes route-reflector-client
  maximum-paths ibgp 8
 exit-address-family
`

// crossing are nodes in two subnets with a router between them that nobody tells the ways to Pods, and a Pod on each.
func crossing(t *testing.T, settings string) (*story, []*lab.Pod) {
	t.Helper()
	s := tellBGP(t, lab.Options{Nodes: 3, Subnets: 2, Mode: "native", Taught: true, Settings: settings})
	var pods []*lab.Pod
	for _, node := range []string{"node1", "node2", "node3"} {
		pods = append(pods, s.run(node, "on-"+node)...)
	}
	return s, pods
}

// carries waits until each Pod reaches the others, and then checks that nothing is encapsulated: full packets of the underlay pass whole.
func (s *story) carries(pods []*lab.Pod) {
	s.t.Helper()
	s.eventually("Pods reach each other over the router", bgpWait, func() error {
		for i, from := range pods {
			for j, to := range pods {
				if i != j {
					if err := s.tryReach(from, to); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
	for _, node := range []string{"node1", "node2", "node3"} {
		if out := s.out(node, "ip -o link show type vxlan"); out != "" {
			s.t.Errorf("%s has a tunnel: %s", node, out)
		}
	}
	s.out(pods[0].FullName(), fmt.Sprintf("ping -c 1 -W 5 -M do -s 1472 %s", pods[1].Address(4)))
	s.out(pods[0].FullName(), fmt.Sprintf("ping -6 -c 1 -W 5 -M do -s 1452 %s", pods[1].Address(6)))
}

// untilRoute waits until a node's kernel has a route with this text, or none when it is empty.
func (s *story) untilRoute(node, prefix, want string) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("%s: route to %s is %q", node, prefix, want), bgpWait, func() error {
		flag := "-4"
		if strings.Contains(prefix, ":") {
			flag = "-6"
		}
		out := s.out(node, "ip "+flag+" route show "+prefix)
		if want == "" && out != "" || !strings.Contains(out, want) {
			return fmt.Errorf("it has %q", out)
		}
		return nil
	})
}

// TestBGPWithFRR is an internal session of each node with FRR, which reflects: Pods reach each other over the router without a tunnel, a Service is
// spread over the nodes, and a restart of weftd takes nothing away.
func TestBGPWithFRR(t *testing.T) {
	s, pods := crossing(t, "bgp: {mesh: \"off\"}\n")
	s.write("secret.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: weft-bgp, namespace: kube-system}\nstringData: {frr: right}\n")
	r := s.frr(frrReflector)
	for node, subnet := range map[string]string{"node1": "1", "node2": "2", "node3": "1"} {
		s.no(s.SetLabels(node, map[string]string{"subnet": subnet}))
	}
	for _, subnet := range []string{"1", "2"} {
		s.peer("reflector"+subnet, "172.30."+subnet+".1", 64512, `nodeSelector: {subnet: "`+subnet+`"}`,
			"passwordSecretRef: {name: weft-bgp, key: frr}",
			`import: [{prefix: 10.244.0.0/16, ge: 24, le: 24}, {prefix: "fd00:10:244::/48", ge: 64, le: 64}]`)
	}
	s.announce("Cluster", pods...)
	r.untilHops("10.244.2.0/24", "172.30.2.12")
	r.untilHops("fd00:10:244:3::/64", "fd00:172:30:1::13")
	s.carries(pods)
	s.untilRoute("node1", "10.244.2.0/24", "via 172.30.1.1 dev eth0 proto 87")
	s.untilRoute("node2", "fd00:10:244:1::/64", "via fd00:172:30:2::1 dev eth0 proto 87")
	r.untilHops(vip4+"/32", "172.30.1.11", "172.30.2.12", "172.30.1.13")
	s.outsideReaches(vip4, vip6)
	r.until("FRR's view of graceful restart", []string{"show", "bgp", "ipv4", "neighbors", "172.30.1.11", "graceful-restart"}, "Remote GR Mode: Restart", "Received Restart Time(sec): 120")

	// weftd of the node in the other subnet goes and comes, and is long enough away for the loss of a route to be felt.
	across := s.traffic(pods[0].FullName(), addrPort(pods[1].Address(4), lab.HTTPPort))
	outside := s.traffic(lab.Outside, addrPort(mustAddr(vip4), 80))
	s.no(s.KillDaemon(s.ctx, "node2", unix.SIGKILL))
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGTERM))
	s.hold(2*time.Second, func() {
		if got := r.hops("10.244.2.0/24"); len(got) != 1 {
			t.Errorf("weftd is away and FRR has %v", got)
		}
	})
	for _, node := range []string{"node2", "node1"} {
		s.no(s.StartDaemon(s.ctx, node))
		s.no(s.WaitReady(s.ctx, node))
		if out := s.out(node, "ip -4 route show 10.244.3.0/24"); !strings.Contains(out, "via ") {
			t.Errorf("%s has dropped a learned route at its start: %q", node, out)
		}
	}
	s.untilSession("node1", "reflector1", "Established", "")
	s.untilSession("node2", "reflector2", "Established", "")
	s.untilRoute("node2", "10.244.1.0/24", "via 172.30.2.1")
	across.finish(s)
	outside.finish(s)

	// A peer that goes takes what it has told along.
	s.remove("peer-reflector2.yaml")
	s.untilRoute("node2", "10.244.1.0/24", "")
	r.untilHops("10.244.2.0/24")
}

// TestBGPMesh: in mode native over two subnets nodes speak with each other by themselves; the router learns from each of them. Then one
// node reflects for the others.
func TestBGPMesh(t *testing.T) {
	s, pods := crossing(t, "")
	config := ""
	for number, subnet := range map[int]int{1: 1, 2: 2, 3: 1} {
		config += strings.NewReplacer("172.30.1.1 ", fmt.Sprintf("172.30.%d.1 ", subnet), fmt.Sprintf("172.30.1.%d ", 10+number), fmt.Sprintf("172.30.%d.%d ", subnet, 10+number)).
			Replace(birdNode(number, ""))
	}
	r := s.bird(config)
	for node, subnet := range map[string]string{"node1": "1", "node2": "2", "node3": "1"} {
		s.no(s.SetLabels(node, map[string]string{"subnet": subnet}))
	}
	s.peer("tor1", "172.30.1.1", 64600, `nodeSelector: {subnet: "1"}`)
	s.peer("tor2", "172.30.2.1", 64600, `nodeSelector: {subnet: "2"}`)
	r.untilHops("10.244.2.0/24", "172.30.2.12")
	s.carries(pods)
	for _, pair := range [][2]string{{"node1", "node2"}, {"node1", "node3"}, {"node2", "node1"}, {"node2", "node3"}} {
		if p := s.untilSession(pair[0], pair[1], "Established", ""); !p.Node {
			t.Errorf("%+v", p)
		}
	}
	s.untilRoute("node1", "10.244.2.0/24", "via 172.30.1.1 dev eth0 proto 87")
	s.untilRoute("node3", "fd00:10:244:2::/64", "via fd00:172:30:1::1 dev eth0 proto 87")
	s.untilRoute("node1", "10.244.3.0/24", "via 172.30.1.13 dev eth0 proto 87") // on the same subnet

	// node1 reflects: node2 and node3 part, and still know each other's Pods.
	s.no(s.SetLabels("node1", map[string]string{"subnet": "1", "weft.network/route-reflector": "true"}))
	s.eventually("node2 and node3 part", bgpWait, func() error {
		for _, p := range s.sessions("node2").Peers {
			if p.Name == "node3" {
				return errors.New("they still have a session")
			}
		}
		return nil
	})
	s.untilSession("node2", "node1", "Established", "")
	s.untilSession("node3", "node1", "Established", "")
	s.untilRoute("node2", "10.244.3.0/24", "via 172.30.2.1 dev eth0 proto 87")
	s.untilRoute("node3", "10.244.2.0/24", "via 172.30.1.1 dev eth0 proto 87")
	s.carries(pods)
}

// TestBGPOverIPv6 is a session whose transport is IPv6, between machines that have nothing else.
func TestBGPOverIPv6(t *testing.T) {
	s := tellBGP(t, lab.Options{Nodes: 2, Families: lab.IPv6})
	web := s.run("node1", "web1")
	config := ""
	for number := 1; number <= 2; number++ {
		config += strings.NewReplacer("172.30.1.1 ", "fd00:172:30:1::1 ", fmt.Sprintf("172.30.1.%d ", 10+number), fmt.Sprintf("fd00:172:30:1::%d ", 10+number)).
			Replace(birdNode(number, `password "right";`))
	}
	r := s.bird(config)
	s.write("vip.yaml", fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: vip, namespace: default}
spec:
  type: LoadBalancer
  loadBalancerClass: weft.network/bgp
  clusterIPs: ["fd00:10:96::90"]
  ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]
status: {loadBalancer: {ingress: [{ip: "%s"}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: vip-ipv6, namespace: default, labels: {kubernetes.io/service-name: vip}}
addressType: IPv6
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [%q], conditions: {ready: true}, nodeName: node1}]
---
apiVersion: v1
kind: Secret
metadata: {name: weft-bgp, namespace: kube-system}
stringData: {tor: right}
`, vip6, web[0].Address(6)))
	s.peer("tor", "fd00:172:30:1::1", 64600, "passwordSecretRef: {name: weft-bgp, key: tor}", "ttlSecurityHops: 1")
	// BIRD must send with a TTL that says the same.
	r.configure(strings.ReplaceAll(config, "hold time 9;", "hold time 9; ttl security on;"))
	r.untilHops(vip6+"/128", "fd00:172:30:1::11", "fd00:172:30:1::12")
	s.outsideReaches(vip6)
}
