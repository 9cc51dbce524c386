package early

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestSocketPath(t *testing.T) {
	for _, tc := range []struct{ conf, want string }{
		{``, defaultSocket},
		{`{}`, defaultSocket},
		{`{"name": "weft"}`, defaultSocket},
		{`{"runDir": "/run/lab/n1"}`, "/run/lab/n1/weft.sock"},
		{`{"runDir":"/run/lab/n1","x":1}`, "/run/lab/n1/weft.sock"},
		{"{\"runDir\"\t:\r\n \"/run/lab/n1\"}", "/run/lab/n1/weft.sock"},
		{`{"a": {"runDir": "/x"}}`, "/x/weft.sock"},
		{`{"runDir": ""}`, defaultSocket},
		{`{"runDir": null}`, defaultSocket},
		{`{"runDir": 5, "x": "y"}`, defaultSocket},
		{`{"x": "runDir", "y": "/z"}`, defaultSocket},
		{`{"x": ["runDir", "a"], "runDir": "/z"}`, "/z/weft.sock"},
		{`{"rundir": "/z"}`, defaultSocket},
		{`{"runDir": "\/run\/lab"}`, ""},
		{`{"runDir": "a\"b"}`, ""},
		{`{"runDir": "/run/lab`, defaultSocket},
		{`{"runDir"`, defaultSocket},
		{`"runDir"`, defaultSocket},
		{`{"runDir":`, defaultSocket},
		{`{"runDir":: "/x"}`, defaultSocket},
	} {
		if got := socketPath([]byte(tc.conf)); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.conf, got, tc.want)
		}
	}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		answer, body string
		exit         int
		ok           bool
	}{
		{"HTTP/1.0 200 OK\r\nWeft-Exit: 0\r\nDate: x\r\n\r\n{\"a\": 1}", `{"a": 1}`, 0, true},
		{"HTTP/1.0 200 OK\r\nWeft-Exit: 1\r\n\r\n", "", 1, true},
		{"HTTP/1.0 200 OK\r\nWeft-Exit: 0\r\n\r\nbody\r\n\r\nWeft-Exit: 1\r\n\r\n", "body\r\n\r\nWeft-Exit: 1\r\n\r\n", 0, true},
		{"HTTP/1.0 400 Bad Request\r\n\r\n{\"error\": \"x\"}", `{"error": "x"}`, -1, false},
		{"HTTP/1.0 200 OK\r\n\r\n\r\nWeft-Exit: 0\r\n\r\n", "\r\nWeft-Exit: 0\r\n\r\n", -1, false},
		{"HTTP/1.0 200 OK\r\nWeft-Exit: 0\r\n", "", 0, false},
		{"HTTP/1.0 200 OK\r\nWeft-Exit: ", "", 0, false},
		{"", "", 0, false},
	} {
		exit, body, ok := parse([]byte(tc.answer))
		if exit != tc.exit || string(body) != tc.body || ok != tc.ok {
			t.Errorf("%q: %d %q %t, want %d %q %t", tc.answer, exit, body, ok, tc.exit, tc.body, tc.ok)
		}
	}
}

func TestRequest(t *testing.T) {
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "CNI_") {
			t.Setenv(name, "")
			_ = os.Unsetenv(name)
		}
	}
	t.Setenv("CNI_COMMAND", "ADD")
	t.Setenv("CNIX", "no")
	t.Setenv("XCNI_A", "no")
	got := string(request("weft-cni", []byte("{\"x\":\x00}")))
	body := "PLUGIN=weft-cni\x00CNI_COMMAND=ADD\x00\x00{\"x\":\x00}"
	want := fmt.Sprintf("POST /cni HTTP/1.0\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestReadAll(t *testing.T) {
	for _, n := range []int{0, 1, 16<<10 - 1, 16 << 10, 16<<10 + 1, 300000} {
		text := bytes.Repeat([]byte("x"), n)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for rest := text; len(rest) > 0; {
				part := min(len(rest), 7001)
				_, _ = w.Write(rest[:part])
				rest = rest[part:]
			}
			_ = w.Close()
		}()
		if got := readAll(int(r.Fd()), 1<<20); !bytes.Equal(got, text) {
			t.Errorf("%d bytes: read %d", n, len(got))
		}
		_ = r.Close()
	}
	// More than the limit ends the reading, so that an endless input does not fill the memory.
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	if got := readAll(int(zero.Fd()), maxInput+1); len(got) <= maxInput || len(got) > 4*maxInput {
		t.Errorf("read %d bytes of an endless input", len(got))
	}
	if got := readAll(-1, 100); len(got) != 0 {
		t.Errorf("read %d bytes from nothing", len(got))
	}
}

func TestSmall(t *testing.T) {
	for in, want := range map[string]string{"/opt/cni/bin/weft-cni": "weft-cni", "weft": "weft", "": "", "a/": ""} {
		if got := base(in); got != want {
			t.Errorf("base of %q is %q", in, got)
		}
	}
	for _, n := range []int{0, 9, 10, 1048576} {
		if got := itoa(n); got != fmt.Sprint(n) {
			t.Errorf("%d is %q", n, got)
		}
	}
}

// TestForward sends a large call to a listener, with a file beside it, and reads the answer.
func TestForward(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_ = l.SetDeadline(time.Now().Add(10 * time.Second))
	msg := request("weft-cni", bytes.Repeat([]byte("y"), 500000))
	files, read := make(chan int, 1), make(chan int, 1)
	go func() {
		c, err := l.AcceptUnix()
		if err != nil {
			files <- -1
			return
		}
		defer c.Close()
		buf, oob := make([]byte, 1000), make([]byte, 64)
		n, oobn, _, _, _ := c.ReadMsgUnix(buf, oob)
		msgs, _ := syscall.ParseSocketControlMessage(oob[:oobn])
		passed := 0
		for _, m := range msgs {
			fds, _ := syscall.ParseUnixRights(&m)
			passed += len(fds)
			for _, fd := range fds {
				_ = syscall.Close(fd)
			}
		}
		for big := make([]byte, 64<<10); n < len(msg); {
			more, err := c.Read(big)
			if err != nil {
				break
			}
			n += more
		}
		files <- passed
		read <- n
		_, _ = c.Write([]byte("HTTP/1.0 200 OK\r\nWeft-Exit: 1\r\n\r\nanswer"))
	}()
	fd, ok := connect(path)
	if !ok {
		t.Fatal("no connection")
	}
	defer func() { _ = syscall.Close(fd) }()
	if !send(fd, msg, "/proc/self/ns/net") {
		t.Fatal("not sent")
	}
	if got := <-files; got != 1 {
		t.Fatalf("%d files were passed, want 1", got)
	}
	if n := <-read; n != len(msg) {
		t.Errorf("%d bytes arrived, want %d", n, len(msg))
	}
	if exit, body, ok := parse(readAll(fd, 8<<20)); exit != 1 || string(body) != "answer" || !ok {
		t.Errorf("%d %q %t", exit, body, ok)
	}
}

// TestNobodyThere: main takes over when nobody listens, whatever is wrong with the path.
func TestNobodyThere(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", filepath.Join(dir, "none"), stale, plain, dir, "/" + strings.Repeat("x", 200)} {
		if fd, ok := connect(path); ok {
			_ = syscall.Close(fd)
			t.Errorf("%q: connected", path)
		}
	}
}

// TestGoneNamespace: a DEL comes after the namespace is gone; the call goes without a descriptor.
func TestGoneNamespace(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fds[1]) }()
	ok := send(fds[0], []byte("x"), "/run/netns/does-not-exist")
	_ = syscall.Close(fds[0])
	if got := readAll(fds[1], 10); !ok || string(got) != "x" {
		t.Errorf("%t %q", ok, got)
	}
	if _, err := syscall.SendmsgN(fds[1], []byte("x"), nil, nil, syscall.MSG_NOSIGNAL); err == nil {
		t.Error("the other end should be gone")
	}
	if send(fds[1], []byte("x"), "") {
		t.Error("sent to nobody")
	}
}

// FuzzSocketPath never panics and only finds what is there.
func FuzzSocketPath(f *testing.F) {
	f.Add([]byte(`{"runDir": "/x"}`))
	f.Add([]byte(`"runDir":"\"`))
	f.Fuzz(func(t *testing.T, conf []byte) {
		p := socketPath(conf)
		if dir, ok := strings.CutSuffix(p, socketName); p != defaultSocket && p != "" && (!ok || !bytes.Contains(conf, []byte(dir))) {
			t.Errorf("%q from %q", p, conf)
		}
		parse(conf)
	})
}

func TestCalledAs(t *testing.T) {
	for args, want := range map[string]string{
		"/opt/cni/bin/weft-cni": "weft-cni", "/opt/cni/bin/host-local": "host-local", "weft": "weft", "other": "other",
		"weft portmap": "portmap", "/usr/local/bin/weft weft-ipam": "weft-ipam",
		"weft weftd --node-name a": "", "weft status": "", "weftd": "", "weft-proxy": "",
	} {
		if got := calledAs(strings.Fields(args)); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}
