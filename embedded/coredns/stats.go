package coredns

import (
	"cmp"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// The bounds of the histograms, those of CoreDNS.
var sizeBounds = []float64{0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3}

// The places in the arrays of a shard.
const (
	udp, tcp = 0, 1

	kinds = 256 // of records; greater numbers count as "other", which is 0
	codes = 16
	spans = 24 // buckets of a histogram, more than any has

	byNames, byCoreDNS = 0, 1
)

// shard counts for one goroutine that reads packets; others seldom touch it, so that counting costs next to nothing.
type shard struct {
	requests  [2][2][kinds]atomic.Uint64 // by protocol, family, kind
	responses [2][codes]atomic.Uint64    // by who answered and code
	duration  histogram
	asked     [2]histogram // bytes, by protocol
	answered  [2]histogram
	do        atomic.Uint64
	refused   atomic.Uint64 // not answered to keep the others going
	malformed atomic.Uint64
	queries   atomic.Uint64
}

// histogram has a bucket for each bound and one for all beyond.
type histogram struct {
	bucket [spans]atomic.Uint64
	sum    atomic.Uint64 // in nanoseconds or bytes
}

// sizeBucket finds the bucket of a size.
func sizeBucket(n int) int {
	i, _ := slices.BinarySearch(sizeBounds, float64(n))
	return i
}

func spanBucket(d time.Duration) int {
	i, _ := slices.BinarySearch(plugin.TimeBuckets, d.Seconds())
	return i
}

func kindIndex(kind uint16) int {
	if kind >= kinds {
		return 0
	}
	return int(kind)
}

// count notes one answered query, except for how long it took.
func (s *shard) count(proto, family int, kind uint16, by, rcode, asked, answered int) {
	s.requests[proto][family][kindIndex(kind)].Add(1)
	s.responses[by][rcode&(codes-1)].Add(1)
	s.asked[proto].add(sizeBucket(asked), 1, uint64(asked))
	s.answered[proto].add(sizeBucket(answered), 1, uint64(answered))
	s.queries.Add(1) // the last: who sees it counted finds the rest
}

func (h *histogram) add(bucket int, n, sum uint64) {
	h.bucket[bucket].Add(n)
	h.sum.Add(sum)
}

// took notes that n queries took that long each.
func (s *shard) took(d time.Duration, n int) {
	s.duration.add(spanBucket(d), uint64(n), uint64(n)*uint64(d))
}

// counters are all shards.
type counters struct {
	mu     sync.Mutex
	shards []*shard
	// autopath counts the questions answered with another name of the search list.
	autopath atomic.Uint64
}

func (c *counters) shard() *shard {
	s := &shard{}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shards = append(c.shards, s)
	return s
}

func (c *counters) all() []*shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.shards)
}

// sum adds one counter of all shards up.
func (c *counters) sum(of func(*shard) *atomic.Uint64) (n uint64) {
	for _, s := range c.all() {
		n += of(s).Load()
	}
	return n
}

// Collect gives the metrics of the plugin prometheus, under its names and labels.
func (c *counters) Collect(ch chan<- prometheus.Metric) {
	const server, zone, view = listenName, ".", ""
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		if n > 0 {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), append([]string{server, zone, view}, labels...)...)
		}
	}
	spread := func(d *prometheus.Desc, of func(*shard) *histogram, bounds []float64, unit float64, labels ...string) {
		buckets, total := map[float64]uint64{}, uint64(0)
		for i := range spans {
			total += c.sum(func(s *shard) *atomic.Uint64 { return &of(s).bucket[i] })
			if i < len(bounds) {
				buckets[bounds[i]] = total
			}
		}
		sum := c.sum(func(s *shard) *atomic.Uint64 { return &of(s).sum })
		if total > 0 {
			ch <- prometheus.MustNewConstHistogram(d, total, float64(sum)/unit, buckets, append([]string{server, zone, view}, labels...)...)
		}
	}
	for proto, name := range []string{"udp", "tcp"} {
		for family := range 2 {
			for kind := range kinds {
				count(descRequests, c.sum(func(s *shard) *atomic.Uint64 { return &s.requests[proto][family][kind] }), name, strconv.Itoa(family+1), kindName(kind))
			}
		}
		spread(descAsked, func(s *shard) *histogram { return &s.asked[proto] }, sizeBounds, 1, name)
		spread(descAnswered, func(s *shard) *histogram { return &s.answered[proto] }, sizeBounds, 1, name)
	}
	for by, name := range []string{"weft", "coredns"} {
		for code := range codes {
			count(descResponses, c.sum(func(s *shard) *atomic.Uint64 { return &s.responses[by][code] }), rcodeName(code), name)
		}
	}
	spread(descDuration, func(s *shard) *histogram { return &s.duration }, plugin.TimeBuckets, 1e9)
	count(descDo, c.sum(func(s *shard) *atomic.Uint64 { return &s.do }))
	if n := c.autopath.Load(); n > 0 {
		ch <- prometheus.MustNewConstMetric(descAutopath, prometheus.CounterValue, float64(n), server)
	}
	ch <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(c.sum(func(s *shard) *atomic.Uint64 { return &s.refused })))
	ch <- prometheus.MustNewConstMetric(descMalformed, prometheus.CounterValue, float64(c.sum(func(s *shard) *atomic.Uint64 { return &s.malformed })))
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("coredns_dns_"+name, help, append([]string{"server", "zone", "view"}, labels...), nil)
}

var (
	descRequests  = desc("requests_total", "Counter of DNS requests made per zone, protocol and family.", "proto", "family", "type")
	descResponses = desc("responses_total", "Counter of response status codes.", "rcode", "plugin")
	descDuration  = desc("request_duration_seconds", "Histogram of the time (in seconds) each request took per zone.")
	descAsked     = desc("request_size_bytes", "Size of the requests in bytes per zone and protocol.", "proto")
	descAnswered  = desc("response_size_bytes", "Size of the returned response in bytes.", "proto")
	descDo        = desc("do_requests_total", "Counter of DNS requests with DO bit set per zone.")
	descAutopath  = prometheus.NewDesc("coredns_autopath_success_total", "Counter of requests that did autopath.", []string{"server"}, nil)
	descRefused   = prometheus.NewDesc("weft_dns_refused_total", "Queries not answered, since one client asked so much that others would have waited.", nil, nil)
	descMalformed = prometheus.NewDesc("weft_dns_malformed_total", "Packets that are no query.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *counters) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRequests, descResponses, descDuration, descAsked, descAnswered, descDo, descAutopath, descRefused, descMalformed} {
		ch <- d
	}
}

func kindName(kind int) string {
	if name, ok := dns.TypeToString[uint16(kind)]; ok && kind > 0 {
		return name
	}
	return "other"
}

func rcodeName(code int) string {
	if name, ok := dns.RcodeToString[code]; ok {
		return name
	}
	return strconv.Itoa(code)
}

// plugins gathers what the linked plugins count by themselves, in the process-wide registry. What weft counts in their place is
// left out, and so is everything that is not CoreDNS'.
type plugins struct{}

// Gather implements prometheus.Gatherer.
func (plugins) Gather() ([]*dto.MetricFamily, error) {
	all, err := prometheus.DefaultGatherer.Gather()
	return slices.DeleteFunc(all, func(f *dto.MetricFamily) bool {
		return !strings.HasPrefix(f.GetName(), "coredns_") || strings.HasPrefix(f.GetName(), "coredns_dns_")
	}), err
}

// ClientCount is how much one client has asked.
type ClientCount struct {
	Address string `json:"address"`
	Pod     string `json:"pod,omitempty"`
	Queries uint64 `json:"queries"`
}

// clients estimates who asks most: one query in sampled is noted.
type clients struct {
	mu    sync.Mutex
	count map[string]uint64
}

const (
	sampled     = 16
	mostClients = 1024
)

func (c *clients) note(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == nil || len(c.count) >= mostClients && c.count[address] == 0 {
		c.shrink()
	}
	c.count[address] += sampled
}

// shrink forgets the half that asked least.
func (c *clients) shrink() {
	if c.count == nil {
		c.count = map[string]uint64{}
		return
	}
	var levels [65]int
	for _, n := range c.count {
		levels[bits.Len64(n)]++
	}
	gone, limit := 0, 0
	for ; gone < len(c.count)/2; limit++ {
		gone += levels[limit]
	}
	for a, n := range c.count {
		if bits.Len64(n) < limit {
			delete(c.count, a)
		}
	}
}

func (c *clients) top(n int) []ClientCount {
	c.mu.Lock()
	out := make([]ClientCount, 0, len(c.count))
	for a, q := range c.count {
		out = append(out, ClientCount{Address: a, Queries: q})
	}
	c.mu.Unlock()
	slices.SortFunc(out, func(a, b ClientCount) int {
		return cmp.Or(cmp.Compare(b.Queries, a.Queries), cmp.Compare(a.Address, b.Address))
	})
	return out[:min(n, len(out))]
}
