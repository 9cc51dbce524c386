package prober

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft.network/weft/appliance/compile/route"
)

// The size, patience and number of tries of a probe. One lost packet is no finding.
const (
	smallSize    = 128 // bytes; fits every link
	smallTimeout = time.Second
	minTimeout   = 200 * time.Millisecond
	tries        = 3
)

// memory is what is kept of a peer from one check to the next; only the running check touches it.
type memory struct {
	offload offloadState
	// trialLeft is how many more checks the trial lasts.
	trialLeft    int
	offloadError string
	// mtus are the path MTUs found by search, by address. While one still is exact it stands: a search through a
	// path that swallows packets takes seconds.
	mtus map[netip.Addr]measured
}

// check is one look at one peer.
type check struct {
	ctx     context.Context
	o       *Options
	offload *offload
	view    View
	peer    route.Peer
	mem     *memory
	// tries is 1 for a peer that is known to be silent: nothing is learned from asking thrice.
	tries int
	// sure is true when a failure is not the first: what touches others, the offload trial, waits for it.
	sure bool
	// hint is the size that was found last: the other family usually takes the same path.
	hint int
}

// run returns one status per family. It returns nil when ctx ended.
func (c *check) run() []PeerStatus {
	ways := pairs(c.view.Inner, c.peer)
	found := make([]facts, len(ways))
	var work sync.WaitGroup
	for i, w := range ways {
		found[i] = facts{peer: c.peer, to: w.to, podMTU: c.view.PodMTU, tunnel: c.view.TunnelPort, probePort: c.o.Port}
		work.Go(func() { found[i].small = c.probe(w.from, w.to, smallSize, smallTimeout, c.tries) })
	}
	work.Wait()
	var outer outcome
	if slices.ContainsFunc(found, isSilent) {
		outer = c.probe(c.outerFrom(), c.peer.Outer, smallSize, smallTimeout, c.tries)
	}
	if c.peer.Mode == route.ModeVXLAN {
		c.tryOffload(ways, found, outer)
	} else {
		c.mem.offload, c.mem.offloadError = offloadTrusted, ""
	}
	var underlay measured
	out := make([]PeerStatus, len(ways))
	for i, w := range ways {
		f := &found[i]
		f.outer, f.offload, f.offloadError = outer, c.mem.offload, c.mem.offloadError
		if f.small.fate == passed {
			f.inner = c.measure(w.from, w.to, c.view.PodMTU, f.small.rtt)
			if c.peer.Mode == route.ModeVXLAN && underlay.mtu == 0 {
				underlay = c.measure(c.outerFrom(), c.peer.Outer, c.view.PodMTU+overhead(c.peer), f.small.rtt)
			}
			f.underlay = underlay
		}
		s := PeerStatus{Node: c.peer.Node, Mode: c.peer.Mode, Family: w.family, Address: w.to, RTT: f.small.rtt}
		s.Up, s.MTU, s.Finding = verdict(*f)
		if s.Up {
			s.LastSeen = time.Now()
		}
		out[i] = s
	}
	if c.ctx.Err() != nil {
		return nil
	}
	return out
}

func (c *check) outerFrom() netip.Addr { return sameFamily(c.view.Outer, c.peer.Outer) }

func isSilent(f facts) bool { return f.small.fate != passed && f.small.fate != refused }

// probe sends a probe up to n times, until somebody says anything.
func (c *check) probe(from, to netip.Addr, size int, timeout time.Duration, n int) outcome {
	var o outcome
	for range n {
		if c.ctx.Err() != nil {
			return o
		}
		rtt, err := c.o.Send(c.ctx, from, to, size, timeout)
		if o = judge(rtt, err); o.fate != lost {
			return o
		}
	}
	return o
}

// judge reads an answer of Options.Send.
func judge(rtt time.Duration, err error) outcome {
	var big interface{ PathMTU() (int, netip.Addr) }
	var closed interface{ Refused() bool }
	var late interface{ Timeout() bool }
	switch {
	case err == nil:
		return outcome{fate: passed, rtt: rtt}
	case errors.As(err, &big):
		o := outcome{fate: tooBig, detail: err.Error()}
		o.mtu, o.by = big.PathMTU()
		return o
	case errors.As(err, &closed) && closed.Refused():
		return outcome{fate: refused}
	case errors.As(err, &late) && late.Timeout():
		return outcome{}
	}
	return outcome{fate: unreachable, detail: err.Error()}
}

// measure returns the largest packet that passes, at most full bytes. It is zero when not even a small one does.
func (c *check) measure(from, to netip.Addr, full int, rtt time.Duration) measured {
	timeout := min(max(4*rtt, minTimeout), smallTimeout)
	try := func(size int) outcome { return c.probe(from, to, size, timeout, tries) }
	whole := try(full)
	if whole.fate == passed {
		delete(c.mem.mtus, to)
		return measured{mtu: full}
	}
	if known, ok := c.mem.mtus[to]; ok && known.mtu < full-1 && try(known.mtu).fate == passed && try(known.mtu+1).fate != passed {
		return known
	}
	delete(c.mem.mtus, to)
	if try(smallSize).fate != passed {
		return measured{}
	}
	whole.mtu = cmp.Or(whole.mtu, c.hint)
	m := searchMTU(smallSize, full, whole, try)
	if c.ctx.Err() == nil {
		c.mem.mtus[to], c.hint = m, m.mtu
	}
	return m
}
