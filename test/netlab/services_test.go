package netlab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

const (
	webService  = "10.96.0.80"
	webService6 = "fd00:10:96::80"
	webNodePort = 30080
)

// serve writes the Service web with these Pods behind it, as the API server would hold it; no Pods means no endpoints.
func (s *story) serve(pods ...*lab.Pod) {
	s.t.Helper()
	s.serveSpec("sessionAffinity: None", pods...)
}

// serveSpec is serve with one more line in the spec of the Service.
func (s *story) serveSpec(line string, pods ...*lab.Pod) {
	s.t.Helper()
	s.serveDraining(line, nil, pods...)
}

// serveDraining is serveSpec with Pods that are about to end: they still serve, and no new connections may go there while others can.
func (s *story) serveDraining(line string, draining []*lab.Pod, pods ...*lab.Pod) {
	s.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  %[5]s
  clusterIP: %[1]s
  clusterIPs: [%[1]s, "%[2]s"]
  ports:
  - {name: http, port: 80, targetPort: 8080, protocol: TCP, nodePort: %[3]d}
  - {name: echo, port: 81, targetPort: 8081, protocol: UDP, nodePort: %[4]d}
`, webService, webService6, webNodePort, webNodePort+1, line)
	for _, f := range []int{4, 6} {
		fmt.Fprintf(&b, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-ipv%[1]d
  namespace: default
  labels: {kubernetes.io/service-name: web}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: %[2]q}
addressType: IPv%[1]d
ports: [{name: http, port: 8080, protocol: TCP}, {name: echo, port: 8081, protocol: UDP}]
endpoints:
`, f, time.Now().UTC().Format(time.RFC3339Nano))
		for _, p := range append(slices.Clone(pods), draining...) {
			conditions := "ready: true"
			if slices.Contains(draining, p) {
				conditions = "ready: false, serving: true, terminating: true"
			}
			namespace, name, _ := strings.Cut(p.FullName(), "/")
			fmt.Fprintf(&b, "- {addresses: [%q], conditions: {%s}, nodeName: %s, targetRef: {kind: Pod, namespace: %s, name: %s}}\n",
				p.Address(f), conditions, p.Node, namespace, name)
		}
		if len(pods)+len(draining) == 0 {
			b.WriteString("  []\n")
		}
	}
	s.write("web.yaml", b.String())
}

// write puts a file into the folder that is the lab's API, in one step.
func (s *story) write(name, text string) {
	s.t.Helper()
	path := filepath.Join(s.Dir, "manifests", name)
	s.no(os.WriteFile(path+".new", []byte(text), 0o600))
	s.no(os.Rename(path+".new", path))
}

// TestService: a Service answers on its addresses from Pods, nodes and outside; its endpoints change under load and no request
// fails; without endpoints it refuses at once; and all of it without the daemon.
func TestService(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 3})
	client := s.run("node1", "client")[0]
	web := append(s.run("node2", "web0", "web1"), s.run("node3", "web2")...)
	node1, err := s.Node("node1")
	s.no(err)
	vip4, vip6 := netip.MustParseAddr(webService), netip.MustParseAddr(webService6)
	s.serve(web...)
	s.eventually("the Service answers", 5*time.Second, func() error {
		_, err := s.getAll(client.FullName(), 80, vip4, vip6)
		return err
	})

	seen := map[string]int{}
	for range 30 {
		answers, err := s.getAll(client.FullName(), 80, vip4, vip6)
		s.no(err)
		for i, a := range answers {
			seen[a.Pod]++
			if want := client.Address([]int{4, 6}[i]); a.Client != want {
				t.Errorf("%s saw %s, want the client's own address %s", a.Pod, a.Client, want)
			}
		}
	}
	if len(seen) != 3 {
		t.Errorf("60 connections reached %v, want all three Pods", seen)
	}
	for _, from := range []string{"node1", lab.Outside} {
		at, port := vip4, 80
		if from == lab.Outside {
			at, port = node1.Addresses[0], webNodePort
		}
		if _, err := s.get(from, at, port); err != nil {
			t.Errorf("from %s to %s:%d: %v", from, at, port, err)
		}
	}
	if _, err := s.udp(client.FullName(), vip4, 81); err != nil {
		t.Error(err)
	}

	// Endpoints come and go while a client asks; the one that leaves still runs, as a terminating Pod does.
	load := make(chan error, 1)
	go func() {
		out, err := s.Output(s.ctx, client.FullName(), "weft", lab.PodCommand, "load", "--for", "3s", "http://"+webService+"/")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		load <- err
	}()
	for i := range 20 {
		s.serve(web[i%3], web[(i+1)%3])
		pause(s, 100*time.Millisecond)
		if i == 10 {
			s.no(s.KillDaemon(s.ctx, "node1", unix.SIGKILL))
			s.no(s.StartDaemon(s.ctx, "node1"))
		}
	}
	if err := <-load; err != nil {
		t.Errorf("requests failed while endpoints changed and weftd was killed: %v", err)
	}

	s.no(s.WaitReady(s.ctx, "node1"))
	s.serve()
	s.eventually("a Service without endpoints refuses", 5*time.Second, func() error {
		if _, err := s.get(client.FullName(), vip4, 80); err == nil || !strings.Contains(err.Error(), "connection refused") {
			return fmt.Errorf("a request gets %s", fmt.Sprint(err))
		}
		return nil
	})
	s.serve(web[0])
	s.eventually("the UDP flow finds the endpoint that is left", 5*time.Second, func() error {
		a, err := s.udp(client.FullName(), vip4, 81)
		if err == nil && a.Pod != "default/web0" {
			err = fmt.Errorf("answered by %s", a.Pod)
		}
		return err
	})
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGKILL))
	if _, err := s.get(client.FullName(), vip4, 80); err != nil {
		t.Errorf("without the daemon: %v", err)
	}
	s.no(s.StartDaemon(s.ctx, "node1"))
}

// pause lets time go by in which the world moves on.
func pause(s *story, d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.ctx.Done():
	}
}
