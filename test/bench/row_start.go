package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
)

func init() {
	register(10, Row{
		Name:  "start",
		About: "the binary as a CNI plugin that forwards to a daemon that answers at once, exec to exit, beside an empty static Go program",
		Run:   runStart,
	})
}

const (
	milli = 1e6        // nanoseconds in a millisecond
	mega  = 1e6 / 1024 // KiB in a megabyte
)

func runStart(ctx context.Context, lab *Lab) ([]Result, error) {
	dir, err := lab.Folder("start")
	if err != nil {
		return nil, err
	}
	answered, err := answerAtOnce(lab, filepath.Join(dir, "weft.sock"))
	if err != nil {
		return nil, err
	}
	l, err := newLauncher(lab)
	if err != nil {
		return nil, err
	}
	conf, away := filepath.Join(dir, "conf"), filepath.Join(dir, "away")
	err = errors.Join(
		os.WriteFile(conf, fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"weft","type":"weft-cni","runDir":%q}`, dir), 0o644),
		os.WriteFile(away, fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"weft","type":"weft-cni","runDir":%[1]q,"stateDir":%[1]q}`, dir+"/none"), 0o644))
	if err != nil {
		return nil, fmt.Errorf("writing configurations: %w", err)
	}
	call := []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=start", "CNI_NETNS=/proc/self/ns/net", "CNI_IFNAME=eth0", "CNI_PATH=" + lab.plugins()}
	plugin := filepath.Join(lab.plugins(), "weft-cni")
	weft := &launched{launcher: l, program: plugin, stdin: conf, env: call}
	empty := &launched{launcher: l, program: filepath.Join(lab.bin, "empty"), stdin: os.DevNull}
	bridge := &launched{launcher: l, program: referencePlugins + "/bridge", stdin: conf, env: []string{"CNI_COMMAND=VERSION"}}
	long := &launched{launcher: l, program: plugin, stdin: away, env: call, exit: 1}

	rounds := lab.Rounds(200)
	s, err := interleave(ctx, rounds, weft.run, empty.run, bridge.run, long.run)
	if err != nil {
		return nil, err
	}
	if got := int(answered.Load()); got != rounds+1 {
		return nil, fmt.Errorf("%d calls of %d reached the daemon's socket", got, rounds+1)
	}
	const other = "empty program"
	return []Result{
		compare("CNI plugin, forwarding: start to exit", "ms", s[0], other, s[1], atMostMore(3, "ms")),
		alone("CNI plugin, forwarding: peak memory", "MB", []float64{weft.peak / mega}, atMost(16, "MB")).
			note("the highest of %d; %d minor page faults, the empty program %d", rounds, weft.faults, empty.faults),
		compare("CNI plugin, no daemon: the long way", "ms", s[3], other, s[1], noBudget).note("answers \"try again later\"; peak %.0f MB", long.peak/mega),
		compare("CNI plugin, forwarding, beside Debian's bridge", "ms", s[0], "bridge, VERSION", s[2], noBudget).
			note("bridge has to start host-local, which is another start; peak %.0f MB", bridge.peak/mega),
	}, nil
}

// answerAtOnce is a daemon that has nothing to do: it answers every call with success.
func answerAtOnce(lab *Lab, socket string) (*atomic.Int64, error) {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listening in the daemon's place: %w", err)
	}
	lab.Cleanup(func() { _ = listener.Close() })
	var calls atomic.Int64
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil && r.URL.Path == "/cni" {
				if _, err := io.Copy(io.Discard, r.Body); err == nil {
					calls.Add(1)
					_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\nWeft-Exit: 0\r\n\r\n{\"cniVersion\":\"1.0.0\"}")
				}
			}
			_ = c.Close()
		}
	}()
	return &calls, nil
}

// launcher talks to the program launch.
type launcher struct {
	to   io.Writer
	from *bufio.Reader
}

func newLauncher(lab *Lab) (*launcher, error) {
	cmd := exec.Command(filepath.Join(lab.bin, "launch"))
	to, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	from, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the launcher: %w", err)
	}
	lab.Cleanup(func() {
		_ = to.Close() // ends it
		_ = cmd.Wait()
	})
	return &launcher{to, bufio.NewReader(from)}, nil
}

// launched is a program that is started again and again.
type launched struct {
	*launcher
	program, stdin string
	env            []string
	exit           int

	peak   float64 // KiB, the highest
	faults int     // of the last start
}

// run starts the program once and returns how long it took, in milliseconds.
func (p *launched) run(context.Context) (float64, error) {
	if _, err := fmt.Fprintln(p.to, strings.Join(append([]string{p.program, p.stdin}, p.env...), "\t")); err != nil {
		return 0, fmt.Errorf("asking the launcher: %w", err)
	}
	answer, err := p.from.ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("hearing from the launcher: %w", err)
	}
	var took, peak float64
	var exit int
	if _, err := fmt.Sscan(answer, &took, &peak, &p.faults, &exit); err != nil {
		return 0, fmt.Errorf("starting %s: %s", p.program, strings.TrimSpace(answer))
	}
	if exit != p.exit {
		return 0, fmt.Errorf("%s ended with exit code %d, want %d", p.program, exit, p.exit)
	}
	p.peak = max(p.peak, peak)
	return took / milli, nil
}
