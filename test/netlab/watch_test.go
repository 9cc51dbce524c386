package netlab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// metric returns the value of a line of a node's metrics; empty if there is none.
func (s *story) metric(node, line string) string {
	s.t.Helper()
	out, err := s.Output(s.ctx, node, "curl", "-s", "http://127.0.0.1:9465/metrics")
	s.no(err)
	for l := range strings.Lines(out) {
		if value, ok := strings.CutPrefix(l, line+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestServiceWatch: node ports at chosen addresses only; a process that listens at a node port is named; metrics in kube-proxy's
// names move; and a UDP flow to an endpoint that went while no daemon ran is forgotten by the audit.
func TestServiceWatch(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2, Settings: "services:\n  nodePortAddresses: [primary]\n"})
	client := s.run("node1", "client")[0]
	web := s.run("node2", "web0", "web1")
	s.serve(web...)
	node1, err := s.Node("node1")
	s.no(err)
	s.eventually("the Service answers", 10*time.Second, func() error {
		_, err := s.get(client.FullName(), netip.MustParseAddr(webService), 80)
		return err
	})

	const other = "172.30.1.99"
	s.out("node1", "ip addr add "+other+"/24 dev eth0")
	for _, a := range node1.Addresses {
		if _, err := s.get(lab.Outside, a, webNodePort); err != nil {
			t.Errorf("the node port at %s: %v", a, err)
		}
	}
	if s.refused(func() error { _, err := s.get(lab.Outside, netip.MustParseAddr(other), webNodePort); return err }) == nil {
		t.Errorf("the node port answers at %s, which is not primary", other)
	}

	s.serve(web[0])
	for _, line := range []string{
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}`,
		`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"}`,
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_total`, "weft_services", "weft_conntrack_entries", "weft_conntrack_limit",
	} {
		s.eventually(line+" is not 0", 10*time.Second, func() error {
			if v := s.metric("node1", line); v == "" || v == "0" {
				return fmt.Errorf("it is %q", v)
			}
			return nil
		})
	}

	// A process at the node port.
	ctx, stop := context.WithCancel(s.ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := s.Exec(ctx, "node1", []string{"socat", fmt.Sprintf("TCP-LISTEN:%d,fork", webNodePort), "OPEN:/dev/null"}, lab.Stdio{})
		ended <- err
	}()
	s.eventually("the process at the node port is named", 30*time.Second, func() error {
		for _, w := range s.status("node1").Warnings {
			if strings.Contains(w, fmt.Sprintf("node port %d/tcp of Service default/web is in use by socat (pid ", webNodePort)) {
				return nil
			}
		}
		s.serveSpec(fmt.Sprintf("sessionAffinity: None # %d", time.Now().UnixNano()), web[0]) // what changes is looked at soon
		return fmt.Errorf("warnings: %v", s.status("node1").Warnings)
	})
	stop()
	<-ended

	// A flow to an endpoint that is gone, of which no daemon knows.
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGKILL))
	s.serve(web[0])
	gone := web[1].Address(4).String()
	s.out("node1", "conntrack -I -p udp -t 600 -u SEEN_REPLY -s "+client.Address(4).String()+" -d "+webService+" --sport 4000 --dport 81 -r "+gone+" -q "+client.Address(4).String()+" --reply-port-src 8081 --reply-port-dst 4000")
	if out := s.out("node1", "conntrack -L -p udp"); !strings.Contains(out, gone) {
		t.Fatalf("the flow is not there: %s", out)
	}
	s.no(s.StartDaemon(s.ctx, "node1"))
	s.no(s.WaitReady(s.ctx, "node1"))
	s.eventually("the audit has forgotten the flow", 30*time.Second, func() error {
		if out := s.out("node1", "conntrack -L -p udp"); strings.Contains(out, gone) {
			return fmt.Errorf("it is still there: %s", out)
		}
		if v := s.metric("node1", `weft_conntrack_forgotten_total{found_by="audit"}`); v != "1" {
			return fmt.Errorf("the metric says %q", v)
		}
		return nil
	})
	if w := s.status("node1").Warnings; slices.ContainsFunc(w, func(w string) bool { return strings.Contains(w, "in use by") }) {
		t.Errorf("the process is gone, and still: %v", w)
	}
}
