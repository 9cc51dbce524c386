package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// router starts a BIRD 2 on the switch, which is everybody's router, with a session with one node, and returns how to ask it.
func router(t *testing.T, node *Node) (ask func(command ...string) (string, error)) {
	t.Helper()
	if _, err := os.Stat("/usr/sbin/bird"); err != nil {
		if os.Getenv("WEFT_TEST_MUST_RUN") == "1" {
			t.Fatal("BIRD 2 is missing (make deps installs it), and WEFT_TEST_MUST_RUN=1 forbids skipping")
		}
		t.Skip("BIRD 2 is missing: make deps installs it")
	}
	config := fmt.Sprintf(`router id 192.168.77.1;
log stderr all;
protocol device {}
protocol kernel { ipv4 { export all; import none; }; }
protocol kernel { ipv6 { export all; import none; }; }
protocol bgp node {
  local 192.168.77.1 as 64600; neighbor %s as 64512;
  connect delay time 1; connect retry time 2; error wait time 1, 2; password "of the rack";
  ipv4 { import all; export none; }; ipv6 { import all; export none; };
}
`, node.address[0])
	if err := cluster.fabric.WriteFile("/run/bird.conf", config, 0o644); err != nil {
		t.Fatal(err)
	}
	bird, err := cluster.fabric.Start("bird", "/usr/sbin/bird", "-f", "-c", "/run/bird.conf", "-s", "/run/bird.ctl", "-P", "/run/bird.pid")
	if err != nil {
		t.Fatal(err)
	}
	ask = func(command ...string) (string, error) {
		return cluster.fabric.Exec(append([]string{"/usr/sbin/birdc", "-s", "/run/bird.ctl"}, command...)...)
	}
	t.Cleanup(func() {
		if _, err := ask("down"); err != nil { // it takes its routes along
			t.Error(err)
		}
		<-bird.ended
	})
	if err := wait("BIRD", lbTime, []*process{bird}, func() error { _, err := ask("show", "status"); return err }); err != nil {
		t.Fatal(err)
	}
	return ask
}

// TestBGP: a BGPPeer, its Secret and a pool applied with kubectl; the router learns the address of a Service from the one node that the
// BGPPeer selects, clients come in over it, and the route goes with the last endpoint.
func TestBGP(t *testing.T) {
	needCluster(t)
	const vip = "203.0.113.10"
	node := cluster.Nodes[1]
	ask := router(t, node)
	kubectl := func(arguments ...string) string {
		t.Helper()
		out, err := cluster.Kubectl(arguments...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	t.Cleanup(func() {
		for _, what := range [][]string{{"service", "far"}, {"loadbalancerpool", "far"}, {"bgppeer", "rack"}, {"secret", "weft-bgp", "--namespace=kube-system"}} {
			if _, err := cluster.Kubectl(append([]string{"delete", "--ignore-not-found"}, what...)...); err != nil {
				t.Error(err)
			}
		}
	})
	until := func(what string, check func() error) {
		t.Helper()
		if err := wait(what, lbTime, nil, check); err != nil {
			status, _ := node.Exec(weftBinary, "bgp", "peers")
			t.Fatalf("%v\n%s", err, status)
		}
	}
	objects := strings.Replace(pool(vip+", '2001:db8:f::10'"), "name: edge", "name: far", 1) + `---
apiVersion: weft.network/v1alpha1
kind: BGPPeer
metadata: {name: rack}
spec:
  nodeSelector: {kubernetes.io/hostname: ` + node.name + `}
  peerAddress: 192.168.77.1
  peerASN: 64600
  connectRetrySeconds: 1
  passwordSecretRef: {name: weft-bgp, key: rack}
---
` + balancer("far", "", "ipFamilyPolicy: RequireDualStack, externalTrafficPolicy: Local")
	if err := cluster.Apply(objects); err != nil {
		t.Fatal(err)
	}
	until("the session to wait for its Secret", func() error {
		out, err := node.Exec(weftBinary, "bgp", "peers")
		if err == nil && !strings.Contains(out, "Secret kube-system/weft-bgp does not exist") {
			err = fmt.Errorf("weft bgp peers says %s", out)
		}
		return err
	})
	kubectl("create", "secret", "generic", "weft-bgp", "--namespace=kube-system", "--from-literal=rack=of the rack")
	until("the session", func() error {
		out, err := ask("show", "protocols", "node")
		if err == nil && !strings.Contains(out, "Established") {
			err = fmt.Errorf("BIRD says %s", out)
		}
		return err
	})
	untilAllocated(t, "far", "Allocated")
	route := func(prefix, hop string) func() error {
		return func() error {
			out, err := ask("show", "route", "where", "net", "=", prefix, "all")
			switch {
			case err != nil:
			case hop == "" && strings.Contains(out, "BGP.next_hop"), hop != "" && !strings.Contains(out, "BGP.next_hop: "+hop):
				err = fmt.Errorf("BIRD has %s", out)
			}
			return err
		}
	}
	if err := route(vip+"/32", "")(); err != nil {
		t.Errorf("an address without an endpoint is told: %v", err)
	}

	runPod := func() {
		t.Helper()
		if _, err := cluster.RunPod("far", node, AgnhostImage, "netexec"); err != nil {
			t.Fatal(err)
		}
		kubectl("label", "pod", "far", "app=lb")
	}
	runPod()
	until("the router to know the address", route(vip+"/32", node.address[0].String()))
	until("the router to know the IPv6 address", route("2001:db8:f::10/128", node.address[1].String()))
	for _, url := range []string{"http://" + vip + "/hostname", "http://[2001:db8:f::10]/hostname"} {
		until(url, func() error {
			out, err := cluster.fabric.Exec("curl", "--silent", "--show-error", "--max-time", "2", url)
			if err == nil && out != "far" {
				err = fmt.Errorf("got %q", out)
			}
			return err
		})
	}
	event := func(reason, part string) func() error {
		return func() error {
			text, err := cluster.Kubectl("get", "events", "--field-selector=involvedObject.kind=Service,involvedObject.name=far,reason="+reason, "--output=jsonpath={.items[*].message}")
			if err == nil && !strings.Contains(text, part) {
				err = fmt.Errorf("the Events say %q", text)
			}
			return err
		}
	}
	until("the Event that the address is told", event("AddressAdvertised", "node "+node.name+" tells BGP peers about "+vip+", 2001:db8:f::10: rack"))
	if out, err := cluster.Nodes[0].Exec(weftBinary, "bgp", "peers"); err != nil || strings.Contains(out, "192.168.77.1") {
		t.Errorf("a node that the BGPPeer does not select has the session, too: %v %s", err, out)
	}

	if err := cluster.DeletePod("far"); err != nil {
		t.Fatal(err)
	}
	until("the route to go with the endpoint", route(vip+"/32", ""))
	until("the IPv6 route to go with the endpoint", route("2001:db8:f::10/128", ""))
	until("the Event that the address is withdrawn", event("AddressWithdrawn", "it has no ready endpoint on this node"))
	runPod()
	until("the route to come with the next endpoint", route(vip+"/32", node.address[0].String()))
	kubectl("delete", "bgppeer", "rack")
	until("the route to go with the BGPPeer", route(vip+"/32", ""))
	if err := cluster.DeletePod("far"); err != nil {
		t.Error(err)
	}
}
