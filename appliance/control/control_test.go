package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serve runs a server in a directory of its own until the test ends.
func serve(t *testing.T, h http.Handler) (dir string) {
	t.Helper()
	dir = t.TempDir()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, h, 5*time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, SocketName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	return dir
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// settled waits until no more than want descriptors are open: connections are closed a moment after the answer.
func settled(t *testing.T, want int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for descriptors(t) > want {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open, want %d", descriptors(t), want)
		}
		<-tick.C
	}
}

func dial(t *testing.T, dir string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// post sends what the early forwarder sends: an HTTP/1.0 request, with files beside its first byte.
func post(t *testing.T, dir, path string, body []byte, files ...*os.File) string {
	t.Helper()
	c := dial(t, dir)
	defer c.Close()
	msg := fmt.Appendf(nil, "POST %s HTTP/1.0\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", path, len(body))
	msg = append(msg, body...)
	var oob []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		oob = syscall.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(msg, oob, nil)
	if err == nil && n < len(msg) {
		_, err = c.Write(msg[n:])
	}
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c) // HTTP/1.0: the end of the answer is the end of the connection
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// TestPassFile sends a network namespace and a megabyte, as ADD does.
func TestPassFile(t *testing.T) {
	want, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	dir := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		f := TakeFile(r)
		if err != nil || f == nil {
			WriteError(w, http.StatusBadRequest, fmt.Errorf("%w, file %v", err, f))
			return
		}
		defer f.Close()
		got, err := f.Stat()
		flags, _, _ := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_GETFD, 0)
		w.Header().Set("Weft-Exit", "0")
		fmt.Fprintf(w, "%d bytes, same file %t, close on exec %t, another %t", len(body), err == nil && os.SameFile(got, want), flags&syscall.FD_CLOEXEC != 0, TakeFile(r) != nil)
	}))
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	before := descriptors(t)
	for _, size := range []int{0, 10, 4096, 1<<20 + 1} {
		answer := post(t, dir, "/cni", make([]byte, size), ns)
		for _, part := range []string{"HTTP/1.0 200 OK\r\n", "\r\nWeft-Exit: 0\r\n", fmt.Sprintf("\r\n\r\n%d bytes, same file true, close on exec true, another false", size)} {
			if !strings.Contains(answer, part) {
				t.Errorf("%d bytes: answer %q has no %q", size, answer, part)
			}
		}
		if strings.Contains(answer, "Transfer-Encoding") {
			t.Errorf("%q is chunked: the forwarder does not read that", answer)
		}
	}
	settled(t, before)
}

// TestNoLeak passes files that nobody takes, too many of them, and ends connections early.
func TestNoLeak(t *testing.T) {
	dir := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/take") {
			if f := TakeFile(r); f != nil {
				_ = f.Close()
			}
		}
		_, _ = io.WriteString(w, "done")
	}))
	file, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the collector closes forgotten files, some day
	before := descriptors(t)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			files := []*os.File{file, file, file, file, file, file}[:i%6]
			if answer := post(t, dir, []string{"/take", "/leave"}[i%2], nil, files...); !strings.HasSuffix(answer, "done") {
				t.Errorf("answer %q", answer)
			}
		})
		wg.Go(func() { // half a request, a file, and gone
			c := dial(t, dir)
			_, _, _ = c.WriteMsgUnix([]byte("POST /take HT"), syscall.UnixRights(int(file.Fd())), nil)
			_ = c.Close()
		})
	}
	wg.Wait()
	settled(t, before)
}

// TestTakeFileElsewhere: a request that came another way has no file.
func TestTakeFileElsewhere(t *testing.T) {
	r, err := http.NewRequest(http.MethodGet, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if f := TakeFile(r); f != nil {
		t.Error(f)
	}
}

// TestListen: for root alone from the first moment, in a directory that may be missing, in the place of a socket that is left over.
func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "run")
	path := filepath.Join(dir, SocketName)
	mask := syscall.Umask(0)
	defer syscall.Umask(mask)
	for range 2 { // the second one finds what the first one, killed, left
		l, err := Listen(dir)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != os.ModeSocket|0o600 {
			t.Errorf("mode %s, want a socket with 0600", st.Mode())
		}
		if now := syscall.Umask(0); now != 0 {
			t.Errorf("umask is left at %#o", now)
		}
		l.(fdListener).SetUnlinkOnClose(false)
		_ = l.Close()
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(path)
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(dir); err == nil || !strings.Contains(err.Error(), "removing the old control socket") {
		t.Errorf("a directory in the way: %v", err)
	}
}

// TestShutdown lets a request that is under way finish, takes no new one, and does not wait for ever.
func TestShutdown(t *testing.T) {
	for _, tc := range []struct {
		name  string
		grace time.Duration
		err   error
	}{{"in time", 10 * time.Second, nil}, {"too slow", time.Millisecond, context.DeadlineExceeded}} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			l, err := Listen(dir)
			if err != nil {
				t.Fatal(err)
			}
			entered, release := make(chan bool), make(chan bool)
			h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				close(entered)
				<-release
				WriteJSON(w, "done")
			})
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- Serve(ctx, l, h, tc.grace) }()
			got := make(chan string, 1)
			go func() {
				var s string
				_ = NewClient(dir).Get(context.Background(), "/", &s)
				got <- s
			}()
			<-entered
			cancel()
			if tc.err == nil {
				close(release)
			}
			if err := <-done; !errors.Is(err, tc.err) {
				t.Errorf("got %v, want %v", err, tc.err)
			}
			if tc.err != nil {
				close(release)
			}
			if s := <-got; s != "done" {
				t.Errorf("the request under way got %q", s)
			}
			if err := NewClient(dir).Get(context.Background(), "/", nil); !errors.Is(err, ErrNoDaemon) {
				t.Errorf("after the end: %v", err)
			}
		})
	}
}

// TestClient: what goes in comes out, and every failure says what it is.
func TestClient(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	mux.HandleFunc("GET /refused", func(w http.ResponseWriter, _ *http.Request) {
		WriteError(w, http.StatusConflict, errors.New("lease is in use"))
	})
	mux.HandleFunc("GET /odd", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no JSON", http.StatusTeapot) })
	mux.HandleFunc("GET /broken", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{")) })
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	dir := serve(t, mux)
	c := NewClient(dir)
	ctx := context.Background()

	var out map[string]int
	before := descriptors(t)
	for range 20 {
		if err := c.Post(ctx, "/echo", map[string]int{"a": 1}, &out); err != nil || out["a"] != 1 {
			t.Fatal(out, err)
		}
	}
	settled(t, before)
	if err := c.Post(ctx, "/echo", 1, nil); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct {
		do   func() error
		want string
	}{
		{func() error { return c.Get(ctx, "/refused", &out) }, "lease is in use"},
		{func() error { return c.Get(ctx, "/odd", &out) }, "weftd answered 418 I'm a teapot to /odd"},
		{func() error { return c.Get(ctx, "/missing", &out) }, "weftd answered 404 Not Found to /missing"},
		{func() error { return c.Get(ctx, "/echo", &out) }, "weftd answered 405 Method Not Allowed to /echo"},
		{func() error { return c.Get(ctx, "/broken", &out) }, "decoding weftd's answer: unexpected end of JSON input"},
		{func() error { return c.Get(ctx, "/panic", &out) }, "asking weftd: "},
		{func() error { return c.Post(ctx, "/echo", func() {}, nil) }, "encoding the request: "},
		{func() error { return c.Get(ctx, "/%zz", nil) }, "making the request: "},
		{func() error {
			ended, cancel := context.WithCancel(ctx)
			cancel()
			return c.Get(ended, "/refused", nil)
		}, "context canceled"},
	} {
		if err := tc.do(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %s", err, tc.want)
		}
	}
}

// TestNoDaemon: missing and stale sockets have an error of their own that says what to do.
func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	check := func(what string) {
		t.Helper()
		err := NewClient(dir).Get(context.Background(), "/v1/status", nil)
		if !errors.Is(err, ErrNoDaemon) || !strings.Contains(err.Error(), "systemctl start weftd") || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("no socket")
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.(fdListener).SetUnlinkOnClose(false)
	_ = l.Close()
	check("a socket that nobody serves")
}

// TestGarbage: what is not HTTP gets an answer and no more.
func TestGarbage(t *testing.T) {
	dir := serve(t, http.NotFoundHandler())
	before := descriptors(t)
	for _, text := range []string{"\x00\x01\x02\r\n\r\n", "GET\r\n\r\n", "POST /cni HTTP/9.9\r\n\r\n", strings.Repeat("x", 2<<20)} {
		c := dial(t, dir)
		go func() { _, _ = c.Write([]byte(text)) }()
		answer := make([]byte, 1000)
		n, _ := c.Read(answer)
		if !bytes.HasPrefix(answer[:n], []byte("HTTP/1.")) {
			t.Errorf("%.20q: answer %q", text, answer[:n])
		}
		_ = c.Close()
	}
	settled(t, before)
}
