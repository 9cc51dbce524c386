package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The proxies that are compared.
const (
	proxyWeft     = "weft"
	proxyNftables = "kube-proxy nftables"
	proxyIptables = "kube-proxy iptables"
	proxyNone     = "no proxy"
)

// proxyNode is a node with one Pod that connects, one that serves at several addresses, and a proxy in between.
type proxyNode struct {
	*Netns
	lab            *Lab
	kind           string
	api            *apiServer
	kubeconfig     string
	client, server *Sandbox
	backends       []netip.Addr
	affinity       string // of the target
	cmd            *exec.Cmd
	dir            string
	ended          chan struct{}
}

// echoPort is where the server answers with the address that was connected to.
const echoPort = 5300

// target is the Service that is connected to, the last one in the order of names; its port 80 leads to peerPort, 81 to echoPort.
var target = netip.MustParseAddr("10.111.0.1")

// proxyNode makes the node; the proxy is not started yet.
func (l *Lab) proxyNode(ctx context.Context, kind string) (*proxyNode, error) {
	n, err := l.Netns(ctx)
	if err != nil {
		return nil, err
	}
	p := &proxyNode{Netns: n, lab: l, kind: kind, affinity: "None"}
	if err := n.run(ctx, "sysctl -qw net.ipv4.ip_forward=1\nip addr add 192.0.2.1/32 dev lo\nip route add unreachable default", nil); err != nil {
		return nil, err
	}
	if p.client, err = l.barePod(ctx, n, 0, 0, 1500); err != nil {
		return nil, err
	}
	if p.server, err = l.barePod(ctx, n, 0, 1, 1500); err != nil {
		return nil, err
	}
	p.backends = []netip.Addr{p.server.addr}
	for i := range 2 {
		a := netip.AddrFrom4([4]byte{10, 99, 1, byte(100 + i)})
		p.backends = append(p.backends, a)
		err := errors.Join(
			n.run(ctx, fmt.Sprintf("ip route add %[1]s/32 dev pod1\nip neigh add %[1]s lladdr 02:00:00:00:02:01 dev pod1 nud permanent", a), nil),
			p.server.run(ctx, fmt.Sprintf("ip addr add %s/32 dev eth0", a), nil))
		if err != nil {
			return nil, err
		}
	}
	if err := p.serveEcho(); err != nil {
		return nil, err
	}
	if p.api, p.kubeconfig, err = l.newAPIServer(n); err != nil {
		return nil, err
	}
	return p, p.api.put(pathNodes, "node1", map[string]any{
		"spec":   map[string]any{"podCIDRs": []string{"10.99.1.0/24"}, "podCIDR": "10.99.1.0/24"},
		"status": map[string]any{"addresses": []any{map[string]any{"type": "InternalIP", "address": "192.0.2.1"}}},
	}, map[string]any{"labels": map[string]any{"kubernetes.io/hostname": "node1"}})
}

// serveEcho tells whoever connects to which address that was.
func (p *proxyNode) serveEcho() error {
	return p.server.do(func() error {
		l, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", echoPort))
		if err != nil {
			return fmt.Errorf("listening in the server's Pod: %w", err)
		}
		p.lab.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				at, _ := netip.ParseAddrPort(c.LocalAddr().String())
				_, _ = c.Write([]byte(at.Addr().String()))
				_ = c.Close()
			}
		}()
		return nil
	})
}

// ask connects to the target and returns which backend answered.
func (p *proxyNode) ask() (at netip.Addr, err error) {
	err = p.client.do(func() error {
		c, err := net.DialTimeout("tcp4", netip.AddrPortFrom(target, 81).String(), 20*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		b := make([]byte, 64)
		size, err := c.Read(b)
		if err == nil {
			at, err = netip.ParseAddr(string(b[:size]))
		}
		return err
	})
	return at, err
}

// fill puts so many Services with three endpoints each into the API, the target among them.
func (p *proxyNode) fill(count int) error {
	for i := range count - 1 {
		a := netip.AddrFrom4([4]byte{10, 100, byte(i >> 8), byte(i)})
		var ends []netip.Addr
		for j := range 3 {
			k := 3*i + j
			ends = append(ends, netip.AddrFrom4([4]byte{10, 112, byte(k >> 8), byte(k)}))
		}
		if err := p.put(fmt.Sprintf("service-%05d", i), a, ends); err != nil {
			return err
		}
	}
	return p.put("target", target, p.backends)
}

// put writes a Service and its endpoints.
func (p *proxyNode) put(name string, a netip.Addr, ends []netip.Addr) error {
	affinity, config := "None", map[string]any(nil)
	if name == "target" && p.affinity != "None" {
		affinity, config = p.affinity, map[string]any{"clientIP": map[string]any{"timeoutSeconds": 10800}}
	}
	err := p.api.put(pathServices, name, map[string]any{"spec": map[string]any{
		"type": "ClusterIP", "clusterIP": a.String(), "clusterIPs": []string{a.String()}, "ipFamilies": []string{"IPv4"}, "ipFamilyPolicy": "SingleStack",
		"internalTrafficPolicy": "Cluster", "sessionAffinity": affinity, "sessionAffinityConfig": config, "ports": []any{
			map[string]any{"name": "peer", "protocol": "TCP", "port": peerPort, "targetPort": peerPort},
			map[string]any{"name": "echo", "protocol": "TCP", "port": 81, "targetPort": echoPort},
		}[:1+btoi(name == "target")],
	}}, nil)
	if err != nil {
		return err
	}
	return p.endpoints(name, ends)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// podsPerNode is kubelet's default.
const podsPerNode = 110

// endpoints writes the EndpointSlice of a Service. The target's endpoints and some others are on this node, the rest on as many as it takes.
func (p *proxyNode) endpoints(name string, ends []netip.Addr) error {
	list := []any{}
	for _, e := range ends {
		node := 1
		if b := e.As4(); name != "target" {
			node += (int(b[2])<<8 | int(b[3])) / podsPerNode
		}
		list = append(list, map[string]any{"addresses": []string{e.String()}, "nodeName": fmt.Sprintf("node%d", node), "conditions": map[string]any{"ready": true, "serving": true, "terminating": false}})
	}
	return p.api.put(pathSlices, name+"-x", map[string]any{
		"addressType": "IPv4", "endpoints": list, "ports": []any{
			map[string]any{"name": "peer", "protocol": "TCP", "port": peerPort}, map[string]any{"name": "echo", "protocol": "TCP", "port": echoPort},
		},
	}, map[string]any{"labels": map[string]any{"kubernetes.io/service-name": name}})
}

// kubeProxy is the program, which make e2e builds.
const kubeProxy = ".cache/e2e/bin/kube-proxy"

// start starts the proxy and returns how long it took until the last Service answers.
func (p *proxyNode) start(ctx context.Context, most time.Duration) (time.Duration, error) {
	var err error
	if p.dir, err = p.lab.Folder("proxy"); err != nil {
		return 0, err
	}
	config := filepath.Join(p.dir, "config.yaml")
	var text string
	switch p.kind {
	case proxyWeft:
		p.cmd = exec.Command(filepath.Join(p.lab.plugins(), "weftd"), "--roles", "services", "--config", config)
		text = fmt.Sprintf("nodeName: node1\nlisten: 127.0.0.1:10249\nkubeconfig: %[2]s\nstateDir: %[1]s/state\nrunDir: %[1]s/run\ncniConfDir: %[1]s/cni\nruntimeSocket: %[1]s/none.sock\nlog: {level: warn, format: console}\n", p.dir, p.kubeconfig)
	default:
		program, err := filepath.Abs(kubeProxy)
		if err == nil {
			_, err = os.Stat(program)
		}
		if err != nil {
			return 0, fmt.Errorf("looking for kube-proxy (make e2e builds it): %w", err)
		}
		p.cmd = exec.Command(program, "--config", config, "--v=0")
		text = fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: node1
clusterCIDR: 10.99.0.0/16
clientConnection: {kubeconfig: %s, qps: 1000, burst: 1000, contentType: application/json}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, strings.TrimPrefix(p.kind, "kube-proxy "), p.kubeconfig)
	}
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return 0, fmt.Errorf("writing the settings of %s: %w", p.kind, err)
	}
	log, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		return 0, fmt.Errorf("opening the log of %s: %w", p.kind, err)
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	start := time.Now()
	if err := p.Netns.start(p.cmd); err != nil {
		return 0, fmt.Errorf("starting %s: %w", p.kind, err)
	}
	p.ended = make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	p.lab.Cleanup(p.stop)
	err = p.until(ctx, most, "the last Service to answer", func() bool {
		_, err := p.ask()
		return err == nil
	})
	return time.Since(start), err
}

// until polls as fast as it can be of use, and ends when the proxy does.
func (p *proxyNode) until(ctx context.Context, most time.Duration, what string, yes func() bool) error {
	err := poll(ctx, 500*time.Microsecond, most, what, func() bool {
		select {
		case <-p.ended:
			return true
		default:
			return yes()
		}
	})
	select {
	case <-p.ended:
		err = errors.New("it ended")
	default:
	}
	if err != nil {
		text, _ := os.ReadFile(filepath.Join(p.dir, "log"))
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		return fmt.Errorf("%s: %w; its log ends with:\n%s", p.kind, err, strings.Join(lines[max(0, len(lines)-8):], "\n"))
	}
	return nil
}

// programmed returns how long the proxy has spent on bringing the kernel to its Services so far, as it measures that itself: the metric
// has the same name in both.
func (p *proxyNode) programmed() (seconds float64, err error) {
	const metric = `kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family="IPv4"}`
	err = p.do(func() error {
		c, err := net.DialTimeout("tcp4", "127.0.0.1:10249", time.Second)
		if err != nil {
			return fmt.Errorf("asking %s for its metrics: %w", p.kind, err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		text, err := io.ReadAll(c)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, metric+" "); ok {
				seconds, err = strconv.ParseFloat(strings.TrimSpace(value), 64)
				return err
			}
		}
		return fmt.Errorf("%s has no metric %s", p.kind, metric)
	})
	return seconds, err
}

// stop ends the proxy; its rules stay.
func (p *proxyNode) stop() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// move sends the target's connections to another backend and returns how long it took until a connection went there.
func (p *proxyNode) move(ctx context.Context, to netip.Addr) (time.Duration, error) {
	start := time.Now()
	if err := p.endpoints("target", []netip.Addr{to}); err != nil {
		return 0, err
	}
	err := p.until(ctx, time.Minute, "a connection to the new endpoint", func() bool {
		at, err := p.ask()
		return err == nil && at == to
	})
	return time.Since(start), err
}

// used returns the processor time of the proxy and of the programs that it started, and its resident memory in MB.
func (p *proxyNode) used() (cpu time.Duration, rss float64, err error) {
	return usedBy(p.cmd.Process.Pid)
}

// usedBy reads how much processor time and memory a process has used.
func usedBy(pid int) (cpu time.Duration, rss float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("reading what process %d used: %w", pid, err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest) // from the third one on (proc_pid_stat(5))
	ticks := 0
	for _, i := range []int{14, 15, 16, 17} { // utime, stime, cutime, cstime
		n, err := strconv.Atoi(fields[i-3])
		if err != nil {
			return 0, 0, fmt.Errorf("reading what process %d used: %w", pid, err)
		}
		ticks += n
	}
	pages, err := strconv.Atoi(fields[24-3])
	if err != nil {
		return 0, 0, fmt.Errorf("reading what process %d used: %w", pid, err)
	}
	return time.Duration(ticks) * 10 * time.Millisecond, float64(pages) * float64(os.Getpagesize()) / 1e6, nil
}
