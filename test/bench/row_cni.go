package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
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

// lifecycle is what one side does in a round: ADD and DEL of one Pod, measured apart, in milliseconds.
type lifecycle struct {
	lab    *Lab
	net    *Network
	daemon *Weftd // nil without one

	pod             *Sandbox
	adds, dels      []float64
	gone, processor []float64
}

func (c *lifecycle) add(ctx context.Context) error {
	var err error
	if c.pod, err = c.lab.Sandbox(); err != nil {
		return err
	}
	took, err := c.net.Add(ctx, c.pod)
	if err != nil {
		return err
	}
	c.adds = append(c.adds, ms(took))
	// Ready means now, not after the first retry.
	return c.net.Check(c.pod)
}

func (c *lifecycle) del(ctx context.Context) error {
	start := time.Now()
	took, err := c.net.Del(ctx, c.pod)
	if err != nil {
		return err
	}
	c.dels = append(c.dels, ms(took))
	err = c.net.Gone(ctx, c.pod)
	c.gone = append(c.gone, ms(time.Since(start)))
	return err
}

// run is an arm; the times are kept here.
func (c *lifecycle) run(ctx context.Context) (float64, error) {
	before, err := c.spent()
	if err != nil {
		return 0, err
	}
	if err := c.add(ctx); err != nil {
		return 0, err
	}
	if err := c.del(ctx); err != nil {
		return 0, err
	}
	pause(ctx, restTime)
	after, err := c.spent()
	c.processor = append(c.processor, ms(after-before))
	return 0, err
}

// restTime is how long a daemon may go on in the background after it answered, before the other side is measured.
const restTime = 25 * time.Millisecond

// spent returns the processor time of all plugins so far, and of the daemon.
func (c *lifecycle) spent() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &u); err != nil {
		return 0, fmt.Errorf("reading the processor time of plugins: %w", err)
	}
	total := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	if c.daemon == nil {
		return total, nil
	}
	own, err := c.daemon.processorTime()
	return total + own, err
}

func ms(d time.Duration) float64 { return float64(d) / milli }

func runCNI(ctx context.Context, lab *Lab) ([]Result, error) {
	daemon, weftNet, err := weftNetwork(ctx, lab)
	if err != nil {
		return nil, err
	}
	refNet, err := lab.Reference(ctx)
	if err != nil {
		return nil, err
	}
	weft, ref := &lifecycle{lab: lab, net: weftNet, daemon: daemon}, &lifecycle{lab: lab, net: refNet}
	if _, err := interleave(ctx, lab.Rounds(100), weft.run, ref.run); err != nil {
		return nil, err
	}
	// The first of each belongs to the round that does not count.
	return []Result{
		compare("ADD, one Pod", "ms", weft.adds[1:], reference, ref.adds[1:], ratioAtMost(cniRatio)),
		compare("DEL, one Pod", "ms", weft.dels[1:], reference, ref.dels[1:], ratioAtMost(cniRatio)).
			note("the link is gone after %.0f ms (%.0f ms)", summarize(weft.gone).Median, summarize(ref.gone).Median),
		compare("ADD and DEL, processor time", "ms", weft.processor[1:], reference, ref.processor[1:], noBudget).
			note("of the plugins, and of weftd also what it does after its answer; not of the kernel's own threads"),
	}, nil
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
			if err := c.add(ctx); err != nil {
				return nil, err
			}
			pods <- c
		}
		arms = append(arms, func(ctx context.Context) (float64, error) {
			c := <-pods
			if err := c.del(ctx); err != nil {
				return 0, err
			}
			return c.dels[0], nil
		})
	}
	d.kill()
	s, err := interleave(ctx, rounds, arms...)
	if err != nil {
		return nil, err
	}
	return []Result{compare("DEL, weftd killed", "ms", s[0], reference, s[1], noBudget).note("waits until the link is gone")}, nil
}
