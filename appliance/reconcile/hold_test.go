package reconcile

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft.network/weft/appliance/model"
)

// TestHeld: the store does not know the node that joined last. A daemon that starts again leaves the way to it alone until the
// cluster is heard, or had its time to be; after a boot there is nothing to leave alone.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		started := func(warm bool) *rig {
			r := newRig()
			r.w.served = warm
			all := r.snap.Nodes
			r.snap = &model.Snapshot{Stored: true, Nodes: map[string]*model.Node{"a": all["a"]}}
			if err := r.Round(t.Context(), Trigger{Fabric: true}); err != nil {
				t.Fatal(err)
			}
			r.snap = &model.Snapshot{Stored: true, Nodes: all}
			return r
		}
		if r := started(false); r.w.hosts != 1 || len(r.w.tables) != 1 || r.Status().Held {
			t.Errorf("after a boot: links and routes set %d times, %d tables, held %t", r.w.hosts, len(r.w.tables), r.Status().Held)
		}
		r := started(true)
		if s := r.Status(); r.w.hosts != 0 || len(r.w.tables) != 0 || !s.Held || !s.Applied || len(s.State.PodRanges) != 1 {
			t.Errorf("after a restart: links and routes set %d times, %d tables, status %+v", r.w.hosts, len(r.w.tables), s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), hold/2)
		defer cancel()
		if err := r.SyncRules(ctx); err == nil || len(r.w.tables) != 0 {
			t.Errorf("a host port wrote the table of a Pod network that is older than the kernel's: %v", err)
		}
		r.snap = &model.Snapshot{Nodes: r.snap.Nodes}
		if err := r.Round(t.Context(), Trigger{}); err != nil || r.Status().Held || !strings.Contains(r.w.host.Text(), "10.0.2.0/24") || len(r.w.tables) != 1 {
			t.Errorf("the cluster was heard: %v, held %t, %d tables\n%s", err, r.Status().Held, len(r.w.tables), r.w.host.Text())
		}
		if err := r.SyncRules(t.Context()); err != nil {
			t.Error(err)
		}

		away := started(true)
		<-time.After(hold + time.Millisecond)
		synctest.Wait()
		if err := away.Round(t.Context(), <-away.trigger); err != nil || away.w.hosts != 1 || len(away.w.tables) != 1 || away.Status().Held {
			t.Errorf("the cluster is away: %v, links and routes set %d times, %d tables", err, away.w.hosts, len(away.w.tables))
		}
	})
}
