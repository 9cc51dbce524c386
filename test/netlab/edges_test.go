package netlab

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
	"weft.network/weft/appliance/model"
)

func ports(t testing.TB, texts ...string) (out []model.PortMapping) {
	t.Helper()
	for _, text := range texts {
		m, err := lab.ParsePort(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// TestHostPorts: a Pod is reached by ports of its node, from everywhere, until it is gone; also after somebody flushed the rules.
func TestHostPorts(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	client := s.run("node1", "client")[0]
	web := s.runSpecs("node2", lab.PodSpec{Name: "web", Ports: ports(t, "8088:8080", "8089:8081/udp", "127.0.0.1:8090:8080")})[0]
	node, err := s.Node("node2")
	s.no(err)
	s.hostPorts(client, web, node)

	for _, at := range node.Addresses {
		if s.refused(func() error { _, err := s.get(lab.Outside, at, 8090); return err }) == nil {
			t.Errorf("a host port of 127.0.0.1 is open on %s", at)
		}
	}
	local := netip.MustParseAddr("127.0.0.1")
	if _, err := s.get("node2", local, 8090); err != nil {
		t.Error(err)
	}

	s.out("node2", "nft flush ruleset")
	s.eventually("host ports after the rules were flushed", repairTime, func() error {
		_, err := s.get(lab.Outside, node.Addresses[0], 8088)
		return err
	})
	s.hostPorts(client, web, node)

	if _, err := s.RunPod(s.ctx, "node2", lab.PodSpec{Name: "second", Ports: ports(t, "8088:8080")}); err == nil {
		t.Error("a second Pod got the host port that web has")
	} else {
		t.Log(err)
	}
	s.delete("web")
	for _, at := range node.Addresses {
		if s.refused(func() error { _, err := s.get(lab.Outside, at, 8088); return err }) == nil {
			t.Errorf("the host port of a Pod that is gone is open on %s", at)
		}
	}
	// The port is free again, and flows to the Pod that had it do not linger.
	next := s.runSpecs("node2", lab.PodSpec{Name: "next", Ports: ports(t, "8088:8080", "8089:8081/udp")})[0]
	s.hostPorts(client, next, node)
	s.clean("node2")
}

// hostPorts: TCP and UDP, every family, from outside, from the node itself and its localhost, from a Pod elsewhere and from the Pod
// itself.
func (s *story) hostPorts(client, web *lab.Pod, node *lab.Node) {
	s.t.Helper()
	sources := []string{lab.Outside, "node1", node.Name, client.FullName(), web.FullName()}
	for _, from := range sources {
		for _, at := range node.Addresses {
			s.hostPort(from, at, web)
		}
	}
	s.hostPort(node.Name, netip.MustParseAddr("127.0.0.1"), web)

	// From outside nothing is translated but the destination.
	for i, p := range []string{"198.51.100.2", "2001:db8:51::2"} {
		a, err := s.get(lab.Outside, node.Addresses[i], 8088)
		s.no(err)
		if a.Client != netip.MustParseAddr(p) {
			s.t.Errorf("by a host port, %s saw %s, want %s", web.FullName(), a.Client, p)
		}
	}
}

func (s *story) hostPort(from string, at netip.Addr, web *lab.Pod) {
	s.t.Helper()
	if a, err := s.get(from, at, 8088); err != nil || a.Pod != web.FullName() {
		s.t.Errorf("TCP from %s to %s: %+v %v", from, netip.AddrPortFrom(at, 8088), a, err)
	}
	if a, err := s.udp(from, at, 8089); err != nil || a.Pod != web.FullName() {
		s.t.Errorf("UDP from %s to %s: %+v %v", from, netip.AddrPortFrom(at, 8089), a, err)
	}
}

// TestBandwidth: both directions are limited, each by its own limit, and only for that Pod.
func TestBandwidth(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	const rate = 16e6 // bits per second: two million bytes take a second
	limit := model.Bandwidth{IngressRate: rate, IngressBurst: rate / 50, EgressRate: rate, EgressBurst: rate / 50}
	s.runSpecs("node1", lab.PodSpec{Name: "slow", Bandwidth: limit}, lab.PodSpec{Name: "fast"})
	server := s.run("node2", "server")[0]
	url := fmt.Sprintf("http://%s/bytes", netip.AddrPortFrom(server.Address(4), lab.HTTPPort))
	for _, tc := range []struct {
		pod         string
		args        []string
		least, most float64 // seconds
	}{
		{"slow", []string{url + "?n=2000000"}, 0.7, 2.5},
		{"slow", []string{"--send", "2000000", url}, 0.7, 2.5},
		{"fast", []string{url + "?n=2000000"}, 0, 0.5},
		{"fast", []string{"--send", "2000000", url}, 0, 0.5},
	} {
		best := math.Inf(1)
		for try := 0; try < 5 && best > tc.most; try++ { // a busy machine makes it slower, never faster
			got, err := s.transfer(tc.pod, append([]string{"get", "--timeout", "30s", "--count"}, tc.args...)...)
			s.no(err)
			best = min(best, got[0].Seconds)
		}
		t.Logf("%s %v: %.2f s for two million bytes", tc.pod, tc.args, best)
		if best < tc.least || best > tc.most {
			t.Errorf("%s %v took %.2f s for two million bytes, want %.1f to %.1f", tc.pod, tc.args, best, tc.least, tc.most)
		}
	}
	s.no(s.CheckPod(s.ctx, "slow"))
	s.delete("slow")
	s.clean("node1")
	if links := s.out("node1", "ip -br link show type ifb"); links != "" {
		t.Errorf("links for limits that are gone: %s", links)
	}
}

// TestMasquerade: whom a Pod's packets seem to come from. Outside it is the node, everywhere in the cluster the Pod.
func TestMasquerade(t *testing.T) {
	for _, mode := range []string{"auto", "vxlan", "native"} {
		t.Run(mode, func(t *testing.T) {
			s := tell(t, lab.Options{Nodes: 2, Subnets: 2, Mode: mode})
			pod, other := s.run("node1", "pod")[0], s.run("node2", "other")[0]
			node, err := s.Node("node1")
			s.no(err)
			report, err := s.Status(s.ctx)
			s.no(err)
			for _, at := range report.Outside {
				a, err := s.get("pod", at, lab.HTTPPort)
				s.no(err)
				if want := addressOf(node.Addresses, family(at)); a.Client != want {
					t.Errorf("outside saw %s, want the node's %s", a.Client, want)
				}
				u, err := s.udp("pod", at, lab.EchoPort)
				s.no(err)
				if want := addressOf(node.Addresses, family(at)); u.Client != want {
					t.Errorf("outside saw %s by UDP, want the node's %s", u.Client, want)
				}
			}
			s.reaches(pod, other)
			s.reaches(other, pod)
		})
	}
}

func addressOf(all []netip.Addr, fam int) netip.Addr {
	for _, a := range all {
		if family(a) == fam {
			return a
		}
	}
	return netip.Addr{}
}

// TestOtherFirewall: a chain of somebody else that drops what Pods send is named, with what to do, as long as it is there.
func TestOtherFirewall(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1})
	const chain = "table ip filter, chain FORWARD"
	warned := func() bool {
		return slices.ContainsFunc(s.status("node1").Warnings, func(w string) bool { return strings.HasPrefix(w, chain) })
	}
	if warned() {
		t.Fatal("warned of a chain that is not there")
	}
	s.out("node1", "nft add table ip filter")
	s.out("node1", "nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }")
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGKILL))
	s.no(s.StartDaemon(s.ctx, "node1"))
	s.no(s.WaitReady(s.ctx, "node1"))
	s.eventually("a warning of "+chain, repairTime, func() error {
		if !warned() {
			return fmt.Errorf("warnings are %q", s.status("node1").Warnings)
		}
		return nil
	})
}
