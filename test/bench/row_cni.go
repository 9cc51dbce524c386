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

// side does the calls of one network and keeps what they cost, in milliseconds.
type side struct {
	lab    *Lab
	net    *Network
	daemon *Weftd // nil without one

	pods      []*Sandbox // attached
	gone      []float64  // until the link was gone after a DEL
	processor []float64  // of each call
}

// add attaches one more Pod.
func (s *side) add(ctx context.Context) (float64, error) {
	pod, err := s.lab.Sandbox()
	if err != nil {
		return 0, err
	}
	took, err := s.accounted(ctx, func() (time.Duration, error) { return s.net.Add(ctx, pod) })
	if err != nil {
		return 0, err
	}
	s.pods = append(s.pods, pod)
	// Ready means now, not after the first retry.
	return ms(took), s.net.Check(pod)
}

// del detaches the oldest Pod.
func (s *side) del(ctx context.Context) (float64, error) {
	pod := s.pods[0]
	s.pods = s.pods[1:]
	took, err := s.accounted(ctx, func() (time.Duration, error) {
		start := time.Now()
		took, err := s.net.Del(ctx, pod)
		if err == nil {
			err = s.net.Gone(ctx, pod)
		}
		s.gone = append(s.gone, ms(time.Since(start)))
		return took, err
	})
	return ms(took), err
}

// restTime is how long a daemon may go on in the background after it answered, before the other side is measured.
const restTime = 25 * time.Millisecond

// accounted makes a call, waits until all of it is over, and keeps the processor time.
func (s *side) accounted(ctx context.Context, call func() (time.Duration, error)) (time.Duration, error) {
	before, err := s.spent()
	if err != nil {
		return 0, err
	}
	took, err := call()
	if err != nil {
		return 0, err
	}
	pause(ctx, restTime)
	after, err := s.spent()
	s.processor = append(s.processor, ms(after-before))
	return took, err
}

// spent returns the processor time of all plugins so far, and of the daemon.
func (s *side) spent() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &u); err != nil {
		return 0, fmt.Errorf("reading the processor time of plugins: %w", err)
	}
	total := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	if s.daemon == nil || s.daemon.hasEnded() {
		return total, nil
	}
	own, err := s.daemon.processorTime()
	return total + own, err
}

func ms(d time.Duration) float64 { return float64(d) / milli }

// sides starts weft and the reference, each on a node of its own.
func sides(ctx context.Context, lab *Lab) (weft, ref *side, err error) {
	daemon, net, err := weftNetwork(ctx, lab)
	if err != nil {
		return nil, nil, err
	}
	weft = &side{lab: lab, net: net, daemon: daemon}
	net, err = lab.Reference(ctx)
	return weft, &side{lab: lab, net: net}, err
}

func runCNI(ctx context.Context, lab *Lab) ([]Result, error) {
	weft, ref, err := sides(ctx, lab)
	if err != nil {
		return nil, err
	}
	// The Pods of all rounds are there at once, as on a node in use.
	rounds := lab.Rounds(100)
	adds, err := interleave(ctx, rounds, weft.add, ref.add)
	if err != nil {
		return nil, err
	}
	dels, err := interleave(ctx, rounds, weft.del, ref.del)
	if err != nil {
		return nil, err
	}
	// The first call of each verb belongs to the round that does not count.
	const what = "of the plugins, and of weftd also for what it does after its answer; not of the kernel's own threads"
	return []Result{
		compare("ADD, one Pod", "ms", adds[0], reference, adds[1], ratioAtMost(cniRatio)),
		compare("DEL, one Pod", "ms", dels[0], reference, dels[1], ratioAtMost(cniRatio)).
			note("the link is gone after %.0f ms (%.0f ms)", summarize(weft.gone).Median, summarize(ref.gone).Median),
		compare("ADD, processor time", "ms", weft.processor[1:rounds+1], reference, ref.processor[1:rounds+1], noBudget).note(what),
		compare("DEL, processor time", "ms", weft.processor[rounds+2:], reference, ref.processor[rounds+2:], noBudget).note(what),
	}, nil
}

const burstSize = 50

func runBurst(ctx context.Context, lab *Lab) ([]Result, error) {
	weft, ref, err := sides(ctx, lab)
	if err != nil {
		return nil, err
	}
	var out []Result
	for _, atOnce := range []int{8, burstSize} {
		var times [2][2][]float64 // by side, then ADD or DEL
		var arms []arm
		for i, n := range []*Network{weft.net, ref.net} {
			pods := make([]*Sandbox, burstSize)
			for p := range pods {
				if pods[p], err = lab.Sandbox(); err != nil {
					return nil, err
				}
			}
			arms = append(arms, func(ctx context.Context) (float64, error) {
				return 0, burst(ctx, n, pods, atOnce, &times[i])
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
	weft, ref, err := sides(ctx, lab)
	if err != nil {
		return nil, err
	}
	rounds := lab.Rounds(30)
	if _, err := interleave(ctx, rounds, weft.add, ref.add); err != nil {
		return nil, err
	}
	weft.daemon.kill()
	s, err := interleave(ctx, rounds, weft.del, ref.del)
	if err != nil {
		return nil, err
	}
	return []Result{compare("DEL, weftd killed", "ms", s[0], reference, s[1], noBudget).note("waits until the link is gone")}, nil
}
