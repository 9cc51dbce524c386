package appliance

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// addr is shorter where it is a field of a request.
type addr = netip.Addr

// metrics are what Prometheus reads. Counters are kept; everything else is asked of the parts at the time of the scrape.
type metrics struct {
	registry  *prometheus.Registry
	calls     *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	exhausted prometheus.Counter
	leaks     prometheus.Counter
	flows     *prometheus.CounterVec
}

func newMetrics(d *Daemon) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_cni_calls_total", Help: "CNI calls answered, by plugin, command and exit code.",
		}, []string{"plugin", "command", "exit"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "weft_cni_duration_seconds", Help: "Time from the call to the answer, inside the daemon.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .5, 1, 5},
		}, []string{"plugin", "command"}),
		exhausted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_ipam_exhausted_total", Help: "ADD calls refused because no address was left.",
		}),
		leaks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_ipam_leaks_freed_total", Help: "Leases freed because their sandbox was gone.",
		}),
		flows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_conntrack_forgotten_total", Help: "UDP flows forgotten because their other end was gone: at once (change), or found later (audit).",
		}, []string{"found_by"}),
	}
	d.kernel.flows.forgotten = func(n int) { m.flows.WithLabelValues("change").Add(float64(n)) }
	if d.loop.Services != nil {
		m.registry.MustRegister(d.loop.Services.Metrics.Collectors()...)
	}
	m.registry.MustRegister(m.calls, m.duration, m.exhausted, m.leaks, m.flows, serviceCollector{d}, d.drops.total, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collector{d}, lbCollector{d})
	if d.dns != nil {
		m.registry.MustRegister(d.dns.server.Collector())
	}
	return m
}

// gatherer is everything on /metrics.
func (d *Daemon) gatherer() prometheus.Gatherer {
	if d.dns == nil {
		return d.metrics.registry
	}
	return prometheus.Gatherers{d.metrics.registry, d.dns.server.Gatherer()}
}

func (m *metrics) call(plugin, command string, exit int, took time.Duration) {
	m.calls.WithLabelValues(plugin, command, strconv.Itoa(exit)).Inc()
	m.duration.WithLabelValues(plugin, command).Observe(took.Seconds())
}

// collector reads the state of the daemon at the time of the scrape.
type collector struct{ d *Daemon }

var (
	descReady     = prometheus.NewDesc("weft_ready", "1 when Pods can be attached.", nil, nil)
	descConnected = prometheus.NewDesc("weft_source_connected", "1 when the source of cluster objects answers.", []string{"kind"}, nil)
	descStored    = prometheus.NewDesc("weft_source_stored", "1 while the node runs from the picture in its own store.", nil, nil)
	descAddresses = prometheus.NewDesc("weft_ipam_addresses", "Addresses of the node's range that is fullest, by state.", []string{"state"}, nil)
	descLeases    = prometheus.NewDesc("weft_ipam_leases", "Leases held.", nil, nil)
	descRounds    = prometheus.NewDesc("weft_reconcile_rounds_total", "Rounds of the reconcile loop.", nil, nil)
	descRepairs   = prometheus.NewDesc("weft_reconcile_repairs_total", "Changes made because something else changed the kernel.", nil, nil)
	descTook      = prometheus.NewDesc("weft_reconcile_last_duration_seconds", "Duration of the last round.", nil, nil)
	descFailed    = prometheus.NewDesc("weft_reconcile_failed", "1 when the last round failed.", nil, nil)
	descRTT       = prometheus.NewDesc("weft_peer_rtt_seconds", "Round trip to the peer by the Pod path.", []string{"node", "family"}, nil)
	descMTU       = prometheus.NewDesc("weft_peer_path_mtu_bytes", "Largest packet that reaches the peer.", []string{"node", "family"}, nil)
	descProblem   = prometheus.NewDesc("weft_peer_problem", "1 when the last probe of the peer found something wrong.", []string{"node", "family"}, nil)
	descMissing   = prometheus.NewDesc("weft_kernel_features_missing", "Features of the packet filter that this kernel lacks.", nil, nil)
	descWarnings  = prometheus.NewDesc("weft_warnings", "Warnings on the status screen.", nil, nil)
)

func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		descReady, descConnected, descStored, descAddresses, descLeases, descRounds, descRepairs, descTook, descFailed,
		descRTT, descMTU, descProblem, descMissing, descWarnings,
	} {
		ch <- desc
	}
	describeBGP(ch)
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	count := func(desc *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v))
	}
	s := c.d.Status()
	gauge(descReady, truth(s.Node.Ready))
	gauge(descConnected, truth(s.Source.Connected), s.Source.Kind)
	gauge(descStored, truth(s.Source.Stored))
	gauge(descAddresses, float64(s.IPAM.Total), "total")
	gauge(descAddresses, float64(s.IPAM.Held), "held")
	gauge(descAddresses, float64(s.IPAM.Cooling), "cooling")
	gauge(descLeases, float64(s.Store.Leases))
	gauge(descWarnings, float64(len(s.Warnings)))
	if s.BGP != nil {
		collectBGP(ch, s.BGP)
	}
	loop := c.d.loop.Status()
	gauge(descMissing, float64(len(c.d.loop.Missing)))
	count(descRounds, loop.Rounds)
	count(descRepairs, loop.Repairs)
	gauge(descTook, loop.Took.Seconds())
	gauge(descFailed, truth(loop.Err != ""))
	for node, rs := range c.d.probeResults() {
		for _, r := range rs {
			gauge(descRTT, r.RTT.Seconds(), node, strconv.Itoa(r.Family))
			gauge(descMTU, float64(r.MTU), node, strconv.Itoa(r.Family))
			gauge(descProblem, truth(r.Finding != ""), node, strconv.Itoa(r.Family))
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
