package lab

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// The ports of the built-in server.
const (
	HTTPPort = 8080 // GET / says who answers whom; GET /bytes?n=N sends N bytes; POST /bytes counts them
	EchoPort = 8081 // TCP and UDP: sends back what it gets; the datagram "?" is answered like GET /
)

// Answer is what the built-in server says about itself and its client.
type Answer struct {
	Pod    string     `json:"pod"`
	Node   string     `json:"node"`
	Client netip.Addr `json:"client"`
	Server netip.Addr `json:"server,omitzero"`
	// Bytes is how many bytes the server received, where that was the question.
	Bytes int64 `json:"bytes,omitempty"`
}

// PodMain is `weft lab-pod`, the only program that runs in a lab's Pods: "serve" is the server, the others are clients; see their
// functions for flags. It returns when the process should end.
func PodMain(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return errors.New("which of serve, get, udp, load, stream, ambush?")
	}
	flags := flag.NewFlagSet(PodCommand+" "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	switch args[0] {
	case "serve":
		return serve(ctx, flags, args[1:], stdout)
	case "get":
		return get(ctx, flags, args[1:], stdout)
	case "udp":
		return udp(ctx, flags, args[1:], stdout)
	case "load":
		return load(ctx, flags, args[1:], stdin, stdout)
	case "stream":
		return stream(ctx, flags, args[1:], stdin, stdout)
	case "dns":
		return askDNS(ctx, flags, args[1:], stdout)
	case "dnsserve":
		return serveDNS(ctx, flags, args[1:], stdout)
	case "dnsload":
		return loadDNS(ctx, flags, args[1:], stdout)
	case "ambush":
		return ambush(ctx, flags, args[1:], stdin, stdout)
	}
	return fmt.Errorf("%q is none of serve, get, udp, load, stream, dns, dnsload, dnsserve, ambush", args[0])
}

type server struct{ pod, node string }

// serve listens on all addresses and prints a line when it does.
//
//	serve --pod NAMESPACE/NAME --node NODE
func serve(ctx context.Context, flags *flag.FlagSet, args []string, stdout io.Writer) error {
	s := &server{}
	flags.StringVar(&s.pod, "pod", "", "name of the Pod")
	flags.StringVar(&s.node, "node", "", "name of the node")
	if err := flags.Parse(args); err != nil {
		return err
	}
	web, err := net.Listen("tcp", fmt.Sprintf(":%d", HTTPPort))
	if err != nil {
		return fmt.Errorf("listening for HTTP: %w", err)
	}
	echo, err := net.Listen("tcp", fmt.Sprintf(":%d", EchoPort))
	if err != nil {
		return fmt.Errorf("listening for TCP: %w", err)
	}
	datagrams, err := net.ListenUDP("udp", &net.UDPAddr{Port: EchoPort})
	if err != nil {
		return fmt.Errorf("listening for UDP: %w", err)
	}
	roomy(datagrams, 4<<20)
	if _, err := io.WriteString(stdout, ready); err != nil {
		return fmt.Errorf("telling the lab that the server is ready: %w", err)
	}
	failed := make(chan error, 3)
	handler := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	go func() { failed <- handler.Serve(web) }()
	go func() { failed <- s.echoTCP(echo) }()
	go func() { failed <- s.echoUDP(datagrams) }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	}
}

func (s *server) answer(client, server string) Answer {
	a := Answer{Pod: s.pod, Node: s.node}
	if ap, err := netip.ParseAddrPort(client); err == nil {
		a.Client = ap.Addr().Unmap()
	}
	if ap, err := netip.ParseAddrPort(server); err == nil {
		a.Server = ap.Addr().Unmap()
	}
	return a
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	say := func(w http.ResponseWriter, r *http.Request, bytes int64) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		a := s.answer(r.RemoteAddr, local.String())
		a.Bytes = bytes
		_ = json.NewEncoder(w).Encode(a)
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { say(w, r, 0) })
	mux.HandleFunc("POST /bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		say(w, r, n)
	})
	mux.HandleFunc("GET /bytes", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.FormValue("n"), 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "how many bytes? /bytes?n=8192", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, pattern{}, n)
	})
	return mux
}

// pattern is an endless reader of bytes that differ from their neighbours, so that a shifted or repeated piece is noticed.
type pattern struct{}

func (pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte('a' + i%23)
	}
	return len(p), nil
}

func (s *server) echoTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}()
	}
}

func (s *server) echoUDP(c *net.UDPConn) error {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		out := buf[:n]
		if string(out) == "?" {
			if out, err = json.Marshal(s.answer(from.String(), "")); err != nil {
				return err
			}
		}
		_, _ = c.WriteToUDPAddrPort(out, from)
	}
}
