package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Transfer is what a client prints about bytes that went over the wire.
type Transfer struct {
	Bytes int64 `json:"bytes"`
	// Seconds is how long it took, with the time to connect.
	Seconds float64 `json:"seconds"`
}

// targets parses flags and wants at least one argument after them.
func targets(flags *flag.FlagSet, args []string, what string) ([]string, error) {
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() == 0 {
		return nil, fmt.Errorf("%s needs a %s", flags.Name(), what)
	}
	return flags.Args(), nil
}

// get fetches URLs one after the other and prints the bodies.
//
//	get [--count] [--send N] [--timeout 3s] URL...     --count prints a Transfer instead; --send posts N bytes
func get(ctx context.Context, flags *flag.FlagSet, args []string, stdout io.Writer) error {
	g := getter{stdout: stdout}
	flags.BoolVar(&g.count, "count", false, "print how many bytes came instead of the bytes")
	flags.Int64Var(&g.send, "send", 0, "post so many bytes")
	flags.DurationVar(&g.timeout, "timeout", 3*time.Second, "for each URL")
	urls, err := targets(flags, args, "URL")
	if err != nil {
		return err
	}
	for _, url := range urls {
		if err := g.get(ctx, url); err != nil {
			return fmt.Errorf("getting %s: %w", url, err)
		}
	}
	return nil
}

type getter struct {
	count   bool
	send    int64
	timeout time.Duration
	stdout  io.Writer
}

func (g *getter) get(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	start := time.Now()
	var body io.Reader
	method := http.MethodGet
	if g.send > 0 {
		method, body = http.MethodPost, io.LimitReader(pattern{}, g.send)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	if g.send > 0 {
		req.ContentLength = g.send
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	to := g.stdout
	if g.count {
		to = io.Discard
	}
	n, err := io.Copy(to, resp.Body)
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if g.count {
		return json.NewEncoder(g.stdout).Encode(Transfer{Bytes: max(n, g.send), Seconds: time.Since(start).Seconds()})
	}
	return nil
}

// udp sends a datagram that may not be fragmented and prints the answer: who answers (see Answer), or with --size a Transfer.
//
//	udp [--size N] [--timeout 2s] HOST:PORT
func udp(ctx context.Context, flags *flag.FlagSet, args []string, stdout io.Writer) error {
	size := flags.Int("size", 0, "send so many bytes, and want them back")
	timeout := flags.Duration("timeout", 2*time.Second, "for all tries")
	all, err := targets(flags, args, "HOST:PORT")
	if err != nil {
		return err
	}
	target := all[0]
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err4, err6 error
		err := c.Control(func(fd uintptr) {
			err4 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			err6 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		})
		if err4 != nil && err6 != nil { // a socket is of one family, and has the option of that one
			return errors.Join(err4, err6)
		}
		return err
	}}
	conn, err := dialer.DialContext(ctx, "udp", target)
	if err != nil {
		return fmt.Errorf("opening a UDP socket: %w", err)
	}
	defer func() { _ = conn.Close() }()
	question := []byte("?")
	if *size > 0 {
		question = make([]byte, *size)
		_, _ = pattern{}.Read(question)
	}
	start := time.Now()
	answer, err := ask(conn, question, start.Add(*timeout))
	if err != nil {
		return fmt.Errorf("asking %s with %d bytes: %w", target, len(question), err)
	}
	if *size == 0 {
		_, err := stdout.Write(append(answer, '\n'))
		return err
	}
	if !bytes.Equal(answer, question) {
		return fmt.Errorf("%s sent back %d bytes that differ from the %d that it got", target, len(answer), len(question))
	}
	return json.NewEncoder(stdout).Encode(Transfer{Bytes: int64(len(answer)), Seconds: time.Since(start).Seconds()})
}

// ask sends the question until there is an answer.
func ask(conn net.Conn, question []byte, deadline time.Time) ([]byte, error) {
	buf := make([]byte, 65536)
	for {
		if _, err := conn.Write(question); err != nil {
			return nil, err
		}
		try := time.Now().Add(250 * time.Millisecond)
		if try.After(deadline) {
			try = deadline
		}
		if err := conn.SetReadDeadline(try); err != nil {
			return nil, err
		}
		n, err := conn.Read(buf)
		if err == nil {
			return buf[:n], nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(deadline) {
			return nil, err
		}
	}
}

// Load is what became of many requests one after the other.
type Load struct {
	// Requests were answered; Failed were not.
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	// LongestMillis is the longest that a request took.
	LongestMillis int64 `json:"longestMillis"`
	// Error is the first one.
	Error string `json:"error,omitempty"`
	// Pods are those that answered, in the order in which they did first. A connection that stays has one.
	Pods []string `json:"pods,omitempty"`
}

// load asks for a URL again and again, each time over a new connection and at the same time over one that stays, until standard
// input ends or the time is over, and prints both Loads. It fails if a request failed.
//
//	load [--for 10s] [--pause 2ms] [--new-only] URL
func load(ctx context.Context, flags *flag.FlagSet, args []string, stdin io.Reader, stdout io.Writer) error {
	limit := flags.Duration("for", 0, "at most so long; 0 waits for standard input to end")
	pause := flags.Duration("pause", 2*time.Millisecond, "between two requests")
	newOnly := flags.Bool("new-only", false, "no connection that stays: for servers that end")
	urls, err := targets(flags, args, "URL")
	if err != nil {
		return err
	}
	url := urls[0]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if *limit > 0 {
		timer := time.AfterFunc(*limit, cancel)
		defer timer.Stop()
	} else {
		go func() {
			_, _ = io.Copy(io.Discard, stdin)
			cancel()
		}()
	}
	var out struct {
		New  Load `json:"new"`
		Kept Load `json:"kept"`
	}
	var wg sync.WaitGroup
	wg.Go(func() { out.New = repeat(ctx, url, *pause, true) })
	if !*newOnly {
		wg.Go(func() { out.Kept = repeat(ctx, url, *pause, false) })
	}
	wg.Wait()
	if err := json.NewEncoder(stdout).Encode(out); err != nil {
		return err
	}
	if out.New.Failed+out.Kept.Failed > 0 || out.New.Requests == 0 || !*newOnly && out.Kept.Requests == 0 {
		return errors.New("requests were lost")
	}
	return nil
}

// requestTime is when a request counts as lost: later than a server on a busy machine is late, or a packet is sent again.
const requestTime = 15 * time.Second

func repeat(ctx context.Context, url string, pause time.Duration, anew bool) (l Load) {
	transport := &http.Transport{DisableKeepAlives: anew}
	client := &http.Client{Transport: transport, Timeout: requestTime}
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for ctx.Err() == nil {
		start := time.Now()
		// Not bound to ctx: a request that is under way when the time is over still counts.
		pod, err := fetch(client, url)
		l.LongestMillis = max(l.LongestMillis, time.Since(start).Milliseconds())
		if err != nil {
			l.Failed++
			if l.Error == "" {
				l.Error = err.Error()
			}
		} else if l.Requests++; !slices.Contains(l.Pods, pod) {
			l.Pods = append(l.Pods, pod)
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	return l
}

// fetch returns the Pod that answered.
func fetch(client *http.Client, url string) (pod string, err error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	var a Answer
	err = json.NewDecoder(resp.Body).Decode(&a)
	_, _ = io.Copy(io.Discard, resp.Body)
	return a.Pod, errors.Join(err, resp.Body.Close())
}
