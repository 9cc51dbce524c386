package coredns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"weft.network/weft/plugins/clusterdns"
)

// Batch reads and writes many packets with one system call each.
type Batch interface {
	Read() (int, error)
	Packet(i int) []byte
	From(i int) netip.AddrPort
	Room(i int) []byte
	Reply(i int, p []byte)
	Flush() error
}

// Socket is where queries come in.
type Socket struct {
	Addr netip.AddrPort
	UDP  *net.UDPConn
	TCP  net.Listener
	// Batch returns a new batch for UDP: so many packets of at most so many bytes.
	Batch func(n, size int) Batch
}

// Options are what a Server is made with.
type Options struct {
	Names *clusterdns.Names
	Log   *zap.Logger
	// LogEvery writes one query in so many to the log; 0 writes none.
	LogEvery int
	// Namespace is that of the Pod of this node that has an address, or empty if that is not certain. Only autopath asks.
	Namespace func(netip.Addr) string
}

// Server answers DNS queries. Its sockets stay open while CoreDNS behind them is set up anew.
type Server struct {
	names    *clusterdns.Names
	log      *zap.Logger
	logEvery uint64
	// namespace is Options.Namespace.
	namespace func(netip.Addr) string

	chain    atomic.Pointer[chain]
	counters counters
	clients  clients
	seen     atomic.Uint64
	load     load

	mu       sync.Mutex // of what follows
	settings Settings
	wrong    error // with the last Configure
	sockets  []*openSocket
	retired  sync.WaitGroup
	closing  chan struct{}
}

type openSocket struct {
	Socket
	tcp     *dns.Server
	readers sync.WaitGroup
}

// New returns a server without sockets that answers SERVFAIL until Configure.
func New(o Options) *Server {
	redirectLog(o.Log)
	s := &Server{names: o.Names, log: o.Log, logEvery: uint64(o.LogEvery), namespace: o.Namespace, closing: make(chan struct{})}
	if s.namespace == nil {
		s.namespace = func(netip.Addr) string { return "" }
	}
	return s
}

// Collector gives the server's metrics, Gatherer those of CoreDNS' plugins.
func (s *Server) Collector() prometheus.Collector { return &s.counters }

// Gatherer gives the metrics of CoreDNS' plugins.
func (s *Server) Gatherer() prometheus.Gatherer { return plugins{} }

// retireAfter is how long CoreDNS goes on for the queries under way after another one has taken its place.
const retireAfter = 6 * time.Second

// Configure sets CoreDNS up anew and lets it answer from now on. After an error everything is as it was before.
func (s *Server) Configure(set Settings) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := build(s.names, set)
	if err == nil {
		if err = next.start(); err != nil {
			err = errors.Join(err, next.stop())
		}
	}
	if s.wrong = err; err != nil {
		return err
	}
	s.settings = set
	if old := s.chain.Swap(next); old != nil {
		s.retired.Go(func() {
			timer := time.NewTimer(retireAfter)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-s.closing:
			}
			if err := old.stop(); err != nil {
				s.log.Warn("stopping the CoreDNS of before", zap.Error(err))
			}
		})
	}
	return nil
}

// Listen begins to answer what comes in at a socket.
func (s *Server) Listen(sock Socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	open := &openSocket{Socket: sock}
	if sock.UDP != nil {
		for range readers {
			open.readers.Go(func() { s.readUDP(sock) })
		}
	}
	if sock.TCP != nil {
		open.tcp = s.newTCP(sock.TCP)
		started := make(chan struct{})
		open.tcp.NotifyStartedFunc = func() { close(started) } // before that, it could not be stopped
		open.readers.Go(func() {
			if err := open.tcp.ActivateAndServe(); err != nil {
				s.log.Error("serving DNS over TCP", zap.Stringer("address", sock.Addr), zap.Error(err))
			}
		})
		<-started
	}
	s.sockets = append(s.sockets, open)
}

// Forget stops answering at an address and closes its sockets.
func (s *Server) Forget(ctx context.Context, addr netip.AddrPort) error {
	s.mu.Lock()
	i := slices.IndexFunc(s.sockets, func(o *openSocket) bool { return o.Addr == addr })
	if i < 0 {
		s.mu.Unlock()
		return nil
	}
	open := s.sockets[i]
	s.sockets = slices.Delete(s.sockets, i, i+1)
	s.mu.Unlock()
	return s.close(ctx, open)
}

// drain is how long queries under way may take when their socket is closed.
const drain = 2 * time.Second

// close stops reading, waits for the queries under way, and then closes the sockets: what nobody has read stays for another
// process that has the same sockets.
func (s *Server) close(ctx context.Context, sockets ...*openSocket) error {
	ctx, cancel := context.WithTimeout(ctx, drain)
	defer cancel()
	var errs []error
	for _, o := range sockets {
		if o.UDP != nil {
			errs = append(errs, o.UDP.SetReadDeadline(time.Unix(1, 0)))
		}
		if o.tcp != nil {
			if err := o.tcp.ShutdownContext(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				errs = append(errs, err)
			}
		}
	}
	for _, o := range sockets {
		o.readers.Wait()
	}
	s.load.wait(ctx)
	for _, o := range sockets {
		if o.UDP != nil {
			errs = append(errs, o.UDP.Close())
		}
	}
	return errors.Join(errs...)
}

// Close closes all sockets and stops CoreDNS. Sockets that another process has too go on there.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := []error{s.close(ctx, s.sockets...)}
	s.sockets = nil
	close(s.closing)
	s.retired.Wait()
	if c := s.chain.Swap(nil); c != nil {
		errs = append(errs, c.stop())
	}
	return errors.Join(errs...)
}

// Stats are numbers for people.
type Stats struct {
	Listening []netip.AddrPort `json:"listening"`
	Upstreams []netip.AddrPort `json:"upstreams"`
	Zones     []string         `json:"zones,omitempty"`
	Queries   uint64           `json:"queries"`
	// Direct were answered from the picture of the cluster, without CoreDNS.
	Direct    uint64            `json:"direct"`
	Rcodes    map[string]uint64 `json:"rcodes"`
	Types     map[string]uint64 `json:"types"`
	Refused   uint64            `json:"refused"`
	Malformed uint64            `json:"malformed"`
	Clients   []ClientCount     `json:"clients"`
	Warnings  []string          `json:"warnings,omitempty"`
	Error     string            `json:"error,omitempty"`
}

// Brief is the part of Stats that costs nothing.
type Brief struct {
	Listening []netip.AddrPort `json:"listening"`
	Upstreams int              `json:"upstreams"`
	Queries   uint64           `json:"queries"`
	Warnings  []string         `json:"-"`
}

// Brief says in short what the server does.
func (s *Server) Brief() Brief {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := Brief{Upstreams: len(s.settings.Upstreams), Queries: s.counters.sum(func(s *shard) *atomic.Uint64 { return &s.queries })}
	for _, o := range s.sockets {
		b.Listening = append(b.Listening, o.Addr)
	}
	if c := s.chain.Load(); c != nil {
		b.Warnings = c.warnings
	}
	return b
}

// topClients is how many clients Stats names.
const topClients = 10

// Stats returns what the server has done.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	out := Stats{Upstreams: s.settings.Upstreams, Rcodes: map[string]uint64{}, Types: map[string]uint64{}, Clients: s.clients.top(topClients)}
	for _, o := range s.sockets {
		out.Listening = append(out.Listening, o.Addr)
	}
	if s.wrong != nil {
		out.Error = s.wrong.Error()
	}
	s.mu.Unlock()
	if c := s.chain.Load(); c != nil {
		out.Zones, out.Warnings = c.zones, c.warnings
	}
	for i := range out.Clients {
		if a, err := netip.ParseAddr(out.Clients[i].Address); err == nil {
			out.Clients[i].Pod = s.podName(a)
		}
	}
	for by := range 2 {
		for code := range codes {
			n := s.counters.sum(func(s *shard) *atomic.Uint64 { return &s.responses[by][code] })
			if n == 0 {
				continue
			}
			out.Rcodes[rcodeName(code)] += n
			out.Queries += n
			if by == byNames {
				out.Direct += n
			}
		}
	}
	for kind := range kinds {
		for _, i := range [4][2]int{{0, 0}, {0, 1}, {1, 0}, {1, 1}} {
			if n := s.counters.sum(func(s *shard) *atomic.Uint64 { return &s.requests[i[0]][i[1]][kind] }); n > 0 {
				out.Types[kindName(kind)] += n
			}
		}
	}
	out.Refused = s.counters.sum(func(s *shard) *atomic.Uint64 { return &s.refused })
	out.Malformed = s.counters.sum(func(s *shard) *atomic.Uint64 { return &s.malformed })
	return out
}

// podName names the Pod that has an address, as far as it is known.
func (s *Server) podName(a netip.Addr) string {
	if p := s.names.Pod(a.Unmap()); p != nil {
		return p.String()
	}
	return ""
}

// logQuery writes one query in so many.
func (s *Server) logQuery(from netip.AddrPort, proto string, q dns.Question, rcode int, by string) {
	s.log.Info("query", zap.Stringer("client", from.Addr()), zap.String("pod", s.podName(from.Addr())), zap.String("proto", proto),
		zap.String("name", q.Name), zap.String("type", dns.TypeToString[q.Qtype]), zap.String("rcode", rcodeName(rcode)), zap.String("by", by))
}

// sample notes a client now and then, and says whether this query shall be logged.
func (s *Server) sample(from netip.Addr) bool {
	n := s.seen.Add(1)
	if n%sampled == 0 {
		s.clients.note(from.String())
	}
	return s.logEvery > 0 && n%s.logEvery == 0
}
