package appliance

import (
	"os"
	"path/filepath"
	"testing"
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
