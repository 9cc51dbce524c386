package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// peerCommand makes this program one end of TCP connections. Both ends use plain blocking system calls on one thread, pinned to
// one processor: whatever a runtime adds is the same on every path and as small as it can be.
const peerCommand = "tcp-peer"

// peerPort is where the server listens.
const peerPort = 5201

// The loads.
const (
	loadStream  = "stream"  // count bytes one way, after warm bytes that are not counted
	loadRequest = "request" // count requests and responses of one byte, after warm ones
	loadConnect = "connect" // count connections, each closed after its first byte
)

var loads = []string{loadStream, loadRequest, loadConnect}

// order is what the client tells the server first.
type order struct {
	Load, CPU   uint32
	Warm, Count uint64
}

const chunk = 128 << 10

func peerMain(args []string) int {
	runtime.LockOSThread()
	var err error
	if len(args) > 0 && args[0] == "server" {
		err = serve()
	} else {
		err = client()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, "bench:", peerCommand+":", err)
		return 1
	}
	return 0
}

func pin(cpu uint32) error {
	var set unix.CPUSet
	set.Set(int(cpu) % runtime.NumCPU())
	return unix.SchedSetaffinity(0, &set)
}

func serve() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: peerPort}); err != nil {
		return fmt.Errorf("binding the port: %w", err)
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	if _, err := os.Stdout.WriteString("ready\n"); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for {
		c, err := accept(fd)
		if err != nil {
			return err
		}
		err = serveOne(c, fd, buf)
		_ = unix.Close(c)
		if err != nil {
			return err
		}
	}
}

func accept(fd int) (int, error) {
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return -1, fmt.Errorf("accepting a connection: %w", err)
		}
		return c, unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
}

// serveOne does what one client orders; the answer to a stream is the time between its first counted byte and its last.
func serveOne(c, listener int, buf []byte) error {
	var o order
	if err := readFull(c, buf[:binary.Size(o)]); err != nil {
		return err
	}
	if _, err := binary.Decode(buf, binary.LittleEndian, &o); err != nil {
		return fmt.Errorf("reading an order: %w", err)
	}
	if err := pin(o.CPU); err != nil {
		return fmt.Errorf("pinning the server: %w", err)
	}
	switch loads[o.Load] {
	case loadStream:
		if err := drain(c, buf, int(o.Warm)); err != nil {
			return err
		}
		start := time.Now()
		if err := drain(c, buf, int(o.Count)); err != nil {
			return err
		}
		return writeFull(c, binary.LittleEndian.AppendUint64(nil, uint64(time.Since(start))))
	case loadRequest:
		for range o.Warm + o.Count {
			if err := readFull(c, buf[:1]); err != nil {
				return err
			}
			if err := writeFull(c, buf[:1]); err != nil {
				return err
			}
		}
	case loadConnect:
		for range o.Warm + o.Count {
			one, err := accept(listener)
			if err != nil {
				return err
			}
			if err := writeFull(one, buf[:1]); err != nil {
				return err
			}
			_ = unix.Close(one)
		}
	}
	return nil
}

// client obeys lines of standard input: load, address, own processor, server's processor, warm, count. It answers with nanoseconds: of
// all, and of the slowest hundredth of connections to connect.
func client() error {
	in := bufio.NewScanner(os.Stdin)
	buf := make([]byte, chunk)
	for in.Scan() {
		var name, addr string
		var cpu uint32
		var o order
		if _, err := fmt.Sscan(in.Text(), &name, &addr, &cpu, &o.CPU, &o.Warm, &o.Count); err != nil {
			return fmt.Errorf("reading %q: %w", in.Text(), err)
		}
		for i, l := range loads {
			if l == name {
				o.Load = uint32(i)
			}
		}
		if err := pin(cpu); err != nil {
			return fmt.Errorf("pinning the client: %w", err)
		}
		took, slow, err := ask(addr, o, buf)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(os.Stdout, took.Nanoseconds(), slow.Nanoseconds()); err != nil {
			return err
		}
	}
	return in.Err()
}

func connect(addr string) (int, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening a socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		// A close sends a reset, so that no port stays in TIME_WAIT.
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		// A path that loses everything must end the run, not hang it.
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 3),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 20_000),
		unix.Connect(fd, &unix.SockaddrInet4{Port: peerPort, Addr: ip.As4()}))
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connecting to %s: %w", addr, err)
	}
	return fd, nil
}

func ask(addr string, o order, buf []byte) (took, slow time.Duration, err error) {
	fd, err := connect(addr)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	head, err := binary.Append(nil, binary.LittleEndian, o)
	if err != nil {
		return 0, 0, fmt.Errorf("writing an order: %w", err)
	}
	if err := writeFull(fd, head); err != nil {
		return 0, 0, err
	}
	var once func() error
	each := make([]time.Duration, 0, o.Warm+o.Count)
	switch loads[o.Load] {
	case loadStream:
		for left := int(o.Warm + o.Count); left > 0; left -= chunk {
			if err := writeFull(fd, buf[:min(left, chunk)]); err != nil {
				return 0, 0, err
			}
		}
		if err := readFull(fd, buf[:8]); err != nil {
			return 0, 0, err
		}
		return time.Duration(binary.LittleEndian.Uint64(buf)), 0, nil
	case loadRequest:
		once = func() error {
			if err := writeFull(fd, buf[:1]); err != nil {
				return err
			}
			return readFull(fd, buf[:1])
		}
	case loadConnect:
		once = func() error {
			begin := time.Now()
			one, err := connect(addr)
			if err != nil {
				return err
			}
			each = append(each, time.Since(begin))
			err = readFull(one, buf[:1])
			_ = unix.Close(one)
			return err
		}
	}
	for range o.Warm {
		if err := once(); err != nil {
			return 0, 0, err
		}
	}
	each = each[:0]
	start := time.Now()
	for range o.Count {
		if err := once(); err != nil {
			return 0, 0, err
		}
	}
	took = time.Since(start)
	return took, percentile99(each), nil
}

// percentile99 is what one in a hundred exceeds; 0 of nothing.
func percentile99(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}

func readFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("receiving: %w", io.ErrUnexpectedEOF)
		}
		b = b[n:]
	}
	return nil
}

func writeFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("sending: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// drain reads and forgets so many bytes.
func drain(fd int, buf []byte, n int) error {
	for n > 0 {
		part := buf[:min(n, len(buf))]
		got, err := unix.Read(fd, part)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
		if got == 0 {
			return fmt.Errorf("receiving: %w", io.ErrUnexpectedEOF)
		}
		n -= got
	}
	return nil
}

// peers are a client in one Pod and a server in another.
type peers struct {
	to     io.Writer
	from   *bufio.Reader
	server netip.Addr
}

// Peers starts a server and a client in two sandboxes.
func (l *Lab) Peers(client, server *Sandbox) (*peers, error) {
	_, ready, err := l.peer(server.Netns, "server")
	if err != nil {
		return nil, err
	}
	if _, err := ready.ReadString('\n'); err != nil {
		return nil, fmt.Errorf("waiting for the TCP server: %w", err)
	}
	to, from, err := l.peer(client.Netns, "client")
	return &peers{to, from, server.addr}, err
}

func (l *Lab) peer(n *Netns, side string) (io.Writer, *bufio.Reader, error) {
	cmd := exec.Command("/proc/self/exe", peerCommand, side)
	cmd.Stderr = os.Stderr
	// Nothing of the Go runtime may interrupt: neither the collector, nor the signals by which it takes a processor away.
	cmd.Env = append(os.Environ(), "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	to, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	from, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	if err := n.start(cmd); err != nil {
		return nil, nil, fmt.Errorf("starting a TCP %s: %w", side, err)
	}
	l.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return to, bufio.NewReader(from), nil
}

// run has the client put one load on the server and returns how long it took.
func (p *peers) run(ctx context.Context, load string, cpus [2]int, warm, count int) (time.Duration, error) {
	took, _, err := p.order(ctx, load, cpus, warm, count)
	return took, err
}

// connect has the client open connections, and returns how long all took and what one in a hundred exceeded.
func (p *peers) connect(ctx context.Context, cpus [2]int, warm, count int) (took, slow time.Duration, err error) {
	return p.order(ctx, loadConnect, cpus, warm, count)
}

func (p *peers) order(ctx context.Context, load string, cpus [2]int, warm, count int) (took, slow time.Duration, err error) {
	if _, err := fmt.Fprintln(p.to, load, p.server, cpus[0], cpus[1], warm, count); err != nil {
		return 0, 0, fmt.Errorf("asking the TCP client: %w", err)
	}
	answer, err := p.from.ReadString('\n')
	if err != nil {
		return 0, 0, errors.Join(ctx.Err(), fmt.Errorf("hearing from the TCP client: %w", err))
	}
	var ns, slowest int64
	if _, err := fmt.Sscan(strings.TrimSpace(answer), &ns, &slowest); err != nil || ns <= 0 {
		return 0, 0, fmt.Errorf("the TCP client answered %q", answer)
	}
	return time.Duration(ns), time.Duration(slowest), nil
}
