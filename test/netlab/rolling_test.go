package netlab

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/lab"
)

// loadReport is what the load client prints.
type loadReport struct{ New, Kept lab.Load }

// underLoad puts 200 new connections a second on the Service while f goes on, and returns what became of them.
func (s *story) underLoad(from *lab.Pod, f func(), flags ...string) (r loadReport) {
	s.t.Helper()
	type outcome struct {
		out string
		err error
	}
	done := make(chan outcome, 1)
	stdin, stop := newStop()
	go func() {
		var out, errs strings.Builder
		argv := append([]string{"weft", lab.PodCommand, "load", "--pause", "5ms"}, append(flags, "http://"+webService+"/")...)
		exit, err := s.Exec(s.ctx, from.FullName(), argv, lab.Stdio{In: stdin, Out: &out, Err: &errs})
		if err == nil && exit != 0 {
			err = fmt.Errorf("exit code %d: %s%s", exit, errs.String(), out.String())
		}
		done <- outcome{out.String(), err}
	}()
	f()
	stop()
	o := <-done
	if o.err != nil {
		s.t.Errorf("requests failed: %v", o.err)
	}
	if err := json.Unmarshal([]byte(o.out), &r); err != nil {
		s.t.Errorf("the load client says %q: %v", o.out, err)
	}
	s.t.Logf("new connections %+v; one connection %+v", r.New, r.Kept)
	return r
}

// avoids says whether a node sends no new connection of the Service to a Pod.
func (s *story) avoids(node string, pod *lab.Pod) error {
	var all []appliance.ServiceStatus
	if err := s.Ask(s.ctx, node, "/v1/services", &all); err != nil {
		return err
	}
	for _, v := range all {
		for _, p := range v.Ports {
			if slices.ContainsFunc(p.Endpoints, func(e netip.AddrPort) bool { return slices.Contains(pod.Addresses, e.Addr()) }) {
				return fmt.Errorf("%s/%s has %v", v.Namespace, v.Name, p.Endpoints)
			}
		}
	}
	return nil
}

// TestRollingUpdate: the Pods behind a Service are replaced one after the other, twice, as a Deployment does it, under 200 connections
// a second, and no request fails: a Pod that ends gets no new connection, and then no packet misses it.
func TestRollingUpdate(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 3})
	client := s.run("node1", "client")[0]
	old := append(s.run("node2", "web-a0"), s.run("node3", "web-b0", "web-c0")...)
	s.serve(old...)
	s.eventually("the Service answers", 10*time.Second, func() error {
		_, err := s.get(client.FullName(), netip.MustParseAddr(webService), 80)
		return err
	})
	r := s.underLoad(client, func() {
		for round := 1; round <= 2; round++ {
			for i, name := range []string{"web-a", "web-b", "web-c"} {
				leaves := old[0]
				comes := s.run([]string{"node1", "node2", "node3"}[(i+round)%3], fmt.Sprintf("%s%d", name, round))[0]
				s.serve(append(old, comes)...)
				s.serveDraining("sessionAffinity: None", []*lab.Pod{leaves}, append(old[1:], comes)...)
				old = append(old[1:], comes)
				// A cluster gives its proxies seconds between "this Pod ends" and its end, and a Pod answers what it was asked: here it ends
				// as soon as the node has heard and requests under way are answered.
				s.eventually("the node of the client sends nobody to "+leaves.Name, 10*time.Second, func() error { return s.avoids("node1", leaves) })
				pause(s, 500*time.Millisecond)
				s.serve(old...)
				s.delete(leaves.Name)
			}
		}
	}, "--new-only")
	if len(r.New.Pods) < 9 {
		t.Errorf("%v answered, want all nine Pods that there were", r.New.Pods)
	}
	if r.New.Requests < 100 {
		t.Errorf("only %d requests: that is no load", r.New.Requests)
	}
}

// TestOpenConnectionsStay: while weftd is killed and started again, and endpoints come, go and drain, an open connection stays at the
// endpoint that it has, and no new one fails.
func TestOpenConnectionsStay(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	client := s.run("node1", "client")[0]
	web := append(s.run("node1", "web0"), s.run("node2", "web1", "web2")...)
	s.serve(web...)
	s.eventually("the Service answers", 10*time.Second, func() error {
		_, err := s.get(client.FullName(), netip.MustParseAddr(webService), 80)
		return err
	})
	r := s.underLoad(client, func() {
		for i := range 6 {
			// Each one drains in turn, the one with the open connection too.
			s.serveDraining("sessionAffinity: None", web[i%3:i%3+1], web[(i+1)%3], web[(i+2)%3])
			if i%2 == 0 {
				s.no(s.KillDaemon(s.ctx, "node1", unix.SIGKILL))
				s.serve(web[i%3], web[(i+1)%3]) // nobody hears of this until weftd is back
				pause(s, 100*time.Millisecond)
				s.no(s.StartDaemon(s.ctx, "node1"))
				s.no(s.WaitReady(s.ctx, "node1"))
			}
			pause(s, 300*time.Millisecond)
		}
	})
	if len(r.Kept.Pods) != 1 {
		t.Errorf("the open connection was answered by %v, want one Pod all the time", r.Kept.Pods)
	}
	if len(r.New.Pods) != 3 {
		t.Errorf("new connections were answered by %v, want all three Pods", r.New.Pods)
	}

	// While one drains, all new connections go to the others.
	s.serveDraining("sessionAffinity: None", web[:1], web[1:]...)
	s.eventually("the draining Pod gets no new connection", 10*time.Second, func() error {
		for range 20 {
			a, err := s.get(client.FullName(), netip.MustParseAddr(webService), 80)
			if err != nil {
				return err
			}
			if a.Pod == web[0].FullName() {
				return fmt.Errorf("%s answered", a.Pod)
			}
		}
		return nil
	})
}

// TestManyServices: ten thousand Services are loaded, the last one answers, and a change of one endpoint is in force soon after. A
// restart under that load changes nothing.
func TestManyServices(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1})
	client, web := s.run("node1", "client")[0], s.run("node1", "web0", "web1")
	const count = 10000
	var b strings.Builder
	b.WriteString(`{"apiVersion": "v1", "kind": "List", "items": [`)
	for i := range count {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s%[1]d", "namespace": "many"},
			"spec": {"type": "ClusterIP", "clusterIP": "10.100.%[2]d.%[3]d", "clusterIPs": ["10.100.%[2]d.%[3]d"], "ports": [{"port": 80, "protocol": "TCP"}]}},
			{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s%[1]d-x", "namespace": "many", "labels": {"kubernetes.io/service-name": "s%[1]d"}},
			"addressType": "IPv4", "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": [`, i, i>>8, i&255)
		for j := range 3 {
			fmt.Fprintf(&b, `%s{"addresses": ["10.%d.%d.%d"], "conditions": {"ready": true}}`, []string{"", ", ", ", "}[j], 200+j, i>>8, i&255)
		}
		b.WriteString("]}")
	}
	b.WriteString("]}")
	s.write("many.json", b.String())
	s.serve(web[0])
	vip := netip.MustParseAddr(webService)
	took := s.eventually("all Services are in the kernel, and the last one answers", 45*time.Second, func() error {
		if v := s.metric("node1", "weft_services"); v != fmt.Sprint(count+1) {
			return fmt.Errorf("%s Services", v)
		}
		_, err := s.get(client.FullName(), vip, 80)
		return err
	})
	s.serve(web[1])
	change := s.eventually("the other endpoint answers", 20*time.Second, func() error {
		a, err := s.get(client.FullName(), vip, 80)
		if err == nil && a.Pod != web[1].FullName() {
			err = fmt.Errorf("%s answered", a.Pod)
		}
		return err
	})
	t.Logf("%d Services after %v, files included; one endpoint after %v; resident %s bytes; %s syncs took %s s in all", count, took, change, s.metric("node1", "process_resident_memory_bytes"),
		s.metric("node1", `kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}`), s.metric("node1", `kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family="IPv4"}`))
	if a := s.trace("node1", "default/client", "many/s9999:80"); !a.Agrees || len(a.Paths[0].Endpoints) != 3 {
		t.Errorf("the last Service: agrees %v, %+v", a.Agrees, a.Differences)
	}
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGKILL))
	s.no(s.StartDaemon(s.ctx, "node1"))
	s.no(s.WaitReady(s.ctx, "node1"))
	s.eventually("the daemon knows them again", 30*time.Second, func() error {
		if v := s.metric("node1", "weft_services"); v != fmt.Sprint(count+1) {
			return fmt.Errorf("%s Services", v)
		}
		return nil
	})
	if n := s.metric("node1", "weft_reconcile_repairs_total"); n != "0" {
		t.Errorf("the restart repaired %s things, want none", n)
	}
}

// newStop returns an input that ends when stop is called.
func newStop() (in *io.PipeReader, stop func()) {
	r, w := io.Pipe()
	return r, func() { _ = w.Close() }
}
