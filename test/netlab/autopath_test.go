package netlab

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/lab"
)

// upstreamAsked is how many questions weftd has asked its upstreams.
func (s *story) upstreamAsked(node string) (sum int) {
	s.t.Helper()
	for _, line := range strings.Split(s.out(node, "weft "+lab.PodCommand+" get http://127.0.0.1:9465/metrics"), "\n") {
		if strings.HasPrefix(line, "coredns_proxy_request_duration_seconds_count{") {
			n, err := strconv.Atoi(line[strings.LastIndexByte(line, ' ')+1:])
			s.no(err)
			sum += n
		}
	}
	return sum
}

// dnsAsked is how many questions weftd was asked, and what its server did with them.
func (s *story) dnsAsked(node string) (st appliance.DNSStats) {
	s.t.Helper()
	s.no(json.Unmarshal([]byte(s.out(node, "weft dns stats -o json")), &st))
	return st
}

// TestAutopath: the C library's own resolver in a Pod, with ndots:5, has an outside name after one question for each family where
// autopath is on, and after four where it is off; the upstream is asked as often. Names of the cluster cost the same.
func TestAutopath(t *testing.T) {
	const outside = "192.0.2.80"
	for autopath, want := range map[bool]int{false: 8, true: 2} {
		t.Run(fmt.Sprintf("autopath=%v", autopath), func(t *testing.T) {
			s := tell(t, lab.Options{Nodes: 1, Settings: fmt.Sprintf("dns:\n  addresses: [%s]\n  autopath: %v\n  resolvConf: /dev/null\n", lab.ClusterDNS, autopath)})
			pods := s.run("node1", "client", "world")
			client, world := pods[0].FullName(), pods[1]
			go func() { _, _ = s.Output(s.ctx, world.FullName(), "weft", lab.PodCommand, "dnsserve", outside) }()
			s.write("custom.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: coredns-custom, namespace: kube-system}\ndata: {own.override: 'forward . "+world.Address(4).String()+"'}\n")
			s.resolves(client, lab.ClusterDNS, "A", "warm.example.org", outside)
			s.headless("10.244.9.1")
			s.resolves(client, lab.ClusterDNS, "A", "db.default.svc.cluster.local", "10.244.9.1")

			getent := func(name, address string, atLeast int) (asked, upstream int) {
				t.Helper()
				before, up := s.dnsAsked("node1").Queries, s.upstreamAsked("node1")
				if out := s.out(client, "getent ahosts "+name); !strings.Contains(out, address) {
					t.Errorf("getent %s printed %q", name, out)
				}
				s.eventually("the questions are counted", 10*time.Second, func() error { // after they were answered
					if asked = int(s.dnsAsked("node1").Queries - before); asked < atLeast {
						return fmt.Errorf("%d questions", asked)
					}
					return nil
				})
				return asked, s.upstreamAsked("node1") - up
			}
			// A resolver that waits too long, on a busy machine, asks once more: what it takes is what one of three names takes.
			costs := func(format, address string, want, wantUpstream int) {
				t.Helper()
				var asked, upstream int
				for i := range 3 {
					name := strings.ReplaceAll(format, "N", strconv.Itoa(i))
					asked, upstream = getent(name, address, want)
					t.Logf("%s: %d questions of the Pod, %d to the upstream", name, asked, upstream)
					if asked == want && upstream == wantUpstream {
						return
					}
				}
				t.Errorf("%d questions, %d of them to the upstream, want %d and %d", asked, upstream, want, wantUpstream)
			}
			costs("wwwN.example.org", outside, want, 2)
			costs("db", "10.244.9.1", 2, 0)
			out := s.out("node1", "weft dns query --from "+client+" other.example.org")
			if autopath != strings.Contains(out, "autopath, which tried other.example.org.") || !strings.Contains(out, outside) {
				t.Errorf("weft dns query: %s", out)
			}
		})
	}
}
