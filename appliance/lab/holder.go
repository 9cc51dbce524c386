package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/cri"
)

// Names of the hidden commands of the weft binary that NodeMain and PodMain serve.
const (
	NodeCommand = "lab-node"
	PodCommand  = "lab-pod"
)

// The verbs of NodeCommand, and what comes after the lab's folder.
const (
	holdVerb  = "hold" // DIR NAME ROLE LIFE
	spawnVerb = "spawn"
	cniVerb   = "cni"

	roleNode   = "node"
	roleRouter = "router"
	roleHost   = "host"

	lifeOwn      = "own"
	lifeAttached = "attached" // ends when standard input ends
	lifeLast     = "last"     // the same, and then removes the lab's folder
)

// ready is what a holder prints when its machine can be entered.
const ready = "ready\n"

// NodeMain is `weft lab-node`, which the lab starts inside a machine's namespaces: "hold" is the machine's first process, "spawn"
// starts a program for good, "cni" does what a container runtime does for Pod sandboxes. It returns when the process should end.
func NodeMain(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	switch {
	case len(args) == 5 && args[0] == holdVerb:
		return hold(ctx, holdArgs{dir: args[1], name: args[2], role: args[3], life: args[4]}, stdin, stdout)
	case len(args) == 1 && args[0] == spawnVerb:
		return serveSpawn(ctx, stdin, stdout)
	case len(args) == 1 && args[0] == cniVerb:
		return serveCNI(ctx, stdin, stdout)
	}
	return fmt.Errorf("weft %s is started by weft lab, not by hand", NodeCommand)
}

type holdArgs struct{ dir, name, role, life string }

// hold is the first process of a machine.
func hold(ctx context.Context, a holdArgs, stdin io.Reader, stdout io.Writer) error {
	if err := furnish(a); err != nil {
		return fmt.Errorf("furnishing %s: %w", a.name, err)
	}
	// Whatever loses its parent in this process namespace becomes our child.
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	ended := make(chan struct{})
	if a.life != lifeOwn {
		go func() {
			_, _ = io.Copy(io.Discard, stdin)
			close(ended)
		}()
	}
	if _, err := io.WriteString(stdout, ready); err != nil {
		return fmt.Errorf("telling the lab that %s is ready: %w", a.name, err)
	}
	for {
		select {
		case <-children:
			reap()
		case <-ctx.Done():
			return nil
		case <-ended:
			if a.life != lifeLast {
				return nil
			}
			// The other machines end at this moment too; until then their processes may still make files.
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			return poll(ctx, "the lab's folder to be removed", func() error { return os.RemoveAll(a.dir) })
		}
	}
}

func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if pid <= 0 || err != nil {
			return
		}
	}
}

// furnish makes the fresh namespaces of this process a machine.
func furnish(a holdArgs) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making all mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := unix.Sethostname([]byte(a.name)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking up lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	switch a.role {
	case roleRouter:
		for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			err := os.WriteFile("/proc/sys/net/"+path, []byte("1"), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
				return fmt.Errorf("switching on forwarding: %w", err)
			}
		}
	case roleNode:
		if err := furnishNode(filepath.Join(a.dir, a.name)); err != nil {
			return err
		}
		return keepFiles()
	}
	return nil
}

// nodeFolders are the folders that a node has for itself: those of weft, of the container runtime and of CNI.
var nodeFolders = []string{
	"/etc/cni", "/etc/weft", "/opt/cni", "/var/lib/weft", "/var/lib/cni", "/run/weft", "/run/netns", "/run/containerd",
}

// furnishNode binds the node's own folders over the host's and hides the host's container runtime.
func furnishNode(own string) error {
	m := mirror{}
	for _, target := range nodeFolders {
		source, err := unix.Open(filepath.Join(own, target), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening %s: %w", filepath.Join(own, target), err)
		}
		err = m.folder(target)
		if err == nil {
			err = bind(source, target)
		}
		_ = unix.Close(source)
		if err != nil {
			return fmt.Errorf("binding %s: %w", target, err)
		}
	}
	for _, socket := range cri.Sockets {
		if _, err := os.Stat(socket); err != nil {
			continue
		}
		if err := unix.Mount("/dev/null", socket, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hiding the host's %s: %w", socket, err)
		}
	}
	return nil
}

func bind(source int, target string) error {
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", source), target, "", unix.MS_BIND|unix.MS_REC, "")
}

// mirror makes folders that the host has not, without touching the host: it replaces the folder above by an empty file system
// into which everything that was there is bound.
type mirror struct{ replaced []string }

func (m *mirror) folder(path string) error {
	if st, err := os.Stat(path); err == nil {
		if !st.IsDir() {
			return errors.New("it is not a folder")
		}
		return nil
	}
	above := filepath.Dir(path)
	for {
		if st, err := os.Stat(above); err == nil && st.IsDir() {
			break
		}
		above = filepath.Dir(above)
	}
	if !slices.Contains(m.replaced, above) {
		if err := m.replace(above); err != nil {
			return fmt.Errorf("mirroring %s: %w", above, err)
		}
	}
	return os.MkdirAll(path, 0o755)
}

func (m *mirror) replace(path string) error {
	old, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(old) }()
	root := fmt.Sprintf("/proc/self/fd/%d", old)
	entries, err := os.ReadDir(root + "/")
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	m.replaced = append(m.replaced, path)
	for _, e := range entries {
		if err := mirrorEntry(filepath.Join(root, e.Name()), filepath.Join(path, e.Name()), e.Type()); err != nil {
			return err
		}
	}
	return nil
}

func mirrorEntry(from, to string, kind fs.FileMode) error {
	if kind&fs.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	var err error
	if kind.IsDir() {
		err = os.Mkdir(to, 0o755)
	} else {
		err = os.WriteFile(to, nil, 0o644)
	}
	if err != nil {
		return err
	}
	err = unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
	if errors.Is(err, unix.ENOENT) {
		return nil // it has gone in the meantime
	}
	return err
}

// hold starts the first process of a machine in namespaces of its own and returns when it is furnished.
func (l *Lab) hold(ctx context.Context, s *state, name, role string) (machine, error) {
	life := lifeOwn
	if l.lifeline != nil {
		life = lifeAttached
		if role == roleRouter {
			life = lifeLast
		}
	}
	log, err := os.OpenFile(l.logPath(name+"-holder"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return machine{}, fmt.Errorf("opening the log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(s.WeftBin, NodeCommand, holdVerb, l.Dir, name, role, life)
	cmd.Env, cmd.Stderr = l.environment(), log
	if l.lifeline != nil {
		cmd.Stdin = l.lifeline
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// Its own session, so that an interrupt at the terminal does not reach it.
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWPID,
	}
	closeOnExec()
	err = startAndWait(ctx, cmd, (*exec.Cmd).Start)
	if cmd.Process != nil {
		go func() { _ = cmd.Wait() }()
	}
	if err != nil {
		return machine{}, fmt.Errorf("starting the first process of %s: %w: %s", name, err, tail(l.logPath(name+"-holder"), 5))
	}
	first, err := processOf(cmd.Process.Pid)
	return machine{Name: name, Holder: first}, err
}

// netlinkIn opens a netlink handle in the machine's network namespace. The caller closes it.
func (m machine) netlinkIn() (*netlink.Handle, int, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", m.Holder.PID), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("opening the network namespace of %s: %w", m.Name, err)
	}
	h, err := handleAt(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, -1, fmt.Errorf("opening netlink in %s: %w", m.Name, err)
	}
	return h, fd, nil
}
