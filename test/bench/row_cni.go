package main

import (
	"context"
	"fmt"
	"time"
)

func init() {
	register(20, Row{
		Name:  "cni",
		About: "ADD and DEL of one Pod through libcni, exec of the real plugins, beside Debian's bridge + host-local",
		Run:   runCNI,
	})
	register(30, Row{
		Name:  "burst",
		About: "ADD and then DEL of 50 Pods in parallel, until the last has its answer",
		Run:   runBurst,
	})
	register(40, Row{
		Name:  "daemon-down",
		About: "DEL with weftd killed: the plugin opens the store itself",
		Run:   runDaemonDown,
	})
}

const (
	reference = "bridge + host-local"
	cniRatio  = 0.35
)

// weftNetwork starts one node and returns weft as its runtime sees it.
func weftNetwork(ctx context.Context, lab *Lab) (*Weftd, *Network, error) {
	nodes, err := lab.Nodes(ctx)
	if err != nil {
		return nil, nil, err
	}
	d, err := lab.Weftd(ctx, nodes[0], 1, "native")
	if err != nil {
		return nil, nil, err
	}
	n, err := d.Network(lab)
	return d, n, err
}

// lifecycle is one Pod's ADD and DEL, measured apart: the arms of an interleaved run take turns, so one arm adds and the next
// one, of the same round, deletes.
type lifecycle struct {
	lab  *Lab
	net  *Network
	pod  *Sandbox
	gone []float64
}

func (c *lifecycle) add(ctx context.Context) (float64, error) {
	var err error
	if c.pod, err = c.lab.Sandbox(); err != nil {
		return 0, err
	}
	took, err := c.net.Add(ctx, c.pod)
	if err != nil {
		return 0, err
	}
	// Ready means now (DESIGN law 4), not after the first retry.
	return ms(took), c.net.Check(c.pod)
}

func (c *lifecycle) del(ctx context.Context) (float64, error) {
	start := time.Now()
	took, err := c.net.Del(ctx, c.pod)
	if err != nil {
		return 0, err
	}
	err = c.net.Gone(ctx, c.pod)
	c.gone = append(c.gone, ms(time.Since(start)))
	return ms(took), err
}

func ms(d time.Duration) float64 { return float64(d) / milli }

func runCNI(ctx context.Context, lab *Lab) ([]Result, error) {
	_, weftNet, err := weftNetwork(ctx, lab)
	if err != nil {
		return nil, err
	}
	refNet, err := lab.Reference(ctx)
	if err != nil {
		return nil, err
	}
	weft, ref := &lifecycle{lab: lab, net: weftNet}, &lifecycle{lab: lab, net: refNet}
	var adds, dels [2][]float64
	_, err = interleave(ctx, lab.Rounds(100), both(weft, &adds[0], &dels[0]), both(ref, &adds[1], &dels[1]))
	if err != nil {
		return nil, err
	}
	return []Result{
		compare("ADD, one Pod", "ms", adds[0][1:], reference, adds[1][1:], ratioAtMost(cniRatio)),
		compare("DEL, one Pod", "ms", dels[0][1:], reference, dels[1][1:], ratioAtMost(cniRatio)).
			note("the link is gone after %.0f ms (%.0f ms)", summarize(weft.gone).Median, summarize(ref.gone).Median),
	}, nil
}

// both makes one arm of ADD and DEL and keeps their times, those of the round that does not count first.
func both(c *lifecycle, adds, dels *[]float64) arm {
	return func(ctx context.Context) (float64, error) {
		a, err := c.add(ctx)
		if err != nil {
			return 0, err
		}
		d, err := c.del(ctx)
		*adds, *dels = append(*adds, a), append(*dels, d)
		return a + d, err
	}
}

const burstSize = 50

func runBurst(ctx context.Context, lab *Lab) ([]Result, error) {
	_, weftNet, err := weftNetwork(ctx, lab)
	if err != nil {
		return nil, err
	}
	refNet, err := lab.Reference(ctx)
	if err != nil {
		return nil, err
	}
	var out []Result
	for _, atOnce := range []int{8, burstSize} {
		var times [2][2][]float64 // by side, then ADD or DEL
		var arms []arm
		for side, n := range []*Network{weftNet, refNet} {
			pods := make([]*Sandbox, burstSize)
			for i := range pods {
				if pods[i], err = lab.Sandbox(); err != nil {
					return nil, err
				}
			}
			arms = append(arms, func(ctx context.Context) (float64, error) {
				return 0, burst(ctx, n, pods, atOnce, &times[side])
			})
		}
		if _, err := interleave(ctx, lab.Rounds(10), arms...); err != nil {
			return nil, err
		}
		how := fmt.Sprintf("%d at a time", atOnce)
		if atOnce == burstSize {
			how = "all at once"
		}
		for i, verb := range []string{"ADD", "DEL"} {
			out = append(out, compare(fmt.Sprintf("%s, burst of %d, %s", verb, burstSize, how), "ms",
				times[0][i][1:], reference, times[1][i][1:], ratioAtMost(cniRatio)))
		}
	}
	return out, nil
}

// burst attaches and detaches all Pods once and keeps both times.
func burst(ctx context.Context, n *Network, pods []*Sandbox, atOnce int, times *[2][]float64) error {
	for i, del := range []bool{false, true} {
		took, err := n.Burst(ctx, pods, atOnce, del)
		if err != nil {
			return err
		}
		times[i] = append(times[i], ms(took))
		if !del {
			for _, s := range pods {
				if err := n.Check(s); err != nil {
					return err
				}
			}
		}
	}
	return n.Gone(ctx, pods...)
}

func runDaemonDown(ctx context.Context, lab *Lab) ([]Result, error) {
	d, weftNet, err := weftNetwork(ctx, lab)
	if err != nil {
		return nil, err
	}
	refNet, err := lab.Reference(ctx)
	if err != nil {
		return nil, err
	}
	rounds := lab.Rounds(30)
	var arms []arm
	for _, n := range []*Network{weftNet, refNet} {
		// The Pods are there before the daemon goes; one more than rounds, for the round that does not count.
		pods := make(chan *lifecycle, rounds+1)
		for range rounds + 1 {
			c := &lifecycle{lab: lab, net: n}
			if _, err := c.add(ctx); err != nil {
				return nil, err
			}
			pods <- c
		}
		arms = append(arms, func(ctx context.Context) (float64, error) { return (<-pods).del(ctx) })
	}
	d.kill()
	s, err := interleave(ctx, rounds, arms...)
	if err != nil {
		return nil, err
	}
	return []Result{compare("DEL, weftd killed", "ms", s[0], reference, s[1], noBudget).note("opens the store itself, and waits until the link is gone")}, nil
}
