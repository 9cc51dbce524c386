// Package lab builds a cluster of nodes from namespaces on one machine and runs Pods on it through the real CNI chain.
//
// A node is a holder process (`weft lab-node`) with a network, mount, host name and process namespace of its own and folders of
// the lab bound over /etc/weft, /var/lib/weft and so on. When the holder ends the kernel ends everything in the node: nothing
// can stay behind, whoever was killed before. The host itself gets no link, no mount and no named namespace.
//
//	node1 ── eth0 ──┐
//	node2 ── eth0 ──┤ bridge subnet1 ┐
//	                                 ├ router ── outside (a machine that is no node)
//	node3 ── eth0 ──┬ bridge subnet2 ┘
//	                └ both in the namespace "router"
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Families says which IP families the nodes and Pods of a lab have.
type Families string

// The families of a lab.
const (
	Dual Families = "dual"
	IPv4 Families = "ipv4"
	IPv6 Families = "ipv6"
)

func (f Families) has(a netip.Addr) bool { return f == Dual || a.Is4() == (f == IPv4) }

// Options describe a lab to be made.
type Options struct {
	// Name of the lab; "lab" if empty.
	Name string
	// Dir holds everything of the lab; DefaultDir(Name) if empty. It must not exist yet, or be empty.
	Dir string
	// Nodes is how many nodes there are; 3 if zero. They are called node1, node2 and so on.
	Nodes int
	// Subnets is over how many subnets the nodes are spread; 1 if zero.
	Subnets int
	// Mode is fabric.mode: auto (if empty), vxlan or native.
	Mode string
	// Taught is true when the router learns the ways to Pods from the nodes (BGP), instead of being told by the lab.
	Taught bool
	// Families of nodes and Pods; Dual if empty.
	Families Families
	// MTU of the links between the nodes, in bytes; 1500 if zero.
	MTU int
	// PodCIDRs of a node, by its name; 10.244.N.0/24 and fd00:10:244:N::/64 for nodes and families that are not named.
	PodCIDRs map[string][]netip.Prefix
	// Settings are further lines for every node's weft.yaml; fabric.mode and manifests are set already.
	Settings string
	// WeftBin is the weft binary; the running one if empty.
	WeftBin string
	// Attached ends the lab with the process that made it, also when that is killed.
	Attached bool
	// Bare starts no weftd.
	Bare bool
	// Progress is told what happens, a line each; may be nil.
	Progress io.Writer
}

// Lab is a running lab.
type Lab struct {
	// Dir holds everything of the lab.
	Dir string

	progress io.Writer
	lifeline *os.File // read by the holders of an attached lab: its end is theirs
	closing  *os.File // the other end; nobody writes
}

// DefaultDir is where a lab of that name lives unless told otherwise.
func DefaultDir(name string) string { return filepath.Join("/run/weft-lab", name) }

func (o *Options) complete() error {
	if o.Name == "" {
		o.Name = "lab"
	}
	if o.Dir == "" {
		o.Dir = DefaultDir(o.Name)
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Subnets == 0 {
		o.Subnets = 1
	}
	if o.Mode == "" {
		o.Mode = "auto"
	}
	if o.Families == "" {
		o.Families = Dual
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	switch {
	case o.Nodes < 1 || o.Nodes > 40:
		return fmt.Errorf("nodes: %d: a lab has 1 to 40", o.Nodes)
	case o.Subnets < 1 || o.Subnets > 9:
		return fmt.Errorf("subnets: %d: a lab has 1 to 9", o.Subnets)
	case !slices.Contains([]string{"auto", "vxlan", "native"}, o.Mode):
		return fmt.Errorf("mode %q: must be auto, vxlan or native", o.Mode)
	case !slices.Contains([]Families{Dual, IPv4, IPv6}, o.Families):
		return fmt.Errorf("families %q: must be dual, ipv4 or ipv6", o.Families)
	case os.Geteuid() != 0:
		return errors.New("a lab needs root: it makes network namespaces")
	}
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return fmt.Errorf("finding the lab's folder: %w", err)
	}
	if o.WeftBin == "" {
		if o.WeftBin, err = os.Executable(); err != nil {
			return fmt.Errorf("finding the weft binary: %w", err)
		}
	}
	return nil
}

// Up builds a lab and returns when every node is ready for Pods, or when ctx ends. On an error nothing of it is left.
func Up(ctx context.Context, o Options) (l *Lab, err error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	l = &Lab{Dir: o.Dir, progress: o.Progress}
	if _, err := os.Stat(l.path(stateFile)); err == nil {
		return nil, fmt.Errorf("the lab in %s is up already: take it down first (weft lab down)", o.Dir)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Down(context.WithoutCancel(ctx)))
		}
	}()
	if err := os.MkdirAll(l.path(manifestsFolder), 0o755); err != nil {
		return l, fmt.Errorf("making the lab's folder: %w", err)
	}
	if o.Attached {
		if l.lifeline, l.closing, err = os.Pipe(); err != nil {
			return l, fmt.Errorf("making the lab's lifeline: %w", err)
		}
	}
	first := &state{
		Name: o.Name, Mode: o.Mode, Families: o.Families, Subnets: o.Subnets, Taught: o.Taught, MTU: o.MTU,
		Settings: o.Settings, WeftBin: o.WeftBin, Bare: o.Bare, Attached: o.Attached,
	}
	if err := first.save(l.path(stateFile)); err != nil {
		return l, err
	}
	for _, f := range []string{"bin", "logs"} {
		if err := os.MkdirAll(l.path(f), 0o755); err != nil {
			return l, fmt.Errorf("making the lab's folder: %w", err)
		}
	}
	if err := os.Symlink(o.WeftBin, l.path("bin/weft")); err != nil {
		return l, fmt.Errorf("linking the weft binary: %w", err)
	}
	if err := l.buildUnderlay(ctx); err != nil {
		return l, err
	}
	for range o.Nodes {
		if err := l.newNode(o.PodCIDRs); err != nil {
			return l, err
		}
	}
	return l, l.bootAll(ctx)
}

// bootAll boots the nodes that Up has announced: all daemons start with the whole cluster known.
func (l *Lab) bootAll(ctx context.Context) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if err := l.boot(ctx, n.Name); err != nil {
			return fmt.Errorf("booting %s: %w", n.Name, err)
		}
	}
	for _, n := range s.Nodes {
		if err := l.waitReady(ctx, n.Name); err != nil {
			return err
		}
	}
	return nil
}

// Open finds the lab that another process has made.
func Open(dir string) (*Lab, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("finding the lab's folder: %w", err)
	}
	l := &Lab{Dir: dir, progress: io.Discard}
	if _, err := os.Stat(l.path(stateFile)); err != nil {
		return nil, fmt.Errorf("no lab in %s (make one with weft lab up): %w", dir, err)
	}
	return l, nil
}

// Down ends the lab in the folder, however it came to be there, and removes the folder. It succeeds when there is none.
func Down(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("finding the lab's folder: %w", err)
	}
	l := &Lab{Dir: dir, progress: io.Discard}
	return l.Down(ctx)
}

// Down ends every process of the lab and removes its folder.
func (l *Lab) Down(ctx context.Context) error {
	owned := l.owned() // before the last holder may begin to remove the folder
	if l.closing != nil {
		_ = l.closing.Close()
		_ = l.lifeline.Close()
		l.closing, l.lifeline = nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	// Holders are looked up by their command line, not in the lab's state: a lab that was killed while it was built, or whose
	// folder was removed, is found too. Two rounds, since a builder that is being killed may start one more.
	for range 2 {
		holders, err := findHolders(l.Dir)
		if err != nil {
			return err
		}
		owned = owned || len(holders) > 0 // what is left of a folder that such a one was removing
		for _, h := range holders {
			if err := h.kill(ctx); err != nil {
				return fmt.Errorf("ending the lab's process %d: %w", h.PID, err)
			}
		}
	}
	if !owned {
		return nil
	}
	if err := os.RemoveAll(l.Dir); err != nil {
		return fmt.Errorf("removing the lab's folder: %w", err)
	}
	if parent := filepath.Dir(l.Dir); parent == filepath.Dir(DefaultDir("x")) {
		_ = os.Remove(parent) // fails while there is another lab
	}
	return nil
}

// owned reports whether the folder is a lab's: nothing else may be removed by a wrong --dir.
func (l *Lab) owned() bool {
	for _, name := range []string{stateFile, manifestsFolder} {
		if _, err := os.Stat(l.path(name)); err == nil {
			return true
		}
	}
	entries, err := os.ReadDir(l.Dir)
	return err == nil && len(entries) == 0 || errors.Is(err, fs.ErrNotExist)
}

func (l *Lab) path(parts ...string) string {
	return filepath.Join(append([]string{l.Dir}, parts...)...)
}

func (l *Lab) say(format string, args ...any) {
	_, _ = fmt.Fprintf(l.progress, format+"\n", args...)
}

// poll asks until the condition holds or ctx ends; the error then says what was waited for and why it did not come.
func poll(ctx context.Context, what string, condition func() error) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w (%w)", what, err, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// tail returns the last lines of a file, for error messages.
func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
