package netlab

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"weft.network/weft/appliance/lab"
)

// untilMetrics waits until a node's metrics have these lines.
func (s *story) untilMetrics(node string, lines ...string) {
	s.t.Helper()
	s.eventually(node+"'s metrics", bgpWait, func() error {
		text := s.out(node, "curl --silent --fail http://127.0.0.1:9465/metrics")
		for _, l := range lines {
			if !strings.Contains(text, l+"\n") {
				var has []string
				for _, have := range strings.Split(text, "\n") {
					if strings.HasPrefix(have, "weft_bgp") {
						has = append(has, have)
					}
				}
				return fmt.Errorf("%q is not among\n%s", l, strings.Join(has, "\n"))
			}
		}
		return nil
	})
}

// TestBGPAlone: weft-bgp beside another Pod network touches nothing of the node but its port, tells a router about Services, and takes no
// part in Pods, Services or names. Commands and metrics say what the router does.
func TestBGPAlone(t *testing.T) {
	s := tellBGP(t, lab.Options{Nodes: 1, Bare: true})
	touched := func() string { // but for the table of host ports, since the other network's list may call our portmap
		out, err := s.Output(s.ctx, "node1", "bash", "-c", "ip -o addr | sed 's/valid_lft.*//'; ip route; ip -6 route; nft list tables | grep -vx 'table inet weft' || true")
		s.no(err)
		return out
	}
	before := touched()
	s.write("vip.yaml", fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: vip, namespace: default}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  clusterIPs: [10.96.0.90]
  ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]
status: {loadBalancer: {ingress: [{ip: %s}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: vip-ipv4, namespace: default, labels: {kubernetes.io/service-name: vip}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.1.7], conditions: {ready: true}, nodeName: node1}]
`, vip4))
	const routes = "protocol static {\n ipv4;\n route 10.101.0.0/24 blackhole; route 10.102.0.0/24 blackhole;\n}\n"
	r := s.bird(routes + strings.Replace(birdNode(1, ""), "ipv4 { import all; export none; }", "ipv4 { import all; export where source = RTS_STATIC; }", 1))
	s.peer("tor", "172.30.1.1", 64600, "import: [{prefix: 10.101.0.0/24}]")
	s.program("node1", "weft", "weft-bgp")
	r.untilHops(vip4+"/32", "172.30.1.11")
	s.untilRoute("node1", "10.101.0.0/24", "")

	if out := s.weft("node1", "bgp", "advertised", "tor"); !strings.Contains(out, vip4+"/32") || strings.Count(strings.TrimSpace(out), "\n") != 1 {
		t.Errorf("weft bgp advertised says\n%s", out)
	}
	s.eventually("weft bgp received shows what the router tells", bgpWait, func() error {
		out := s.weft("node1", "bgp", "received", "172.30.1.1")
		if taken, left := lineWith(out, "10.101.0.0/24"), lineWith(out, "10.102.0.0/24"); taken == "" || strings.Contains(taken, "not taken") || !strings.Contains(left, "not taken") {
			return fmt.Errorf("it says\n%s", out)
		}
		return nil
	})
	const labels = `{address="172.30.1.1",peer="tor"}`
	s.untilMetrics("node1", "weft_bgp_session_up"+labels+" 1", "weft_bgp_routes_received"+labels+" 2",
		"weft_bgp_routes_accepted"+labels+" 1", "weft_bgp_routes_told 1", "weft_bgp_routes_learned 1", "weft_bgp_drained 0")
	// How often the session has ended is told by the difference: on a busy machine a router may have waited too long before.
	ended := func() int {
		n, err := strconv.Atoi(s.metric("node1", "weft_bgp_session_ended_total"+labels))
		s.no(err)
		return n
	}
	endsOnce := func(how string) {
		t.Helper()
		before := ended()
		_, err := r.ask(how, "node1")
		s.no(err)
		s.eventually("the end of the session is counted", bgpWait, func() error {
			if n := ended(); n <= before {
				return fmt.Errorf("%d, and before it were %d", n, before)
			}
			return nil
		})
		if n := ended(); n > before+1 {
			t.Logf("%s: the session has ended %d times", how, n-before)
		}
	}
	endsOnce("restart")
	s.untilMetrics("node1", "weft_bgp_session_up"+labels+" 1")
	r.untilHops(vip4+"/32", "172.30.1.11")
	s.weft("node1", "bgp", "drain")
	r.lacks(vip4 + "/32")
	s.untilMetrics("node1", "weft_bgp_routes_told 0", "weft_bgp_drained 1")
	s.weft("node1", "bgp", "undrain")
	r.untilHops(vip4+"/32", "172.30.1.11")
	endsOnce("disable")
	s.untilMetrics("node1", "weft_bgp_session_up"+labels+" 0", "weft_bgp_routes_received"+labels+" 0")

	if after := touched(); after != before {
		t.Errorf("weft-bgp has changed the node from\n%s\nto\n%s", before, after)
	}
}
