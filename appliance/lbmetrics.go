package appliance

import (
	"github.com/prometheus/client_golang/prometheus"

	"weft.network/weft/appliance/config"
)

// lbCollector reads what is known of load balancers at the time of the scrape.
type lbCollector struct{ d *Daemon }

var (
	descPool      = prometheus.NewDesc("weft_lb_pool_addresses", "Addresses of a LoadBalancerPool, by state.", []string{"pool", "state"}, nil)
	descBalancers = prometheus.NewDesc("weft_lb_services", "Services of type LoadBalancer that weft looks after, by what became of their addresses.", []string{"reason"}, nil)
	descAllocates = prometheus.NewDesc("weft_lb_allocator", "1 on the node that gives out addresses; with manifests, on every node.", nil, nil)
	descHeld      = prometheus.NewDesc("weft_lb_announced", "Addresses that this node answers for.", []string{"link"}, nil)
	descAnswers   = prometheus.NewDesc("weft_lb_answers_total", "Questions (ARP, Neighbour Discovery) that this node answered.", []string{"link"}, nil)
	descPeers     = prometheus.NewDesc("weft_lb_peers", "Other nodes heard on the segment.", []string{"link"}, nil)
	descTaken     = prometheus.NewDesc("weft_lb_taken_total", "Times that this node took an address.", nil, nil)
	descTookOver  = prometheus.NewDesc("weft_lb_takeovers_total", "Times that this node took an address which another node had.", nil, nil)
	descLetGo     = prometheus.NewDesc("weft_lb_released_total", "Times that this node let go of an address.", nil, nil)
	descConflicts = prometheus.NewDesc("weft_lb_conflicts_total", "Times that a machine which is no node was seen to use an address.", nil, nil)
)

func (lbCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		descPool, descBalancers, descAllocates, descHeld, descAnswers, descPeers, descTaken, descTookOver, descLetGo, descConflicts,
	} {
		ch <- desc
	}
}

func (c lbCollector) Collect(ch chan<- prometheus.Metric) {
	d := c.d
	if !d.cfg.Has(config.RoleLB) {
		return
	}
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	count := func(desc *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), labels...)
	}
	for _, p := range d.Pools() {
		gauge(descPool, float64(p.Size), p.Name, "total")
		gauge(descPool, float64(p.Used), p.Name, "used")
	}
	reasons := map[string]int{}
	for _, s := range d.LoadBalancers() {
		if s.Ours && s.Reason != "" {
			reasons[s.Reason]++
		}
	}
	for reason, n := range reasons {
		gauge(descBalancers, float64(n), reason)
	}
	_, leading := d.lbResult()
	gauge(descAllocates, truth(leading))
	held := map[string]int{}
	for _, st := range d.lb.announcer.Status() {
		if st.Self {
			held[st.Link]++
		}
	}
	for _, l := range d.lb.announcer.Links() {
		alive := 0
		for _, p := range l.Peers {
			if p.Alive {
				alive++
			}
		}
		gauge(descHeld, float64(held[l.Link]), l.Link)
		gauge(descPeers, float64(alive), l.Link)
		count(descAnswers, l.Answered, l.Link)
	}
	n := &d.lb.counts
	n.mu.Lock()
	defer n.mu.Unlock()
	count(descTaken, n.took)
	count(descTookOver, n.takeovers)
	count(descLetGo, n.gone)
	count(descConflicts, n.strife)
}
