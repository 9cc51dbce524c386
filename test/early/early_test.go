// Package early guards the one trick: the forwarder runs before the rest of the binary is initialised.
package early

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"weft.network/weft/appliance/control"
	"weft.network/weft/appliance/kernel/netnstest"
)

// firstInits is how many packages may be initialised before the forwarder: os and what it needs.
const firstInits = 40

// weft is the product, built once; WEFT_BIN names one that is built already.
var weft = os.Getenv("WEFT_BIN")

func TestMain(m *testing.M) {
	if weft != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "weft-early-")
	if err != nil {
		panic(err)
	}
	weft = filepath.Join(dir, "weft")
	cmd := exec.Command("go", "build", "-tags", "urfave_cli_no_docs", "-o", weft, "../..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("building weft: %v\n%s", err, out))
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// TestInitOrder fails when an import moves the forwarder back: every CNI call would then cost 15 ms more.
func TestInitOrder(t *testing.T) {
	bin := weft
	cmd := exec.Command(bin, "--version")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	var trace bytes.Buffer
	cmd.Stderr = &trace
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	inits := regexp.MustCompile(`(?m)^init (\S+) `).FindAllStringSubmatch(trace.String(), -1)
	for i, m := range inits {
		if m[1] != "a.weft/early" {
			continue
		}
		if i >= firstInits {
			t.Errorf("the forwarder is initialised as number %d, after %s; it must be among the first %d", i+1, inits[i-1][1], firstInits)
		}
		if len(inits) < 2*firstInits {
			t.Errorf("only %d packages are initialised: this binary is not the product", len(inits))
		}
		t.Logf("number %d of %d", i+1, len(inits))
		return
	}
	t.Fatalf("the forwarder is not among the %d packages that were initialised", len(inits))
}

// TestForward runs the product as a plugin against a socket that answers, under each of its names, and with no daemon.
func TestForward(t *testing.T) {
	bin, run := weft, t.TempDir()
	l, err := control.Listen(run)
	if err != nil {
		t.Fatal(err)
	}
	bodies := make(chan []byte, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /cni", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- body
		f := control.TakeFile(r)
		w.Header().Set("Weft-Exit", "1")
		fmt.Fprintf(w, "file %t", f != nil)
		if f != nil {
			f.Close()
		}
	})
	ctx := t.Context()
	go control.Serve(ctx, l, mux, 0)

	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"n","runDir":%q}`, run)
	for _, name := range []string{"weft-cni", "weft-ipam", "loopback", "portmap", "bandwidth", "host-local", "weft"} {
		out, code := plugin(t, bin, name, conf)
		got := <-bodies
		if code != 1 || out != "file true" {
			t.Errorf("%s: exit %d, output %q", name, code, out)
		}
		if want := "PLUGIN=" + name + "\x00"; !strings.HasPrefix(string(got), want) || !strings.HasSuffix(string(got), "\x00"+conf) {
			t.Errorf("%s: the daemon got %q", name, got)
		}
		if !strings.Contains(string(got), "CNI_COMMAND=ADD\x00") || strings.Contains(string(got), "HOME=") {
			t.Errorf("%s: the environment in %q", name, got)
		}
	}
}

func TestForwardNobodyThere(t *testing.T) {
	bin := weft
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"n","runDir":%q,"stateDir":%q}`, t.TempDir(), t.TempDir())
	out, code := plugin(t, bin, "weft-cni", conf)
	if code != 1 || !strings.Contains(out, `"code":11`) || !strings.Contains(out, "weftd does not answer") {
		t.Errorf("exit %d: %s", code, out)
	}
}

// A daemon that dies over the call is "try again later" too.
func TestForwardDaemonDies(t *testing.T) {
	bin, run := weft, t.TempDir()
	l, err := net.Listen("unix", filepath.Join(run, control.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	out, code := plugin(t, bin, "weft-cni", fmt.Sprintf(`{"runDir":%q}`, run))
	if code != 1 || !strings.Contains(out, `"code":11`) {
		t.Errorf("exit %d: %s", code, out)
	}
}

func plugin(t *testing.T, bin, name, stdin string) (string, int) {
	t.Helper()
	cmd := exec.Command(bin)
	cmd.Args[0] = "/opt/cni/bin/" + name
	cmd.Env = []string{
		"HOME=/root", "CNI_COMMAND=ADD", "CNI_CONTAINERID=c", "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
		"CNI_NETNS=" + netnstest.New(t).Path(),
	}
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}
