package prober

import (
	"context"
	"sync"

	"weft.network/weft/appliance/compile/route"
)

// trialChecks is how many checks an offload trial lasts. When both ends compute wrong checksums, which is usual since nodes are
// alike, neither sees an answer until both have switched over: the trials of two nodes must overlap.
const trialChecks = 3

// offload switches the tunnel's checksum offload, which all peers share: it is off while any peer needs it off.
type offload struct {
	set func(ctx context.Context, on bool) error

	mu sync.Mutex
	// off are the nodes for whose sake it is off; true for those where it was seen to help.
	off map[string]bool
}

// disable switches it off for a node, also when it should be off already: a new device has it on.
func (o *offload) disable(ctx context.Context, node string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.set(ctx, false); err != nil {
		return err
	}
	if _, known := o.off[node]; !known {
		o.off[node] = false
	}
	return nil
}

// proved keeps it off for a node.
func (o *offload) proved(node string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.off[node] = true
}

// restore switches it on again unless another node needs it off, and reports whether it is on.
func (o *offload) restore(ctx context.Context, node string) (on bool, err error) {
	return o.keep(ctx, func(n string, _ bool) bool { return n != node })
}

// keep forgets the nodes that do not satisfy the condition, and switches it on again when none is left.
func (o *offload) keep(ctx context.Context, condition func(node string, proved bool) bool) (on bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.off) == 0 {
		return true, nil
	}
	for node, proved := range o.off {
		if !condition(node, proved) {
			delete(o.off, node)
		}
	}
	if len(o.off) > 0 {
		return false, nil
	}
	return true, o.set(ctx, true)
}

// tryOffload looks for broken checksum offload: the node answers, but not through the tunnel. It replaces the outcomes that
// change when offload is off.
func (c *check) tryOffload(ways []pair, found []facts, outer outcome) {
	silent, fine := 0, 0
	for i := range found {
		switch found[i].small.fate {
		case lost:
			silent++
		case passed:
			fine++
		case tooBig, refused, unreachable: // these have another cause
		}
	}
	switch {
	case c.o.SetTxChecksum == nil:
	case silent > 0 && outer.fate == passed && c.sure:
		c.suspect(ways, found)
	case fine < len(found):
	case c.mem.offload == offloadOnTrial:
		c.confirm(ways[0])
	case c.mem.offload == offloadCleared:
		c.mem.offload, c.mem.offloadError = offloadTrusted, ""
	}
}

// suspect starts a trial, or counts it down.
func (c *check) suspect(ways []pair, found []facts) {
	m := c.mem
	switch m.offload {
	case offloadCleared:
		return
	case offloadOnTrial:
		if m.trialLeft--; m.trialLeft > 0 {
			return
		}
		m.offload = offloadCleared
		m.note(c.offload.restore(c.ctx, c.peer.Node))
		return
	case offloadTrusted, offloadBroken: // broken: it was off and worked, so the device has been made anew
	}
	if err := c.offload.disable(c.ctx, c.peer.Node); err != nil {
		m.offload, m.offloadError = offloadCleared, err.Error()
		return
	}
	healed := true
	for i, w := range ways {
		if found[i].small.fate == lost {
			found[i].small = c.probe(w.from, w.to, smallSize, smallTimeout, 1)
			healed = healed && found[i].small.fate == passed
		}
	}
	m.offload, m.trialLeft, m.offloadError = offloadOnTrial, trialChecks, ""
	if healed {
		c.confirm(ways[0])
	}
}

// confirm makes sure that it was the offload, and not a firewall that was opened meanwhile or the other node's offload: with
// it on again the tunnel must fail again.
func (c *check) confirm(w pair) {
	m := c.mem
	on, err := c.offload.restore(c.ctx, c.peer.Node)
	if on && err == nil && c.probe(w.from, w.to, smallSize, smallTimeout, 2).fate == passed {
		m.offload = offloadTrusted
		return
	}
	if c.ctx.Err() != nil {
		return
	}
	if err := c.offload.disable(c.ctx, c.peer.Node); err != nil {
		m.offload, m.offloadError = offloadCleared, err.Error()
		return
	}
	c.offload.proved(c.peer.Node)
	m.offload = offloadBroken
}

// note keeps why offload could not be switched on again.
func (m *memory) note(_ bool, err error) {
	if err != nil {
		m.offloadError = err.Error()
	}
}

// endTrials switches offload on again where it was off only for a trial.
func (o *offload) endTrials(ctx context.Context) error {
	_, err := o.keep(ctx, func(_ string, proved bool) bool { return proved })
	return err
}

// keepPeers forgets the nodes that are no longer peers through the tunnel.
func (o *offload) keepPeers(ctx context.Context, peers []route.Peer) error {
	tunnelled := map[string]bool{}
	for _, p := range peers {
		tunnelled[p.Node] = p.Mode == route.ModeVXLAN
	}
	_, err := o.keep(ctx, func(node string, _ bool) bool { return tunnelled[node] })
	return err
}
