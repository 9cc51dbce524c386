package appliance

import (
	"github.com/prometheus/client_golang/prometheus"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/kernel/conntrack"
	"weft.network/weft/appliance/model"
)

// serviceCollector reads what is known of Services and connections at the time of the scrape.
type serviceCollector struct{ d *Daemon }

var (
	descServices  = prometheus.NewDesc("weft_services", "Services that this node serves.", nil, nil)
	descEndpoints = prometheus.NewDesc("weft_service_endpoints", "Endpoints to which this node sends connections, counted for each port.", nil, nil)
	descTracked   = prometheus.NewDesc("weft_conntrack_entries", "Connections that the kernel tracks.", nil, nil)
	descTrackable = prometheus.NewDesc("weft_conntrack_limit", "Connections that the kernel can track; the next one is dropped.", nil, nil)
	descNoLocal   = prometheus.NewDesc("kubeproxy_sync_proxy_rules_no_local_endpoints_total",
		"Service ports with a policy Local that drop, since no endpoint is on this node.", []string{"traffic_policy", "ip_family"}, nil)
)

// Describe implements prometheus.Collector.
func (serviceCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{descServices, descEndpoints, descTracked, descTrackable, descNoLocal} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (c serviceCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(v), labels...)
	}
	if count, limit, err := conntrack.Usage(); err == nil {
		gauge(descTracked, count)
		gauge(descTrackable, limit)
	}
	if c.d.loop.Services == nil {
		return
	}
	all := c.d.loop.Status().Services.Frontends
	gauge(descServices, len(all))
	gauge(descEndpoints, countEndpoints(all))
	for labels, n := range noLocalPorts(all) {
		gauge(descNoLocal, n, labels[0], labels[1])
	}
}

// countEndpoints counts those to which connections go, for each port.
func countEndpoints(all map[model.ServiceKey]*service.Frontends) (n int) {
	for _, f := range all {
		for i := range f.Ports {
			n += len(f.Ports[i].Cluster) + len(f.Ports[i].Local)
		}
	}
	return n
}

// noLocalPorts counts the ports that drop because of a policy Local, by policy and family.
func noLocalPorts(all map[model.ServiceKey]*service.Frontends) map[[2]string]int {
	count := map[[2]string]int{{"internal", "IPv4"}: 0, {"internal", "IPv6"}: 0, {"external", "IPv4"}: 0, {"external", "IPv6"}: 0}
	for _, f := range all {
		for i := range f.Ports {
			family := "IPv4"
			if f.Ports[i].IPv6 {
				family = "IPv6"
			}
			seen := map[string]bool{}
			for _, e := range f.Ports[i].Frontends {
				policy := "external"
				if e.Kind == service.ClusterIP {
					policy = "internal"
				}
				if e.Outside == service.NoLocal && !seen[policy] {
					seen[policy] = true
					count[[2]string{policy, family}]++
				}
			}
		}
	}
	return count
}
