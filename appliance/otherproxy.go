package appliance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// proxyAge is how long an answer about another proxy is believed: looking through all processes takes a while.
const proxyAge = 30 * time.Second

// otherProxy says whether kube-proxy serves Services on this node: two that translate the same addresses would fight over each
// connection, so weft stands aside. Only a process counts; rules that one left behind serve stale endpoints at worst.
func (d *Daemon) otherProxy() string {
	if time.Since(d.proxySeen) < proxyAge {
		return d.proxy
	}
	d.proxySeen, d.proxy = time.Now(), ""
	if pid := findProcess("/proc", "kube-proxy"); pid != "" {
		d.proxy = fmt.Sprintf("kube-proxy (pid %s) serves Services on this node, so weft leaves them to it: remove kube-proxy, "+
			"or take services out of roles in weft.yaml", pid)
	}
	return d.proxy
}

// findProcess returns the ID of a process of that name, or nothing.
func findProcess(proc, name string) string {
	files, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "comm"))
	if err != nil {
		return ""
	}
	for _, f := range files {
		if comm, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(comm)) == name {
			return filepath.Base(filepath.Dir(f))
		}
	}
	return ""
}
