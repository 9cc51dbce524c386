package prober

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft.network/weft/appliance/compile/route"
)

// TestBothSidesBroken has two nodes that both compute wrong checksums: a probe is answered only when both have switched over,
// and neither can see the other do it.
func TestBothSidesBroken(t *testing.T) {
	for _, late := range []time.Duration{0, 3 * time.Second, 9 * time.Second} {
		t.Run(late.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes := []route.Peer{peer(1, route.ModeVXLAN), peer(2, route.ModeVXLAN)}
				var mu sync.Mutex
				on := []bool{true, true}
				begun := time.Now()
				ctx, cancel := context.WithCancel(t.Context())
				var work sync.WaitGroup
				var probers []*Prober
				for i, self := range nodes {
					other := nodes[1-i]
					p := New(Options{
						Send: func(_ context.Context, _, to netip.Addr, _ int, timeout time.Duration) (time.Duration, error) {
							mu.Lock()
							right := to == other.Outer || !on[0] && !on[1]
							mu.Unlock()
							// The second daemon starts late: until then nobody answers there.
							if !right || i == 0 && time.Since(begun) < late {
								<-time.After(timeout)
								return 0, os.ErrDeadlineExceeded
							}
							<-time.After(fakeRTT)
							return fakeRTT, nil
						},
						SetTxChecksum: func(_ context.Context, value bool) error {
							mu.Lock()
							defer mu.Unlock()
							on[i] = value
							return nil
						},
					})
					p.Update(View{Peers: []route.Peer{other}, Inner: self.Inner, Outer: []netip.Addr{self.Outer}, PodMTU: 1450, TunnelPort: 4789})
					work.Go(func() {
						if i == 1 {
							<-time.After(late)
						}
						p.Run(ctx)
					})
					probers = append(probers, p)
				}
				<-time.After(90 * time.Second)
				for _, p := range probers {
					for _, s := range p.Results() {
						if !s.Up || !strings.Contains(s.Finding, "broken checksum offload") {
							t.Errorf("status %+v", s)
						}
					}
				}
				cancel()
				work.Wait()
				if on[0] || on[1] {
					t.Errorf("offload is %v", on)
				}
			})
		})
	}
}
