package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Lab is what a row works with. Everything that is made through it is gone when the row has ended.
type Lab struct {
	weft, bin string // the binary under test; the folder with launch and empty
	dir       string // on disk: stores, sockets, configurations
	quick     bool
	rounds    int
	undo      []func()
	made      int
}

// newLab makes the folder in /var/tmp, which is a disk where /tmp may be memory: a store that is synced to memory costs nothing.
func newLab(weft, bin string, quick bool, rounds int) (*Lab, error) {
	dir, err := os.MkdirTemp("/var/tmp", "weft-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for the run: %w", err)
	}
	l := &Lab{weft: weft, bin: bin, dir: dir, quick: quick, rounds: rounds}
	err = os.Mkdir(l.plugins(), 0o755)
	for _, name := range []string{"weft-cni", "weftd"} {
		if err == nil {
			err = os.Symlink(weft, filepath.Join(l.plugins(), name))
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("laying out %s: %w", dir, err), os.RemoveAll(dir))
	}
	return l, nil
}

// plugins is the folder in which a runtime finds weft-cni.
func (l *Lab) plugins() string { return filepath.Join(l.dir, "plugins") }

// Rounds returns how often to measure: what the row proposes, unless the command line says otherwise.
func (l *Lab) Rounds(full int) int {
	switch {
	case l.rounds > 0:
		return l.rounds
	case l.quick:
		return min(full, 2)
	}
	return full
}

// Sized returns a load's size, a small one for a quick run.
func (l *Lab) Sized(full, quick int) int {
	if l.quick {
		return quick
	}
	return full
}

// Cleanup has f called when the row has ended, in reverse order.
func (l *Lab) Cleanup(f func()) { l.undo = append(l.undo, f) }

// tidy removes what the row has made.
func (l *Lab) tidy() {
	for i := len(l.undo) - 1; i >= 0; i-- {
		l.undo[i]()
	}
	l.undo = nil
}

// settle waits until the kernel has taken apart the namespaces that were closed, which it does in the background and in turn: a
// link that leads into one more shows when that was reached.
func settle(ctx context.Context) error {
	watch, err := newNetns()
	if err != nil {
		return err
	}
	defer watch.close()
	last, err := newNetns()
	if err != nil {
		return err
	}
	err = watch.run(ctx, "ip link add last type veth peer name last netns @last", map[string]*Netns{"last": last})
	last.close()
	if err != nil {
		return err
	}
	return poll(ctx, 10*time.Millisecond, time.Minute, "closed namespaces to go", func() bool { return !watch.hasLink("last") })
}

func (l *Lab) close() error {
	l.tidy()
	return os.RemoveAll(l.dir)
}

// Folder makes a new folder.
func (l *Lab) Folder(name string) (string, error) {
	l.made++
	dir := filepath.Join(l.dir, fmt.Sprintf("%s-%d", name, l.made))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("making a folder: %w", err)
	}
	return dir, nil
}

// Netns makes a network namespace with its lo up.
func (l *Lab) Netns(ctx context.Context) (*Netns, error) {
	n, err := newNetns()
	if err != nil {
		return nil, err
	}
	l.Cleanup(n.close)
	return n, n.run(ctx, "ip link set lo up", nil)
}

// Sandbox makes a namespace as a runtime does for a Pod, in which the network has still to be made.
func (l *Lab) Sandbox() (*Sandbox, error) {
	n, err := newNetns()
	if err != nil {
		return nil, err
	}
	l.Cleanup(n.close)
	l.made++
	return &Sandbox{Netns: n, name: fmt.Sprintf("pod-%d", l.made)}, nil
}

// Nodes makes two network namespaces joined by a veth pair, as two nodes on one subnet: eth0 is 192.0.2.1 and 192.0.2.2.
func (l *Lab) Nodes(ctx context.Context) (nodes [2]*Netns, err error) {
	for i := range nodes {
		if nodes[i], err = l.Netns(ctx); err != nil {
			return nodes, err
		}
	}
	err = nodes[0].run(ctx, `
		ip link add eth0 type veth peer name eth0 netns @other
		ip addr add 192.0.2.1/24 dev eth0
		ip link set eth0 up`, map[string]*Netns{"other": nodes[1]})
	if err == nil {
		err = nodes[1].run(ctx, `
			ip addr add 192.0.2.2/24 dev eth0
			ip link set eth0 up`, nil)
	}
	return nodes, err
}

// manifests describe the two nodes of Nodes.
const manifests = `apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Node
  metadata: {name: node1}
  spec: {podCIDRs: [10.244.1.0/24]}
  status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
- apiVersion: v1
  kind: Node
  metadata: {name: node2}
  spec: {podCIDRs: [10.244.2.0/24]}
  status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
`

// Weftd is a running daemon.
type Weftd struct {
	*Netns
	dir, conflist string
	cmd           *exec.Cmd
	ended         chan struct{}
}

// Weftd starts the daemon of node 1 or 2 in its namespace, with a store of its own, and returns when it is ready for Pods.
func (l *Lab) Weftd(ctx context.Context, n *Netns, number int, mode string) (*Weftd, error) {
	dir, err := l.Folder("weftd")
	if err != nil {
		return nil, err
	}
	w := &Weftd{Netns: n, dir: dir, conflist: filepath.Join(dir, "cni", "10-weft.conflist")}
	// The socket of the runtime is one that nobody listens on: with a real one weftd would rightly free what it does not list.
	settings := fmt.Sprintf(`nodeName: node%[1]d
listen: ""
manifests: %[2]s/manifests
runtimeSocket: %[2]s/none.sock
fabric: {mode: %[3]s}
log: {level: warn, format: console}
stateDir: %[2]s/state
runDir: %[2]s/run
cniConfDir: %[2]s/cni
cniBinDir: %[4]s
`, number, dir, mode, l.plugins())
	err = errors.Join(
		os.Mkdir(filepath.Join(dir, "manifests"), 0o755),
		os.Mkdir(filepath.Join(dir, "state"), 0o700),
		os.WriteFile(filepath.Join(dir, "weft.yaml"), []byte(settings), 0o644))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "manifests", "nodes.yaml"), []byte(manifests), 0o644)
	}
	if err != nil {
		return nil, fmt.Errorf("writing the settings of weftd: %w", err)
	}
	return w, w.start(ctx, l)
}

// readyTime is more than a daemon ever needs.
const readyTime = 30 * time.Second

func (w *Weftd) start(ctx context.Context, l *Lab) error {
	log, err := os.OpenFile(filepath.Join(w.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of weftd: %w", err)
	}
	defer log.Close()
	w.cmd = exec.Command(filepath.Join(l.plugins(), "weftd"), "--config", filepath.Join(w.dir, "weft.yaml"))
	w.cmd.Stderr = log
	if err := w.Netns.start(w.cmd); err != nil {
		return fmt.Errorf("starting weftd: %w", err)
	}
	w.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(w.cmd, w.ended)
	l.Cleanup(w.kill)
	ready := filepath.Join(w.dir, "run", "ready")
	err = poll(ctx, 5*time.Millisecond, readyTime, "weftd to be ready", func() bool {
		_, err := os.Stat(ready)
		return err == nil || w.hasEnded()
	})
	if w.hasEnded() {
		err = errors.New("weftd ended")
	}
	if err != nil {
		return fmt.Errorf("%w; its log ends with:\n%s", err, w.logTail())
	}
	return nil
}

func (w *Weftd) hasEnded() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// kill ends the daemon as a crash would; the data path stays.
func (w *Weftd) kill() {
	_ = w.cmd.Process.Kill()
	<-w.ended
}

func (w *Weftd) logTail() string {
	text, _ := os.ReadFile(filepath.Join(w.dir, "log"))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// Network returns weft as a runtime on that node sees it.
func (w *Weftd) Network(l *Lab) (*Network, error) {
	list, err := os.ReadFile(w.conflist)
	if err != nil {
		return nil, fmt.Errorf("reading what weftd wrote for the runtime: %w", err)
	}
	return l.network(w.Netns, list, l.plugins())
}
