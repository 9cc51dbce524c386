package appliance

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A kube-proxy counts when it is in this node's network namespace, or when nobody can tell.
func TestFindKubeProxy(t *testing.T) {
	proc := t.TempDir()
	process := func(pid, comm, ns string) {
		dir := filepath.Join(proc, pid, "ns")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, pid, "comm"), []byte(comm+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if ns == "" {
			return
		}
		if err := os.Symlink("net:["+ns+"]", filepath.Join(dir, "net")); err != nil {
			t.Fatal(err)
		}
	}
	process("self", "weftd", "1")
	process("10", "kube-proxyd", "1")
	process("11", "kube-proxy", "2")
	if pid := findKubeProxy(proc); pid != "" {
		t.Errorf("found %s, which is of another name or on another node", pid)
	}
	process("12", "kube-proxy", "1")
	if pid := findKubeProxy(proc); pid != "12" {
		t.Errorf("found %q, want 12", pid)
	}
	if err := os.RemoveAll(filepath.Join(proc, "12")); err != nil {
		t.Fatal(err)
	}
	process("13", "kube-proxy", "")
	if pid := findKubeProxy(proc); pid != "13" {
		t.Errorf("found %q, want 13, of which nobody can tell", pid)
	}
}

// TestProxyWatch: weft stands aside for a proxy that is there at its start, or that stays, and serves again when it is gone.
func TestProxyWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := ""
		var rounds []time.Duration
		newWatch := func() *proxyWatch {
			return &proxyWatch{look: func() string { return there }, again: func(after time.Duration) { rounds = append(rounds, after) }}
		}
		later := func(d time.Duration) { <-time.NewTimer(d).C }
		says := func(w *proxyWatch, want bool, when string) {
			t.Helper()
			if got := w.other() != ""; got != want {
				t.Errorf("%s: another proxy %v, want %v", when, got, want)
			}
		}
		there = "kube-proxy (pid 1)"
		says(newWatch(), true, "at the start")
		there = ""
		w := newWatch()
		says(w, false, "alone")
		later(proxyAge)
		there = "kube-proxy (pid 2)"
		says(w, false, "at the first look")
		there = ""
		later(proxySure)
		says(w, false, "gone at the second look")
		later(proxyAge)
		there = "kube-proxy (pid 3)"
		says(w, false, "at the first look")
		later(proxySure)
		says(w, true, "at the second look")
		there = ""
		later(proxyAge - time.Second)
		says(w, true, "while the answer is believed")
		later(time.Second)
		says(w, false, "gone")
		if want := []time.Duration{proxyAge, proxySure, proxySure, proxyAge}; !slices.Equal(rounds, want) {
			t.Errorf("rounds asked for after %v, want %v", rounds, want)
		}
	})
}

// TestFindOtherProxy: a kube-proxy within another program is known by the port of its health checks.
func TestFindOtherProxy(t *testing.T) {
	proc := t.TempDir()
	table := func(port string) {
		if err := os.MkdirAll(filepath.Join(proc, "self", "net"), 0o755); err != nil {
			t.Fatal(err)
		}
		text := "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
			"   0: 0100007F:" + port + " 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n"
		if err := os.WriteFile(filepath.Join(proc, "self", "net", "tcp"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	owner := func(pid, comm string) {
		if err := os.MkdirAll(filepath.Join(proc, pid, "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, pid, "comm"), []byte(comm+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("socket:[4711]", filepath.Join(proc, pid, "fd", "3")); err != nil {
			t.Fatal(err)
		}
	}
	table("2809") // 10249
	if who := findOtherProxy(proc); who != "" {
		t.Errorf("found %q", who)
	}
	table("2810") // 10256
	if who := findOtherProxy(proc); !strings.HasPrefix(who, "a process that cannot be seen") {
		t.Errorf("found %q", who)
	}
	owner("77", "k3s-server")
	if who := findOtherProxy(proc); !strings.HasPrefix(who, "k3s-server (pid 77)") {
		t.Errorf("found %q", who)
	}
	if err := os.RemoveAll(filepath.Join(proc, "77")); err != nil {
		t.Fatal(err)
	}
	owner(strconv.Itoa(os.Getpid()), "weftd")
	if who := findOtherProxy(proc); who != "" {
		t.Errorf("found %q, which is this process", who)
	}
}
