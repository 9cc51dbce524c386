package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"weft.network/weft/appliance/lab"
)

func init() {
	register(85, Row{
		Name:  "failover",
		About: "a node that answers for a load balancer's address loses its power: until a host of the segment has an answer from another one",
		Run:   runFailover,
	})
}

// failoverTime bounds what is waited for; it is far more than anything here takes.
const failoverTime = 30 * time.Second

// balancedService is a pool and a Service that has an address of it. Without endpoints its packets are refused, which is all the same here.
const balancedService = `apiVersion: weft.network/v1alpha1
kind: LoadBalancerPool
metadata: {name: edge}
spec: {addresses: [172.30.1.200]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: LoadBalancer, clusterIP: 10.96.0.80, ports: [{port: 80}]}
`

func runFailover(ctx context.Context, l *Lab) ([]Result, error) {
	dir := filepath.Join(l.dir, "failover")
	nodes, err := lab.Up(ctx, lab.Options{Dir: dir, WeftBin: l.weft, Attached: true, Families: lab.IPv4})
	if err != nil {
		return nil, err
	}
	l.Cleanup(func() { _ = nodes.Down(context.WithoutCancel(ctx)) })
	if err := os.WriteFile(filepath.Join(dir, "manifests", "web.yaml"), []byte(balancedService), 0o600); err != nil {
		return nil, fmt.Errorf("writing the Service: %w", err)
	}
	var taken []float64
	for range l.Rounds(5) {
		owner, err := answered(ctx, nodes, "")
		if err != nil {
			return nil, err
		}
		if err := nodes.PowerOff(ctx, owner); err != nil {
			return nil, err
		}
		began := time.Now()
		if _, err := answered(ctx, nodes, owner); err != nil {
			return nil, err
		}
		taken = append(taken, time.Since(began).Seconds())
		if err := nodes.Reboot(ctx, owner, lab.RebootOptions{}); err != nil {
			return nil, err
		}
		if err := returned(ctx, nodes, owner); err != nil {
			return nil, err
		}
	}
	return []Result{alone("address answers again", "s", taken, atMost(2, "s")).note("3 nodes; ARP asked about 8 times a second")}, nil
}

// answered waits until a host of the segment has an answer from a node, one besides another, and returns its name.
func answered(ctx context.Context, l *lab.Lab, besides string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, failoverTime)
	defer cancel()
	for {
		out, err := l.Output(ctx, lab.Router, "timeout", "0.1", "arping", "-f", "-I", "subnet1", "172.30.1.200") // it would ask once a second
		for _, name := range []string{"node1", "node2", "node3"} {
			if name == besides || err != nil {
				continue
			}
			link, err := l.Output(ctx, name, "ip", "-br", "link", "show", "eth0")
			if fields := strings.Fields(link); err == nil && len(fields) > 2 && strings.Contains(strings.ToLower(out), fields[2]) {
				return name, nil
			}
		}
		if ctx.Err() != nil {
			return "", errors.Join(fmt.Errorf("no node answers for the address: %s", out), err)
		}
	}
}

// returned waits until a node that came back has its address again: that is its rank.
func returned(ctx context.Context, l *lab.Lab, owner string) error {
	ctx, cancel := context.WithTimeout(ctx, failoverTime)
	defer cancel()
	for {
		now, err := answered(ctx, l, "")
		if now == owner || err != nil {
			return err
		}
		pause(ctx, 50*time.Millisecond)
	}
}
