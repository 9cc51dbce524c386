package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// program is a process that goes on in a machine when the command that started it has ended.
type program struct {
	Argv []string `json:"argv"`
	// Log gets its standard error, below the lab's folder.
	Log string `json:"log"`
	// NetNS is the network namespace to run in, if not the machine's.
	NetNS string `json:"netns,omitempty"`
	// Wait returns only when the program has printed that it is ready.
	Wait bool `json:"wait,omitempty"`
	// Service programs are given what the one before them has left with the service manager.
	Service bool `json:"service,omitempty"`
}

// spawn starts the program and returns its pid in this process namespace. It must run inside the machine: a process that enters
// from outside would, once orphaned, belong to the host's init, and the namespace could not end before that one reaps it.
func (p *program) spawn(ctx context.Context) (int, error) {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, fmt.Errorf("opening the log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(p.Argv[0], p.Argv[1:]...)
	cmd.Dir, cmd.Stderr = "/", log
	if p.Service {
		names, files, err := storedFiles(ctx)
		defer func() {
			for _, f := range files {
				_ = f.Close()
			}
		}()
		if err != nil {
			return 0, err
		}
		// The variable must name the process itself, which only that process knows.
		cmd = exec.Command("/bin/sh", append([]string{"-c", `export LISTEN_PID=$$; exec "$@"`, "sh"}, p.Argv...)...)
		cmd.Dir, cmd.Stderr, cmd.ExtraFiles = "/", log, files
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notifySocket, fmt.Sprint("LISTEN_FDS=", len(files)), "LISTEN_FDNAMES="+names)
	}
	// Its own session, so that an interrupt at the terminal does not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.Wait {
		err = startAndWait(ctx, cmd, p.start)
	} else {
		cmd.Stdout = log
		err = p.start(cmd)
	}
	if err != nil {
		return 0, fmt.Errorf("starting %s: %w: %s", strings.Join(p.Argv, " "), err, tail(p.Log, 5))
	}
	return cmd.Process.Pid, nil
}

func (p *program) start(cmd *exec.Cmd) error {
	if p.NetNS == "" {
		return cmd.Start()
	}
	return onOwnThread(func() error {
		if err := enterNetNS(p.NetNS); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// enterNetNS moves the calling thread, which must be thrown away afterwards.
func enterNetNS(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		_ = unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("entering the network namespace %s: %w", path, err)
	}
	return nil
}

// startAndWait starts a process of the lab and returns when it has printed that it is ready.
func startAndWait(ctx context.Context, cmd *exec.Cmd, start func(*exec.Cmd) error) error {
	told, tell, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	defer func() { _ = told.Close() }()
	cmd.Stdout = tell
	err = start(cmd)
	_ = tell.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = told.Close() })
	defer stop()
	if _, err := io.ReadFull(told, make([]byte, len(ready))); err != nil {
		return errors.New("it ended before it was ready")
	}
	return nil
}

// serveSpawn starts the program on standard input and prints its pid.
func serveSpawn(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	var p program
	if err := json.NewDecoder(stdin).Decode(&p); err != nil {
		return fmt.Errorf("decoding what to start: %w", err)
	}
	pid, err := p.spawn(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(pid)
}

// run starts a program on a machine for good.
func (l *Lab) run(ctx context.Context, s *state, m machine, p program) (Process, error) {
	var pid int
	if err := l.inside(ctx, s, m, spawnVerb, p, &pid); err != nil {
		return Process{}, err
	}
	processes, err := m.processes()
	return processes[pid], err
}

// inside has a verb of NodeCommand done inside a machine.
func (l *Lab) inside(ctx context.Context, s *state, m machine, verb string, request, answer any) error {
	in, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encoding the request: %w", err)
	}
	cmd := exec.CommandContext(ctx, s.WeftBin, NodeCommand, verb)
	cmd.Env = l.environment()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &stdout, &stderr
	closeOnExec()
	if err := m.start(cmd, ""); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("on %s: %s (%w)", m.Name, strings.TrimSpace(stderr.String()), err)
	}
	if err := json.Unmarshal(stdout.Bytes(), answer); err != nil {
		return fmt.Errorf("decoding the answer of %s: %w", m.Name, err)
	}
	return nil
}

// processes returns all processes of a machine by their pid inside it.
func (m machine) processes() (map[int]Process, error) {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", m.Holder.PID))
	if err != nil {
		return nil, fmt.Errorf("finding the processes of %s: %w", m.Name, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	out := map[int]Process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || ns != own {
			continue
		}
		inner, err := innerPID(pid)
		if err != nil {
			continue // it has ended
		}
		if p, err := processOf(pid); err == nil {
			out[inner] = p
		}
	}
	return out, nil
}

// innerPID is a process's pid in its own process namespace: the last one in the line NSpid (proc_pid_status(5)).
func innerPID(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(ids)
			return strconv.Atoi(fields[len(fields)-1])
		}
	}
	return 0, errors.New("no NSpid")
}
