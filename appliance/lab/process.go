package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Process names a process for as long as the machine runs: a pid alone may be in use again by another one.
type Process struct {
	PID int `json:"pid"`
	// Start is when it started, in clock ticks since the boot (field 22 of proc_pid_stat(5)).
	Start uint64 `json:"start"`
}

// processOf reads what is needed to recognise the process later.
func processOf(pid int) (Process, error) {
	start, _, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: start}, nil
}

func readStat(pid int) (start uint64, state string, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", fmt.Errorf("reading about process %d: %w", pid, err)
	}
	// The second field is the program's name in brackets and may contain anything; the third comes after the last bracket.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return 0, "", fmt.Errorf("reading about process %d: only %d fields", pid, len(fields))
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0], err
}

// Alive reports whether the process still runs.
func (p Process) Alive() bool {
	if p.PID == 0 {
		return false
	}
	start, state, err := readStat(p.PID)
	return err == nil && start == p.Start && state != "Z" && state != "X"
}

// open returns a descriptor of the process, or -1 when it has ended.
func (p Process) open() (int, error) {
	if p.PID == 0 {
		return -1, nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("opening process %d: %w", p.PID, err)
	}
	// Only now: the descriptor names one process for good, and this says whether it is the right one.
	if !p.Alive() {
		_ = unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

// signal sends a signal; with wait it returns when the process has ended. A process that has ended already is no error.
func (p Process) signal(ctx context.Context, sig syscall.Signal, wait bool) error {
	fd, err := p.open()
	if err != nil || fd < 0 {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("sending %v to process %d: %w", sig, p.PID, err)
	}
	if !wait {
		return nil
	}
	return poll(ctx, fmt.Sprintf("process %d to end after %v", p.PID, sig), func() error {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if ready == 0 {
			return errors.New("it still runs")
		}
		return nil
	})
}

func (p Process) kill(ctx context.Context) error { return p.signal(ctx, unix.SIGKILL, true) }

// findHolders finds the first processes of all machines of the lab in the folder.
func findHolders(dir string) ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var out []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // it has ended
		}
		// weft lab-node hold DIR …
		args := strings.Split(string(command), "\x00")
		if len(args) < 4 || !slices.Equal(args[1:4], []string{NodeCommand, holdVerb, dir}) {
			continue
		}
		if p, err := processOf(pid); err == nil {
			out = append(out, p)
		}
	}
	return out, nil
}

// start starts a command in the machine's namespaces and, if netns is not empty, in the network namespace that lies there in
// the machine's file system. The caller must call cmd.Wait.
func (m machine) start(cmd *exec.Cmd, netns string) error {
	if !m.Holder.Alive() {
		return fmt.Errorf("%s is not running (start it with weft lab reboot %s)", m.Name, m.Name)
	}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	err := onOwnThread(func() error {
		if err := m.enter(netns); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("starting %s on %s: %w", strings.Join(cmd.Args, " "), m.Name, err)
	}
	return nil
}

// onOwnThread calls f on a thread that ends with it: no other code ever runs in the namespaces that f enters.
func onOwnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The process's first thread cannot end. While this goroutine sits on it, another one gets another thread.
			result <- onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: that is what makes the thread end with the goroutine.
		result <- f()
	}()
	return <-result
}

// enter moves the calling thread, which must be thrown away afterwards.
func (m machine) enter(netns string) error {
	names := []string{"net", "uts", "ipc", "pid", "mnt"} // mnt last: the paths of the others are ours
	kinds := map[string]int{
		"net": unix.CLONE_NEWNET, "uts": unix.CLONE_NEWUTS, "ipc": unix.CLONE_NEWIPC, "pid": unix.CLONE_NEWPID, "mnt": unix.CLONE_NEWNS,
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, name := range names {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", m.Holder.PID, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening the %s namespace: %w", name, err)
		}
		fds = append(fds, fd)
	}
	// A thread that shares its root and working folder with others may not change the mount namespace (setns(2)).
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leaving the shared working folder: %w", err)
	}
	for i, name := range names {
		if err := unix.Setns(fds[i], kinds[name]); err != nil {
			return fmt.Errorf("entering the %s namespace: %w", name, err)
		}
	}
	if m.resolvConf != "" {
		if err := bindResolvConf(m.resolvConf); err != nil {
			return fmt.Errorf("giving the Pod its resolv.conf: %w", err)
		}
	}
	if netns == "" {
		return nil
	}
	return enterNetNS(netns)
}

// bindResolvConf lays a file over /etc/resolv.conf, for the calling thread and what it starts alone.
func bindResolvConf(path string) error {
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Mount(path, target, "", unix.MS_BIND, "")
}

// closeOnExec keeps what this process has inherited, a pipe of the shell that called it, say, from the processes of the lab: they
// outlive it, and whoever reads the pipe would wait for them. A kernel before 5.11 cannot, which is no more than untidy.
func closeOnExec() { _ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) }

// environment of every process in the lab: the host's, as far as it matters to Go programs, and a path that finds weft.
func (l *Lab) environment() []string {
	env := []string{
		"PATH=" + l.path("bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
	}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "GO") || strings.HasPrefix(v, "TERM=") || strings.HasPrefix(v, "LANG=") {
			env = append(env, v)
		}
	}
	return env
}

func (l *Lab) logPath(name string) string { return l.path("logs", name+".log") }
