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

// kubeProxyName is the name of its processes.
const kubeProxyName = "kube-proxy"

// otherProxy says whether kube-proxy serves Services on this node: two that translate the same addresses would fight over each
// connection, so weft stands aside. Only a process counts; rules that one left behind serve stale endpoints at worst.
func (d *Daemon) otherProxy() string {
	if time.Since(d.proxySeen) < proxyAge {
		return d.proxy
	}
	d.proxySeen, d.proxy = time.Now(), ""
	if pid := findKubeProxy("/proc"); pid != "" {
		d.proxy = fmt.Sprintf("kube-proxy (pid %s) serves Services on this node, so weft leaves them to it: remove kube-proxy, "+
			"or take services out of roles in weft.yaml", pid)
	}
	return d.proxy
}

// findKubeProxy returns the ID of a kube-proxy in the network namespace of this process, or nothing: one in another namespace
// serves another node on the same machine. A process whose namespace cannot be read counts.
func findKubeProxy(proc string) string {
	own, _ := os.Readlink(filepath.Join(proc, "self", "ns", "net"))
	files, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "comm"))
	if err != nil {
		return ""
	}
	for _, f := range files {
		comm, err := os.ReadFile(f)
		if err != nil || strings.TrimSpace(string(comm)) != kubeProxyName {
			continue
		}
		if ns, err := os.Readlink(filepath.Join(filepath.Dir(f), "ns", "net")); err != nil || ns == own {
			return filepath.Base(filepath.Dir(f))
		}
	}
	return ""
}
