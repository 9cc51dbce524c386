package prober

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"weft.network/weft/appliance/compile/route"
)

// network is a pretended one: per address the largest packet that gets there, and for tunnelled addresses whether checksums
// must be right. Silence is the default.
type network struct {
	mu      sync.Mutex
	mtu     map[netip.Addr]int
	closed  map[netip.Addr]bool
	broken  map[netip.Addr]bool // reached only with offload off
	offload bool
	sets    []bool
	setErr  error
	sent    []string
	checks  map[netip.Addr]int // small probes
	running int
	most    int
}

func newNetwork() *network {
	return &network{mtu: map[netip.Addr]int{}, closed: map[netip.Addr]bool{}, broken: map[netip.Addr]bool{}, checks: map[netip.Addr]int{}, offload: true}
}

const fakeRTT = 2 * time.Millisecond

func (n *network) send(ctx context.Context, from, to netip.Addr, size int, timeout time.Duration) (time.Duration, error) {
	n.mu.Lock()
	n.running++
	n.most = max(n.most, n.running)
	n.sent = append(n.sent, fmt.Sprintf("%s->%s %d", from, to, size))
	if size == smallSize {
		n.checks[to]++
	}
	answer := size <= n.mtu[to] && (!n.broken[to] || !n.offload)
	closed := n.closed[to]
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.running--
	}()
	wait := timeout
	if answer || closed {
		wait = fakeRTT
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	switch {
	case closed:
		return 0, closedError{syscall.ECONNREFUSED}
	case answer:
		return fakeRTT, nil
	}
	return 0, os.ErrDeadlineExceeded
}

func (n *network) setTxChecksum(_ context.Context, on bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sets = append(n.sets, on)
	if n.setErr == nil {
		n.offload = on
	}
	return n.setErr
}

func (n *network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *network) isOn() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.offload
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func peer(i int, mode route.Mode) route.Peer {
	return route.Peer{
		Node: fmt.Sprintf("n%03d", i), Mode: mode, Outer: addr(fmt.Sprintf("192.168.%d.%d", 1+i/250, 1+i%250)),
		Inner: []netip.Addr{addr(fmt.Sprintf("10.244.%d.1", i)), addr(fmt.Sprintf("fd00:%x::1", i))},
	}
}

func view(peers ...route.Peer) View {
	return View{
		Peers: peers, Inner: []netip.Addr{addr("10.244.255.1"), addr("fd00:ff::1")}, Outer: []netip.Addr{addr("192.168.9.9")},
		PodMTU: 1450, TunnelPort: 4789,
	}
}

// reach makes every address of a peer answer packets of up to mtu bytes in the Pod network, and what that needs outside.
func (n *network) reach(p route.Peer, mtu int) {
	n.change(func() {
		for _, a := range p.Inner {
			n.mtu[a] = mtu
		}
		n.mtu[p.Outer] = mtu + overhead(p)
	})
}

// lab runs a test with a prober in pretended time; changes are what OnChange was told.
type lab struct {
	*network
	*Prober
	mu      sync.Mutex
	changes []string
}

func inLab(t *testing.T, o Options, f func(l *lab)) {
	synctest.Test(t, func(t *testing.T) {
		l := &lab{network: newNetwork()}
		o.Port, o.Send, o.SetTxChecksum = 9466, l.send, l.setTxChecksum
		o.OnChange = func(_, now PeerStatus) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.changes = append(l.changes, fmt.Sprintf("%s/%d up=%v %s", now.Node, now.Family, now.Up, now.Finding))
		}
		o.OnError = func(err error) { t.Log(err) }
		l.Prober = New(o)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { l.Run(ctx); close(ended) }()
		f(l)
		cancel()
		<-ended
		if l.running != 0 {
			t.Errorf("%d probes outlive Run", l.running)
		}
	})
}

func (l *lab) told() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.changes = nil }()
	return l.changes
}

// after lets pretended time pass.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (l *lab) status(t *testing.T, node string, family int) PeerStatus {
	t.Helper()
	for _, s := range l.Results() {
		if s.Node == node && s.Family == family {
			return s
		}
	}
	t.Fatalf("no status of %s/%d in %+v", node, family, l.Results())
	return PeerStatus{}
}

func TestHealthyPeer(t *testing.T) {
	inLab(t, Options{}, func(l *lab) {
		p := peer(1, route.ModeVXLAN)
		l.reach(p, 1450)
		l.Update(view(p))
		after(100 * time.Millisecond)
		for _, f := range []int{4, 6} {
			s := l.status(t, "n001", f)
			if !s.Up || s.MTU != 1450 || s.RTT != fakeRTT || s.Finding != "" || time.Since(s.LastSeen) > time.Second || s.Mode != route.ModeVXLAN {
				t.Errorf("status %+v", s)
			}
		}
		slices.Sort(l.sent) // both families are probed at the same time
		want := "10.244.255.1->10.244.1.1 128, 10.244.255.1->10.244.1.1 1450, 192.168.9.9->192.168.1.2 1500, fd00:ff::1->fd00:1::1 128, fd00:ff::1->fd00:1::1 1450"
		if got := strings.Join(l.sent, ", "); got != want {
			t.Errorf("sent %s\nwant %s", got, want)
		}
		if got := l.told(); len(got) != 2 {
			t.Errorf("told %q", got)
		}
		l.Update(view(p)) // nothing new: no check before its time
		after(0)
		if len(l.sent) != 5 {
			t.Errorf("sent %q", l.sent)
		}
	})
}

func TestSmallPathMTU(t *testing.T) {
	inLab(t, Options{}, func(l *lab) {
		p := peer(1, route.ModeNative)
		l.reach(p, 1399)
		l.Update(view(p))
		after(30 * time.Second)
		if s := l.status(t, "n001", 6); !s.Up || s.MTU != 1399 || !strings.Contains(s.Finding, "is 1399, Pods use 1450") {
			t.Errorf("status %+v", s)
		}
		// What was found is verified, not searched again: small, full size thrice, the known size, one more thrice; two families.
		l.change(func() { l.sent = nil })
		after(10 * time.Second)
		if len(l.sent) > 16 {
			t.Errorf("%d probes in one interval: %q", len(l.sent), l.sent)
		}
		l.reach(p, 1420) // better, and still not enough
		after(20 * time.Second)
		if s := l.status(t, "n001", 4); s.MTU != 1420 {
			t.Errorf("status %+v", s)
		}
		l.reach(p, 1450)
		after(12 * time.Second)
		if s := l.status(t, "n001", 4); s.MTU != 1450 || s.Finding != "" {
			t.Errorf("status %+v", s)
		}
	})
}

func TestFragmentedTunnel(t *testing.T) {
	inLab(t, Options{}, func(l *lab) {
		p := peer(1, route.ModeVXLAN)
		l.reach(p, 1450)
		l.change(func() { l.mtu[p.Outer] = 1400 })
		l.Update(view(p))
		after(30 * time.Second)
		if s := l.status(t, "n001", 4); !s.Up || s.MTU != 1350 || !strings.Contains(s.Finding, "fabric.mtu: 1350") {
			t.Errorf("status %+v", s)
		}
	})
}

func TestShortOutageIsNotTold(t *testing.T) {
	inLab(t, Options{}, func(l *lab) {
		p := peer(1, route.ModeVXLAN)
		l.reach(p, 1450)
		l.Update(view(p))
		after(15 * time.Second)
		l.told()
		restart := func(down bool) {
			l.change(func() {
				for _, a := range append(p.Inner, p.Outer) {
					l.closed[a] = down
				}
			})
		}
		restart(true)
		for s := 0; !l.suspected(); s++ {
			if s > 200 {
				t.Fatal("no check within two intervals")
			}
			after(100 * time.Millisecond)
		}
		restart(false)
		after(30 * time.Second)
		if got := l.told(); len(got) != 0 {
			t.Errorf("told %q", got)
		}
		restart(true)
		after(15 * time.Second)
		if got := l.told(); len(got) != 2 || !strings.Contains(got[0], "up=true node n001 is there, but nothing answers") {
			t.Errorf("told %q", got)
		}
	})
}

func (p *Prober) suspected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.targets["n001"].suspect
}

func TestSilentPeer(t *testing.T) {
	inLab(t, Options{}, func(l *lab) {
		p := peer(1, route.ModeVXLAN)
		l.reach(p, 1450)
		l.Update(view(p))
		after(time.Second)
		seen := l.status(t, "n001", 4).LastSeen
		l.change(func() { clear(l.mtu) })
		after(40 * time.Second)
		s := l.status(t, "n001", 4)
		if s.Up || !strings.Contains(s.Finding, "does not answer") || s.LastSeen.Before(seen) || time.Since(s.LastSeen) < 20*time.Second {
			t.Errorf("status %+v", s)
		}
		if len(l.sets) != 0 {
			t.Errorf("a node that is down is no reason to touch offload: %v", l.sets)
		}
		l.Update(view())
		after(time.Second)
		if r := l.Results(); len(r) != 0 {
			t.Errorf("a peer that is gone has results: %+v", r)
		}
	})
}

func TestUnprobedPeers(t *testing.T) {
	inLab(t, Options{}, func(l *lab) {
		bad, other := peer(1, route.ModeNative), peer(2, route.ModeNative)
		bad.Problem, other.Inner = "its Pod range overlaps", nil
		l.Update(view(bad, other))
		after(2 * time.Second)
		if s := l.status(t, "n001", 0); s.Finding != "its Pod range overlaps" {
			t.Errorf("status %+v", s)
		}
		if s := l.status(t, "n002", 0); !strings.Contains(s.Finding, "families") {
			t.Errorf("status %+v", s)
		}
		if len(l.sent) != 0 {
			t.Errorf("sent %q", l.sent)
		}
	})
}

func TestBrokenOffload(t *testing.T) {
	inLab(t, Options{}, func(l *lab) {
		p, fine := peer(1, route.ModeVXLAN), peer(2, route.ModeVXLAN)
		l.reach(p, 1450)
		l.reach(fine, 1450)
		l.change(func() { l.broken[p.Inner[0]], l.broken[p.Inner[1]] = true, true })
		l.Update(view(p, fine))
		after(25 * time.Second)
		for _, f := range []int{4, 6} {
			if s := l.status(t, "n001", f); !s.Up || s.MTU != 1450 || !strings.Contains(s.Finding, "broken checksum offload") {
				t.Errorf("status %+v", s)
			}
		}
		if s := l.status(t, "n002", 4); s.Finding != "" {
			t.Errorf("status %+v", s)
		}
		// Off, on again to be sure, off for good.
		if got := fmt.Sprint(l.sets); got != "[false true false]" {
			t.Errorf("offload was set %s", got)
		}
		// Somebody makes the device anew: offload is on again.
		l.change(func() { l.network.offload = true })
		after(25 * time.Second)
		if s := l.status(t, "n001", 4); !s.Up || l.isOn() {
			t.Errorf("offload %v, status %+v", l.isOn(), s)
		}
		// The peer leaves the cluster: nobody needs it off.
		l.Update(view(fine))
		after(time.Second)
		if !l.isOn() {
			t.Error("offload stays off for a node that is gone")
		}
	})
}

func TestOffloadStaysOffAcrossRestart(t *testing.T) {
	var l *lab
	inLab(t, Options{}, func(inner *lab) {
		l = inner
		p := peer(1, route.ModeVXLAN)
		l.reach(p, 1450)
		l.change(func() { l.broken[p.Inner[0]], l.broken[p.Inner[1]] = true, true })
		l.Update(view(p))
		after(25 * time.Second)
	})
	if l.network.offload {
		t.Error("the end of the daemon broke the tunnel again")
	}
}

func TestBlockedTunnel(t *testing.T) {
	inLab(t, Options{}, func(l *lab) {
		p := peer(1, route.ModeVXLAN)
		l.change(func() { l.mtu[p.Outer] = 1500 })
		l.Update(view(p))
		after(10 * time.Second)
		if l.isOn() {
			t.Error("offload is on during the trial")
		}
		after(70 * time.Second)
		if s := l.status(t, "n001", 4); s.Up || !strings.Contains(s.Finding, "VXLAN (udp/4789) from or to node n001 does not get through") {
			t.Errorf("status %+v", s)
		}
		if got := fmt.Sprint(l.sets); got != "[false true]" {
			t.Errorf("offload was set %s: one trial, then as before", got)
		}
		if got := l.told(); len(got) != 2 {
			t.Errorf("told %q", got)
		}
		l.reach(p, 1450)
		after(12 * time.Second)
		if s := l.status(t, "n001", 4); !s.Up || s.Finding != "" {
			t.Errorf("status %+v", s)
		}
	})
}

// TestOtherSideHeals has a tunnel that begins to work during the trial for another reason.
func TestOtherSideHeals(t *testing.T) {
	inLab(t, Options{}, func(l *lab) {
		p := peer(1, route.ModeVXLAN)
		l.change(func() { l.mtu[p.Outer] = 1500 })
		l.Update(view(p))
		after(8 * time.Second)
		l.reach(p, 1450)
		after(40 * time.Second)
		if s := l.status(t, "n001", 4); !s.Up || s.Finding != "" || !l.isOn() {
			t.Errorf("offload %v, status %+v", l.isOn(), s)
		}
	})
}

func TestOffloadCannotBeSet(t *testing.T) {
	inLab(t, Options{}, func(l *lab) {
		p := peer(1, route.ModeVXLAN)
		l.change(func() { l.mtu[p.Outer], l.setErr = 1500, errors.New("operation not supported") })
		l.Update(view(p))
		after(40 * time.Second)
		if s := l.status(t, "n001", 4); !strings.Contains(s.Finding, "could not be tried: operation not supported") {
			t.Errorf("status %+v", s)
		}
		if len(l.sets) != 1 {
			t.Errorf("offload was set %v", l.sets)
		}
	})
}

func TestTrialEndsWithDaemon(t *testing.T) {
	var l *lab
	inLab(t, Options{}, func(inner *lab) {
		l = inner
		p := peer(1, route.ModeVXLAN)
		l.change(func() { l.mtu[p.Outer] = 1500 })
		l.Update(view(p))
		after(10 * time.Second)
	})
	if got := fmt.Sprint(l.sets); got != "[false true]" {
		t.Errorf("offload was set %s", got)
	}
}

// Two hundred peers: all are checked soon, then once per interval, never all at once; dead ones do not starve the others.
func TestManyPeers(t *testing.T) {
	const count, inFlight = 200, 8
	inLab(t, Options{MaxInFlight: inFlight}, func(l *lab) {
		var peers []route.Peer
		for i := range count {
			p := peer(i, route.ModeVXLAN)
			l.reach(p, 1450)
			peers = append(peers, p)
		}
		l.Update(view(peers...))
		after(2 * time.Second)
		if n := len(l.Results()); n != 2*count {
			t.Errorf("%d results after two seconds, want %d", n, 2*count)
		}
		after(28 * time.Second)
		l.change(func() {
			if l.most > 2*inFlight { // two families
				t.Errorf("%d probes at the same time, want at most %d", l.most, 2*inFlight)
			}
			clear(l.checks)
		})
		after(60 * time.Second)
		for _, p := range peers {
			if n := l.checks[p.Inner[0]]; n < 5 || n > 7 {
				t.Errorf("%s was checked %d times in six intervals", p.Node, n)
			}
		}
		l.change(func() {
			for i := range count / 10 {
				delete(l.mtu, peers[i].Outer)
				delete(l.mtu, peers[i].Inner[0])
				delete(l.mtu, peers[i].Inner[1])
			}
			clear(l.checks)
		})
		after(60 * time.Second)
		if n := l.checks[peers[150].Inner[0]]; n < 4 {
			t.Errorf("a peer was checked %d times in six intervals, because others are dead", n)
		}
		if s := l.status(t, "n003", 6); s.Up {
			t.Errorf("status %+v", s)
		}
	})
}

// A peer that changes during its check is checked again; the old answer is not published.
func TestPeerChangesDuringCheck(t *testing.T) {
	inLab(t, Options{}, func(l *lab) {
		p := peer(1, route.ModeNative)
		l.Update(view(p))
		after(100 * time.Millisecond) // its first probe is out
		moved := peer(2, route.ModeNative)
		moved.Node = p.Node
		l.reach(moved, 1450)
		l.Update(view(moved))
		after(20 * time.Second)
		if s := l.status(t, "n001", 4); s.Address != moved.Inner[0] || !s.Up {
			t.Errorf("status %+v", s)
		}
		if got := l.told(); len(got) != 2 {
			t.Errorf("told %q", got)
		}
	})
}

// Silent peers hold a check for seconds; even so, no more run at a time than may.
func TestInFlightIsBounded(t *testing.T) {
	const inFlight = 3
	inLab(t, Options{MaxInFlight: inFlight}, func(l *lab) {
		var peers []route.Peer
		for i := range 20 {
			peers = append(peers, peer(i, route.ModeNative))
		}
		l.Update(view(peers...))
		after(60 * time.Second)
		l.change(func() {
			if l.most != 2*inFlight { // two families
				t.Errorf("%d probes at the same time, want %d", l.most, 2*inFlight)
			}
		})
		if n := len(l.Results()); n != 2*20 {
			t.Errorf("%d results", n)
		}
	})
}
