package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/control"
	"weft.network/weft/plugins/cni"
)

// newNode announces one more node to the cluster; it does not run yet.
func (l *Lab) newNode(podCIDRs map[string][]netip.Prefix) error {
	return l.update(func(s *state) error {
		s.Count++
		number := s.Count
		n := &Node{machine: machine{Name: fmt.Sprintf("node%d", number)}, Number: number, Host: nodeHost + number}
		n.Subnet = (number-1)%s.Subnets + 1
		n.Addresses = addressesOf(s.subnetPrefixes(n.Subnet, n.Host))
		n.PodCIDRs = slices.Clone(podCIDRs[n.Name])
		for _, p := range s.podPrefixes(number) {
			if !slices.ContainsFunc(n.PodCIDRs, func(own netip.Prefix) bool { return own.Addr().Is4() == p.Addr().Is4() }) {
				n.PodCIDRs = append(n.PodCIDRs, p)
			}
		}
		s.Nodes = append(s.Nodes, n)
		if err := l.furnishFolders(s, n.Name); err != nil {
			return err
		}
		return l.writeNode(n)
	})
}

// furnishFolders makes what a node has on disk before its first boot: its folders, the plugins, its weft.yaml.
func (l *Lab) furnishFolders(s *state, name string) error {
	for _, f := range nodeFolders {
		if err := os.MkdirAll(l.path(name, f), 0o755); err != nil {
			return fmt.Errorf("making the folders of %s: %w", name, err)
		}
	}
	if err := os.MkdirAll(l.path(name, "/opt/cni/bin"), 0o755); err != nil {
		return fmt.Errorf("making the folders of %s: %w", name, err)
	}
	for _, plugin := range cni.Plugins() {
		if err := os.Symlink(s.WeftBin, l.path(name, "/opt/cni/bin", plugin)); err != nil {
			return fmt.Errorf("linking the plugin %s: %w", plugin, err)
		}
	}
	if err := l.reachAPI(name, true); err != nil {
		return err
	}
	return l.writeConfig(s, name)
}

// ClusterDNS and ClusterDNS6 are what Pods of the lab ask, as kubelet would tell them.
const (
	ClusterDNS  = "10.96.0.10"
	ClusterDNS6 = "fd00:10:96::a"
)

// apiLink is, on a node, the folder in which weftd finds the cluster's objects.
const apiLink = "/etc/weft/manifests"

// reachAPI gives a node the cluster's objects, or takes them away. A daemon that runs keeps what it has open.
func (l *Lab) reachAPI(name string, reach bool) error {
	link := l.path(name, apiLink)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("taking the cluster's objects from %s: %w", name, err)
	}
	if !reach {
		return nil
	}
	if err := os.Symlink(l.path(manifestsFolder), link); err != nil {
		return fmt.Errorf("giving the cluster's objects to %s: %w", name, err)
	}
	return nil
}

// RestoreAPI gives a node the cluster's objects again, after Reboot without them.
func (l *Lab) RestoreAPI(name string) error { return l.reachAPI(name, true) }

func (l *Lab) writeConfig(s *state, name string) error {
	text := "# written by weft lab\nmanifests: " + apiLink + "\nfabric:\n  mode: " + s.Mode + "\n" + s.Settings
	if !strings.Contains(s.Settings, "dns:\n") {
		text += fmt.Sprintf("dns:\n  addresses: [%q, %q]\n", ClusterDNS, ClusterDNS6)
	}
	return writeFile(l.path(name, "/etc/weft/weft.yaml"), []byte(text))
}

// boot starts an announced node: its namespaces, its link, its daemon.
func (l *Lab) boot(ctx context.Context, name string) error {
	n, s, err := l.node(name)
	if err != nil {
		return err
	}
	m, err := l.hold(ctx, s, name, roleNode)
	if err != nil {
		return err
	}
	n.machine = m
	if err := l.updateNode(name, func(n *Node) { n.machine = m }); err != nil {
		return err
	}
	h, fd, err := s.Router.netlinkIn()
	if err != nil {
		return err
	}
	defer func() { h.Close(); _ = unix.Close(fd) }()
	err = plug(h, m, subnetName(n.Subnet), s.MTU, s.subnetPrefixes(n.Subnet, n.Host), addressesOf(s.subnetPrefixes(n.Subnet, 1)))
	if err != nil {
		return err
	}
	if err := routePods(s, n, false); err != nil {
		return err
	}
	l.say("%s is up: addresses %v, Pods %v", name, n.Addresses, n.PodCIDRs)
	if s.Bare {
		return nil
	}
	return l.StartDaemon(ctx, name)
}

// StartDaemon starts weftd on a node; it does not wait until it is ready, see WaitReady.
func (l *Lab) StartDaemon(ctx context.Context, name string) error {
	n, s, err := l.node(name)
	if err != nil {
		return err
	}
	if n.Daemon.Alive() {
		return fmt.Errorf("weftd runs on %s already (pid %d)", name, n.Daemon.PID)
	}
	p, err := l.run(ctx, s, n.machine, program{Argv: []string{s.WeftBin, "weftd"}, Log: l.logPath(name + "-weftd"), Service: true})
	if err != nil {
		return err
	}
	return l.updateNode(name, func(n *Node) { n.Daemon = p })
}

// KillDaemon sends a signal to a node's weftd and, unless it is SIGHUP, waits until the process has ended.
func (l *Lab) KillDaemon(ctx context.Context, name string, sig syscall.Signal) error {
	n, _, err := l.node(name)
	if err != nil {
		return err
	}
	if !n.Daemon.Alive() {
		return fmt.Errorf("weftd does not run on %s", name)
	}
	return n.Daemon.signal(ctx, sig, sig != unix.SIGHUP)
}

// readyTime is how long a daemon may take, unless the caller's context ends before.
const readyTime = 20 * time.Second

// WaitReady returns when a node's weftd says that Pods can be attached.
func (l *Lab) WaitReady(ctx context.Context, name string) error { return l.waitReady(ctx, name) }

func (l *Lab) waitReady(ctx context.Context, name string) error {
	n, s, err := l.node(name)
	if err != nil || s.Bare {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	err = poll(ctx, "weftd on "+name+" to be ready", func() error {
		if !n.Daemon.Alive() {
			cancel()
			return errors.New("it has ended")
		}
		if found, _ := filepath.Glob(l.path(name, confFolder, "*.conflist")); len(found) == 0 {
			return errors.New(confFolder + " holds no network configuration") // which is what a runtime goes by
		}
		return n.daemonReady(ctx)
	})
	if err != nil {
		return fmt.Errorf("%w; the end of its log:\n%s", err, tail(l.logPath(name+"-weftd"), 15))
	}
	return nil
}

// daemonStatus is the part of weftd's answer to /v1/status that the lab needs.
type daemonStatus struct {
	Node struct {
		Ready bool   `json:"ready"`
		Why   string `json:"why"`
	} `json:"node"`
	Source struct {
		Read time.Time `json:"read"`
	} `json:"source"`
}

func (n *Node) daemonStatus(ctx context.Context) (out daemonStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return out, n.ask(ctx, "/v1/status", &out)
}

// daemonReady asks weftd whether Pods can be attached.
func (n *Node) daemonReady(ctx context.Context) error {
	status, err := n.daemonStatus(ctx)
	if err != nil {
		return err
	}
	if !status.Node.Ready {
		return fmt.Errorf("not ready: %s", status.Node.Why)
	}
	return nil
}

func (n *Node) ask(ctx context.Context, path string, out any) error {
	// By way of the process, since a socket's path may be at most 107 bytes long.
	return control.NewClient(fmt.Sprintf("/proc/%d/root/run/weft", n.Holder.PID)).Get(ctx, path, out)
}

// Ask sends a request to a node's weftd, as `weft` on that node does, and decodes the answer.
func (l *Lab) Ask(ctx context.Context, name, path string, out any) error {
	n, _, err := l.node(name)
	if err != nil {
		return err
	}
	return n.ask(ctx, path, out)
}

// AddNode adds a node and waits until it is ready. A family without a podCIDR gets that of its number.
func (l *Lab) AddNode(ctx context.Context, podCIDRs ...netip.Prefix) (*Node, error) {
	s, err := l.read()
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("node%d", s.Count+1)
	own := map[string][]netip.Prefix{}
	if len(podCIDRs) > 0 {
		own[name] = podCIDRs
	}
	if err := l.newNode(own); err != nil {
		return nil, err
	}
	if err := l.boot(ctx, name); err != nil {
		return nil, fmt.Errorf("booting %s: %w", name, err)
	}
	if err := l.waitReady(ctx, name); err != nil {
		return nil, err
	}
	n, _, err := l.node(name)
	return n, err
}

// RemoveNode takes a node and its Pods out of the cluster and ends it.
func (l *Lab) RemoveNode(ctx context.Context, name string) error {
	n, s, err := l.node(name)
	if err != nil {
		return err
	}
	if err := os.Remove(l.nodeFile(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the Node object of %s: %w", name, err)
	}
	for _, p := range n.Pods {
		if err := l.removePodObject(&p.PodSpec); err != nil {
			return err
		}
	}
	if err := l.powerOff(ctx, s, n); err != nil {
		return err
	}
	if err := os.RemoveAll(l.path(name)); err != nil {
		return fmt.Errorf("removing the folders of %s: %w", name, err)
	}
	return l.update(func(s *state) error {
		s.Nodes = slices.DeleteFunc(s.Nodes, func(n *Node) bool { return n.Name == name })
		return nil
	})
}

// powerOff ends a node without a word to anybody in it.
func (l *Lab) powerOff(ctx context.Context, s *state, n *Node) error {
	if err := n.Holder.kill(ctx); err != nil {
		return fmt.Errorf("powering %s off: %w", n.Name, err)
	}
	if err := unplug(s, n.Name); err != nil {
		return err
	}
	return routePods(s, n, true)
}

// PowerOff cuts a node's power: nothing of it answers any more, and the cluster's objects still have it. Reboot starts it again.
func (l *Lab) PowerOff(ctx context.Context, name string) error {
	n, s, err := l.node(name)
	if err != nil {
		return err
	}
	return l.powerOff(ctx, s, n)
}

// RebootOptions say how a node comes back.
type RebootOptions struct {
	// WithoutAPI keeps the cluster's objects from it until RestoreAPI.
	WithoutAPI bool
	// NoPods leaves out what the kubelet does: the node comes back empty, and its Pods are forgotten by the lab.
	NoPods bool
}

// Reboot cuts a node's power and starts it again: every process and namespace is gone, /run is empty, the disk is kept. The Pods
// come back with the same UID in new sandboxes, as the kubelet does it: for every second Pod the old sandbox is taken down
// before the new one is made, for the others after, since both happen. The context bounds all of it.
func (l *Lab) Reboot(ctx context.Context, name string, o RebootOptions) error {
	n, s, err := l.node(name)
	if err != nil {
		return err
	}
	if err := l.powerOff(ctx, s, n); err != nil {
		return err
	}
	for _, f := range nodeFolders {
		if filepath.Dir(f) == "/run" {
			if err := emptyFolder(l.path(name, f)); err != nil {
				return fmt.Errorf("emptying %s of %s: %w", f, name, err)
			}
		}
	}
	if err := l.reachAPI(name, !o.WithoutAPI); err != nil {
		return err
	}
	pods := n.Pods
	if err := l.updateNode(name, func(n *Node) { n.Pods, n.Failed, n.Daemon = nil, nil, Process{} }); err != nil {
		return err
	}
	if err := l.boot(ctx, name); err != nil {
		return fmt.Errorf("booting %s: %w", name, err)
	}
	if err := l.waitReady(ctx, name); err != nil || o.NoPods {
		return err
	}
	return l.bringBack(ctx, name, pods)
}

func emptyFolder(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// SetMode changes fabric.mode in every node's weft.yaml and tells each daemon to read it again (SIGHUP).
func (l *Lab) SetMode(ctx context.Context, mode string) error {
	if err := l.update(func(s *state) error { s.Mode = mode; return nil }); err != nil {
		return err
	}
	s, err := l.read()
	if err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if err := l.writeConfig(s, n.Name); err != nil {
			return err
		}
		if err := routePods(s, n, false); err != nil {
			return err
		}
		if err := l.KillDaemon(ctx, n.Name, unix.SIGHUP); err != nil {
			return err
		}
	}
	return nil
}
