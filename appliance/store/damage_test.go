package store

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"

	"weft.network/weft/appliance/model"
)

// sample returns the bytes of a store with everything in it, several pages deep, and with free pages.
func sample(t testing.TB, leases int) []byte {
	t.Helper()
	s := open(t, filepath.Join(t.TempDir(), "weft.db"))
	var ops []Op
	for n := range leases {
		ops = append(ops, PutLease(lease(n)), PutHostPorts(ports(n)), PutRelease(address(n), model.Release{At: 1}))
	}
	write(t, s, ops...)
	if err := s.SaveSnapshot(ctx, snapshot(leases)); err != nil {
		t.Fatal(err)
	}
	for n := range leases / 3 {
		write(t, s, DeleteHostPorts(attachment(3*n)))
	}
	if err := s.UpdateIdentity(ctx, func(i *Identity) { i.NodeName = "a" }); err != nil {
		t.Fatal(err)
	}
	if err := s.Rebuilt(ctx); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	return must(os.ReadFile(s.Path()))(t)
}

// everything is all that can be read from a store.
type everything struct {
	Leases   []*model.Lease
	Released map[netip.Addr]model.Release
	Ports    []*model.HostPorts
	Snapshot *model.Snapshot
	Identity Identity
}

func readAll(t testing.TB, s *Store) everything {
	t.Helper()
	return everything{must(s.Leases())(t), must(s.Released())(t), must(s.HostPorts())(t), must(s.Snapshot())(t), must(s.Identity())(t)}
}

// place writes content to a new path.
func place(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weft.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkUsable writes and reads, and checks the rest of the contract for a store that was moved aside.
func checkUsable(t testing.TB, s *Store, damaged []byte) {
	t.Helper()
	if s.Recovered() != "" {
		aside, _, _ := strings.Cut(s.Recovered(), ": moved aside on ")
		if !bytes.Equal(damaged, must(os.ReadFile(aside))(t)) {
			t.Errorf("%s is not the damaged file", aside)
		}
		if !s.NeedsRebuild() {
			t.Error("no rebuild asked for")
		}
	}
	write(t, s, PutLease(lease(9999)))
	s = reopen(t, s)
	if leases := must(s.Leases())(t); len(leases) == 0 || leases[len(leases)-1].ContainerID != "container-9999" {
		t.Error("a lease that was written after the recovery is missing")
	}
	closeStore(t, s)
}

func TestTruncatedAnywhere(t *testing.T) {
	whole := sample(t, 60)
	want := readAll(t, open(t, place(t, whole)))
	step := 1021
	if testing.Short() {
		step = 7919
	}
	lost := 0
	for size := 0; size < len(whole); size += step {
		s := open(t, place(t, whole[:size]))
		if s.Recovered() == "" {
			equal(t, want, readAll(t, s)) // the file is longer than what it holds
		} else {
			lost++
			equal(t, 0, len(must(s.Leases())(t)))
		}
		checkUsable(t, s, whole[:size])
	}
	if lost == 0 {
		t.Error("no truncation was noticed")
	}
}

func TestFlippedBytes(t *testing.T) {
	whole := sample(t, 60)
	want := readAll(t, open(t, place(t, whole)))
	rounds := 300
	if testing.Short() {
		rounds = 60
	}
	random := rand.New(rand.NewPCG(1, 2))
	var harmless, saved int
	for range rounds {
		damaged := bytes.Clone(whole)
		for range 1 + random.IntN(3) {
			damaged[random.IntN(len(damaged))] ^= byte(1 + random.IntN(255))
		}
		s := open(t, place(t, damaged))
		if s.Recovered() == "" {
			harmless++
			equal(t, want, readAll(t, s))
		} else if len(must(s.Leases())(t)) > 0 {
			saved++
		}
		checkUsable(t, s, damaged)
	}
	if harmless == 0 || harmless == rounds || saved == 0 {
		t.Errorf("of %d files %d were read unharmed and %d were saved in part: not a useful test", rounds, harmless, saved)
	}
}

func TestDamagedKinds(t *testing.T) {
	whole := sample(t, 60)
	random := rand.New(rand.NewPCG(3, 4))
	garbage := make([]byte, 64<<10)
	for i := range garbage {
		garbage[i] = byte(random.Uint32())
	}
	edit := func(f func(b []byte)) []byte { b := bytes.Clone(whole); f(b); return b }
	newest := newestMeta(t, whole)
	tests := []struct {
		name, reason string
		content      []byte
		keeps        bool
	}{
		{"empty", "the file is empty", nil, false},
		{"short text", "no valid meta page", []byte("hello"), false},
		{"garbage", "no valid meta page", garbage, false},
		{"garbage page", "says that it is page", edit(func(b []byte) { copy(b[int(newest.root)*pageSize:], garbage[:pageSize]) }), false},
		{"zero pages", "", edit(func(b []byte) { clear(b[3*pageSize : 8*pageSize]) }), false},
		{"first meta", errOldMeta.Error(), edit(func(b []byte) { clear(b[:pageSize]) }), true},
		{"second meta", errOldMeta.Error(), edit(func(b []byte) { clear(b[pageSize : 2*pageSize]) }), true},
		{"both metas", "no valid meta page", edit(func(b []byte) { clear(b[:2*pageSize]) }), false},
		{"root is a free list", "unknown type 0x10", edit(func(b []byte) { order.PutUint16(b[int(newest.root)*pageSize+8:], flagFreelist) }), false},
		{"page number", "says that it is page", edit(func(b []byte) { b[int(newest.root)*pageSize]++ }), false},
		{"more pages than there are", "more pages than the file has", edit(func(b []byte) { order.PutUint32(b[int(newest.root)*pageSize+12:], 1<<31) }), false},
		{"count", "outside of it", edit(func(b []byte) { order.PutUint16(b[int(newest.root)*pageSize+10:], 0xFFFF) }), false},
		{"free list count", "more than fit", edit(func(b []byte) {
			order.PutUint16(b[int(newest.freelist)*pageSize+10:], longFreelist)
			order.PutUint64(b[int(newest.freelist)*pageSize+pageHeader:], 1<<60)
		}), false},
		{"free list entry", "outside of the file", edit(func(b []byte) {
			order.PutUint64(b[int(newest.freelist)*pageSize+pageHeader:], 1<<60)
		}), false},
		{"a lease", "does not match its checksum", bytes.Replace(whole, []byte(`"uid-7"`), []byte(`"uid-8"`), -1), true},
		{"schema", "weft did not write this file", edit(func(b []byte) {
			// the live copy is not known, so all are changed
			for at := 0; ; {
				i := bytes.Index(b[at:], []byte("schema1"))
				if i < 0 {
					return
				}
				copy(b[at+i:], "schemaX")
				at += i + 1
			}
		}), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := open(t, place(t, test.content))
			if s.Recovered() == "" || !strings.Contains(s.Recovered(), test.reason) {
				t.Errorf("got %q, want %q in it", s.Recovered(), test.reason)
			}
			if kept := len(must(s.Leases())(t)); kept > 0 != test.keeps {
				t.Errorf("%d leases were kept", kept)
			}
			checkUsable(t, s, test.content)
		})
	}
}

func newestMeta(t testing.TB, whole []byte) meta {
	return must(readMetas(bytes.NewReader(whole), int64(len(whole))))(t)
}

func TestForeignDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.db")
	db := must(bolt.Open(path, 0o600, nil))(t)
	err := db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte(bucketLeases))
		if err != nil {
			return err
		}
		return b.Put([]byte("x"), []byte("not ours"))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	content := must(os.ReadFile(path))(t)
	s := open(t, path)
	if !strings.Contains(s.Recovered(), "weft did not write this file") {
		t.Errorf("got %q", s.Recovered())
	}
	checkUsable(t, s, content)
}

func TestDamagedCopiesAreFew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.db")
	for range keepDamaged + 3 {
		if err := os.WriteFile(path, []byte("damaged"), 0o644); err != nil {
			t.Fatal(err)
		}
		closeStore(t, open(t, path))
	}
	equal(t, keepDamaged, len(must(filepath.Glob(path+".damaged-*"))(t)))
	equal(t, os.FileMode(0o600), must(os.Stat(path))(t).Mode().Perm())
}

func TestReplacedWhileWaiting(t *testing.T) {
	// A process that waits for the lock of a file that is moved aside meanwhile must not take the old file for the store.
	path := place(t, []byte("damaged"))
	held := must(lock(path, "", deadlineNow()))(t)
	if err := replace(path, "v0.1.0", damage{reason: "test"}); err != nil {
		t.Fatal(err)
	}
	if sameFile(held, path) {
		t.Fatal("the file at the path is still the old one")
	}
	s := open(t, path) // the old lock is still held, but of another file
	if !strings.Contains(s.Recovered(), "test") {
		t.Errorf("got %q", s.Recovered())
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyAgreesWithBolt opens with bbolt whatever verify lets through and has bbolt check it.
func TestVerifyAgreesWithBolt(t *testing.T) {
	whole := sample(t, 60)
	random := rand.New(rand.NewPCG(5, 6))
	rounds := 500
	if testing.Short() {
		rounds = 100
	}
	passed := 0
	for range rounds {
		damaged := bytes.Clone(whole)
		damaged[random.IntN(len(damaged))] ^= byte(1 + random.IntN(255))
		if verify(bytes.NewReader(damaged), int64(len(damaged))) != nil {
			continue
		}
		passed++
		if err := boltCheck(t, place(t, damaged)); err != nil {
			t.Fatalf("verify passed what bbolt does not: %v", err)
		}
	}
	if passed == 0 || passed == rounds {
		t.Errorf("%d of %d passed: not a useful test", passed, rounds)
	}
}

func boltCheck(t testing.TB, path string) (err error) {
	t.Helper()
	db := must(openBolt(path, nil))(t)
	return errors.Join(db.View(func(tx *bolt.Tx) error {
		for problem := range tx.Check() {
			err = errors.Join(err, problem)
		}
		return err
	}), db.Close())
}

// FuzzOpen overwrites a part of a store with arbitrary bytes and cuts it.
func FuzzOpen(f *testing.F) {
	whole := sample(f, 20)
	f.Add(uint32(0), uint32(0), []byte{})
	f.Add(uint32(3*pageSize), uint32(0), []byte{1, 2, 3})
	f.Add(uint32(100), uint32(5000), []byte("schema"))
	f.Fuzz(func(t *testing.T, at, cut uint32, patch []byte) {
		damaged := bytes.Clone(whole[:len(whole)-int(cut)%len(whole)])
		copy(damaged[int(at)%len(damaged):], patch)
		s := open(t, place(t, damaged))
		checkUsable(t, s, damaged)
	})
}
