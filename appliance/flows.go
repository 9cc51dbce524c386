package appliance

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/kernel/conntrack"
)

// flows forgets connection tracking entries behind the calls that ask for it, many at once.
type flows struct {
	table *conntrack.Table
	log   *zap.Logger
	// forgotten counts entries that were deleted; nil counts nothing.
	forgotten func(n int)
	work      sync.WaitGroup

	mu      sync.Mutex
	pending []conntrack.Filter
	running bool
	closing bool
}

// gatherTime is how long a pass waits for more: each one walks through the whole table.
const gatherTime = 200 * time.Millisecond

// forgetTime bounds one pass through the table.
const forgetTime = 30 * time.Second

func (f *flows) forget(filters []conntrack.Filter) {
	if len(filters) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = append(f.pending, filters...)
	if !f.running {
		f.running = true
		f.work.Go(f.run)
	}
}

// close ends what is pending and waits for it.
func (f *flows) close() {
	f.mu.Lock()
	f.closing = true
	f.mu.Unlock()
	f.work.Wait()
}

// run passes through the table until nothing is pending.
func (f *flows) run() {
	for {
		f.mu.Lock()
		closing := f.closing
		f.mu.Unlock()
		if !closing {
			<-time.After(gatherTime)
		}
		f.mu.Lock()
		filters := f.pending
		f.pending = nil
		f.running = len(filters) > 0
		f.mu.Unlock()
		if len(filters) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), forgetTime)
		n, err := f.table.Forget(ctx, filters...)
		if f.forgotten != nil {
			f.forgotten(n)
		}
		if err != nil {
			f.log.Warn("forgetting the flows of Pods and host ports that are gone", zap.Error(err))
		}
		cancel()
	}
}
