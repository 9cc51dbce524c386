package lab

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Stream is what became of datagrams that wanted an answer.
type Stream struct {
	Sent     int64 `json:"sent"`
	Answered int64 `json:"answered"`
	// Longest is the number of datagrams in a row without an answer.
	Longest int64 `json:"longest"`
	// Last is the number of those at the end.
	Last int64 `json:"last"`
}

// stream sends datagrams to an echo server at a steady pace, each in a flow of its own or all in one, until standard input ends or
// the time is over, and prints a Stream.
//
//	stream [--rate 1000] [--for 5s] [--one] [--denied] HOST:PORT     --denied does not wait for answers, of which there should be none
func stream(ctx context.Context, flags *flag.FlagSet, args []string, stdin io.Reader, stdout io.Writer) error {
	rate := flags.Int("rate", 1000, "datagrams a second")
	limit := flags.Duration("for", 0, "at most so long; 0 waits for standard input to end")
	one := flags.Bool("one", false, "send all of them in one flow")
	denied := flags.Bool("denied", false, "no answer is waited for")
	all, err := targets(flags, args, "HOST:PORT")
	if err != nil {
		return err
	}
	to, err := netip.ParseAddrPort(all[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if *limit > 0 {
		defer time.AfterFunc(*limit, cancel).Stop()
	} else {
		go func() {
			_, _ = io.Copy(io.Discard, stdin)
			cancel()
		}()
	}
	s := streamer{answered: map[uint64]bool{}}
	conns := make([]*net.UDPConn, 1)
	if !*one {
		// A flow is new when its socket is, so they are used in turn and made anew: late enough for what is slow to answer.
		conns = make([]*net.UDPConn, flowsOpen)
	}
	ticker := time.NewTicker(time.Second / time.Duration(*rate))
	defer ticker.Stop()
	for n := uint64(0); ctx.Err() == nil; n++ {
		i := int(n) % len(conns)
		if conns[i] == nil || !*one {
			if conns[i] != nil {
				if !*denied {
					s.await(ctx, n-flowsOpen)
				}
				_ = conns[i].Close()
			}
			if conns[i], err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)); err != nil {
				return fmt.Errorf("opening a UDP socket: %w", err)
			}
			roomy(conns[i], 4<<20)
			go s.read(conns[i])
		}
		_, _ = conns[i].Write(binary.BigEndian.AppendUint64(nil, n))
		s.sent.Add(1)
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	out := s.result()
	patience := answerTime
	if *denied || s.lost {
		patience = time.Second
	}
	// One flow comes in order, and may have been cut for a while; of many flows any one may be late.
	missing := func() bool { return out.Last > 0 || !*one && out.Answered < out.Sent }
	for end := time.Now().Add(patience); missing() && time.Now().Before(end); out = s.result() {
		_, _ = unix.Poll(nil, 10)
	}
	return json.NewEncoder(stdout).Encode(out)
}

// What a stream leaves to a busy machine: how many flows may wait for their answer at once, and how long an answer may take.
const (
	flowsOpen  = 2048
	answerTime = 10 * time.Second
)

// roomy lets a socket hold some seconds of datagrams: what a process on a busy machine is late to read is not lost on the way.
func roomy(c *net.UDPConn, size int) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) })
	}
}

type streamer struct {
	sent     atomic.Int64
	mu       sync.Mutex
	answered map[uint64]bool
	lost     bool // an answer did not come in time; only who sends uses it
}

// await keeps the socket of a datagram open until the answer is here, or the stream ends. Once one was lost, no other is waited for.
func (s *streamer) await(ctx context.Context, n uint64) {
	has := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.answered[n]
	}
	for end := time.Now().Add(answerTime); !s.lost && !has(); s.lost = time.Now().After(end) {
		if ctx.Err() != nil {
			return
		}
		_, _ = unix.Poll(nil, 1)
	}
}

func (s *streamer) read(c *net.UDPConn) {
	buf := make([]byte, 16)
	for {
		n, err := c.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n == 8 {
			s.mu.Lock()
			s.answered[binary.BigEndian.Uint64(buf)] = true
			s.mu.Unlock()
		}
	}
}

func (s *streamer) result() Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Stream{Sent: s.sent.Load(), Answered: int64(len(s.answered))}
	row := int64(0)
	for n := range uint64(out.Sent) {
		if row++; s.answered[n] {
			row = 0
		}
		out.Longest = max(out.Longest, row)
	}
	out.Last = row
	return out
}

// Ambush is what one network namespace could do in its first moments.
type Ambush struct {
	NetNS string `json:"netns"`
	Stream
}

// ambushTime is how long a new network namespace is watched after its first datagram left.
const ambushTime = 150 * time.Millisecond

// ambush enters each network namespace that appears in a folder and sends datagrams there from the first moment on, as a process
// would that does not wait for anything. When standard input ends it prints an Ambush for each.
//
//	ambush [--dir /run/netns] [--done DIR] HOST:PORT     --done makes an empty file for each namespace that was watched long enough
func ambush(ctx context.Context, flags *flag.FlagSet, args []string, stdin io.Reader, stdout io.Writer) error {
	dir := flags.String("dir", "/run/netns", "where network namespaces appear")
	done := flags.String("done", "", "where a file tells that a namespace was watched long enough")
	all, err := targets(flags, args, "HOST:PORT")
	if err != nil {
		return err
	}
	to, err := netip.ParseAddrPort(all[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := io.WriteString(stdout, ready); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		cancel()
	}()
	var mu sync.Mutex
	var out []Ambush
	var wg sync.WaitGroup
	known := map[string]bool{}
	for ctx.Err() == nil {
		entries, err := os.ReadDir(*dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if known[e.Name()] {
				continue
			}
			known[e.Name()] = true
			wg.Go(func() {
				a := Ambush{NetNS: e.Name()}
				a.Stream = inNamespace(ctx, filepath.Join(*dir, e.Name()), to)
				mu.Lock()
				defer mu.Unlock()
				out = append(out, a)
				if *done != "" {
					_ = os.WriteFile(filepath.Join(*done, a.NetNS), nil, 0o600) // who waits for it misses it
				}
			})
		}
		_, _ = unix.Poll(nil, 1)
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b Ambush) int { return int(b.Answered - a.Answered) })
	return json.NewEncoder(stdout).Encode(out)
}

// inNamespace sends from a namespace until some time after the first datagram left.
func inNamespace(ctx context.Context, path string, to netip.AddrPort) Stream {
	result := make(chan Stream, 1)
	go func() {
		var s Stream
		defer func() { result <- s }()
		runtime.LockOSThread() // for ever: a thread in another namespace must not be used again
		for ctx.Err() == nil {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Setns(fd, unix.CLONE_NEWNET)
				_ = unix.Close(fd)
			}
			if err == nil {
				break
			}
			_, _ = unix.Poll(nil, 1) // the file is there before the namespace is mounted on it
		}
		sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return
		}
		defer func() { _ = unix.Close(sock) }()
		server := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
		buf := make([]byte, 64)
		var end time.Time
		for ctx.Err() == nil && (end.IsZero() || time.Now().Before(end)) {
			if unix.Sendto(sock, []byte("ambush!!"), 0, server) == nil {
				if s.Sent++; end.IsZero() {
					end = time.Now().Add(ambushTime)
				}
			}
			if n, _, err := unix.Recvfrom(sock, buf, 0); err == nil && n > 0 {
				s.Answered++
			}
			_, _ = unix.Ppoll(nil, &unix.Timespec{Nsec: 50_000}, nil)
		}
	}()
	return <-result
}
