package appliance

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/control"
	"weft.network/weft/appliance/kernel/nflog"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// Drop is one packet that policies did not let pass, or would not have.
type Drop struct {
	// Number grows by one with each Drop of this daemon.
	Number    uint64    `json:"number"`
	At        time.Time `json:"at"`
	Direction string    `json:"direction"`
	// Audit says that the packet passed all the same.
	Audit bool `json:"audit,omitempty"`
	// Answer says that it was a packet of the server of a flow that was allowed before.
	Answer bool `json:"answer,omitempty"`
	// Client and Server are the ends of the flow, by name where they are Pods.
	Client   string         `json:"client"`
	Server   string         `json:"server"`
	Src      netip.Addr     `json:"src"`
	Dst      netip.Addr     `json:"dst"`
	Protocol model.Protocol `json:"protocol"`
	Port     uint16         `json:"port,omitempty"`
	// Policies isolate the Pod in that direction.
	Policies []string `json:"policies"`
	Why      string   `json:"why"`
}

// drops keeps the last records and wakes those who wait for more.
type drops struct {
	mu      sync.Mutex
	last    []Drop
	number  uint64
	changed chan struct{}
	logged  map[string]time.Time
	total   *prometheus.CounterVec

	// judge is for that Snapshot and these filters; only watchDrops uses it.
	judge    *policy.Judge
	snapshot *model.Snapshot
	filters  *policy.Filters
}

const (
	// keptDrops is how many records are kept for those who ask later.
	keptDrops = 512
	// dropLogPause is how long the log is silent about packets like the one before.
	dropLogPause = time.Minute
	// dropWait is how long a question waits for the next record.
	dropWait = 20 * time.Second
)

func newDrops() *drops {
	return &drops{
		changed: make(chan struct{}), logged: map[string]time.Time{},
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_policy_drops_total",
			Help: "Records of packets that policies dropped, or with audit would have; at most 100 a second and direction are recorded.",
		}, []string{"policy", "direction", "audit"}),
	}
}

// watchDrops reads what the rules record, until ctx ends.
func (d *Daemon) watchDrops(ctx context.Context) {
	if d.loop.Policies == nil {
		return
	}
	packets := follow(ctx, d.log, "packets that policies drop are not recorded", func(ctx context.Context) (<-chan nflog.Packet, error) {
		return nflog.Listen(ctx, nflog.Options{Group: ruleset.PolicyLogGroup})
	})
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-packets:
			d.dropped(&p)
		}
	}
}

// dropJudge returns the judge of now, which a flood of records shares.
func (d *Daemon) dropJudge() *policy.Judge {
	s, f := d.snapshot(), d.loop.Status().Policies.Filters
	if d.drops.judge == nil || d.drops.snapshot != s || d.drops.filters != f {
		d.drops.judge, d.drops.snapshot, d.drops.filters = d.judge(), s, f
	}
	return d.drops.judge
}

// dropped says what a record is about.
func (d *Daemon) dropped(p *nflog.Packet) {
	words := strings.Fields(p.Prefix) // weft, drop or audit, ingress or egress, perhaps reply
	if len(words) < 3 || words[0] != "weft" {
		return
	}
	drop := Drop{
		At: time.Now(), Direction: words[2], Audit: words[1] == "audit", Answer: len(words) > 3,
		Src: p.Src, Dst: p.Dst, Protocol: p.Proto, Port: p.Dport,
	}
	if drop.Answer {
		drop.Src, drop.Dst, drop.Port = p.Dst, p.Src, p.Sport
	}
	j := d.dropJudge()
	drop.Client, drop.Server = j.Name(drop.Src), j.Name(drop.Dst)
	drop.Why = "the policies have changed since, or the flow is older than they are"
	for _, o := range j.Verdict(policy.Packet{Src: drop.Src, Dst: drop.Dst, Proto: drop.Protocol, Port: drop.Port}).Opinions {
		if o.Direction.String() == drop.Direction && !o.Allowed {
			drop.Why = o.Why
			for _, k := range o.Policies {
				drop.Policies = append(drop.Policies, k.String())
			}
		}
	}
	if d.drops.add(drop) {
		d.log.Warn("a policy drops packets", zap.Bool("auditOnly", drop.Audit), zap.String("direction", drop.Direction), zap.String("client", drop.Client),
			zap.String("server", drop.Server), zap.Stringer("protocol", drop.Protocol), zap.Uint16("port", drop.Port),
			zap.Strings("policies", drop.Policies), zap.String("why", drop.Why))
	}
}

// add keeps a record, and reports whether it is worth a line in the log: the first of its kind in a while.
func (k *drops) add(d Drop) bool {
	for _, p := range d.Policies {
		k.total.WithLabelValues(p, d.Direction, strconv.FormatBool(d.Audit)).Inc()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.number++
	d.Number = k.number
	if k.last = append(k.last, d); len(k.last) > keptDrops {
		k.last = slices.Delete(k.last, 0, len(k.last)-keptDrops)
	}
	close(k.changed)
	k.changed = make(chan struct{})
	kind := strings.Join([]string{strconv.FormatBool(d.Audit), d.Direction, d.Client, d.Server, d.Protocol.String(), strconv.Itoa(int(d.Port))}, " ")
	if since, ok := k.logged[kind]; ok && d.At.Sub(since) < dropLogPause {
		return false
	}
	if len(k.logged) >= keptDrops { // whoever scans all ports must not fill the memory
		clear(k.logged)
	}
	k.logged[kind] = d.At
	return true
}

// after returns the records behind a number, and what is closed when there are more.
func (k *drops) after(number uint64) ([]Drop, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if number > k.number { // counted by a daemon before this one
		number = 0
	}
	i := slices.IndexFunc(k.last, func(d Drop) bool { return d.Number > number })
	if i < 0 {
		return []Drop{}, k.changed
	}
	return slices.Clone(k.last[i:]), k.changed
}

// serveDrops answers with the records behind a number, and waits a while when there are none and wait is asked for.
func (d *Daemon) serveDrops(w http.ResponseWriter, r *http.Request) {
	number, _ := strconv.ParseUint(r.FormValue("after"), 10, 64) // none means all
	list, changed := d.drops.after(number)
	if len(list) == 0 && r.FormValue("wait") != "" {
		timer := time.NewTimer(dropWait)
		defer timer.Stop()
		select {
		case <-changed:
			list, _ = d.drops.after(number)
		case <-timer.C:
		case <-control.Stopping(r):
		case <-r.Context().Done():
		}
	}
	control.WriteJSON(w, list)
}
