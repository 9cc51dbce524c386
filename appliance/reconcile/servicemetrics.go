package reconcile

import (
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"weft.network/weft/appliance/compile/service"
)

// ServiceMetrics are about Services, in kube-proxy's names where it has them, so that its dashboards go on working.
type ServiceMetrics struct {
	started                          time.Time
	sync, programming                *prometheus.HistogramVec
	synced, queued                   *prometheus.GaugeVec
	serviceChanges, endpointChanges  prometheus.Counter
	servicesPending, endpointPending prometheus.Gauge
	failures                         *prometheus.CounterVec
	all                              []prometheus.Collector
}

// familyLabel has the values IPv4 and IPv6, as kube-proxy writes them.
const familyLabel = "ip_family"

// NewServiceMetrics returns metrics that count from now on.
func NewServiceMetrics() *ServiceMetrics {
	m := &ServiceMetrics{started: time.Now()}
	opts := func(name, help string) prometheus.Opts { return prometheus.Opts{Name: "kubeproxy_" + name, Help: help} }
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "kubeproxy_" + name, Help: help, Buckets: buckets}, []string{familyLabel})
		m.all = append(m.all, h)
		return h
	}
	gauges := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts(opts(name, help)), []string{familyLabel})
		m.all = append(m.all, g)
		return g
	}
	m.sync = histogram("sync_proxy_rules_duration_seconds", "Time to bring the kernel to a change of Services.", prometheus.ExponentialBuckets(0.001, 2, 15))
	latency := append([]float64{0.25, 0.5}, prometheus.LinearBuckets(1, 1, 59)...)
	latency = append(append(latency, prometheus.LinearBuckets(60, 5, 12)...), prometheus.LinearBuckets(120, 30, 7)...)
	m.programming = histogram("network_programming_duration_seconds", "Time from the change of a Pod or Service, as the EndpointSlice tells it, until the kernel has it.", latency)
	m.synced = gauges("sync_proxy_rules_last_timestamp_seconds", "When Services were last programmed.")
	m.queued = gauges("sync_proxy_rules_last_queued_timestamp_seconds", "When programming Services was last asked for.")
	m.serviceChanges = prometheus.NewCounter(prometheus.CounterOpts(opts("sync_proxy_rules_service_changes_total", "Services that changed.")))
	m.endpointChanges = prometheus.NewCounter(prometheus.CounterOpts(opts("sync_proxy_rules_endpoint_changes_total", "EndpointSlices that changed.")))
	m.servicesPending = prometheus.NewGauge(prometheus.GaugeOpts(opts("sync_proxy_rules_service_changes_pending", "Services that changed and are not programmed yet.")))
	m.endpointPending = prometheus.NewGauge(prometheus.GaugeOpts(opts("sync_proxy_rules_endpoint_changes_pending", "EndpointSlices that changed and are not programmed yet.")))
	m.failures = prometheus.NewCounterVec(prometheus.CounterOpts(opts("sync_proxy_rules_nftables_sync_failures_total", "Rounds that could not program the packet filter.")), []string{familyLabel})
	m.all = append(m.all, m.serviceChanges, m.endpointChanges, m.servicesPending, m.endpointPending, m.failures)
	return m
}

// Collectors are what a registry is given.
func (m *ServiceMetrics) Collectors() []prometheus.Collector { return m.all }

// families returns the labels of the families that a node has.
func families(addrs []netip.Addr) (out []string) {
	has := map[bool]bool{}
	for _, a := range addrs {
		has[a.Is4()] = true
	}
	if has[true] || len(addrs) == 0 {
		out = append(out, "IPv4")
	}
	if has[false] {
		out = append(out, "IPv6")
	}
	return out
}

// compiled counts what changed; it is not in the kernel yet.
func (m *ServiceMetrics) compiled(c service.Changed, addrs []netip.Addr) {
	if m == nil || c.Services+c.Slices == 0 {
		return
	}
	m.serviceChanges.Add(float64(c.Services))
	m.endpointChanges.Add(float64(c.Slices))
	m.servicesPending.Add(float64(c.Services))
	m.endpointPending.Add(float64(c.Slices))
	for _, f := range families(addrs) {
		m.queued.WithLabelValues(f).SetToCurrentTime()
	}
}

// failed counts a round whose changes the kernel did not take.
func (m *ServiceMetrics) failed(addrs []netip.Addr) {
	if m == nil {
		return
	}
	for _, f := range families(addrs) {
		m.failures.WithLabelValues(f).Inc()
	}
}

// committed measures a round whose changes the kernel has. triggered are the times at which they happened.
func (m *ServiceMetrics) committed(took time.Duration, triggered []int64, addrs []netip.Addr) {
	if m == nil {
		return
	}
	m.servicesPending.Set(0)
	m.endpointPending.Set(0)
	for _, f := range families(addrs) {
		m.sync.WithLabelValues(f).Observe(took.Seconds())
		m.synced.WithLabelValues(f).SetToCurrentTime()
		for _, ns := range triggered {
			// What happened before this process began says nothing about it.
			if at := time.Unix(0, ns); at.After(m.started) {
				m.programming.WithLabelValues(f).Observe(time.Since(at).Seconds())
			}
		}
	}
}
