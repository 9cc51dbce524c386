package netlab

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// localDNS is the address of DNS that is the same on every node.
const localDNS = "169.254.20.10"

// lookup asks a DNS server from a Pod.
func (s *story) lookup(from, server, kind, name string, more ...string) (lab.DNSAnswer, error) {
	argv := append([]string{"weft", lab.PodCommand, "dns", "--type", kind}, more...)
	out, err := s.Output(s.ctx, from, append(argv, server, name)...)
	if err != nil {
		return lab.DNSAnswer{}, err
	}
	var a lab.DNSAnswer
	return a, json.Unmarshal([]byte(out), &a)
}

// resolves waits until a name has exactly these addresses.
func (s *story) resolves(from, server, kind, name string, want ...string) time.Duration {
	s.t.Helper()
	return s.eventually(fmt.Sprintf("%s asks %s for %s", from, server, name), 10*time.Second, func() error {
		a, err := s.lookup(from, server, kind, name)
		slices.Sort(a.Data)
		if err == nil && !slices.Equal(a.Data, want) {
			err = fmt.Errorf("%s %v, want %v", a.Rcode, a.Data, want)
		}
		return err
	})
}

// headless writes the headless Service db with these endpoints.
func (s *story) headless(addresses ...string) {
	s.t.Helper()
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: default}\nspec: {clusterIP: None, ports: [{name: pg, port: 5432}]}\n---\n" +
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: db-a, namespace: default, labels: {kubernetes.io/service-name: db}}\n" +
		"addressType: IPv4\nports: [{name: pg, port: 5432, protocol: TCP}]\nendpoints:\n")
	for i, a := range addresses {
		fmt.Fprintf(&b, "- {addresses: [%q], conditions: {ready: true}, hostname: db-%d}\n", a, i)
	}
	s.write("db.yaml", b.String())
}

// TestDNS: names of the cluster resolve in Pods without anything deployed, on both addresses, both families and over TCP; by the
// Pod's own resolver too; without connection tracking; and without the API, also after a reboot.
func TestDNS(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	client := s.run("node1", "client")[0].FullName()
	web := s.run("node2", "web0")[0]
	s.serve(web)
	name := "web.default.svc.cluster.local"
	for _, server := range []string{lab.ClusterDNS, localDNS, lab.ClusterDNS6} {
		s.resolves(client, server, "A", name, webService)
		s.resolves(client, server, "AAAA", name, webService6)
		if a, err := s.lookup(client, server, "A", name, "--tcp"); err != nil || !slices.Equal(a.Data, []string{webService}) {
			t.Errorf("over TCP from %s: %v %v", server, a, err)
		}
	}
	s.resolves("node1", lab.ClusterDNS, "A", name, webService)
	if out := s.out(client, "weft "+lab.PodCommand+" get http://web/"); !strings.Contains(out, web.FullName()) {
		t.Errorf("by its short name, the Service answered %q", out)
	}
	for _, miss := range []string{"nope.default.svc.cluster.local", "www.example.org.default.svc.cluster.local", "www.example.org.cluster.local"} {
		if a, err := s.lookup(client, lab.ClusterDNS, "A", miss); err != nil || a.Rcode != "NXDOMAIN" {
			t.Errorf("%s: %v %v", miss, a, err)
		}
	}
	if out := s.out("node1", "nft list table inet weft_dns"); strings.Count(out, "notrack") != 6 {
		t.Errorf("the rules are\n%s", out)
	}

	if out := s.out("node1", "weft dns query --from "+client+" web"); !strings.Contains(out, webService) || !strings.Contains(out, "picture of the cluster") {
		t.Errorf("weft dns query: %s", out)
	}
	if out := s.out("node1", "weft dns stats"); !strings.Contains(out, lab.ClusterDNS) || !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("weft dns stats: %s", out)
	}

	var took []time.Duration
	for i := range 10 {
		want := []string{fmt.Sprintf("10.244.9.%d", i+1), fmt.Sprintf("10.244.9.%d", i+101)}
		s.headless(want...)
		slices.Sort(want)
		took = append(took, s.resolves(client, lab.ClusterDNS, "A", "db.default.svc.cluster.local", want...))
	}
	t.Logf("the records of a headless Service followed its endpoints within %v (files are read 50 ms after they were written)", took)

	// A stranger takes the address and the rules away.
	s.out("node1", "ip address delete "+lab.ClusterDNS+"/32 dev weft.dns")
	s.out("node1", "nft flush chain inet weft_dns dns_in")
	s.eventually("the address and the rules are back", repairTime, func() error {
		if out := s.out("node1", "ip -o address show dev weft.dns"); !strings.Contains(out, lab.ClusterDNS+"/32") {
			return fmt.Errorf("weft.dns has %s", out)
		}
		if out := s.out("node1", "nft list chain inet weft_dns dns_in"); !strings.Contains(out, "notrack") {
			return fmt.Errorf("dns_in is %s", out)
		}
		return nil
	})

	pause(s, 3*time.Second) // the picture is written every two seconds, and this is a power cut
	s.no(s.Reboot(s.ctx, "node1", lab.RebootOptions{WithoutAPI: true}))
	s.resolves(client, lab.ClusterDNS, "A", name, webService)
	if a, err := s.lookup(client, lab.ClusterDNS, "A", "nope.default.svc.cluster.local"); err != nil || a.Rcode != "NXDOMAIN" {
		t.Errorf("a name that does not exist, without the API: %v %v", a, err)
	}
	if st := s.status("node1"); !st.Source.Stored {
		t.Errorf("the node is not without the API: %+v", st.Source)
	}
}

// TestDNSRestart: 10,000 questions per second while weftd is restarted in good order; none is lost and none is answered wrongly.
func TestDNSRestart(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1})
	client := s.run("node1", "client")[0].FullName()
	s.headless("10.244.9.1")
	s.resolves(client, lab.ClusterDNS, "A", "db.default.svc.cluster.local", "10.244.9.1")

	type outcome struct {
		out string
		err error
	}
	load := make(chan outcome, 1)
	go func() {
		out, err := s.Output(s.ctx, client, "weft", lab.PodCommand, "dnsload", "--rate", "10000", "--for", "4s", lab.ClusterDNS, "db.default.svc.cluster.local", "10.244.9.1")
		load <- outcome{out, err}
	}()
	for range 3 {
		pause(s, time.Second)
		s.no(s.KillDaemon(s.ctx, "node1", unix.SIGTERM))
		s.no(s.StartDaemon(s.ctx, "node1"))
	}
	o := <-load
	if o.err != nil {
		t.Errorf("three restarts under load: %v", o.err)
	}
	t.Logf("three restarts: %s", o.out)
	s.no(s.WaitReady(s.ctx, "node1"))
}
