package iface

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ErrNetNSGone means that a path does not (or no longer) name a network namespace: the sandbox is gone.
var ErrNetNSGone = errors.New("network namespace is gone")

// OpenNS opens the network namespace at a path such as /run/netns/NAME or /proc/PID/ns/net. The caller closes it.
// A path that is missing, or is a plain file because the runtime unmounted the namespace, is ErrNetNSGone.
func OpenNS(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		// A process that has exited leaves /proc/PID without it: ESRCH.
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("opening %s: %w", path, ErrNetNSGone)
		}
		return nil, fmt.Errorf("opening a network namespace: %w", err)
	}
	if err := checkNS(f); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), f.Close())
	}
	return f, nil
}

// checkNS asks the file system whether an open file is a network namespace (ioctl_ns(2)).
func checkNS(f *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("asking for its file system: %w", err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return ErrNetNSGone
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		return fmt.Errorf("asking for its type: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		return errors.New("it is a namespace, but not a network namespace")
	}
	return nil
}

// inNS runs f on a thread of its own that has entered the network namespace. It is for /proc/sys/net, which shows the
// namespace of the thread that looks; everything else uses sockets opened in the namespace. The thread is never given back
// to the runtime: it ends with the goroutine, so no other goroutine can find itself in the wrong namespace.
func inNS(nsFD int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(nsFD, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering the network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// inHostNS runs f where /proc/sys/net shows the node's namespace.
func (b *Backend) inHostNS(f func() error) error {
	if b.ns.IsOpen() {
		return inNS(int(b.ns), f)
	}
	return f()
}
