package store

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The environment variables that turn the test binary into a child of TestMain.
const (
	envWriter = "WEFT_STORE_TEST_WRITER"
	envFull   = "WEFT_STORE_TEST_FULL"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(envWriter); path != "" {
		os.Exit(writeUntilKilled(path))
	}
	os.Exit(m.Run())
}

func deadlineNow() time.Time { return time.Now() }

// writeUntilKilled writes leases from several goroutines and prints the number of each one after it was acknowledged.
func writeUntilKilled(path string) int {
	s, err := Open(path, Options{})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	base := 0
	if leases, err := s.Leases(); err == nil {
		base = len(leases)
	}
	var out sync.Mutex
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; i < 1000; i++ {
				n := base + i*4 + w
				if err := s.Write(ctx, PutLease(lease(n)), PutHostPorts(ports(n))); err != nil {
					fmt.Println(err)
					return
				}
				out.Lock()
				fmt.Println(n)
				out.Unlock()
			}
		})
	}
	wg.Wait()
	return 0
}

func TestKilledWriterLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.db")
	rounds := 20
	if testing.Short() {
		rounds = 4
	}
	random := rand.New(rand.NewPCG(7, 8))
	written := map[string]bool{}
	for range rounds {
		for _, n := range killWriterAfter(t, path, 1+random.IntN(60)) {
			written[fmt.Sprintf("container-%04s", n)] = true
		}
		s, err := Open(path, Options{Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if s.Recovered() != "" {
			t.Fatal(s.Recovered())
		}
		found := map[string]bool{}
		for _, l := range must(s.Leases())(t) {
			found[l.ContainerID] = true
		}
		if len(found) != len(must(s.HostPorts())(t)) {
			t.Error("half of a write is there")
		}
		for id := range written {
			if !found[id] {
				t.Errorf("%s was acknowledged and is missing", id)
			}
		}
		closeStore(t, s)
	}
}

// killWriterAfter starts a writer, kills it after some acknowledged writes, and returns all that were acknowledged.
func killWriterAfter(t *testing.T, path string, writes int) (lines []string) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), envWriter+"="+path)
	out := must(child.StdoutPipe())(t)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	scanner := bufio.NewScanner(out)
	for scanner.Scan() {
		lines = append(lines, scanner.Text())
		if len(lines) == writes {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = child.Wait()
	if len(lines) < writes {
		t.Fatalf("the writer stopped by itself: %v", lines)
	}
	return lines
}

func TestDiskFull(t *testing.T) {
	if os.Getenv(envFull) != "" {
		diskFull(t)
		return
	}
	if os.Geteuid() != 0 {
		if os.Getenv("WEFT_TEST_MUST_RUN") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	// The child has its own mount namespace: its file system goes away with it.
	child := exec.Command(os.Args[0], "-test.run=^TestDiskFull$", "-test.v")
	child.Env = append(os.Environ(), envFull+"="+t.TempDir())
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func diskFull(t *testing.T) {
	dir := os.Getenv(envFull)
	if err := errors.Join(
		syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k")); err != nil {
		t.Fatal(err)
	}
	s := open(t, filepath.Join(dir, "weft.db"))
	var kept int
	var err error
	for kept = 0; kept < 10_000 && err == nil; kept++ {
		err = s.Write(ctx, PutLease(lease(kept)))
	}
	kept-- // the last one failed
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), s.Path()) || !strings.Contains(err.Error(), "free some space") {
		t.Fatalf("after %d leases: %v", kept, err)
	}
	equal(t, kept, len(must(s.Leases())(t)))

	// One big write among small ones must not take them along.
	write(t, s, DeleteLease(attachment(0), nil), DeleteLease(attachment(1), nil))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.SaveSnapshot(ctx, snapshot(50_000)); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("the big write: %v", err)
		}
	})
	wg.Go(func() {
		if err := s.Write(ctx, PutLease(lease(0))); err != nil {
			t.Errorf("the small write: %v", err)
		}
	})
	wg.Wait()
	s = reopen(t, s)
	equal(t, kept-1, len(must(s.Leases())(t)))
	equal(t, "", s.Recovered())

	// A damaged store on a full disk is left where it is: without it, a later start would not know that leases are missing.
	closeStore(t, s)
	if err := os.WriteFile(s.Path(), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	fill(t, filepath.Join(dir, "ballast"))
	if _, err := Open(s.Path(), Options{}); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("got %v", err)
	}
	equal(t, "damaged", string(must(os.ReadFile(s.Path()))(t)))
	equal(t, 2, len(must(os.ReadDir(dir))(t)))
}

func fill(t *testing.T, path string) {
	t.Helper()
	f := must(os.Create(path))(t)
	defer func() { _ = f.Close() }()
	for range 10_000 {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return
		}
	}
	t.Fatal("the file system does not get full")
}

// TestFaultWhileOpen cuts the file below the feet of an open store.
func TestFaultWhileOpen(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "weft.db"))
	write(t, s, PutLease(lease(1)))
	if err := os.Truncate(s.Path(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Leases(); !errors.Is(err, ErrDamaged) {
		t.Errorf("read: %v", err)
	}
	if err := s.Write(ctx, PutLease(lease(2))); !errors.Is(err, ErrDamaged) {
		t.Errorf("write: %v", err)
	}
	closeStore(t, s)
}

func TestFaultInTheWriter(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "weft.db"))
	if err := os.Truncate(s.Path(), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Write(ctx, PutLease(lease(2))); !errors.Is(err, ErrDamaged) {
			t.Errorf("write: %v", err)
		}
	}
	if _, err := s.Leases(); !errors.Is(err, ErrDamaged) {
		t.Errorf("read: %v", err)
	}
	closeStore(t, s)
}
