package main

import "context"

func init() {
	for i, p := range []tcpPath{
		{name: "same-node", mode: "native"},
		{name: "native", mode: "native", bare: Bare{Across: true}},
		{name: "vxlan", mode: "vxlan", bare: Bare{Across: true, VXLAN: true}},
	} {
		register(50+i, Row{
			Name: "tcp-" + p.name,
			About: "TCP from Pod to Pod beside " + p.bare.String() + ", by the same program; requests are one byte and one byte back; client and " +
				"server have a processor each, or share one, which leaves out the time to wake the other",
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
	var out []Result
	for _, load := range p.loads(lab) {
		var arms []arm
		for _, side := range sides {
			arms = append(arms, func(ctx context.Context) (float64, error) {
				took, err := side.run(ctx, load.load, load.cpus, load.warm, load.count)
				return float64(load.count) * load.perSecond / took.Seconds(), err
			})
		}
		s, err := interleave(ctx, lab.Rounds(load.rounds), arms...)
		if err != nil {
			return nil, err
		}
		// Whoever translates or filters has conntrack; a third path shows how much of the difference is that.
		cost := compare("", "", s[2], "", s[1], noBudget).Ratio.Median
		beside := compare("", "", s[0], "", s[2], noBudget).Ratio.Median
		out = append(out, compare(load.what, load.unit, s[0], p.bare.String(), s[1], load.budget).
			note("%s: %s× by itself, weft beside it %s×", tracked, number(cost), number(beside)))
	}
	return out, nil
}

// tcpLoad is one thing to measure on a path.
type tcpLoad struct {
	load, what, unit string
	cpus             [2]int // of client and server
	rounds           int
	warm, count      int
	perSecond        float64 // units in one count
	budget           Budget
}

// loads are what is measured on a path. With a processor for each end, as most Pods have it, the time to wake the other end counts
// too, and streams vary most: how far the ends run apart decides how much goes at once. On one processor nothing waits: that is
// what the path costs, to the microsecond.
func (p tcpPath) loads(lab *Lab) []tcpLoad {
	const mib = 1 << 20
	title := "TCP " + p.name + ", "
	same := ratioAtLeast(0.97)
	apart, together := [2]int{0, 1}, [2]int{0, 0}
	return []tcpLoad{
		{loadStream, title + "stream", "Gbit/s", apart, 60, 32 * mib, lab.Sized(256, 32) * mib, 8e-9, same},
		{loadRequest, title + "requests", "k/s", apart, 120, 50, lab.Sized(1000, 200), 1e-3, same},
		{loadStream, title + "stream, one processor", "Gbit/s", together, 60, 16 * mib, lab.Sized(64, 16) * mib, 8e-9, noBudget},
		{loadRequest, title + "requests, one processor", "k/s", together, 100, 100, lab.Sized(1500, 300), 1e-3, noBudget},
		{loadConnect, title + "connections, one processor", "k/s", together, 100, 20, lab.Sized(400, 100), 1e-3, noBudget},
	}
}
