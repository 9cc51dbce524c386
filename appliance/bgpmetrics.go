package appliance

import "github.com/prometheus/client_golang/prometheus"

var (
	descBGPUp       = prometheus.NewDesc("weft_bgp_session_up", "1 when the BGP session is established.", []string{"peer", "address"}, nil)
	descBGPEnded    = prometheus.NewDesc("weft_bgp_session_ended_total", "How often an established BGP session has ended.", []string{"peer", "address"}, nil)
	descBGPReceived = prometheus.NewDesc("weft_bgp_routes_received", "Routes that the BGP peer has told.", []string{"peer", "address"}, nil)
	descBGPAccepted = prometheus.NewDesc("weft_bgp_routes_accepted", "Routes of the BGP peer that the import rules take.", []string{"peer", "address"}, nil)
	descBGPTold     = prometheus.NewDesc("weft_bgp_routes_told", "Routes of this node that BGP peers are told.", nil, nil)
	descBGPLearned  = prometheus.NewDesc("weft_bgp_routes_learned", "Routes learned from BGP peers.", nil, nil)
	descBGPDrained  = prometheus.NewDesc("weft_bgp_drained", "1 when BGP peers are told no addresses of Services.", nil, nil)
)

func describeBGP(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{descBGPUp, descBGPEnded, descBGPReceived, descBGPAccepted, descBGPTold, descBGPLearned, descBGPDrained} {
		ch <- desc
	}
}

// collectBGP reports the speaker; a node without one has none of these.
func collectBGP(ch chan<- prometheus.Metric, s *BGPStatus) {
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	seen := map[string]bool{}
	for i := range s.Peers {
		p := &s.Peers[i]
		name, address := p.Name, p.Address.String()
		if seen[name+" "+address] { // the one that was refused because of the other
			continue
		}
		seen[name+" "+address] = true
		gauge(descBGPUp, truth(p.State == established), name, address)
		ch <- prometheus.MustNewConstMetric(descBGPEnded, prometheus.CounterValue, float64(p.Ended), name, address)
		gauge(descBGPReceived, float64(p.Received), name, address)
		gauge(descBGPAccepted, float64(p.Accepted), name, address)
	}
	gauge(descBGPTold, float64(s.Told))
	gauge(descBGPLearned, float64(s.Learned))
	gauge(descBGPDrained, truth(s.Drained != ""))
}
