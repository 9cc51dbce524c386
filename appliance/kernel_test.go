package appliance

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// TestFollow: a socket that cannot be opened, or fails later, is opened again, and no event of it is lost.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		opened := 0
		events := follow(ctx, zap.NewNop(), "something", func(context.Context) (<-chan int, error) {
			if opened++; opened == 1 {
				return nil, errors.New("no socket")
			}
			one := make(chan int, 1)
			one <- opened
			close(one)
			return one, nil
		})
		start := time.Now()
		for want := 2; want < 4; want++ {
			if got := <-events; got != want || time.Since(start) != time.Duration(want-1)*reopen {
				t.Fatalf("event %d after %v, want %d", got, time.Since(start), want)
			}
		}
		cancel()
		synctest.Wait() // nobody is left who would wait
	})
}
