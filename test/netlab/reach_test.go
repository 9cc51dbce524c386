package netlab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"weft.network/weft/appliance/lab"
)

// TestPodsReachEachOther: the four rules of the Pod network, by every way that there is between nodes.
func TestPodsReachEachOther(t *testing.T) {
	for _, tc := range []struct {
		mode     string
		subnets  int
		families lab.Families
		// The links by which node1 reaches the Pods of node2 and of node3. With two subnets node3 is beside node1.
		node2, node3 string
	}{
		{"auto", 1, lab.Dual, "eth0", "eth0"},
		{"auto", 2, lab.Dual, "weft.vx", "eth0"},
		{"vxlan", 1, lab.Dual, "weft.vx", "weft.vx"},
		{"vxlan", 2, lab.IPv6, "weft.vx", "weft.vx"},
		{"native", 1, lab.Dual, "eth0", "eth0"},
		{"native", 2, lab.Dual, "eth0", "eth0"},
		{"auto", 2, lab.IPv4, "weft.vx", "eth0"},
		{"auto", 1, lab.IPv6, "eth0", "eth0"},
	} {
		t.Run(fmt.Sprintf("%s %d %s", tc.mode, tc.subnets, tc.families), func(t *testing.T) {
			s := tell(t, lab.Options{Mode: tc.mode, Subnets: tc.subnets, Families: tc.families})
			a := s.run("node1", "a", "neighbour")
			b, c := s.run("node2", "b")[0], s.run("node3", "c")[0]
			for _, to := range []struct {
				pod  *lab.Pod
				link string
			}{{b, tc.node2}, {c, tc.node3}} {
				for _, at := range to.pod.Addresses {
					if got := s.linkTo("node1", at); got != to.link {
						t.Errorf("node1 sends packets to %s by %s, want %s", at, got, to.link)
					}
				}
			}
			pods := append(a, b, c)
			s.addresses(pods...)
			for _, from := range pods {
				s.reaches(from, pods...) // itself, too
			}
			s.nodesReach(pods)
			for _, to := range []*lab.Pod{a[1], b, c} {
				s.largePackets(a[0], to)
			}
			for _, p := range pods {
				if err := s.CheckPod(s.ctx, p.FullName()); err != nil {
					t.Errorf("CNI CHECK of %s: %v", p.FullName(), err)
				}
			}
		})
	}
}

// linkTo returns the link by which a node sends packets to an address.
func (s *story) linkTo(node string, at netip.Addr) string {
	s.t.Helper()
	var routes []struct{ Dev string }
	s.no(json.Unmarshal([]byte(s.out(node, "ip -j route get "+at.String())), &routes))
	return routes[0].Dev
}

// nodesReach: every node reaches every Pod, and no Pod sees an address that another Pod could have.
func (s *story) nodesReach(pods []*lab.Pod) {
	s.t.Helper()
	for _, node := range []string{"node1", "node2", "node3"} {
		for _, p := range pods {
			answers, err := s.getAll(node, lab.HTTPPort, p.Addresses...)
			s.no(err)
			for _, a := range answers {
				if a.Pod != p.FullName() {
					s.t.Errorf("%s to %s: answered by %s", node, a.Server, a.Pod)
				}
				for _, other := range pods {
					if a.Client == other.Address(family(a.Client)) {
						s.t.Errorf("%s to %s: the Pod saw %s, the address of %s", node, a.Server, a.Client, other.FullName())
					}
				}
			}
		}
	}
}

// largePackets: bodies of many packets, and datagrams that just fit; one byte more must be refused, not lost.
func (s *story) largePackets(from, to *lab.Pod) {
	s.t.Helper()
	mtu := s.podMTU(from.FullName())
	for _, at := range to.Addresses {
		web := fmt.Sprintf("http://%s/bytes", netip.AddrPortFrom(at, lab.HTTPPort))
		echo := netip.AddrPortFrom(at, lab.EchoPort).String()
		down, err := s.transfer(from.FullName(), "get", "--count", web+"?n=8192", web+"?n=2000000")
		s.no(err)
		up, err := s.transfer(from.FullName(), "get", "--count", "--send", "8192", web)
		s.no(err)
		if down[0].Bytes != 8192 || down[1].Bytes != 2000000 || up[0].Bytes != 8192 {
			s.t.Errorf("%s and %s: asked for 8192 and 2000000 bytes and sent 8192, got %v and %v", from.Name, at, down, up)
		}
		most := mtu - 28 // IPv4 20, UDP 8
		if at.Is6() {
			most = mtu - 48
		}
		_, err = s.transfer(from.FullName(), "udp", "--size", fmt.Sprint(most), echo)
		s.no(err)
		_, err = s.transfer(from.FullName(), "udp", "--size", fmt.Sprint(most+1), echo)
		if err == nil || !strings.Contains(err.Error(), "message too long") {
			s.t.Errorf("a datagram of %d bytes to %s, one more than fits: %v", most+1, at, err)
		}
	}
}

// podMTU is the MTU of a Pod's interface.
func (s *story) podMTU(pod string) int {
	s.t.Helper()
	var links []struct{ Mtu int }
	s.no(json.Unmarshal([]byte(s.out(pod, "ip -j link show eth0")), &links))
	return links[0].Mtu
}
