package reconcile

import (
	"context"
	"time"
)

// Trigger says why a round runs.
type Trigger struct {
	// Foreign is true when the kernel changed without us: what the round then changes is a repair.
	Foreign bool
	// Fabric is true when links and routes must be compared although the nodes are the same.
	Fabric bool
	// Rules is true when the packet filter was touched.
	Rules bool
	// Deleted is true when a whole table is gone.
	Deleted bool
	// What is for the log.
	What string
}

// Kick asks for a round soon. It never waits for one: what is asked for meanwhile is put together.
func (l *Loop) Kick(t Trigger) {
	l.kicking.Lock()
	defer l.kicking.Unlock()
	select {
	case earlier := <-l.trigger:
		t = earlier.and(t)
	default:
	}
	l.trigger <- t // there is room: nobody else puts anything in
}

// and puts two triggers together.
func (t Trigger) and(more Trigger) Trigger {
	t.Foreign, t.Fabric, t.Rules = t.Foreign || more.Foreign, t.Fabric || more.Fabric, t.Rules || more.Rules
	t.Deleted = t.Deleted || more.Deleted
	if t.What != more.What && len(t.What) < 200 {
		t.What += "; " + more.What
	}
	return t
}

// gather waits a moment for more triggers and merges them.
func (l *Loop) gather(ctx context.Context, t Trigger) Trigger {
	timer := time.NewTimer(settle)
	defer timer.Stop()
	for {
		select {
		case more := <-l.trigger:
			t = t.and(more)
		case <-timer.C:
			return t
		case <-ctx.Done():
			return t
		}
	}
}
