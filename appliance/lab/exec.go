package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Stdio is where a command reads and writes; nil is nothing.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exec runs a command on a node, on the machine outside, on the router, or in a Pod ("name" or "namespace/name"), and returns its
// exit code. err is set when it could not be run, or when ctx ended first.
func (l *Lab) Exec(ctx context.Context, target string, argv []string, stdio Stdio) (exit int, err error) {
	if len(argv) == 0 {
		return 0, errors.New("no command to run")
	}
	s, err := l.read()
	if err != nil {
		return 0, err
	}
	m, netns, err := s.target(target)
	if err != nil {
		return 0, err
	}
	if _, pod := s.pod(target); pod != nil {
		if m.resolvConf, err = l.resolvConf(pod.Namespace); err != nil {
			return 0, err
		}
	}
	path := argv[0]
	if path == "weft" {
		path = s.WeftBin
	}
	cmd := exec.CommandContext(ctx, path, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Env = l.environment()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio.In, stdio.Out, stdio.Err
	if err := m.start(cmd, netns); err != nil {
		return 0, err
	}
	err = cmd.Wait()
	var failed *exec.ExitError
	if errors.As(err, &failed) && ctx.Err() == nil {
		return failed.ExitCode(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("running %s on %s: %w", strings.Join(argv, " "), target, err)
	}
	return 0, nil
}

// Output runs a command as Exec does and returns what it printed. A failing command is an error that has what it said.
func (l *Lab) Output(ctx context.Context, target string, argv ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	exit, err := l.Exec(ctx, target, argv, Stdio{Out: &stdout, Err: &stderr})
	if err == nil && exit != 0 {
		err = fmt.Errorf("%s on %s ended with exit code %d: %s", strings.Join(argv, " "), target, exit, strings.TrimSpace(stderr.String()+stdout.String()))
	}
	return stdout.String(), err
}

// resolvConf writes the resolv.conf of a Pod, as kubelet does for dnsPolicy ClusterFirst, and returns where it is.
func (l *Lab) resolvConf(namespace string) (string, error) {
	path := l.path("resolv", namespace)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("making the folder of resolv.conf: %w", err)
	}
	text := fmt.Sprintf("search %s.svc.cluster.local svc.cluster.local cluster.local\nnameserver %s\noptions ndots:5\n", namespace, ClusterDNS)
	if there, err := os.ReadFile(path); err == nil && string(there) == text {
		return path, nil // a file that is replaced cannot be mounted at that moment, by another command
	}
	return path, writeFile(path, []byte(text))
}

// target finds what a name means.
func (s *state) target(name string) (machine, string, error) {
	switch name {
	case Router:
		return s.Router, "", nil
	case Outside:
		return s.Outside, "", nil
	}
	if n := s.node(name); n != nil {
		return n.machine, "", nil
	}
	if n, p := s.pod(name); p != nil {
		return n.machine, netnsPath(p.ContainerID), nil
	}
	return machine{}, "", fmt.Errorf("the lab has neither a node nor a Pod %q (weft lab status lists them)", name)
}

// Report is the answer of Status.
type Report struct {
	Name    string       `json:"name"`
	Dir     string       `json:"dir"`
	Mode    string       `json:"mode"`
	Outside []netip.Addr `json:"outside"`
	Nodes   []NodeReport `json:"nodes"`
}

// NodeReport is one node: what the lab knows, and what its weftd says.
type NodeReport struct {
	*Node
	Running       bool   `json:"running"`
	DaemonRunning bool   `json:"daemonRunning"`
	Ready         bool   `json:"ready"`
	Why           string `json:"why,omitempty"`
}

// Status says what the lab consists of and how each node is.
func (l *Lab) Status(ctx context.Context) (*Report, error) {
	s, err := l.read()
	if err != nil {
		return nil, err
	}
	r := &Report{Name: s.Name, Dir: l.Dir, Mode: s.Mode, Outside: addressesOf(s.outsidePrefixes(outsideHost))}
	for _, n := range s.Nodes {
		nr := NodeReport{Node: n, Running: n.Holder.Alive(), DaemonRunning: n.Daemon.Alive()}
		switch {
		case !nr.Running:
			nr.Why = "the node is off"
		case !nr.DaemonRunning:
			nr.Why = "weftd is not running"
		default:
			if err := n.daemonReady(ctx); err != nil {
				nr.Why = err.Error()
			}
		}
		nr.Ready = nr.Why == ""
		r.Nodes = append(r.Nodes, nr)
	}
	return r, nil
}

// Node returns what the lab knows of a node.
func (l *Lab) Node(name string) (*Node, error) {
	n, _, err := l.node(name)
	return n, err
}

// Pod returns what the lab knows of a Pod ("name" or "namespace/name").
func (l *Lab) Pod(name string) (*Pod, error) {
	s, err := l.read()
	if err != nil {
		return nil, err
	}
	if _, p := s.pod(name); p != nil {
		return p, nil
	}
	return nil, unknownPod(name)
}

// Log returns the last lines that a node's weftd wrote.
func (l *Lab) Log(node string, lines int) string { return tail(l.logPath(node+"-weftd"), lines) }
