package netlab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
	"weft.network/weft/appliance/model"
)

func names(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%d", prefix, i)
	}
	return out
}

func pauses(prefix string, n int) []lab.PodSpec {
	out := make([]lab.PodSpec, n)
	for i := range out {
		out[i] = lab.PodSpec{Name: fmt.Sprintf("%s%d", prefix, i), Pause: true}
	}
	return out
}

// TestKillDuringBurst: weftd is killed in the middle of 50 ADDs and 50 DELs. The runtime tries again what failed; then nothing may
// be leaked, and no address may have been given twice.
func TestKillDuringBurst(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon stays away %v", away), func(t *testing.T) {
			s := tell(t, lab.Options{Nodes: 1})
			for range 3 { // who kills may come too late on a busy machine
				if s.killInBurst(away) > 0 {
					return
				}
			}
			t.Error("no ADD failed: weftd was not killed in the middle")
		})
	}
}

// killInBurst is one burst; it returns how many ADDs failed, and leaves no Pod.
func (s *story) killInBurst(away bool) int {
	s.t.Helper()
	s.runSpecs("node1", pauses("old", 50)...)
	fresh := pauses("new", 50)

	var wg sync.WaitGroup
	var added []lab.RunResult
	var deleted []error
	var errAdd, errDel error
	wg.Go(func() { added, errAdd = s.RunPods(s.ctx, "node1", fresh) })
	wg.Go(func() { deleted, errDel = s.DeletePods(s.ctx, names("old", 50)) })
	s.eventually("the middle of the burst", 10*time.Second, s.midBurst)
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGKILL))
	if away {
		wg.Wait()
	}
	s.no(s.StartDaemon(s.ctx, "node1"))
	wg.Wait()
	s.no(errors.Join(errAdd, errDel))

	var failedAdds []lab.PodSpec
	for i, p := range fresh {
		if added[i].Err != nil {
			failedAdds = append(failedAdds, p)
		}
	}
	failedDels := 0
	for _, err := range deleted {
		if err != nil {
			failedDels++
		}
	}
	s.t.Logf("%d of 50 ADDs and %d of 50 DELs failed when weftd was killed", len(failedAdds), failedDels)
	s.no(s.WaitReady(s.ctx, "node1"))
	s.retry("node1", failedAdds, names("old", 50))

	pods := s.pods("node1")
	if len(pods) != 50 {
		s.t.Fatalf("%d Pods, want 50", len(pods))
	}
	s.addresses(pods...)
	s.clean("node1")
	s.delete(names("new", 50)...)
	s.clean("node1")
	return len(failedAdds)
}

// midBurst holds when some of the new Pods have a lease, and most have not.
func (s *story) midBurst() error {
	n := 0
	for _, l := range s.leases("node1") {
		if len(l.Pod.Name) > 3 && l.Pod.Name[:3] == "new" {
			n++
		}
	}
	if n < 5 {
		return fmt.Errorf("%d ADDs are done", n)
	}
	return nil
}

// retry does what kubelet and runtime do about failed calls: again until they succeed, each ADD with a new sandbox.
func (s *story) retry(node string, adds []lab.PodSpec, dels []string) {
	s.t.Helper()
	s.eventually("a DEL that succeeds for every Pod that was deleted", 20*time.Second, func() error {
		var left []string
		for _, name := range dels {
			if _, err := s.Pod(name); err == nil {
				left = append(left, name)
			}
		}
		errs, err := s.DeletePods(s.ctx, left)
		return errors.Join(append(errs, err, s.Sweep(s.ctx, node))...)
	})
	s.eventually("an ADD that succeeds for every Pod", 20*time.Second, func() error {
		results, err := s.RunPods(s.ctx, node, adds)
		if err != nil {
			return err
		}
		var left []lab.PodSpec
		for i, r := range results {
			if r.Err != nil {
				left, err = append(left, adds[i]), r.Err
			}
		}
		adds = left
		return errors.Join(err, s.Sweep(s.ctx, node))
	})
}

// TestStoreTruncated: whatever is left of the store, the daemon comes up, finds the leases in the kernel again, and gives no
// address twice; the Pods notice nothing.
func TestStoreTruncated(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	far := s.run("node2", "far")[0]
	held := s.run("node1", names("held", 6)...)
	rate := model.Bandwidth{IngressRate: 1e8, IngressBurst: 1e6, EgressRate: 1e8, EgressBurst: 1e6}
	special := s.runSpecs("node1",
		lab.PodSpec{Name: "limited", Bandwidth: rate}, lab.PodSpec{Name: "ported", Ports: ports(t, "8088:8080")})
	node1, err := s.Node("node1")
	s.no(err)
	said := false
	store := filepath.Join(s.Dir, "node1", "var/lib/weft/weft.db")
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for round := range 8 {
		before := s.addresses(append(slices.Clone(held), special...)...)
		signal := unix.SIGTERM
		if round%2 == 1 {
			signal = unix.SIGKILL
		}
		s.no(s.KillDaemon(s.ctx, "node1", signal))
		st, err := os.Stat(store)
		s.no(err)
		size := random.Int64N(st.Size())
		if round == 0 {
			size = 0
		}
		s.no(os.Truncate(store, size))
		s.no(s.StartDaemon(s.ctx, "node1"))
		s.no(s.WaitReady(s.ctx, "node1"))
		recovered := s.status("node1").Store.Recovered
		said = said || recovered != ""
		t.Logf("cut to %d of %d bytes: %q", size, st.Size(), recovered)

		more := s.run("node1", fmt.Sprintf("more%d", round))[0]
		all := append(append(slices.Clone(held), special...), more)
		after := s.addresses(all...)
		for name, addresses := range before {
			if !slices.Equal(after[name], addresses) {
				t.Errorf("cut to %d of %d bytes: %s had %v, now %v", size, st.Size(), name, addresses, after[name])
			}
		}
		s.clean("node1")
		s.reaches(far, all...)
		s.reaches(more, far)
		held = append(held, more)
		if _, err := s.get(lab.Outside, node1.Addresses[0], 8088); err != nil {
			t.Errorf("cut to %d of %d bytes: the host port of a Pod that runs is closed: %v", size, st.Size(), err)
		}
		for _, l := range s.leases("node1") {
			if l.NetNS == "" {
				t.Errorf("cut to %d of %d bytes: nobody knows the network namespace of %s any more", size, st.Size(), l.Pod)
			}
		}
		// One that was there before must also be known well enough to be taken down.
		s.delete(held[0].Name)
		held = held[1:]
		s.clean("node1")
	}
	if !said {
		t.Error("weft status never said that the store was damaged")
	}
	// What was lost must not keep the limits of a Pod from being taken down with it.
	s.delete("limited", "ported")
	s.clean("node1")
	s.eventually("no link for a limit that is gone", repairTime, func() error {
		if links := s.out("node1", "ip -br link show type ifb"); links != "" {
			return errors.New(links)
		}
		return nil
	})
	if s.refused(func() error { _, err := s.get(lab.Outside, node1.Addresses[0], 8088); return err }) == nil {
		t.Error("the host port of a Pod that is gone is open")
	}
	if files, _ := filepath.Glob(filepath.Join(filepath.Dir(store), "*")); len(files) < 2 {
		t.Errorf("no damaged store was moved aside: %v", files)
	}
}

// TestTrafficWithoutDaemon: weftd is killed on both ends of a conversation, stays away a while and comes back: no request is lost,
// neither on a connection that was there nor on new ones.
func TestTrafficWithoutDaemon(t *testing.T) {
	for _, mode := range []string{"auto", "vxlan"} {
		t.Run(mode, func(t *testing.T) {
			s := tell(t, lab.Options{Nodes: 2, Mode: mode})
			a := s.run("node1", "a", "neighbour")
			b := s.runSpecs("node2", lab.PodSpec{Name: "b", Ports: ports(t, "8088:8080")})[0]
			node2, err := s.Node("node2")
			s.no(err)
			var loads []*traffic
			for _, at := range append(b.Addresses, a[1].Addresses...) {
				loads = append(loads, s.traffic("a", netip.AddrPortFrom(at, lab.HTTPPort)))
			}
			loads = append(loads, s.traffic(lab.Outside, netip.AddrPortFrom(node2.Addresses[0], 8088)))
			for range 2 {
				for _, node := range []string{"node1", "node2"} {
					s.no(s.KillDaemon(s.ctx, node, unix.SIGKILL))
				}
				// Both are away while whole connections come and go.
				s.reaches(a[0], b)
				s.reaches(b, a...)
				for _, node := range []string{"node1", "node2"} {
					s.no(s.StartDaemon(s.ctx, node))
					s.no(s.WaitReady(s.ctx, node))
				}
			}
			for _, l := range loads {
				l.finish(s)
			}
		})
	}
}

// traffic is a client that asks again and again until it is told to finish.
type traffic struct {
	to     netip.AddrPort
	stop   io.Closer
	done   chan error
	stdout bytes.Buffer
}

func (s *story) traffic(from string, to netip.AddrPort) *traffic {
	s.t.Helper()
	r, w := io.Pipe()
	tr := &traffic{to: to, stop: w, done: make(chan error, 1)}
	go func() {
		var stderr bytes.Buffer
		exit, err := s.Exec(s.ctx, from, []string{"weft", lab.PodCommand, "load", fmt.Sprintf("http://%s/", to)}, lab.Stdio{In: r, Out: &tr.stdout, Err: &stderr})
		if err == nil && exit != 0 {
			err = errors.New(stderr.String())
		}
		tr.done <- err
	}()
	return tr
}

// finish ends the client and fails the story if it lost a request.
func (tr *traffic) finish(s *story) {
	s.t.Helper()
	_ = tr.stop.Close()
	err := <-tr.done
	var loads struct{ New, Kept lab.Load }
	if e := json.Unmarshal(tr.stdout.Bytes(), &loads); e != nil {
		s.t.Fatalf("traffic to %s: %v (%v)", tr.to, err, e)
	}
	s.t.Logf("traffic to %s: new connections %+v, one connection %+v", tr.to, loads.New, loads.Kept)
	if err != nil {
		s.t.Errorf("traffic to %s: %v", tr.to, err)
	}
}
