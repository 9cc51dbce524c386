// Package clusterdns is the CoreDNS plugin "weft": it answers the names of the cluster from the newest Snapshot.
package clusterdns

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weft.network/weft/appliance/model"
)

// Names are the names of one cluster. They keep no copy of its objects: besides the Snapshot itself there are only indexes of
// pointers into it, which a new Snapshot changes where it differs from the one before.
type Names struct {
	domain string // with the dot at the end
	wire   []byte // the domain as in a packet
	ttl    uint32

	mu      sync.Mutex // of those who change
	current atomic.Pointer[picture]
	nodeDNS atomic.Pointer[[]netip.Addr]
}

// picture is what is known at one moment; it never changes.
type picture struct {
	snapshot *model.Snapshot
	slices   table[model.ServiceKey, []*model.EndpointSlice]
	reverse  table[netip.Addr, []owner]
	pods     table[netip.Addr, *model.Pod]
	// namespaces counts the Services and Pods of each: where the source tells of no Namespaces, one with something in it exists.
	namespaces map[string]int
	// changed is when names changed last, in seconds since 1970.
	changed int64
}

// owner is what has an address: a Service, or an endpoint of a slice.
type owner struct {
	service *model.Service
	slice   *model.EndpointSlice
	index   int // of the endpoint in the slice
}

// New returns the names below a domain, "cluster.local". Nothing is known before the first Update.
func New(domain string, ttl uint32) (*Names, error) {
	domain = strings.ToLower(strings.Trim(domain, ".")) + "."
	n := &Names{domain: domain, ttl: ttl}
	for _, label := range strings.Split(strings.TrimSuffix(domain, "."), ".") {
		if len(label) == 0 || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return nil, fmt.Errorf("%q is not a domain of the DNS", domain)
		}
		n.wire = append(append(n.wire, byte(len(label))), label...)
	}
	n.wire = append(n.wire, 0)
	n.nodeDNS.Store(new([]netip.Addr))
	return n, nil
}

// Domain is the cluster's domain, with the dot at the end.
func (n *Names) Domain() string { return n.domain }

// SetServers tells the addresses at which the cluster's DNS itself is found, for NS and ns.dns.
func (n *Names) SetServers(addrs []netip.Addr) { n.nodeDNS.Store(&addrs) }

// Synced reports whether the names of the cluster are known. Until then the answer is "server failure": a name that exists
// must not be denied.
func (n *Names) Synced() bool { return n.current.Load() != nil }

// Revision is that of the Snapshot in use.
func (n *Names) Revision() uint64 {
	if p := n.current.Load(); p != nil {
		return p.snapshot.Revision
	}
	return 0
}

// Counts says how many Services and endpoint slices have names.
func (n *Names) Counts() (services, slices int) {
	if p := n.current.Load(); p != nil {
		return len(p.snapshot.Services), len(p.snapshot.Slices)
	}
	return 0, 0
}

// Pod returns who has an address, or nil.
func (n *Names) Pod(a netip.Addr) *model.Pod {
	if p := n.current.Load(); p != nil {
		return p.pods.get(a)
	}
	return nil
}

// Update takes a Snapshot over. It costs a comparison of pointers for each object and work for those that differ.
func (n *Names) Update(s *model.Snapshot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.current.Load()
	if old == nil {
		old = &picture{
			snapshot: &model.Snapshot{}, slices: newTable[model.ServiceKey, []*model.EndpointSlice](),
			reverse: newTable[netip.Addr, []owner](), pods: newTable[netip.Addr, *model.Pod](), namespaces: map[string]int{},
		}
	}
	c := change{
		slices: old.slices.edit(), reverse: old.reverse.edit(), pods: old.pods.edit(), namespaces: maps.Clone(old.namespaces),
	}
	diff(old.snapshot.Services, s.Services, c.service)
	diff(old.snapshot.Slices, s.Slices, c.slice)
	named := c.any
	diff(old.snapshot.Pods, s.Pods, c.pod)
	next := &picture{
		snapshot: s, slices: c.slices.table, reverse: c.reverse.table, pods: c.pods.table, namespaces: c.namespaces, changed: old.changed,
	}
	if named || old.changed == 0 {
		next.changed = time.Now().Unix()
	}
	n.current.Store(next)
}

// diff calls f for each object that is new, gone or replaced.
func diff[K comparable, T any](old, now map[K]*T, f func(old, now *T)) {
	if reflect.ValueOf(old).Pointer() == reflect.ValueOf(now).Pointer() {
		return // one map, shared by both Snapshots
	}
	// One pass over what is now, mostly, and one over what was only if something of it is gone: a new name waits for this.
	kept := 0
	for key, v := range now {
		o, known := old[key]
		if known {
			kept++
		}
		if v != o {
			f(o, v)
		}
	}
	if kept == len(old) {
		return
	}
	for key, o := range old {
		if _, still := now[key]; !still {
			f(o, nil)
		}
	}
}

// change is the difference between two pictures.
type change struct {
	slices     *edit[model.ServiceKey, []*model.EndpointSlice]
	reverse    *edit[netip.Addr, []owner]
	pods       *edit[netip.Addr, *model.Pod]
	namespaces map[string]int
	any        bool
}

func (c *change) service(old, now *model.Service) {
	c.any = true
	if old != nil {
		for _, a := range old.ClusterIPs {
			c.disown(a, func(o owner) bool { return o.service == old })
		}
		c.count(old.Namespace, -1)
	}
	if now != nil {
		for _, a := range now.ClusterIPs {
			c.reverse.set(a, append(slices.Clip(c.reverse.get(a)), owner{service: now}), true)
		}
		c.count(now.Namespace, 1)
	}
}

func (c *change) count(namespace string, n int) {
	if c.namespaces[namespace] += n; c.namespaces[namespace] == 0 {
		delete(c.namespaces, namespace)
	}
}

func (c *change) slice(old, now *model.EndpointSlice) {
	c.any = true
	if old != nil {
		key := old.ServiceKey()
		rest := without(c.slices.get(key), func(s *model.EndpointSlice) bool { return s == old })
		c.slices.set(key, rest, len(rest) > 0)
		for i := range old.Endpoints {
			for _, a := range old.Endpoints[i].Addresses {
				c.disown(a, func(o owner) bool { return o.slice == old })
			}
		}
	}
	if now != nil {
		key := now.ServiceKey()
		all := append(slices.Clip(c.slices.get(key)), now)
		slices.SortFunc(all, func(a, b *model.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
		c.slices.set(key, all, true)
		for i := range now.Endpoints {
			for _, a := range now.Endpoints[i].Addresses {
				c.reverse.set(a, append(slices.Clip(c.reverse.get(a)), owner{slice: now, index: i}), true)
			}
		}
	}
}

// pod indexes Pods with addresses of their own.
func (c *change) pod(old, now *model.Pod) {
	if old != nil {
		c.count(old.Namespace, -1)
		for _, a := range old.Addresses {
			if c.pods.get(a) == old {
				c.pods.set(a, nil, false)
			}
		}
	}
	if now == nil {
		return
	}
	c.count(now.Namespace, 1)
	if !now.HostNetwork && !now.Completed {
		for _, a := range now.Addresses {
			c.pods.set(a, now, true)
		}
	}
}

func (c *change) disown(a netip.Addr, whose func(owner) bool) {
	rest := without(c.reverse.get(a), whose)
	c.reverse.set(a, rest, len(rest) > 0)
}

// without returns a new list of those that f does not name.
func without[T any](list []T, f func(T) bool) []T {
	var out []T
	for _, v := range list {
		if !f(v) {
			out = append(out, v)
		}
	}
	return out
}

// service returns a Service that has names, or nil. One that waits for its address has none yet.
func (p *picture) service(namespace, name string) *model.Service {
	s := p.snapshot.Services[model.ServiceKey{Namespace: namespace, Name: name}]
	if s == nil || len(s.ClusterIPs) == 0 && !s.Headless && s.ExternalName == "" {
		return nil
	}
	return s
}

// namespace reports whether there is a namespace of that name.
func (p *picture) namespace(name string) bool {
	return p.namespaces[name] > 0 || p.snapshot.Namespaces[name] != nil
}

// published reports whether an endpoint has names. The API server's controller writes ready for every endpoint of a Service with
// publishNotReadyAddresses; a file may not.
func (p *picture) published(slice *model.EndpointSlice, e *model.Endpoint) bool {
	if e.Ready {
		return true
	}
	s := p.snapshot.Services[slice.ServiceKey()]
	return s != nil && s.PublishNotReady
}
