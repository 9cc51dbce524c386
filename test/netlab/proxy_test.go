package netlab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/lab"
)

// background runs a command on a node until the story ends, or until it is told to stop.
func (s *story) background(node string, argv ...string) (stop func()) {
	ctx, cancel := context.WithCancel(s.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = s.Exec(ctx, node, argv, lab.Stdio{})
	}()
	stop = func() {
		cancel()
		<-ended
	}
	s.t.Cleanup(stop)
	return stop
}

// TestProxyBesideAnotherNetwork: weft-proxy alone, on a node whose Pods somebody else wired (as the reference plugin ptp does), serves
// their Services and touches nothing of that network.
func TestProxyBesideAnotherNetwork(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1, Bare: true})
	node, err := s.Node("node1")
	s.no(err)
	gateway, _, _ := strings.Cut(node.PodCIDRs[0].String(), "0/")
	var web []*lab.Pod
	s.out("node1", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	for i, name := range []string{"client", "web0", "web1"} {
		addr := netip.MustParseAddr(fmt.Sprintf("%s%d", gateway, 10+i))
		for _, command := range []string{
			"ip netns add NAME", "ip link add vNAME type veth peer name eth0 netns NAME", "ip link set vNAME up", "ip addr add GATEWAY1/32 dev vNAME",
			"ip route add ADDR/32 dev vNAME", "ip -n NAME link set lo up", "ip -n NAME link set eth0 up", "ip -n NAME addr add ADDR/32 dev eth0",
			"ip -n NAME route add GATEWAY1/32 dev eth0", "ip -n NAME route add default via GATEWAY1",
		} {
			s.out("node1", strings.NewReplacer("NAME", name, "ADDR", addr.String(), "GATEWAY", gateway).Replace(command))
		}
		if name != "client" {
			s.background("node1", "ip", "netns", "exec", name, weft, lab.PodCommand, "serve", "--pod", "default/"+name, "--node", "node1")
			web = append(web, &lab.Pod{PodSpec: lab.PodSpec{Name: name}, Node: "node1", Addresses: []netip.Addr{addr, netip.MustParseAddr(fmt.Sprintf("fd00::%d", 10+i))}})
		}
	}
	network := func() string {
		return s.out("node1", "ip -4 route show table all") + s.out("node1", "ip -br link show")
	}
	before := network()
	s.background("node1", "weft", "weft-proxy")
	s.serve(web...)
	ask := func(target, addr string, port int) (string, error) {
		argv := []string{"weft", lab.PodCommand, "get", "--timeout", s.limit.String(), fmt.Sprintf("http://%s:%d/", addr, port)}
		if target == "node1" {
			return s.Output(s.ctx, target, argv...)
		}
		return s.Output(s.ctx, "node1", append([]string{"ip", "netns", "exec", target, weft}, argv[1:]...)...)
	}
	for _, p := range web {
		s.eventually(p.Name+" listens", 15*time.Second, func() error {
			_, err := ask("client", p.Addresses[0].String(), lab.HTTPPort)
			return err
		})
	}
	s.eventually("the Service answers a Pod of the other network", 15*time.Second, func() error {
		_, err := ask("client", webService, 80)
		return err
	})
	seen := map[string]bool{}
	for range 30 {
		out, err := ask("client", webService, 80)
		s.no(err)
		seen[out] = true
	}
	if len(seen) != 2 {
		t.Errorf("30 connections were answered by %v, want both Pods", seen)
	}
	if _, err := ask("node1", webService, 80); err != nil {
		t.Errorf("from the node: %v", err)
	}
	if _, err := s.get(lab.Outside, node.Addresses[0], webNodePort); err != nil {
		t.Errorf("from outside to the node port: %v", err)
	}
	// A Pod that reaches itself: its own address must not come back to it as the source.
	s.serve(web[0])
	s.eventually("a Pod reaches itself through the Service", 15*time.Second, func() error {
		_, err := ask("web0", webService, 80)
		return err
	})
	if after := network(); after != before {
		t.Errorf("weft-proxy changed links or routes:\n%s\nwere\n%s", after, before)
	}
	// Another network's list may name our portmap, whose host ports are in table weft.
	if rules := s.out("node1", "nft list table inet weft"); strings.Contains(rules, "chain guard") || strings.Contains(rules, "chain postrouting") {
		t.Errorf("weft-proxy made rules for a Pod network that is not its own:\n%s", rules)
	}
	if out, err := s.Output(s.ctx, "node1", "ls", "/etc/cni/net.d"); err == nil && strings.Contains(out, "weft") {
		t.Errorf("weft-proxy wrote a CNI configuration: %s", out)
	}
}

// TestKubeProxyLeftovers: what a kube-proxy left is a warning, and goes when it is asked for, unless one runs.
func TestKubeProxyLeftovers(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1})
	s.out("node1", "nft add table ip kube-proxy")
	s.out("node1", "nft add chain ip kube-proxy services")
	s.out("node1", "iptables-nft -t nat -N KUBE-SERVICES")
	s.out("node1", "iptables-nft -t nat -A PREROUTING -j KUBE-SERVICES")
	s.eventually("the leftovers are a warning", 30*time.Second, func() error {
		for _, w := range s.status("node1").Warnings {
			if strings.Contains(w, "a kube-proxy that does not run any more") && strings.Contains(w, "table ip kube-proxy") && strings.Contains(w, "weft service cleanup-kube-proxy") {
				return nil
			}
		}
		return fmt.Errorf("warnings: %v", s.status("node1").Warnings)
	})
	// A program of that name on this node.
	program := filepath.Join(t.TempDir(), "kube-proxy")
	sleep, err := os.ReadFile("/bin/sleep")
	s.no(err)
	s.no(os.WriteFile(program, sleep, 0o755))
	stop := s.background("node1", program, "60")
	s.eventually("it is refused while a kube-proxy runs", 10*time.Second, func() error {
		out, err := s.Output(s.ctx, "node1", "weft", "service", "cleanup-kube-proxy", "--dry-run")
		if err == nil || !strings.Contains(err.Error(), "runs on this node") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	stop()
	if out := s.out("node1", "weft service cleanup-kube-proxy --dry-run"); !strings.Contains(out, "would remove table ip kube-proxy") {
		t.Errorf("a dry run says %s", out)
	}
	if out := s.out("node1", "weft service cleanup-kube-proxy"); !strings.Contains(out, "removed table ip kube-proxy") || !strings.Contains(out, "1 chains of kube-proxy in table ip nat") {
		t.Errorf("it says %s", out)
	}
	if rules := s.out("node1", "nft list ruleset"); strings.Contains(rules, "KUBE-") || strings.Contains(rules, "kube-proxy {") {
		t.Errorf("it is still there:\n%s", rules)
	}
	if out := s.out("node1", "weft service cleanup-kube-proxy"); !strings.Contains(out, "nothing behind") {
		t.Errorf("the second time it says %s", out)
	}
}
