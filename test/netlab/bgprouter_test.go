package netlab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft.network/weft/appliance/lab"
)

// bgpStoryTime bounds a story with a router: BGP waits some seconds after each failure.
const bgpStoryTime = 5 * time.Minute

// bgpWait is how long a session may take; both ends try again every few seconds.
const bgpWait = 60 * time.Second

// tellBGP builds a lab whose router will run a routing daemon.
func tellBGP(t testing.TB, o lab.Options) *story {
	t.Helper()
	s := tell(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), bgpStoryTime)
	t.Cleanup(cancel)
	s.ctx = ctx
	return s
}

// program runs a program on a machine of the lab until the story ends, or until the returned function is called.
func (s *story) program(target string, argv ...string) (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	var output bytes.Buffer
	go func() {
		defer close(done)
		_, _ = s.Exec(ctx, target, argv, lab.Stdio{Out: &output, Err: &output})
	}()
	stop = func() { cancel(); <-done }
	s.t.Cleanup(func() {
		stop()
		if s.t.Failed() {
			s.t.Logf("%s: the end of what it said:\n%s", argv[0], output.Bytes()[max(0, output.Len()-4000):])
		}
	})
	return stop
}

// router is a routing daemon in the lab's router, which people would have as top-of-rack switch, or on another machine of the lab.
type router struct {
	s    *story
	at   string
	dir  string
	kind string
}

// needs skips a story whose program is not installed, or fails it where a skip is not allowed.
func needs(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Stat(path); err == nil {
		return
	}
	if os.Getenv("WEFT_TEST_MUST_RUN") == "1" {
		t.Fatalf("%s is missing (make deps installs it), and WEFT_TEST_MUST_RUN=1 forbids skipping", path)
	}
	t.Skipf("%s is missing: make deps installs it", path)
}

// bird starts BIRD 2 with this configuration, after the lines that every one needs.
func (s *story) bird(config string) *router { return s.birdAt(lab.Router, config) }

// birdAt starts BIRD 2 on some machine of the lab.
func (s *story) birdAt(machine, config string) *router {
	s.t.Helper()
	needs(s.t, "/usr/sbin/bird")
	r := &router{s: s, at: machine, dir: s.shortDir(), kind: "bird"}
	r.configure(config)
	s.program(machine, "/usr/sbin/bird", "-f", "-c", r.dir+"/bird.conf", "-s", r.dir+"/bird.ctl", "-P", r.dir+"/bird.pid")
	s.eventually("BIRD answers", bgpWait, func() error { _, err := r.ask("show", "status"); return err })
	return r
}

// shortDir is a folder for sockets, whose names may not be long.
func (s *story) shortDir() string {
	s.t.Helper()
	dir, err := os.MkdirTemp("", "bgp")
	s.no(err)
	s.no(os.Chmod(dir, 0o755))
	s.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

const birdHead = `router id 172.30.1.1;
log stderr all;
protocol device {}
protocol kernel { ipv4 { export all; import none; }; merge paths on; }
protocol kernel { ipv6 { export all; import none; }; merge paths on; }
`

// configure replaces the configuration; a BIRD that runs reads it at once.
func (r *router) configure(config string) {
	r.s.t.Helper()
	r.s.no(os.WriteFile(filepath.Join(r.dir, "bird.conf"), []byte(birdHead+config), 0o644))
	if _, err := os.Stat(filepath.Join(r.dir, "bird.ctl")); err == nil {
		_, err := r.ask("configure")
		r.s.no(err)
	}
}

// ask uses the daemon's own command line.
func (r *router) ask(words ...string) (string, error) {
	if r.kind == "bird" {
		return r.s.Output(r.s.ctx, r.at, append([]string{"/usr/sbin/birdc", "-s", r.dir + "/bird.ctl"}, words...)...)
	}
	return r.s.Output(r.s.ctx, r.at, "/usr/bin/vtysh", "--vty_socket", r.dir, "-c", strings.Join(words, " "))
}

// frr starts zebra and bgpd of FRR with this configuration.
func (s *story) frr(config string) *router {
	s.t.Helper()
	needs(s.t, "/usr/lib/frr/bgpd")
	r := &router{s: s, at: lab.Router, dir: s.shortDir(), kind: "frr"}
	s.no(os.WriteFile(r.dir+"/bgpd.conf", []byte(config), 0o644))
	s.no(os.WriteFile(r.dir+"/zebra.conf", nil, 0o644))
	// Folders that the daemons, who are nobody in particular, may write to.
	s.no(os.Chmod(r.dir, 0o777))
	common := []string{"--vty_socket", r.dir, "-z", r.dir + "/zserv", "--log", "stdout"}
	s.program(lab.Router, append([]string{"/usr/lib/frr/zebra", "-f", r.dir + "/zebra.conf", "-i", r.dir + "/zebra.pid", "-P", "0"}, common...)...)
	s.eventually("zebra answers", bgpWait, func() error { _, err := os.Stat(r.dir + "/zserv"); return err })
	s.program(lab.Router, append([]string{"/usr/lib/frr/bgpd", "-f", r.dir + "/bgpd.conf", "-i", r.dir + "/bgpd.pid", "-P", "0"}, common...)...)
	s.eventually("bgpd answers", bgpWait, func() error { _, err := r.ask("show", "bgp", "summary"); return err })
	return r
}

// hops returns the next hops of a prefix as the router's own command line shows them.
func (r *router) hops(prefix string) (out []string) {
	r.s.t.Helper()
	family := "ipv4"
	if strings.Contains(prefix, ":") {
		family = "ipv6"
	}
	words := []string{"show", "route", "for", prefix, "all"}
	if r.kind == "frr" {
		words = []string{"show", "bgp", family, "unicast", prefix, "json"}
	}
	var text string
	r.s.eventually("an answer of "+r.kind, bgpWait, func() (err error) {
		if text, err = r.ask(words...); err != nil && strings.Contains(err.Error(), "Network not found") {
			return nil // which is no error of ours
		}
		return err
	})
	if r.kind == "frr" {
		return frrHops(text)
	}
	for _, line := range strings.Split(text, "\n") {
		if _, hop, ok := strings.Cut(line, "BGP.next_hop: "); ok {
			out = append(out, strings.Fields(hop)[0])
		}
	}
	return out
}

// untilHops waits until the router has exactly these next hops for a prefix, in whatever order, and returns how long that took.
func (r *router) untilHops(prefix string, want ...string) time.Duration {
	r.s.t.Helper()
	return r.s.eventually(fmt.Sprintf("%s via %v", prefix, want), bgpWait, func() error {
		got := r.hops(prefix)
		if len(got) != len(want) || !subset(want, got) {
			return fmt.Errorf("the router has %v", got)
		}
		return nil
	})
}

// session waits until the router says that its session with a neighbour is in a state.
func (r *router) until(what string, words []string, parts ...string) {
	r.s.t.Helper()
	r.s.eventually(what, bgpWait, func() error {
		text, err := r.ask(words...)
		if err != nil {
			return err
		}
		for _, part := range parts {
			if !strings.Contains(text, part) {
				return fmt.Errorf("%q is not in\n%s", part, text)
			}
		}
		return nil
	})
}

// weft runs the command line on a node.
func (s *story) weft(node string, args ...string) string {
	s.t.Helper()
	out, err := s.Output(s.ctx, node, append([]string{"weft"}, args...)...)
	s.no(err)
	return out
}

// restartDaemon kills a node's weftd as an upgrade or a crash would, and starts it again.
func (s *story) restartDaemon(node string, sig syscall.Signal) {
	s.t.Helper()
	s.no(s.KillDaemon(s.ctx, node, sig))
	s.no(s.StartDaemon(s.ctx, node))
	s.no(s.WaitReady(s.ctx, node))
}

func mustAddr(text string) netip.Addr { return netip.MustParseAddr(text) }

func addrPort(a netip.Addr, port int) netip.AddrPort { return netip.AddrPortFrom(a, uint16(port)) }
