package reconcile

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// hold is how long a daemon that starts again leaves links, routes and rules as the one before it has left them: the picture in the
// store is some seconds older than they are, and would take back what came last, as the way to a node that has just joined.
const hold = time.Second

// start is what the loop knows of its own beginning; Loop.run guards it, except for waited and over.
type start struct {
	known  bool
	warm   bool            // a daemon was here since the boot
	waited atomic.Bool     // the cluster had its time to be heard
	over   chan struct{}   // closed with the first round that sets everything
	held   bool            // so was the last round
	last   *model.Snapshot // the last that knew this node
}

// warm says whether a daemon was here since the boot, and begins to wait for the cluster.
func (l *Loop) warm() (bool, error) {
	s := &l.start
	if s.known {
		return s.warm, nil
	}
	for _, name := range []string{ruleset.TableName, ruleset.ServiceTable} {
		exists, err := l.Rules.Exists(ruleset.Table{Family: ruleset.INet, Name: name})
		if err != nil {
			return false, fmt.Errorf("looking for the tables of the daemon before: %w", err)
		}
		s.warm = s.warm || exists
	}
	if s.warm {
		time.AfterFunc(hold, func() {
			s.waited.Store(true)
			l.Kick(Trigger{What: "the cluster was not heard"})
		})
	}
	s.known = true
	return s.warm, nil
}

// held says whether what the daemon before this one has left stays as it is.
func (l *Loop) held(snap *model.Snapshot) (bool, error) {
	if snap == nil {
		return false, nil
	}
	warm, err := l.warm()
	return warm && snap.Stored && !l.start.waited.Load(), err
}

// heldWas notes what a round did. With the first that sets everything, those go on who waited for it.
func (l *Loop) heldWas(held bool, snap *model.Snapshot) {
	s := &l.start
	s.held, s.last = held, snap
	if held {
		return
	}
	select {
	case <-s.over:
	default:
		close(s.over)
	}
}

// SyncRules programs the packet filter now, with the newest host ports, and returns when the kernel has it. Until everything was set
// once it waits: what is known of the node's network is older than what the kernel has. Ports are opened and closed also while the
// cluster does not know this node, as between the deletion of its Node and kubelet's next start; all else then is as it was.
func (l *Loop) SyncRules(ctx context.Context) error {
	name := l.Settings().NodeName
	select {
	case <-l.start.over:
	default:
		if l.Inputs.Snapshot().Node(name) == nil {
			return fmt.Errorf("node %q is not known to the cluster", name)
		}
		select {
		case <-l.start.over:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the node's network: %w", ctx.Err())
		}
	}
	l.run.Lock()
	defer l.run.Unlock()
	l.mu.Lock()
	cfg, state := l.config, l.status.State
	l.mu.Unlock()
	snap := l.Inputs.Snapshot()
	if snap.Node(name) == nil {
		snap = l.start.last
	}
	_, err := l.applyRules(ctx, cfg, snap, snap.Node(name), &state, false)
	return err
}
