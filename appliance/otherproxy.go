package appliance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/reconcile"
)

const (
	// proxyAge is how long an answer about another proxy is believed: looking through all processes takes a while.
	proxyAge = 30 * time.Second
	// proxySure is how long one that appears while weft serves must be there: kube-proxy --cleanup and --version are not.
	proxySure = 3 * time.Second
	// kubeProxyName is the name of its processes.
	kubeProxyName = "kube-proxy"
	// kubeProxyHealthPort is where a kube-proxy says that it is well, also one within k3s or MicroK8s, whose process has another name.
	kubeProxyHealthPort = 10256
)

// proxyWatch knows whether kube-proxy serves Services on this node: two that translate the same addresses would fight over each
// connection, so weft stands aside. Only a process counts; rules that one left behind serve stale endpoints at worst.
type proxyWatch struct {
	look  func() string       // who is there now
	again func(time.Duration) // asks for another round then

	seen           time.Time
	found, suspect string
}

func (d *Daemon) newProxyWatch() *proxyWatch {
	return &proxyWatch{
		look: func() string { return findOtherProxy("/proc") },
		again: func(after time.Duration) {
			time.AfterFunc(after, func() { d.loop.Kick(reconcile.Trigger{What: "another proxy was seen"}) })
		},
	}
}

// other says who serves Services besides weft and what to do about it, or nothing. Only the loop calls it.
func (w *proxyWatch) other() string {
	age := proxyAge
	if w.suspect != "" {
		age = proxySure
	}
	if time.Since(w.seen) >= age {
		who, atStart := w.look(), w.seen.IsZero()
		w.seen = time.Now()
		if who == "" || atStart || w.found != "" || who == w.suspect {
			w.found, w.suspect = who, ""
		} else {
			w.suspect = who
		}
		switch {
		case w.suspect != "":
			w.again(proxySure)
		case w.found != "":
			w.again(proxyAge)
		}
	}
	if w.found == "" {
		return ""
	}
	return w.found + " serves Services on this node, so weft leaves them to it: remove kube-proxy, or take services out of roles in weft.yaml"
}

// findOtherProxy names a kube-proxy in the network namespace of this process, or whoever answers where one would: empty if nobody does.
func findOtherProxy(proc string) string {
	if pid := findKubeProxy(proc); pid != "" {
		return fmt.Sprintf("kube-proxy (pid %s)", pid)
	}
	for _, l := range listeners(filepath.Join(proc, "self", "net")) {
		if l.protocol != model.TCP || l.at.Port() != kubeProxyHealthPort {
			continue
		}
		who := socketOwner(proc, l.inode)
		if strings.HasSuffix(who, fmt.Sprintf(" (pid %d)", os.Getpid())) {
			continue
		}
		if who == "" {
			who = "a process that cannot be seen from here"
		}
		return fmt.Sprintf("%s, at the port %d of kube-proxy's health checks,", who, kubeProxyHealthPort)
	}
	return ""
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
