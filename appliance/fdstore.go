package appliance

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// firstPassedFD is the number of the first file that a service manager passes (sd_listen_fds(3)).
const firstPassedFD = 3

// fdStore keeps open sockets with the service manager over a restart (sd_notify(3), FDSTORE=1): what arrives in between waits
// in them. Without such a manager it does nothing.
type fdStore struct {
	socket string
}

// openFDStore returns the store and what the process before this one has left there. It is called once: the variables that
// say so are for this process alone.
func openFDStore() (fdStore, []*os.File) {
	s := fdStore{socket: os.Getenv("NOTIFY_SOCKET")}
	pid, n, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v)
	}
	count, err := strconv.Atoi(n)
	if err != nil || pid != strconv.Itoa(os.Getpid()) {
		return s, nil
	}
	var files []*os.File
	for i := range count {
		name := "passed"
		if i < len(names) {
			name = names[i]
		}
		fd := firstPassedFD + i
		syscall.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	return s, files
}

// keep leaves a copy of a socket with the manager.
func (s fdStore) keep(name string, c syscall.Conn) error {
	if s.socket == "" {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	// Not by way of an os.File: asking that for its number makes the socket block, here and in the next process.
	var sent error
	err = raw.Control(func(fd uintptr) { sent = s.send("FDSTORE=1\nFDNAME="+name, int(fd)) })
	return errors.Join(err, sent)
}

// empty gives up what the process before this one has left.
func (s fdStore) empty(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, s.forget(f.Name()), f.Close())
	}
	return errors.Join(errs...)
}

// forget has the manager close the files of that name.
func (s fdStore) forget(name string) error {
	return s.send("FDSTOREREMOVE=1\nFDNAME=" + name)
}

func (s fdStore) send(text string, fds ...int) error {
	if s.socket == "" {
		return nil
	}
	// net knows no way to send files on a datagram socket that has a peer.
	sock, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	defer func() { _ = syscall.Close(sock) }()
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	if err := syscall.Sendmsg(sock, []byte(text), rights, &syscall.SockaddrUnix{Name: s.socket}, 0); err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	return nil
}
