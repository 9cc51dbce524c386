package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

func init() {
	register(60, Row{
		Name: "services-connect",
		About: "connections from a Pod to a ClusterIP with 10, 1,000 and 10,000 Services of three endpoints, and straight to the Pod, through the proxies' " +
			"tables in namespaces that are alike; each connection is closed after its first byte; one processor",
		Run: runServicesConnect,
	})
	register(62, Row{
		Name:  "services-affinity",
		About: "the same connections to a ClusterIP with sessionAffinity ClientIP, from a client that is remembered, with 10 Services",
		Run:   runServicesAffinity,
	})
	register(61, Row{
		Name:  "services-program",
		About: "a start with 10,000 Services of three endpoints until the last one answers; then one endpoint changes in the API until a connection goes to the new one",
		Run:   runServicesProgram,
	})
}

// patience is how long a proxy may take to serve all Services.
const proxyPatience = 10 * time.Minute

// iptablesMost is the largest number of Services for which kube-proxy's iptables mode is tried: beyond, one run takes minutes.
const iptablesMost = 1000

func runServicesConnect(ctx context.Context, lab *Lab) ([]Result, error) {
	var out []Result
	for _, count := range []int{10, lab.Sized(1000, 20), lab.Sized(10000, 30)} {
		kinds := []string{proxyWeft, proxyNftables, proxyNone}
		if count <= iptablesMost {
			kinds = append(kinds, proxyIptables)
		}
		var arms []arm
		slowest := map[string][]float64{}
		for _, kind := range kinds {
			n, err := lab.proxyNode(ctx, kind)
			if err != nil {
				return nil, err
			}
			at := n.server.addr
			if kind != proxyNone {
				if err := n.fill(count); err != nil {
					return nil, err
				}
				if _, err := n.start(ctx, proxyPatience); err != nil {
					return nil, err
				}
				at = target
			}
			side, err := lab.Peers(n.client, n.server)
			if err != nil {
				return nil, err
			}
			side.server = at
			arms = append(arms, func(ctx context.Context) (float64, error) {
				per := lab.Sized(1500, 100)
				took, p99, err := side.connect(ctx, [2]int{0, 0}, 20, per)
				slowest[kind] = append(slowest[kind], float64(p99.Microseconds()))
				return float64(per) / took.Seconds() / 1000, err
			})
		}
		s, err := interleave(ctx, lab.Rounds(30), arms...)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("ClusterIP, %d Services, ", count)
		for kind := range slowest {
			slowest[kind] = slowest[kind][1:] // the round that is not counted
		}
		for i, kind := range kinds[1:] {
			budget := noBudget
			if kind == proxyNftables {
				budget = ratioAtLeast(1)
			}
			against := kind
			if kind == proxyNone {
				against = "straight to the Pod, " + kind
			}
			out = append(out, compare(name+"connections", "k/s", s[0], against, s[i+1], budget),
				compare(name+"99th percentile to connect", "µs", slowest[proxyWeft], against, slowest[kind], noBudget))
		}
		lab.tidy()
	}
	flat, err := servicesFlat(ctx, lab)
	return append(out, flat...), err
}

// servicesFlat compares weft with itself, with more and more Services, in the same rounds.
func servicesFlat(ctx context.Context, lab *Lab) ([]Result, error) {
	counts := []int{10, lab.Sized(1000, 20), lab.Sized(10000, 30)}
	var arms []arm
	for _, count := range counts {
		n, err := lab.proxyNode(ctx, proxyWeft)
		if err != nil {
			return nil, err
		}
		if err := n.fill(count); err != nil {
			return nil, err
		}
		if _, err := n.start(ctx, proxyPatience); err != nil {
			return nil, err
		}
		side, err := lab.Peers(n.client, n.server)
		if err != nil {
			return nil, err
		}
		side.server = target
		arms = append(arms, func(ctx context.Context) (float64, error) {
			per := lab.Sized(1500, 100)
			took, _, err := side.connect(ctx, [2]int{0, 0}, 20, per)
			return float64(per) / took.Seconds() / 1000, err
		})
	}
	s, err := interleave(ctx, lab.Rounds(40), arms...)
	if err != nil {
		return nil, err
	}
	var out []Result
	for i, count := range counts[1:] {
		out = append(out, compare(fmt.Sprintf("weft with %d Services, connections", count), "k/s", s[i+1], "weft with 10 Services", s[0], ratioAtLeast(0.95)))
	}
	return out, nil
}

func runServicesAffinity(ctx context.Context, lab *Lab) ([]Result, error) {
	var arms []arm
	for _, side := range []struct{ kind, affinity string }{{proxyWeft, "ClientIP"}, {proxyWeft, "None"}, {proxyNftables, "ClientIP"}} {
		n, err := lab.proxyNode(ctx, side.kind)
		if err != nil {
			return nil, err
		}
		n.affinity = side.affinity
		if err := n.fill(10); err != nil {
			return nil, err
		}
		if _, err := n.start(ctx, proxyPatience); err != nil {
			return nil, err
		}
		peers, err := lab.Peers(n.client, n.server)
		if err != nil {
			return nil, err
		}
		peers.server = target
		arms = append(arms, func(ctx context.Context) (float64, error) {
			per := lab.Sized(1500, 100)
			took, _, err := peers.connect(ctx, [2]int{0, 0}, 20, per)
			return float64(per) / took.Seconds() / 1000, err
		})
	}
	s, err := interleave(ctx, lab.Rounds(30), arms...)
	if err != nil {
		return nil, err
	}
	return []Result{
		compare("ClusterIP with sessionAffinity, connections", "k/s", s[0], "weft without", s[1], noBudget),
		compare("ClusterIP with sessionAffinity, connections", "k/s", s[0], proxyNftables+" with it", s[2], noBudget),
	}, nil
}

func runServicesProgram(ctx context.Context, lab *Lab) ([]Result, error) {
	count := lab.Sized(10000, 30)
	type outcome struct{ cold, kernel, change, cpu, rss []float64 }
	got := map[string]*outcome{}
	for _, kind := range []string{proxyWeft, proxyNftables} {
		o := &outcome{}
		got[kind] = o
		for range min(lab.Rounds(3), map[string]int{proxyWeft: 3, proxyNftables: 1}[kind]) { // kube-proxy takes half a minute and more
			n, err := lab.proxyNode(ctx, kind)
			if err == nil {
				err = n.fill(count)
			}
			if err != nil {
				return nil, err
			}
			cold, err := n.start(ctx, proxyPatience)
			if err != nil {
				return nil, err
			}
			o.cold = append(o.cold, cold.Seconds())
			pause(ctx, 3*time.Second) // what a start leaves to do
			kernel, err := n.programmed()
			if err != nil {
				return nil, err
			}
			o.kernel = append(o.kernel, kernel)
			before, _, err := n.used()
			changes := lab.Rounds(20)
			for i := range changes {
				took, err2 := n.move(ctx, n.backends[i%2])
				if err = errors.Join(err, err2); err != nil {
					return nil, err
				}
				o.change = append(o.change, float64(took.Microseconds())/1000)
				pause(ctx, 1200*time.Millisecond) // kube-proxy gathers changes for a second
			}
			after, rss, err := n.used()
			if err != nil {
				return nil, err
			}
			o.cpu = append(o.cpu, float64((after-before).Microseconds())/1000/float64(changes))
			o.rss = append(o.rss, rss)
			lab.tidy()
		}
	}
	w, k := got[proxyWeft], got[proxyNftables]
	with := fmt.Sprintf(" with %d Services", count)
	return []Result{
		compare(fmt.Sprintf("programming %d × 3", count), "s", w.kernel, proxyNftables, k.kernel, ratioAtMost(0.02)).
			note("from what is known of the cluster to the kernel, as both measure it (kubeproxy_sync_proxy_rules_duration_seconds)"),
		compare(fmt.Sprintf("start until %d × 3 are served", count), "s", w.cold, proxyNftables, k.cold, noBudget).
			note("with the start of the process and reading the API"),
		compare("one endpoint"+with+", API to packet", "ms", w.change, proxyNftables, k.change, ratioAtMost(1)),
		compare("processor time of that, with programs it starts", "ms", w.cpu, proxyNftables, k.cpu, ratioAtMost(1)),
		compare("resident memory"+with, "MB", w.rss, proxyNftables, k.rss, ratioAtMost(1)).note("services alone; weftd has 57 MB of program"),
	}, nil
}
