package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weft.network/weft/appliance/control"
)

// Action is what a step does.
type Action string

// The actions.
const (
	Copy    Action = "copy"    // the running binary to Path
	Link    Action = "link"    // Path becomes a symbolic link to the binary
	Save    Action = "save"    // the foreign file at Path is kept aside
	Restore Action = "restore" // the file kept aside comes back to Path
	Write   Action = "write"   // text to Path
	Remove  Action = "remove"  // Path, a folder with all that is in it
	Run     Action = "run"     // systemctl with Args
	Clean   Action = "clean"   // the kernel
)

// Step is one change of the node.
type Step struct {
	Action Action   `json:"action"`
	Path   string   `json:"path,omitempty"`
	Args   []string `json:"args,omitempty"`
	// Detail says what is particular about this step, for people.
	Detail string `json:"detail,omitempty"`

	data []byte
}

// String prints the step as one line.
func (s Step) String() string {
	text := s.Path
	switch s.Action {
	case Run:
		text = "systemctl " + strings.Join(s.Args, " ")
	case Clean:
		text = "the kernel"
	}
	if s.Detail != "" {
		text += "  (" + s.Detail + ")"
	}
	return fmt.Sprintf("%-8s%s", s.Action, text)
}

// Plan is what Install or Uninstall found to be done.
type Plan struct {
	Verb     string   `json:"verb"` // install or uninstall
	Platform string   `json:"platform"`
	Steps    []Step   `json:"steps"`
	Warnings []string `json:"warnings,omitempty"`
	// Next is what is left to the administrator.
	Next []string `json:"next,omitempty"`
}

// String prints the plan for people: steps, warnings, and what is left to do.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "weft %s, %s\n", p.Verb, p.Platform)
	if len(p.Steps) == 0 {
		b.WriteString("  nothing to do\n")
	}
	for _, s := range p.Steps {
		fmt.Fprintf(&b, "  %s\n", s)
	}
	for _, w := range p.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	for _, n := range p.Next {
		fmt.Fprintf(&b, "next: %s\n", n)
	}
	return b.String()
}

// Apply takes the steps in order and stops at the first that fails; done is called after each. Planning and applying
// again does the rest.
func (p Plan) Apply(ctx context.Context, env Env, done func(Step)) error {
	for _, s := range p.Steps {
		if err := env.apply(ctx, s); err != nil {
			return fmt.Errorf("%sing weft: %s: %w", p.Verb, s, err)
		}
		done(s)
	}
	return nil
}

func (e Env) apply(ctx context.Context, s Step) error {
	path := e.path(s.Path)
	switch s.Action {
	case Copy:
		from, err := os.Open(e.Binary)
		if err != nil {
			return err
		}
		defer from.Close()
		return replace(path, from, 0o755)
	case Write:
		return replace(path, bytes.NewReader(s.data), 0o644)
	case Link:
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.Symlink(binary, path)
	case Save:
		return os.Rename(path, path+saved)
	case Restore:
		return os.Rename(path+saved, path)
	case Remove:
		return os.RemoveAll(path)
	case Run:
		return e.Systemctl(ctx, s.Args...)
	case Clean:
		return e.CleanKernel(ctx)
	}
	return fmt.Errorf("unknown action %q", s.Action)
}

// replace writes a file whole or not at all: a running program or a reader never sees half of it, also after a power cut.
func replace(path string, from io.Reader, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".weft-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, err = io.Copy(tmp, from)
	if err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func (e Env) path(p string) string { return filepath.Join(e.Root, p) }

func (e Env) exists(p string) bool {
	_, err := os.Lstat(e.path(p))
	return err == nil
}

// listens reports whether a daemon answers in this run directory.
func (e Env) listens(ctx context.Context, runDir string) bool {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", filepath.Join(e.path(runDir), control.SocketName))
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// newer reports whether both exist and a was written after b: a step that had to follow the writing of a may be missing,
// because an earlier run was interrupted.
func (e Env) newer(a, b string) bool {
	ia, err := os.Stat(e.path(a))
	if err != nil {
		return false
	}
	ib, err := os.Stat(e.path(b))
	return err == nil && ia.ModTime().After(ib.ModTime())
}

// ours reports whether path is a link of weft.
func (e Env) ours(path string) bool {
	target, err := os.Readlink(e.path(path))
	return err == nil && target == binary
}

func (p *planner) add(s Step)         { p.Steps = append(p.Steps, s) }
func (p *planner) run(args ...string) { p.add(Step{Action: Run, Args: args}) }
func (p *planner) warn(f string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(f, args...))
}
func (p *planner) next(f string, args ...any) { p.Next = append(p.Next, fmt.Sprintf(f, args...)) }

// write plans a file with this text and reports whether it differs from what is there.
func (p *planner) write(path string, data []byte, detail string) bool {
	old, err := os.ReadFile(p.path(path))
	if err == nil && bytes.Equal(old, data) {
		return false
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && p.err == nil {
		p.err = fmt.Errorf("reading what is at %s: %w", path, err)
	}
	p.add(Step{Action: Write, Path: path, Detail: detail, data: data})
	return true
}

// link plans a link to the binary; a foreign file in its place is kept aside.
func (p *planner) link(path string) {
	if p.ours(path) {
		return
	}
	if p.exists(path) {
		p.add(Step{Action: Save, Path: path, Detail: "as " + filepath.Base(path) + saved})
	}
	p.add(Step{Action: Link, Path: path})
}

// unlink takes a link of ours away and brings back what was there. A foreign file that has come in its place since then
// is newer than the one kept aside, and stays.
func (p *planner) unlink(path string) {
	foreign := p.exists(path) && !p.ours(path)
	if p.ours(path) {
		p.remove(path)
	}
	switch {
	case !p.exists(path + saved):
	case foreign:
		p.remove(path + saved)
	default:
		p.add(Step{Action: Restore, Path: path})
	}
}

func (p *planner) remove(path string) bool {
	if !p.exists(path) {
		return false
	}
	p.add(Step{Action: Remove, Path: path})
	return true
}

// removeFolder plans to remove a folder that holds nothing but what is removed anyway.
func (p *planner) removeFolder(path string) {
	entries, err := os.ReadDir(p.path(path))
	if err != nil {
		return
	}
	for _, e := range entries {
		entry := filepath.Join(path, e.Name())
		if !slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Action == Remove && s.Path == entry }) {
			return
		}
	}
	p.remove(path)
}

// copyBinary plans the copy unless the same program is there already.
func (p *planner) copyBinary() error {
	want, err := digest(p.Binary)
	if err != nil {
		return fmt.Errorf("reading the weft to install: %w", err)
	}
	got, err := digest(p.path(binary))
	if err == nil && got == want {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the installed weft: %w", err)
	}
	p.add(Step{Action: Copy, Path: binary})
	return nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return string(sum.Sum(nil)), nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
