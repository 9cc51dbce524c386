package probe

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// The pace of answers to one source. A node that searches for a path MTU sends some thirty probes in a few seconds.
const (
	answerEvery = 50 * time.Millisecond
	answerBurst = 64
)

// limiter bounds the answers per source. Its memory is fixed: sources share a fixed number of slots by a hash that nobody
// outside can foresee, so a flood from made-up sources costs no memory, and its slots together are the bound for all.
type limiter struct {
	seed  maphash.Seed
	start time.Time

	mu sync.Mutex
	// next is when, counted from start, the source would be allowed again if it had not saved up a burst (generic cell rate
	// algorithm, ITU-T I.371).
	next [512]time.Duration
}

func newLimiter(now time.Time) *limiter {
	return &limiter{seed: maphash.MakeSeed(), start: now}
}

// allow reports whether a source may have one more answer now.
func (l *limiter) allow(source netip.Addr, now time.Time) bool {
	slot := maphash.Comparable(l.seed, source) % uint64(len(l.next))
	at := now.Sub(l.start)
	l.mu.Lock()
	defer l.mu.Unlock()
	next := max(l.next[slot], at)
	if next-at >= answerBurst*answerEvery {
		return false
	}
	l.next[slot] = next + answerEvery
	return true
}
