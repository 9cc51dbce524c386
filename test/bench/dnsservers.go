package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// The DNS servers that are compared.
const (
	dnsWeft    = "weft"
	dnsCoreDNS = "CoreDNS"

	// corednsProgram is built by make e2e, of the version in go.mod.
	corednsProgram = ".cache/e2e/bin/coredns"

	dnsServices = 10000
	dnsPods     = 5000
)

// dnsAddress is where both servers listen, each in its own namespace.
var dnsAddress = netip.MustParseAddr("10.96.0.10")

// dnsNode is a node with one Pod that asks and a DNS server that follows an API.
type dnsNode struct {
	*Netns
	lab        *Lab
	kind       string
	autopath   bool
	api        *apiServer
	kubeconfig string
	client     *Sandbox
	cmd        *exec.Cmd
	ended      chan struct{}
	dir        string
}

// dnsNode makes the node with so many Services and half as many Pods, and starts the server, perhaps with its autopath on.
func (l *Lab) dnsNode(ctx context.Context, kind string, services int, autopath bool) (*dnsNode, error) {
	n, err := l.Netns(ctx)
	if err != nil {
		return nil, err
	}
	d := &dnsNode{Netns: n, lab: l, kind: kind, autopath: autopath}
	setup := "sysctl -qw net.ipv4.ip_forward=1\nip addr add 192.0.2.1/32 dev lo\nip route add unreachable default"
	if kind == dnsCoreDNS {
		setup += "\nip addr add " + dnsAddress.String() + "/32 dev lo"
	}
	if err := n.run(ctx, setup, nil); err != nil {
		return nil, err
	}
	if d.client, err = l.barePod(ctx, n, 0, 0, 1500); err != nil {
		return nil, err
	}
	if d.api, d.kubeconfig, err = l.newAPIServer(n); err != nil {
		return nil, err
	}
	if err := errors.Join(d.fill(services), d.stub()); err != nil {
		return nil, err
	}
	if d.dir, err = l.Folder("dns"); err != nil {
		return nil, err
	}
	return d, d.start(ctx, services)
}

func (d *dnsNode) fill(services int) error {
	err := d.api.put(pathNodes, "node1", map[string]any{
		"spec":   map[string]any{"podCIDRs": []string{"10.99.1.0/24"}},
		"status": map[string]any{"addresses": []any{map[string]any{"type": "InternalIP", "address": "192.0.2.1"}}},
	}, nil)
	if err == nil {
		err = d.api.put("/api/v1/namespaces", "bench", map[string]any{}, nil)
	}
	if err == nil {
		err = d.pod("client", "node1", d.client.addr)
	}
	for i := 0; i < services && err == nil; i++ {
		err = errors.Join(d.service(fmt.Sprintf("service-%05d", i), serviceAddress(i)), d.slice(i))
	}
	for i := 0; i < services*dnsPods/dnsServices && err == nil; i++ {
		err = d.pod(fmt.Sprintf("pod-%05d", i), "node2", netip.AddrFrom4([4]byte{10, 112, byte(i >> 8), byte(i)}))
	}
	return err
}

func (d *dnsNode) pod(name, node string, a netip.Addr) error {
	return d.api.put("/api/v1/pods", name, map[string]any{
		"spec":   map[string]any{"nodeName": node},
		"status": map[string]any{"phase": "Running", "podIP": a.String(), "podIPs": []any{map[string]any{"ip": a.String()}}},
	}, nil)
}

func serviceAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 100, byte(i >> 8), byte(i)})
}

func (d *dnsNode) service(name string, a netip.Addr) error {
	return d.api.put(pathServices, name, map[string]any{"spec": map[string]any{
		"type": "ClusterIP", "clusterIP": a.String(), "clusterIPs": []string{a.String()},
		"ports": []any{map[string]any{"name": "http", "protocol": "TCP", "port": 80}},
	}}, nil)
}

func (d *dnsNode) slice(i int) error {
	return d.api.put(pathSlices, fmt.Sprintf("service-%05d-x", i), map[string]any{
		"addressType": "IPv4", "ports": []any{map[string]any{"name": "http", "protocol": "TCP", "port": 80}},
		"endpoints": []any{map[string]any{
			"addresses": []string{netip.AddrFrom4([4]byte{10, 112, byte(i >> 8), byte(i)}).String()}, "nodeName": "node2", "conditions": map[string]any{"ready": true},
		}},
	}, map[string]any{"labels": map[string]any{"kubernetes.io/service-name": fmt.Sprintf("service-%05d", i)}})
}

// stubPort is where the stand-in for the rest of the world listens.
const stubPort = 5399

// stub answers every question, for a long time.
func (d *dnsNode) stub() error {
	return d.do(func() error {
		p, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", stubPort))
		if err != nil {
			return fmt.Errorf("listening as upstream: %w", err)
		}
		s := &dns.Server{PacketConn: p, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
			m := new(dns.Msg)
			m.SetReply(r)
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600}, A: net.IPv4(192, 0, 2, 80)}}
			_ = w.WriteMsg(m)
		})}
		go func() { _ = s.ActivateAndServe() }()
		d.lab.Cleanup(func() { _ = s.Shutdown() })
		return nil
	})
}

// start starts the server and returns when it knows the last Service.
func (d *dnsNode) start(ctx context.Context, services int) error {
	config := filepath.Join(d.dir, "config")
	var text string
	if d.kind == dnsWeft {
		d.cmd = exec.Command(filepath.Join(d.lab.plugins(), "weftd"), "--roles", "dns", "--config", config)
		text = fmt.Sprintf("nodeName: node1\nlisten: \"\"\nkubeconfig: %[2]s\nstateDir: %[1]s/state\nrunDir: %[1]s/run\ncniConfDir: %[1]s/cni\nruntimeSocket: %[1]s/none.sock\n"+
			"log: {level: warn, format: console}\ndns: {addresses: [%[3]s], upstreams: ['127.0.0.1:%[4]d'], createService: false, autopath: %[5]v}\n", d.dir, d.kubeconfig, dnsAddress, stubPort, d.autopath)
	} else {
		program, err := filepath.Abs(corednsProgram)
		if err == nil {
			_, err = os.Stat(program)
		}
		if err != nil {
			return fmt.Errorf("looking for CoreDNS (make e2e builds it): %w", err)
		}
		d.cmd = exec.Command(program, "-conf", config)
		pods, autopath := "insecure", ""
		if d.autopath { // as its manual says
			pods, autopath = "verified", " autopath @kubernetes\n"
		}
		// As kubeadm writes it, without reload and loop, which cost nothing.
		text = fmt.Sprintf(".:53 {\n bind %s\n errors\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n kubeconfig %s\n pods %s\n fallthrough in-addr.arpa ip6.arpa\n ttl 30\n }\n%s"+
			" prometheus 127.0.0.1:9153\n forward . 127.0.0.1:%d {\n max_concurrent 1000\n }\n cache 30 {\n disable success cluster.local\n disable denial cluster.local\n }\n loadbalance\n}\n",
			dnsAddress, d.kubeconfig, pods, autopath, stubPort)
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing the settings of %s: %w", d.kind, err)
	}
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", d.kind, err)
	}
	defer log.Close()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.Netns.start(d.cmd); err != nil {
		return fmt.Errorf("starting %s: %w", d.kind, err)
	}
	d.ended = make(chan struct{})
	go func() {
		_ = d.cmd.Wait()
		close(d.ended)
	}()
	d.lab.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		<-d.ended
	})
	last := fmt.Sprintf("service-%05d.bench.svc.cluster.local.", services-1)
	return d.until(ctx, "the last Service to have a name", last, serviceAddress(services-1))
}

// until asks again and again until a name has that address.
func (d *dnsNode) until(ctx context.Context, what, name string, want netip.Addr) error {
	err := poll(ctx, time.Millisecond, 2*time.Minute, d.kind+": "+what, func() bool {
		select {
		case <-d.ended:
			return false
		default:
		}
		got := false
		_ = d.client.do(func() error {
			m := new(dns.Msg)
			m.SetQuestion(name, dns.TypeA)
			r, _, err := (&dns.Client{Timeout: 200 * time.Millisecond}).Exchange(m, netip.AddrPortFrom(dnsAddress, 53).String())
			if err == nil && len(r.Answer) == 1 {
				a, ok := r.Answer[0].(*dns.A)
				got = ok && a.A.String() == want.String()
			}
			return nil
		})
		return got
	})
	if err != nil {
		text, _ := os.ReadFile(filepath.Join(d.dir, "log"))
		return fmt.Errorf("%w; its log: %s", err, tailOf(text))
	}
	return nil
}

func tailOf(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], " | ")
}

var (
	perSecond = regexp.MustCompile(`Queries per second:\s+([0-9.]+)`)
	completed = regexp.MustCompile(`Queries completed:\s+\d+ \(([0-9.]+)%\)`)
)

// dnsperf asks the questions in a file, round and round, as fast as the answers come, and returns what it printed.
func (d *dnsNode) dnsperf(ctx context.Context, questions string, seconds int, more ...string) (string, error) {
	args := append([]string{"-s", dnsAddress.String(), "-d", questions, "-l", strconv.Itoa(seconds), "-c", "4", "-q", "200"}, more...)
	cmd := exec.CommandContext(ctx, "dnsperf", args...)
	out := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, out
	if err := d.client.start(cmd); err != nil {
		return "", fmt.Errorf("starting dnsperf: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("dnsperf: %w: %s", err, tailOf([]byte(out.String())))
	}
	share := completed.FindStringSubmatch(out.String())
	if share == nil {
		return "", fmt.Errorf("dnsperf printed %s", tailOf([]byte(out.String())))
	}
	if done, err := strconv.ParseFloat(share[1], 64); err != nil || done < 99.9 {
		return "", fmt.Errorf("%s answered %s%% of the questions", d.kind, share[1])
	}
	return out.String(), nil
}

// perf returns how many questions a second are answered.
func (d *dnsNode) perf(ctx context.Context, questions string, seconds int) (float64, error) {
	out, err := d.dnsperf(ctx, questions, seconds)
	if err != nil {
		return 0, err
	}
	rate := perSecond.FindStringSubmatch(out)
	if rate == nil {
		return 0, fmt.Errorf("dnsperf printed %s", tailOf([]byte(out)))
	}
	return strconv.ParseFloat(rate[1], 64)
}

// slowest asks for a second as perf does and returns the 99th percentile of the times to an answer, in milliseconds.
func (d *dnsNode) slowest(ctx context.Context, questions string) (float64, error) {
	out, err := d.dnsperf(ctx, questions, 1, "-v")
	if err != nil {
		return 0, err
	}
	var all []float64
	for line := range strings.Lines(out) {
		switch fields := strings.Fields(line); {
		case len(fields) < 3 || fields[0] != ">":
		case fields[1] == "T": // no answer in the five seconds that dnsperf waits
			all = append(all, 5000)
		default:
			seconds, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				return 0, fmt.Errorf("dnsperf printed %q: %w", line, err)
			}
			all = append(all, 1000*seconds)
		}
	}
	if len(all) == 0 {
		return 0, fmt.Errorf("dnsperf printed no answers: %s", tailOf([]byte(out)))
	}
	slices.Sort(all)
	return all[len(all)*99/100], nil
}

// latency asks one question after the other and returns the median and the 99th percentile in microseconds.
func (d *dnsNode) latency(names []string, count int) (p50, p99 float64, err error) {
	err = d.client.do(func() error {
		c, err := dns.Dial("udp", netip.AddrPortFrom(dnsAddress, 53).String())
		if err != nil {
			return err
		}
		defer c.Close()
		var all []time.Duration
		for i := range count {
			m := new(dns.Msg)
			m.SetQuestion(names[i%len(names)], dns.TypeA)
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			start := time.Now()
			if err := c.WriteMsg(m); err != nil {
				return err
			}
			if _, err := c.ReadMsg(); err != nil {
				return err
			}
			all = append(all, time.Since(start))
		}
		slices.Sort(all)
		p50, p99 = float64(all[len(all)/2].Nanoseconds())/1000, float64(all[len(all)*99/100].Nanoseconds())/1000
		return nil
	})
	return p50, p99, err
}

// searched looks for an outside name as a resolver with ndots:5 does, again and again, and returns the median in microseconds
// and how many questions the last search took.
func (d *dnsNode) searched(name string, count int) (p50, questions float64, err error) {
	suffixes := []string{"bench.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""}
	err = d.client.do(func() error {
		c, err := dns.Dial("udp", netip.AddrPortFrom(dnsAddress, 53).String())
		if err != nil {
			return err
		}
		defer c.Close()
		var all []time.Duration
		for range count {
			start, found := time.Now(), false
			_ = c.SetDeadline(start.Add(2 * time.Second))
			for i, suffix := range suffixes {
				m := new(dns.Msg)
				m.SetQuestion(name+suffix, dns.TypeA)
				if err := c.WriteMsg(m); err != nil {
					return err
				}
				r, err := c.ReadMsg()
				if err != nil {
					return err
				}
				if questions, found = float64(i+1), len(r.Answer) > 0; found {
					break
				}
			}
			if !found {
				return fmt.Errorf("%s does not know %s", d.kind, name)
			}
			all = append(all, time.Since(start))
		}
		slices.Sort(all)
		p50 = float64(all[len(all)/2].Nanoseconds()) / 1000
		return nil
	})
	return p50, questions, err
}

// resident is the server's memory in megabytes.
func (d *dnsNode) resident() (float64, error) {
	_, rss, err := usedBy(d.cmd.Process.Pid)
	return rss, err
}
