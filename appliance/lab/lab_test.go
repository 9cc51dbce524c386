package lab

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/model"
)

func TestParsePort(t *testing.T) {
	for _, tc := range []struct {
		text string
		want model.PortMapping
		bad  bool
	}{
		{"8080:80", model.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: model.TCP}, false},
		{"53:5353/udp", model.PortMapping{HostPort: 53, ContainerPort: 5353, Protocol: model.UDP}, false},
		{"127.0.0.1:8080:80/tcp", model.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: model.TCP, HostIP: netip.MustParseAddr("127.0.0.1")}, false},
		{"[fd00::1]:8080:80/sctp", model.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: model.SCTP, HostIP: netip.MustParseAddr("fd00::1")}, false},
		{"8080", model.PortMapping{}, true},
		{"8080:", model.PortMapping{}, true},
		{"99999:80", model.PortMapping{}, true},
		{"8080:80/icmp", model.PortMapping{}, true},
		{"host:8080:80", model.PortMapping{}, true},
		{"", model.PortMapping{}, true},
	} {
		got, err := ParsePort(tc.text)
		if (err != nil) != tc.bad || !tc.bad && got != tc.want {
			t.Errorf("%q: %+v %v, want %+v, an error: %v", tc.text, got, err, tc.want, tc.bad)
		}
		if err != nil && !strings.Contains(err.Error(), `"`+tc.text+`"`) {
			t.Errorf("%q: the error does not name it: %v", tc.text, err)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("WEFT_TEST_MUST_RUN") == "1" {
		t.Fatal("needs root, and WEFT_TEST_MUST_RUN=1 forbids skipping")
	}
	t.Skip("needs root")
}

func TestOptions(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		o    Options
		says string
	}{
		{Options{Nodes: 41}, "nodes: 41"},
		{Options{Nodes: -1}, "nodes: -1"},
		{Options{Subnets: 10}, "subnets: 10"},
		{Options{Mode: "geneve"}, `mode "geneve"`},
		{Options{Families: "ipv5"}, `families "ipv5"`},
	} {
		tc.o.Dir = filepath.Join(t.TempDir(), "lab")
		l, err := Up(t.Context(), tc.o)
		if err == nil || !strings.Contains(err.Error(), tc.says) || l != nil {
			t.Errorf("%+v: %v, want an error that says %q", tc.o, err, tc.says)
		}
	}
}

// TestUpUndoes: a lab that cannot be built leaves nothing.
func TestUpUndoes(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "lab")
	for _, binary := range []string{"/bin/false", "/does/not/exist"} {
		if _, err := Up(t.Context(), Options{Dir: dir, WeftBin: binary}); err == nil {
			t.Fatalf("%s makes a lab", binary)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: the folder is still there", binary)
		}
	}
}

// TestProcess: a process is known by more than its pid, and gone when it has ended, also while nobody has asked for its exit code.
func TestProcess(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	p, err := processOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := Process{PID: p.PID, Start: p.Start + 1}
	if !p.Alive() || other.Alive() || (Process{}).Alive() {
		t.Errorf("alive: %v, another of the same pid: %v, none: %v", p.Alive(), other.Alive(), Process{}.Alive())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := other.kill(ctx); err != nil || !p.Alive() {
		t.Fatalf("killing another process of the same pid: %v, alive %v", err, p.Alive())
	}
	if err := p.signal(ctx, unix.SIGCONT, false); err != nil || !p.Alive() {
		t.Fatalf("a harmless signal: %v, alive %v", err, p.Alive())
	}
	for range 2 {
		if err := p.kill(ctx); err != nil || p.Alive() {
			t.Fatalf("killing: %v, alive %v", err, p.Alive())
		}
	}
}
