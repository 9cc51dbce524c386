package main

import (
	"context"
	"fmt"
)

func init() {
	for i, p := range []tcpPath{
		{name: "same-node", mode: "native"},
		{name: "native", mode: "native", bare: Bare{Across: true}},
		{name: "vxlan", mode: "vxlan", bare: Bare{Across: true, VXLAN: true}},
	} {
		register(50+i, Row{
			Name: "tcp-" + p.name,
			About: "TCP from Pod to Pod beside " + p.bare.String() + ": a stream (client and server on a processor each), " +
				"requests and connections (both on one)",
			Run: p.run,
		})
	}
}

// tcpPath is one way from Pod to Pod.
type tcpPath struct {
	name, mode string
	bare       Bare
}

// weftPods attaches two Pods by real CNI calls to nodes with a real weftd.
func (p tcpPath) weftPods(ctx context.Context, lab *Lab) (pods [2]*Sandbox, err error) {
	nodes, err := lab.Nodes(ctx)
	if err != nil {
		return pods, err
	}
	var nets []*Network
	for i, n := range nodes {
		d, err := lab.Weftd(ctx, n, i+1, p.mode)
		if err != nil {
			return pods, err
		}
		net, err := d.Network(lab)
		if err != nil {
			return pods, err
		}
		nets = append(nets, net)
	}
	for i := range pods {
		if pods[i], err = lab.Sandbox(); err != nil {
			return pods, err
		}
		net := nets[0]
		if p.bare.Across {
			net = nets[i]
		}
		if _, err := net.Add(ctx, pods[i]); err != nil {
			return pods, err
		}
	}
	return pods, pods[0].answers(pods[1].addr)
}

func (p tcpPath) run(ctx context.Context, lab *Lab) ([]Result, error) {
	tracked := p.bare
	tracked.Conntrack = true
	var sides []*peers
	for _, make := range []func() ([2]*Sandbox, error){
		func() ([2]*Sandbox, error) { return p.weftPods(ctx, lab) },
		func() ([2]*Sandbox, error) { return lab.BarePods(ctx, p.bare) },
		func() ([2]*Sandbox, error) { return lab.BarePods(ctx, tracked) },
	} {
		pods, err := make()
		if err != nil {
			return nil, err
		}
		side, err := lab.Peers(pods[0], pods[1])
		if err != nil {
			return nil, err
		}
		sides = append(sides, side)
	}
	const mib = 1 << 20
	var out []Result
	for _, load := range []struct {
		load, what, unit string
		cpus             [2]int
		warm, count      int
		perSecond        float64 // units in one count
		budget           Budget
	}{
		{loadStream, "stream", "Gbit/s", [2]int{0, 1}, 32 * mib, lab.Sized(192*mib, 16*mib), 8e-9, ratioAtLeast(0.97)},
		{loadRequest, "requests", "k/s", [2]int{0, 0}, 200, lab.Sized(4000, 400), 1e-3, ratioAtLeast(0.97)},
		{loadRequest, "requests 2cpu", "k/s", [2]int{0, 1}, 200, lab.Sized(4000, 400), 1e-3, ratioAtLeast(0.97)},
		{loadConnect, "connections", "k/s", [2]int{0, 0}, 20, lab.Sized(1000, 100), 1e-3, noBudget},
	} {
		var arms []arm
		for _, side := range sides {
			arms = append(arms, func(ctx context.Context) (float64, error) {
				took, err := side.run(ctx, load.load, load.cpus, load.warm, load.count)
				return float64(load.count) * load.perSecond / took.Seconds(), err
			})
		}
		s, err := interleave(ctx, lab.Rounds(40), arms...)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("TCP %s, %s", p.name, load.what)
		ct := compare(name, load.unit, s[2], "", s[1], noBudget).Ratio
		out = append(out, compare(name, load.unit, s[0], p.bare.String(), s[1], load.budget).
			note("%s: %s×", tracked, number(ct.Median)))
	}
	return out, nil
}
