package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// The sockets by which the first process of a node plays the part of a service manager that keeps files for its services
// (systemd, FileDescriptorStoreMax=): one takes what sd_notify(3) sends, the other gives it to the next process. Abstract names
// belong to the network namespace, so each node has its own.
const (
	notifySocket = "@weft-lab-notify"
	storedSocket = "@weft-lab-stored"
)

// mostStored is how many files are kept.
const mostStored = 64

// fdKeeper keeps files by name.
type fdKeeper struct {
	mu    sync.Mutex
	files map[string][]int
}

// keepFiles serves both sockets until the process ends.
func keepFiles() error {
	k := &fdKeeper{files: map[string][]int{}}
	in, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifySocket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("listening for files to keep: %w", err)
	}
	out, err := net.ListenUnix("unix", &net.UnixAddr{Name: storedSocket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listening for who wants the files: %w", err)
	}
	go k.take(in)
	go k.give(out)
	return nil
}

func (k *fdKeeper) take(in *net.UnixConn) {
	text, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(16*4))
	for {
		n, rn, _, _, err := in.ReadMsgUnix(text, rights)
		if err != nil {
			return
		}
		var fds []int
		if messages, err := unix.ParseSocketControlMessage(rights[:rn]); err == nil {
			for i := range messages {
				if more, err := unix.ParseUnixRights(&messages[i]); err == nil {
					fds = append(fds, more...)
				}
			}
		}
		lines := strings.Split(string(text[:n]), "\n")
		name := ""
		for _, l := range lines {
			if v, ok := strings.CutPrefix(l, "FDNAME="); ok {
				name = v
			}
		}
		k.mu.Lock()
		switch {
		case slices.Contains(lines, "FDSTORE=1"):
			for _, fd := range fds {
				if k.has(fd) || k.count() >= mostStored {
					_ = unix.Close(fd)
				} else {
					k.files[name] = append(k.files[name], fd)
				}
			}
		case slices.Contains(lines, "FDSTOREREMOVE=1"):
			for _, fd := range k.files[name] {
				_ = unix.Close(fd)
			}
			delete(k.files, name)
		}
		k.mu.Unlock()
	}
}

// has says whether the same open file is kept already: a socket has an inode of its own.
func (k *fdKeeper) has(fd int) bool {
	var own, other unix.Stat_t
	if unix.Fstat(fd, &own) != nil {
		return false
	}
	for _, fds := range k.files {
		for _, f := range fds {
			if unix.Fstat(f, &other) == nil && other.Ino == own.Ino && other.Dev == own.Dev {
				return true
			}
		}
	}
	return false
}

func (k *fdKeeper) count() (n int) {
	for _, fds := range k.files {
		n += len(fds)
	}
	return n
}

func (k *fdKeeper) give(out *net.UnixListener) {
	for {
		c, err := out.AcceptUnix()
		if err != nil {
			return
		}
		k.mu.Lock()
		var names []string
		var fds []int
		for _, name := range slices.Sorted(maps.Keys(k.files)) {
			for _, fd := range k.files[name] {
				names, fds = append(names, name), append(fds, fd)
			}
		}
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		_, _, _ = c.WriteMsgUnix([]byte(strings.Join(names, ":")+"\n"), rights, nil)
		k.mu.Unlock()
		_ = c.Close()
	}
}

// storedFiles returns what the node's first process keeps. The caller closes the files.
func storedFiles(ctx context.Context) (names string, files []*os.File, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", storedSocket)
	if err != nil {
		return "", nil, fmt.Errorf("asking for the files that are kept: %w", err)
	}
	c := conn.(*net.UnixConn)
	defer func() { _ = c.Close() }()
	text, rights := make([]byte, 1<<16), make([]byte, unix.CmsgSpace(mostStored*4))
	n, rn, _, _, err := c.ReadMsgUnix(text, rights)
	if err != nil {
		return "", nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil {
		return "", nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return "", files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "stored"))
		}
	}
	names = strings.TrimSuffix(string(text[:n]), "\n")
	if count := len(strings.Split(names, ":")); names != "" && count != len(files) {
		return "", files, errors.New("a file that is kept was lost on the way")
	}
	return names, files, nil
}
