package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"weft.network/weft/appliance/model"
)

var ctx = context.Background()

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, Options{Version: "v0.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func reopen(t testing.TB, s *Store) *Store {
	t.Helper()
	closeStore(t, s)
	return open(t, s.Path())
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func write(t testing.TB, s *Store, ops ...Op) {
	t.Helper()
	if err := s.Write(ctx, ops...); err != nil {
		t.Fatal(err)
	}
}

func attachment(n int) model.AttachmentKey {
	return model.AttachmentKey{Network: "weft", ContainerID: fmt.Sprintf("container-%04d", n), IfName: "eth0"}
}

func address(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}) }

func lease(n int) *model.Lease {
	return &model.Lease{
		AttachmentKey: attachment(n),
		Kind:          model.LeasePod,
		Pod:           model.PodRef{Namespace: "default", Name: fmt.Sprintf("web-%d", n), UID: fmt.Sprintf("uid-%d", n)},
		Addresses:     []netip.Addr{address(n), netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", n+1))},
		NetNS:         fmt.Sprintf("/run/netns/%d", n),
		HostIf:        fmt.Sprintf("weft%d", n),
		MAC:           model.MAC{2, 0, 0, 0, byte(n >> 8), byte(n)},
		MTU:           1450,
		Created:       1_700_000_000,
	}
}

func ports(n int) *model.HostPorts {
	return &model.HostPorts{
		AttachmentKey: attachment(n),
		Addresses:     []netip.Addr{address(n)},
		Mappings:      []model.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: model.TCP, HostIP: netip.MustParseAddr("::1")}},
	}
}

func snapshot(pods int) *model.Snapshot {
	s := &model.Snapshot{Revision: 7, Nodes: map[string]*model.Node{}, Pods: map[model.PodKey]*model.Pod{}}
	s.Nodes["a"] = &model.Node{Name: "a", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}
	for i := range pods {
		p := &model.Pod{PodRef: lease(i).Pod, Node: "a", Addresses: []netip.Addr{address(i)}, Labels: map[string]string{"app": "web"}}
		s.Pods[p.Key()] = p
	}
	return s
}

func TestWhatIsWrittenIsReadAfterReopen(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state", "weft.db"))
	release := model.Release{Pod: lease(3).Pod, At: 1_700_000_100}
	write(t, s,
		PutLease(lease(1)), PutLease(lease(2)), PutLease(lease(3)),
		DeleteLease(attachment(3), map[netip.Addr]model.Release{address(3): release}),
		PutRelease(address(4), release), PutRelease(address(5), release), DeleteRelease(address(4)),
		PutHostPorts(ports(1)), PutHostPorts(ports(2)), DeleteHostPorts(attachment(1)))
	if err := s.SaveSnapshot(ctx, snapshot(10)); err != nil {
		t.Fatal(err)
	}
	identity := Identity{
		NodeName: "a", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("fd00:1::/64")}, APIServers: []string{"192.0.2.1:6443"}, Drained: true,
		Learned: []model.LearnedRoute{{Prefix: netip.MustParsePrefix("10.1.0.0/24"), NextHop: netip.MustParseAddr("192.0.2.1"), Node: true}},
	}
	if err := s.UpdateIdentity(ctx, func(i *Identity) { *i = identity }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		equal(t, []*model.Lease{lease(1), lease(2)}, must(s.Leases())(t))
		equal(t, map[netip.Addr]model.Release{address(3): release, address(5): release}, must(s.Released())(t))
		equal(t, []*model.HostPorts{ports(2)}, must(s.HostPorts())(t))
		want := snapshot(10)
		want.Stored = true
		equal(t, want, must(s.Snapshot())(t))
		equal(t, identity, must(s.Identity())(t))
		s = reopen(t, s)
	}
}

func equal(t testing.TB, want, got any) {
	t.Helper()
	if !reflect.DeepEqual(want, got) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestEmptyStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, filepath.Join(dir, "weft.db"))
	equal(t, 0, len(must(s.Leases())(t)))
	equal(t, 0, len(must(s.Released())(t)))
	equal(t, (*model.Snapshot)(nil), must(s.Snapshot())(t))
	equal(t, Identity{}, must(s.Identity())(t))
	for path, mode := range map[string]os.FileMode{dir: 0o700, s.Path(): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, mode, info.Mode().Perm())
	}
	names := must(filepath.Glob(filepath.Join(dir, "*")))(t)
	equal(t, []string{s.Path()}, names)
}

func TestRebuildMarkStaysUntilRebuilt(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "weft.db"))
	equal(t, "", s.Recovered())
	for range 2 {
		equal(t, true, s.NeedsRebuild())
		s = reopen(t, s)
	}
	if err := s.Rebuilt(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		equal(t, false, s.NeedsRebuild())
		s = reopen(t, s)
	}
}

func TestBadOpsFailAloneAndWhole(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "weft.db"))
	long := attachment(1)
	long.ContainerID = strings.Repeat("x", bolt.MaxKeySize)
	tests := map[string]Op{
		"empty key":       PutLease(&model.Lease{}),
		"NUL in key":      DeleteLease(model.AttachmentKey{Network: "a\x00b", ContainerID: "c", IfName: "d"}, nil),
		"long key":        DeleteHostPorts(long),
		"invalid address": PutRelease(netip.Addr{}, model.Release{}),
		"zone":            DeleteRelease(netip.MustParseAddr("fe80::1%eth0")),
		"mapped address":  DeleteLease(attachment(2), map[netip.Addr]model.Release{netip.MustParseAddr("::ffff:10.0.0.1"): {}}),
	}
	for name, bad := range tests {
		t.Run(name, func(t *testing.T) {
			if err := s.Write(ctx, PutLease(lease(1)), bad); err == nil {
				t.Error("no error")
			}
			equal(t, 0, len(must(s.Leases())(t)))
		})
	}
}

func TestOneOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.db")
	s := open(t, path)
	for _, timeout := range []time.Duration{0, 50 * time.Millisecond} {
		start := time.Now()
		if _, err := Open(path, Options{Timeout: timeout}); !errors.Is(err, ErrBusy) {
			t.Fatalf("got %v, want ErrBusy", err)
		}
		if took := time.Since(start); took < timeout || took > timeout+2*time.Second {
			t.Errorf("timeout %v took %v", timeout, took)
		}
	}
	closeStore(t, s)
	open(t, path)
}

func TestWaiterGetsTheStoreWhenItIsClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.db")
	s := open(t, path)
	done := make(chan error)
	go func() {
		next, err := Open(path, Options{Timeout: time.Minute})
		if err == nil {
			err = next.Close()
		}
		done <- err
	}()
	write(t, s, PutLease(lease(1)))
	closeStore(t, s)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestNewerSchemaIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.db")
	s := open(t, path)
	write(t, s, PutLease(lease(1)))
	if err := s.db.Update(func(tx *bolt.Tx) error { return putSchema(tx, schemaVersion+1, "v9.9.9") }); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	before := must(os.ReadFile(path))(t)
	_, err := Open(path, Options{Version: "v0.1.0"})
	if !errors.Is(err, ErrNewer) {
		t.Fatalf("got %v, want ErrNewer", err)
	}
	for _, part := range []string{path, "schema 2", "weft v9.9.9", "weft v0.1.0"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %q", err, part)
		}
	}
	if after := must(os.ReadFile(path))(t); string(after) != string(before) {
		t.Error("the file has changed")
	}
}

func TestMigrationsRunInOrderAndKeepACopy(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "weft.db"))
	write(t, s, PutLease(lease(1)))
	var ran []int
	step := func(n int) func(*bolt.Tx) error {
		return func(*bolt.Tx) error { ran = append(ran, n); return nil }
	}
	known := map[int]func(*bolt.Tx) error{1: step(1), 2: step(2)}
	if err := migrate(s.db, "v3", map[int]func(*bolt.Tx) error{1: step(1)}, 3); err == nil {
		t.Error("a missing migration is no error")
	}
	ran = nil
	if err := migrate(s.db, "v3", known, 3); err != nil {
		t.Fatal(err)
	}
	equal(t, []int{1, 2}, ran)
	if err := migrate(s.db, "v3", known, 3); err != nil || len(ran) != 2 {
		t.Fatalf("again: %v, ran %v", err, ran)
	}
	copied := open(t, s.Path()+".schema-1")
	equal(t, []*model.Lease{lease(1)}, must(copied.Leases())(t))
}

func TestClosedStore(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "weft.db"))
	closeStore(t, s)
	closeStore(t, s)
	if err := s.Write(ctx, PutLease(lease(1))); !errors.Is(err, ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if _, err := s.Leases(); !errors.Is(err, ErrClosed) {
		t.Errorf("read: %v", err)
	}
}

func TestContextEndsTheWaitForTheTurn(t *testing.T) {
	s := &Store{requests: make(chan *request), stop: make(chan struct{})} // nobody takes requests
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := s.Write(short, PutLease(lease(1))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestConcurrentWritesAreAllThere(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "weft.db"))
	const writers, each = 20, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				n := w*each + i
				if err := s.Write(ctx, PutLease(lease(n)), PutHostPorts(ports(n))); err != nil {
					t.Error(err)
				}
				if _, err := s.Leases(); err != nil {
					t.Error(err)
				}
				if err := s.UpdateIdentity(ctx, func(id *Identity) { id.APIServers = append(id.APIServers, fmt.Sprint(n)) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s = reopen(t, s)
	equal(t, writers*each, len(must(s.Leases())(t)))
	equal(t, writers*each, len(must(s.HostPorts())(t)))
	equal(t, writers*each, len(must(s.Identity())(t).APIServers))
}
