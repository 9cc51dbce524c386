// Package control is the unix socket of the daemon: HTTP for the command line, and CNI calls with the network namespace as a file descriptor.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// SocketName is the name of the socket in the run directory.
const SocketName = "weft.sock"

// Listen opens the socket for root alone. A socket that is left over from a daemon that died is replaced; whether another
// daemon lives is decided by the lock on the store, not here.
func Listen(runDir string) (net.Listener, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, fmt.Errorf("making the run directory: %w", err)
	}
	path := filepath.Join(runDir, SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the old control socket: %w", err)
	}
	// The mode must be right from the first moment on.
	old := syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listening on the control socket: %w", err)
	}
	return fdListener{l}, nil
}

// Serve answers requests until ctx ends, then lets those under way finish for up to the grace time. One that only waits for news
// should look at Stopping: the next daemon does not start before this one has ended.
func Serve(ctx context.Context, l net.Listener, h http.Handler, grace time.Duration) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second,
		ConnContext: func(conn context.Context, c net.Conn) context.Context {
			return context.WithValue(context.WithValue(conn, connKey{}, c), stopKey{}, ctx.Done())
		},
	}
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		done <- srv.Shutdown(stop)
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the control socket: %w", err)
	}
	return <-done
}

type (
	connKey struct{}
	stopKey struct{}
)

// Stopping is closed when the server stops; nil outside of Serve.
func Stopping(r *http.Request) <-chan struct{} {
	done, _ := r.Context().Value(stopKey{}).(<-chan struct{})
	return done
}

// TakeFile returns the first file descriptor that came with the request's connection, or nil. The caller closes it.
func TakeFile(r *http.Request) *os.File {
	c, ok := r.Context().Value(connKey{}).(*fdConn)
	if !ok {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.files) == 0 {
		return nil
	}
	f := c.files[0]
	c.files = c.files[1:]
	return f
}

type fdListener struct{ *net.UnixListener }

func (l fdListener) Accept() (net.Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return &fdConn{UnixConn: c}, nil
}

// fdConn keeps the file descriptors that arrive beside the bytes (SCM_RIGHTS, unix(7)).
type fdConn struct {
	*net.UnixConn
	mu    sync.Mutex
	files []*os.File
}

const maxFiles = 4

func (c *fdConn) Read(p []byte) (int, error) {
	oob := make([]byte, syscall.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := c.ReadMsgUnix(p, oob)
	if oobn > 0 {
		c.keep(oob[:oobn])
	}
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF // a stream's end; ReadMsgUnix reports it as nothing read
	}
	return n, err
}

func (c *fdConn) keep(oob []byte) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range msgs {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			c.mu.Lock()
			c.files = append(c.files, os.NewFile(uintptr(fd), "passed"))
			c.mu.Unlock()
		}
	}
}

// Close also closes what nobody took.
func (c *fdConn) Close() error {
	c.mu.Lock()
	for _, f := range c.files {
		_ = f.Close()
	}
	c.files = nil
	c.mu.Unlock()
	return c.UnixConn.Close()
}

// WriteJSON answers with the value as JSON.
func WriteJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// WriteError answers with an error that Client turns into the same text again.
func WriteError(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}
