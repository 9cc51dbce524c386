package gobgp

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/peering"
)

// asChild makes this test binary the child.
const asChild = "WEFT_TEST_SPEAKER"

func TestMain(m *testing.M) {
	if os.Getenv(asChild) == "1" {
		if err := ChildMain(zap.NewNop(), false); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// family is a Speaker whose child is this test binary.
func family(t testing.TB) (p *Speaker, pids *[]int) {
	t.Helper()
	pids = &[]int{}
	p = NewSpeaker(SpeakerOptions{Options: Options{Log: zap.NewNop()}, Start: func(args []string, socket *os.File) (*os.Process, error) {
		child, err := os.StartProcess("/proc/self/exe", append([]string{"child"}, args...), &os.ProcAttr{
			Env: append(os.Environ(), asChild+"=1"), Files: []*os.File{nil, nil, os.Stderr, socket},
		})
		if err == nil {
			*pids = append(*pids, child.Pid)
		}
		return child, err
	}})
	t.Cleanup(p.Close)
	return p, pids
}

// TestStuckChild: a child that does not answer is ended, and the next Apply begins with another.
func TestStuckChild(t *testing.T) {
	stuck := true
	p := NewSpeaker(SpeakerOptions{Options: Options{Log: zap.NewNop()}, Patience: 100 * time.Millisecond, Start: func(_ []string, socket *os.File) (*os.Process, error) {
		program, args, env := "/bin/sleep", []string{"sleep", "60"}, []string(nil)
		if !stuck {
			program, args, env = "/proc/self/exe", []string{"child"}, append(os.Environ(), asChild+"=1")
		}
		return os.StartProcess(program, args, &os.ProcAttr{Env: env, Files: []*os.File{nil, nil, os.Stderr, socket}})
	}})
	t.Cleanup(p.Close)
	router := newSpeaker(t, 65002, "127.0.0.2")
	us := &speaker{t: t, want: peering.Speaker{ASN: 65001, RouterID: netip.MustParseAddr("127.0.0.1"), Port: freePort(t)}}
	meet(us, router, nil)
	if _, err := p.Apply(t.Context(), us.want); err == nil || !strings.Contains(err.Error(), "has not answered for 100ms") {
		t.Fatalf("got %v", err)
	}
	wait(t, "the end of the child", func() bool { return p.PID() == 0 })
	stuck, p.options.Patience = false, time.Minute
	wait(t, "another child", func() bool {
		_, err := p.Apply(t.Context(), us.want)
		return err == nil
	})
}

func TestSpeakerProcess(t *testing.T) {
	p, pids := family(t)
	b := newSpeaker(t, 65002, "127.0.0.2")
	a := &speaker{t: t, want: peering.Speaker{ASN: 65001, RouterID: netip.MustParseAddr("127.0.0.1"), Port: freePort(t)}}
	meet(a, b, nil)
	a.tell("10.1.0.0/24")
	b.tell("10.2.0.0/24")
	b.apply()
	if _, err := p.Sessions(t.Context(), true); err == nil || p.Starts() != 0 {
		t.Errorf("a speaker that is off answers: %v, %d processes", err, p.Starts())
	}
	if changes, err := p.Apply(t.Context(), a.want); err != nil || len(changes) != 4 {
		t.Fatalf("%q %v", changes, err)
	}
	b.untilRoutes("10.1.0.0/24 via 127.0.0.1")
	learned := func() bool { r := p.Routes(); return len(r) == 1 && r[0].Prefix.String() == "10.2.0.0/24" }
	wait(t, "the route in the daemon", learned)
	if changes, err := p.Apply(t.Context(), a.want); err != nil || changes != nil {
		t.Errorf("a second apply: %q %v", changes, err)
	}
	if s, err := p.Sessions(t.Context(), true); err != nil || len(s) != 1 || s[0].State != "Established" || s[0].Advertised != 1 || s[0].Neighbour.Name != "p127.0.0.2" {
		t.Errorf("sessions %+v %v", s, err)
	}
	if d, err := p.Received(t.Context(), b.address()); err != nil || len(d) != 1 || d[0].ASPath[0] != 65002 {
		t.Errorf("received %+v %v", d, err)
	}
	if d, err := p.Advertised(t.Context(), b.address()); err != nil || len(d) != 1 || d[0].Prefix.String() != "10.1.0.0/24" {
		t.Errorf("advertised %+v %v", d, err)
	}
	a.want.Port = freePort(t) // needs a new server, not a new process
	if _, err := p.Apply(t.Context(), a.want); err != nil || p.Starts() != 1 {
		t.Errorf("%v, %d processes", err, p.Starts())
	}

	// The process dies.
	child, err := os.FindProcess((*pids)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Kill(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the failure", func() bool { return strings.Contains(p.Failure(), "killed") })
	if _, err := p.Sessions(t.Context(), false); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("sessions of a dead process: %v", err)
	}
	wait(t, "a new process", func() bool { _, err := p.Apply(t.Context(), a.want); return err == nil })
	if p.Failure() != "" || p.Starts() != 2 {
		t.Errorf("%q, %d processes", p.Failure(), p.Starts())
	}
	b.untilRoutes("10.1.0.0/24 via 127.0.0.1")
	wait(t, "the route in the daemon", learned)

	// Off, and on, and the end.
	if _, err := p.Apply(t.Context(), peering.Speaker{}); err != nil {
		t.Fatal(err)
	}
	b.untilRoutes()
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", (*pids)[1])); err == nil {
		t.Error("the process is still there")
	}
	if _, err := p.Apply(t.Context(), a.want); err != nil {
		t.Fatal(err)
	}
	b.untilRoutes("10.1.0.0/24 via 127.0.0.1")
	wait(t, "the route in the daemon", learned)
	p.Close()
	if !learned() {
		t.Errorf("after the end the routes are %v: the next daemon has nothing to hold", p.Routes())
	}
	if _, err := p.Apply(context.Background(), a.want); err == nil {
		t.Error("a closed speaker starts")
	}
}
