package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func init() {
	register(70, Row{
		Name: "dns",
		About: "questions from a Pod's namespace to weftd with the role dns and to CoreDNS with its kubernetes plugin, as kubeadm sets it up, at an address of the node: " +
			"names of 10,000 Services, what a search list makes of an outside name, and outside names in the cache; dnsperf with 200 questions out; 5,000 Pods in the API; " +
			"an outside name as a resolver with ndots:5 looks for it, also with both servers' autopath",
		Run: runDNS,
	})
}

func runDNS(ctx context.Context, lab *Lab) ([]Result, error) {
	services := lab.Sized(dnsServices, 200)
	var nodes []*dnsNode
	for _, kind := range []string{dnsWeft, dnsCoreDNS} {
		d, err := lab.dnsNode(ctx, kind, services, false)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, d)
	}
	dir, err := lab.Folder("questions")
	if err != nil {
		return nil, err
	}
	kinds := map[string][]string{}
	for i := range services {
		kinds["cluster"] = append(kinds["cluster"], fmt.Sprintf("service-%05d.bench.svc.cluster.local.", i))
	}
	for i := range 200 {
		kinds["outside"] = append(kinds["outside"], fmt.Sprintf("www-%d.example.org.", i))
		for _, suffix := range []string{"bench.svc.cluster.local.", "svc.cluster.local.", "cluster.local."} {
			kinds["missed"] = append(kinds["missed"], fmt.Sprintf("www-%d.example.org.%s", i, suffix))
		}
	}
	var out []Result
	for _, what := range []struct {
		kind, name string
		rate, slow Budget
	}{
		{"cluster", fmt.Sprintf("names of %d Services", services), ratioAtLeast(1.5), ratioAtMost(1 / 1.5)},
		{"missed", "misses of a search list", ratioAtLeast(1.5), ratioAtMost(1 / 1.5)},
		{"outside", "outside names, cached", noBudget, noBudget},
	} {
		file := filepath.Join(dir, what.kind)
		if err := os.WriteFile(file, []byte(strings.Join(kinds[what.kind], " A\n")+" A\n"), 0o600); err != nil {
			return nil, err
		}
		results, err := dnsCompare(ctx, lab, nodes, what.name, file, kinds[what.kind], what.rate, what.slow)
		if err != nil {
			return nil, err
		}
		out = append(out, results...)
	}
	fresh, err := dnsFresh(ctx, lab, nodes)
	if err != nil {
		return nil, err
	}
	searched, err := dnsSearched(ctx, lab, nodes)
	if err != nil {
		return nil, err
	}
	w, err1 := nodes[0].resident()
	c, err2 := nodes[1].resident()
	return append(append(out, searched...), fresh, compare("resident memory", "MB", []float64{w}, dnsCoreDNS, []float64{c}, noBudget).
		note("weftd has the program of the other roles, too")), errors.Join(err1, err2)
}

// dnsCompare measures one kind of question.
func dnsCompare(ctx context.Context, lab *Lab, nodes []*dnsNode, name, file string, names []string, budget, slowBudget Budget) ([]Result, error) {
	var rate, full, waits []arm
	slow := make([][]float64, len(nodes))
	for i, d := range nodes {
		rate = append(rate, func(ctx context.Context) (float64, error) {
			perSecond, err := d.perf(ctx, file, lab.Sized(3, 1))
			return perSecond / 1000, err
		})
		full = append(full, func(ctx context.Context) (float64, error) { return d.slowest(ctx, file) })
		waits = append(waits, func(context.Context) (float64, error) {
			p50, p99, err := d.latency(names, lab.Sized(5000, 200))
			slow[i] = append(slow[i], p99)
			return p50, err
		})
	}
	r, err := interleave(ctx, lab.Rounds(10), rate...)
	if err != nil {
		return nil, err
	}
	f, err := interleave(ctx, lab.Rounds(10), full...)
	if err != nil {
		return nil, err
	}
	l, err := interleave(ctx, lab.Rounds(10), waits...)
	if err != nil {
		return nil, err
	}
	return []Result{
		compare(name+", a second", "k", r[0], dnsCoreDNS, r[1], budget).note("dnsperf has the same two processors"),
		compare(name+", 200 at once, 99th percentile", "ms", f[0], dnsCoreDNS, f[1], slowBudget),
		compare(name+", one after the other, median", "µs", l[0], dnsCoreDNS, l[1], noBudget),
		compare(name+", one after the other, 99th percentile", "µs", slow[0][1:], dnsCoreDNS, slow[1][1:], noBudget),
	}, nil
}

// dnsFresh measures the time from a new Service in the API to its name.
func dnsFresh(ctx context.Context, lab *Lab, nodes []*dnsNode) (Result, error) {
	count := 0
	var arms []arm
	for _, d := range nodes {
		arms = append(arms, func(ctx context.Context) (float64, error) {
			count++
			name, a := fmt.Sprintf("fresh-%d", count), serviceAddress(50000+count)
			start := time.Now()
			if err := d.service(name, a); err != nil {
				return 0, err
			}
			err := d.until(ctx, "a new Service to have a name", name+".bench.svc.cluster.local.", a)
			return float64(time.Since(start).Microseconds()) / 1000, err
		})
	}
	s, err := interleave(ctx, lab.Rounds(10), arms...)
	if err != nil {
		return Result{}, err
	}
	return compare("a new Service until its name answers", "ms", s[0], dnsCoreDNS, s[1], noBudget), nil
}

// dnsSearched measures how long a resolver with ndots:5 takes to find an outside name in the cache, without and with autopath.
func dnsSearched(ctx context.Context, lab *Lab, nodes []*dnsNode) ([]Result, error) {
	var fast []*dnsNode
	for _, kind := range []string{dnsWeft, dnsCoreDNS} {
		d, err := lab.dnsNode(ctx, kind, lab.Sized(1000, 200), true)
		if err != nil {
			return nil, err
		}
		fast = append(fast, d)
	}
	var arms []arm
	asked := make([]float64, 4)
	for i, d := range append(slices.Clone(nodes), fast...) {
		arms = append(arms, func(context.Context) (float64, error) {
			p50, questions, err := d.searched("www-1.example.org.", lab.Sized(2000, 100))
			asked[i] = questions
			return p50, err
		})
	}
	s, err := interleave(ctx, lab.Rounds(10), arms...)
	if err != nil {
		return nil, err
	}
	const note = "%.0f questions against %.0f"
	return []Result{
		compare("an outside name with ndots:5, median", "µs", s[0], dnsCoreDNS, s[1], noBudget).note(note, asked[0], asked[1]),
		compare("the same with autopath, median", "µs", s[2], dnsCoreDNS, s[3], noBudget).note(note, asked[2], asked[3]),
		compare("the same, autopath of weft alone, median", "µs", s[2], "weft without", s[0], noBudget),
	}, nil
}
