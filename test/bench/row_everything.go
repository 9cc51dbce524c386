package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

func init() {
	register(91, Row{
		Name: "cluster-memory",
		About: "resident memory with 1,000 Services of three endpoints, 5,000 Pods and 100 NetworkPolicies from an API server: weftd with every role " +
			"against kube-proxy and upstream CoreDNS together; the Pod network, policies, BGP and load balancers that weftd has besides count for nothing there",
		Run: runClusterMemory,
	})
}

// coreDNS is upstream's program, which make conformance builds.
const coreDNS = ".cache/e2e/bin/coredns"

func runClusterMemory(ctx context.Context, lab *Lab) ([]Result, error) {
	services, pods := lab.Sized(1000, 20), lab.Sized(5000, 100)
	settle := 20 * time.Second
	if lab.quick {
		settle = 2 * time.Second
	}
	var weft, others, own []float64
	for range lab.Rounds(3) {
		node, err := lab.proxyNode(ctx, proxyWeft)
		if err == nil {
			err = errors.Join(node.fill(services), node.populate(pods))
		}
		if err != nil {
			return nil, err
		}
		d, err := node.everything(ctx)
		if err != nil {
			return nil, err
		}
		pause(ctx, settle)
		kib, err := memoryOf(d.cmd.Process.Pid)
		if err != nil {
			return nil, fmt.Errorf("%w; the log of weftd ends with:\n%s", err, d.logTail())
		}
		weft, own = append(weft, kib["VmRSS"]/mega), append(own, kib["RssAnon"]/mega)
		lab.tidy()

		if node, err = lab.proxyNode(ctx, proxyNftables); err == nil {
			err = errors.Join(node.fill(services), node.populate(pods))
		}
		if err != nil {
			return nil, err
		}
		if _, err := node.start(ctx, proxyPatience); err != nil {
			return nil, err
		}
		dns, err := node.coreDNS(ctx)
		if err != nil {
			return nil, err
		}
		pause(ctx, settle)
		sum := 0.0
		for _, pid := range []int{node.cmd.Process.Pid, dns.Process.Pid} {
			kib, err := memoryOf(pid)
			if err != nil {
				return nil, err
			}
			sum += kib["VmRSS"] / mega
		}
		others = append(others, sum)
		lab.tidy()
	}
	return []Result{compare(fmt.Sprintf("every role, %d Services, %d Pods, resident", services, pods), "MB", weft, "kube-proxy + CoreDNS", others, ratioAtMost(0.5)).
		note("%.0f MB of it its own, the rest pages of the file", summarize(own).Median)}, nil
}

// populate puts Pods of 50 applications in 10 namespaces into the API, 110 of them on this node, and policies that let each application be reached by the next.
func (p *proxyNode) populate(count int) error {
	const applications, namespaces = 50, 10
	for i := range namespaces {
		if err := p.api.put("/api/v1/namespaces", fmt.Sprintf("ns-%d", i), map[string]any{}, map[string]any{"namespace": ""}); err != nil {
			return err
		}
	}
	for i := range count {
		node, addr := fmt.Sprintf("node%d", 2+i/fullNode), netip.AddrFrom4([4]byte{10, 113, byte(i >> 8), byte(i)})
		if i < fullNode {
			node = "node1"
		}
		err := p.api.put("/api/v1/pods", fmt.Sprintf("pod-%05d", i), map[string]any{
			"spec": map[string]any{"nodeName": node, "containers": []any{map[string]any{
				"name": "main", "image": "example.com/application:1.0", "ports": []any{map[string]any{"name": "http", "containerPort": 8080}},
			}}},
			"status": map[string]any{"phase": "Running", "podIP": addr.String(), "podIPs": []any{map[string]any{"ip": addr.String()}}},
		}, map[string]any{
			"namespace": fmt.Sprintf("ns-%d", i%namespaces),
			"labels":    map[string]any{"app": fmt.Sprintf("app-%d", i%applications), "pod-template-hash": fmt.Sprintf("%010d", i%applications)},
		})
		if err != nil {
			return err
		}
	}
	for i := range 2 * applications {
		selector := func(n int) map[string]any {
			return map[string]any{"matchLabels": map[string]any{"app": fmt.Sprintf("app-%d", n%applications)}}
		}
		err := p.api.put("/apis/networking.k8s.io/v1/networkpolicies", fmt.Sprintf("policy-%d", i), map[string]any{"spec": map[string]any{
			"podSelector": selector(i), "policyTypes": []string{"Ingress"}, "ingress": []any{map[string]any{
				"from":  []any{map[string]any{"podSelector": selector(i + 1), "namespaceSelector": map[string]any{}}},
				"ports": []any{map[string]any{"port": 8080 + i/applications}},
			}},
		}}, map[string]any{"namespace": fmt.Sprintf("ns-%d", i%namespaces)})
		if err != nil {
			return err
		}
	}
	return nil
}

// everything starts weftd with every role against the API.
func (p *proxyNode) everything(ctx context.Context) (*Weftd, error) {
	dir, err := p.lab.Folder("weftd")
	if err != nil {
		return nil, err
	}
	w := &Weftd{Netns: p.Netns, dir: dir, conflist: filepath.Join(dir, "cni", "10-weft.conflist")}
	settings := fmt.Sprintf("nodeName: node1\nlisten: 127.0.0.1:9465\nkubeconfig: %[2]s\nstateDir: %[1]s/state\nrunDir: %[1]s/run\ncniConfDir: %[1]s/cni\n"+
		"cniBinDir: %[3]s\nruntimeSocket: %[1]s/none.sock\nlog: {level: warn, format: console}\n", dir, p.kubeconfig, p.lab.plugins())
	if err := os.WriteFile(filepath.Join(dir, "weft.yaml"), []byte(settings), 0o644); err != nil {
		return nil, fmt.Errorf("writing the settings of weftd: %w", err)
	}
	return w, w.start(ctx, p.lab)
}

// coreDNS starts upstream's server with its kubernetes plugin and the settings of kubeadm.
func (p *proxyNode) coreDNS(ctx context.Context) (*exec.Cmd, error) {
	program, err := filepath.Abs(coreDNS)
	if err == nil {
		_, err = os.Stat(program)
	}
	if err != nil {
		return nil, fmt.Errorf("looking for CoreDNS (make conformance builds it): %w", err)
	}
	file := filepath.Join(p.dir, "Corefile")
	text := fmt.Sprintf(".:1053 {\n errors\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n  kubeconfig %s\n  pods insecure\n  ttl 30\n }\n"+
		" ready 127.0.0.1:8181\n prometheus 127.0.0.1:9153\n cache 30\n loadbalance\n}\n", p.kubeconfig)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("writing the Corefile: %w", err)
	}
	log, err := os.Create(filepath.Join(p.dir, "coredns.log"))
	if err != nil {
		return nil, fmt.Errorf("opening the log of CoreDNS: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(program, "-conf", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := p.Netns.start(cmd); err != nil {
		return nil, fmt.Errorf("starting CoreDNS: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	p.lab.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	return cmd, poll(ctx, 20*time.Millisecond, time.Minute, "CoreDNS to be ready", func() bool {
		return p.Netns.run(ctx, "curl -fs http://127.0.0.1:8181/ready", nil) == nil
	})
}
