package appliance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/cluster"
	"weft.network/weft/appliance/ipam"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/reconcile"

	"go.uber.org/zap"
)

// snapshot returns the newest picture of the cluster, or nil.
func (d *Daemon) snapshot() *model.Snapshot { return d.newest.Get() }

// publish takes a new picture from the source.
func (d *Daemon) publish(s *model.Snapshot) {
	d.newest.Set(d.assignAddresses(d.overlay(s)))
	d.loop.Kick(reconcile.Trigger{What: "the cluster changed"})
	if s.Stored {
		return
	}
	select { // only the newest is worth writing
	case <-d.save:
	default:
	}
	select {
	case d.save <- s:
	default:
	}
}

// hostname is the name that kubelet gives its Node unless it is told another one (kubernetes/pkg/util/node).
func hostname() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("finding the node's name (set nodeName): %w", err)
	}
	return strings.ToLower(strings.TrimSpace(name)), nil
}

// overlay lays this node's own settings over what the cluster says: addresses and Pod ranges from weft.yaml win.
func (d *Daemon) overlay(s *model.Snapshot) *model.Snapshot {
	if len(d.cfg.NodeAddresses) == 0 && len(d.cfg.PodCIDRs) == 0 {
		return s
	}
	n := model.Node{Name: d.cfg.NodeName}
	if known := s.Node(d.cfg.NodeName); known != nil {
		n = *known
	} else if len(d.cfg.PodCIDRs) == 0 {
		return s // a Node that is being made anew, whose Pod ranges nobody knows
	}
	if len(d.cfg.NodeAddresses) > 0 {
		n.Addresses = d.cfg.NodeAddresses
	}
	if len(d.cfg.PodCIDRs) > 0 {
		n.PodCIDRs = d.cfg.PodCIDRs
	}
	out := &model.Snapshot{Nodes: map[string]*model.Node{}}
	if s != nil {
		*out = *s
		out.Nodes = map[string]*model.Node{}
		maps.Copy(out.Nodes, s.Nodes)
	}
	out.Nodes[n.Name] = &n
	return out
}

// storedPicture returns the picture of the last run, with which a node without an API server comes up whole.
func (d *Daemon) storedPicture() *model.Snapshot {
	s, err := d.store.Snapshot()
	if err != nil { // as another version may have written it
		d.log.Error("the stored picture of the cluster cannot be read; starting without one", zap.Error(err))
	}
	if s == nil {
		s = &model.Snapshot{}
	}
	s.Stored = true
	return s
}

// saveDelay gathers changes before the picture is written: it is a fallback, and a disk wears out.
// The whole picture is written each time, and no more than one part in saveShare of the time goes into that; but a disk that hangs once
// does not keep the next picture away for longer than saveLimit.
const (
	saveDelay = 2 * time.Second
	saveShare = 50
	saveLimit = time.Minute
)

// saveSnapshots keeps the newest picture in the store, also one that comes with the end.
func (d *Daemon) saveSnapshots(ctx context.Context) {
	for {
		var s *model.Snapshot
		select {
		case s = <-d.save:
		case <-ctx.Done():
			select {
			case s = <-d.save:
			default:
				return
			}
		}
		start := time.Now()
		// A write that has begun is not given up when the daemon stops: it has what the next one begins with.
		if err := d.store.SaveSnapshot(context.WithoutCancel(ctx), s); err != nil {
			d.log.Error("keeping the picture of the cluster", zap.Error(err))
		} else {
			d.kept.Store(s.Revision)
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(max(saveDelay, saveShare*time.Since(start)), saveLimit)):
		}
	}
}

// notReady says why this node has no network yet; nil when it has, and the runtime was told.
func (d *Daemon) notReady() error {
	if why := d.blocked(); why != nil || d.ready.Load() {
		return why
	}
	return fmt.Errorf("weft on node %s is %w: the CNI configuration is about to be written", d.cfg.NodeName, attach.ErrNotReady)
}

// blocked says why Pods cannot be attached now, with what to do; nil when they can.
func (d *Daemon) blocked() error {
	say := func(format string, args ...any) error {
		return fmt.Errorf("weft on node %s is %w: %s", d.cfg.NodeName, attach.ErrNotReady, fmt.Sprintf(format, args...))
	}
	self := d.snapshot().Node(d.cfg.NodeName)
	switch {
	case self == nil:
		st := d.source.Status()
		why := fmt.Sprintf("no node of this name is known from the %s source", st.Kind)
		if !st.Connected && st.LastError != "" {
			why += " (" + st.LastError + ")"
		}
		return say("%s: check --node-name, or set podCIDRs in weft.yaml", why)
	case len(self.PodCIDRs) == 0 && !d.loop.NoFabric:
		return say("node.spec.podCIDRs is empty: let the controller manager allocate node CIDRs (--allocate-node-cidrs, --cluster-cidr) or set podCIDRs in weft.yaml")
	}
	// The picture may be newer than the last round, which then had no ranges to give from.
	if s := d.loop.Status(); !s.Applied || len(s.State.PodRanges) == 0 && !d.loop.NoFabric {
		why := s.Err
		if why == "" {
			why = "links, routes and rules are being set up"
		}
		return say("%s", why)
	}
	return nil
}

// Facts tells the attacher what it may give.
func (d *Daemon) Facts() attach.Facts {
	f := attach.Facts{NotReady: d.blocked()}
	if d.loop.NoFabric {
		f.NotReady = fmt.Errorf("weft on node %s is %w: the role fabric is off, another network attaches Pods", d.cfg.NodeName, attach.ErrNotReady)
	}
	if f.NotReady != nil {
		return f
	}
	state := d.loop.Status().State
	f.MTU = state.PodMTU
	for _, p := range state.PodRanges {
		r, err := ipam.NodeRange(p)
		if err != nil {
			return attach.Facts{NotReady: fmt.Errorf("weft is %w: node.spec.podCIDRs: %w", attach.ErrNotReady, err)}
		}
		f.Ranges = append(f.Ranges, []ipam.Range{r})
	}
	return f
}

// podWait is how long an ADD waits for the API server to tell about its Pod: kubelet may hear of it a moment before us.
const podWait = 200 * time.Millisecond

// Pod returns what the cluster says of this incarnation of a Pod.
func (d *Daemon) Pod(ctx context.Context, ref model.PodRef) *model.Pod {
	ctx, cancel := context.WithTimeout(ctx, podWait)
	defer cancel()
	for {
		snap, changed := d.newest.Watch()
		p := snap.Pod(ref.Key())
		st := d.source.Status()
		live := st.Kind == cluster.KindKubernetes && st.Connected && !(snap != nil && snap.Stored)
		if p != nil && (ref.UID == "" || p.UID == ref.UID || !live) || !live {
			return p
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// SyncPorts programs the host ports before it returns.
func (d *Daemon) SyncPorts(ctx context.Context, _ []*model.HostPorts) error {
	return d.loop.SyncRules(ctx)
}

// CheckGuards compares the packet filter with what it should be.
func (d *Daemon) CheckGuards() error { return d.loop.CheckRules() }

// Exhausted tells the user of the Pod that the range is full, where kubectl describe shows it.
func (d *Daemon) Exhausted(ref model.PodRef, err error) {
	d.metrics.exhausted.Inc()
	d.log.Error("no address for a Pod", zap.Stringer("pod", ref), zap.Error(err))
	if !ref.IsZero() {
		d.source.Recorder().WarnPod(ref, "PodAddressesExhausted", err.Error())
	}
}

// runSource follows the cluster; its absence is a degraded state, never an end.
func (d *Daemon) runSource(ctx context.Context) error {
	err := d.source.Run(ctx, d.publish)
	if ctx.Err() != nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
