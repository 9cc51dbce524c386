package appliance

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"weft.network/weft/appliance/kernel/dnssocket"
	"weft.network/weft/appliance/model"
	"weft.network/weft/embedded/coredns"
)

// dnsMetrics serves the metrics of the DNS server where it answers queries: there they are everybody's who may ask it, and so none
// of weft's other metrics are among them.
type dnsMetrics struct {
	handler http.Handler
	log     *zap.Logger
	servers map[netip.Addr]*http.Server
}

// The bounds of a request for metrics, since any Pod may make one.
const (
	mostScrapes   = 2
	scrapeTimeout = 10 * time.Second
	mostHeader    = 8 << 10
)

func newDNSMetrics(server *coredns.Server, log *zap.Logger) *dnsMetrics {
	registry := prometheus.NewRegistry()
	registry.MustRegister(server.Collector(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.Gatherers{registry, server.Gatherer()}, promhttp.HandlerOpts{MaxRequestsInFlight: mostScrapes, Timeout: scrapeTimeout}))
	return &dnsMetrics{handler: mux, log: log, servers: map[netip.Addr]*http.Server{}}
}

// set serves at exactly these addresses, and says what could not be done. It is tried again with the next call.
func (m *dnsMetrics) set(want []netip.Addr) (problems []string) {
	for a, s := range m.servers {
		if !slices.Contains(want, a) {
			_ = s.Close()
			delete(m.servers, a)
		}
	}
	for _, a := range want {
		if m.servers[a] != nil {
			continue
		}
		l, err := dnssocket.ListenTCP(netip.AddrPortFrom(a, model.DNSMetricsPort))
		if err != nil {
			problems = append(problems, fmt.Sprintf("the metrics of the DNS server are not at %s: %v: stop the program that listens there", netip.AddrPortFrom(a, model.DNSMetricsPort), err))
			continue
		}
		s := &http.Server{Handler: m.handler, ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: mostHeader}
		m.servers[a] = s
		go func() {
			if err := s.Serve(coredns.Limit(l)); !errors.Is(err, http.ErrServerClosed) {
				m.log.Error("serving the metrics of the DNS server", zap.Stringer("address", a), zap.Error(err))
			}
		}()
	}
	return problems
}
