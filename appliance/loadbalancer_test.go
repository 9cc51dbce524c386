package appliance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/cluster"
	"weft.network/weft/appliance/compile/lb"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/model"
)

// fakeCluster keeps the status of Services as an API server does, and shows it to the daemon only when it is told to.
type fakeCluster struct {
	standalone
	mu       sync.Mutex
	services map[model.ServiceKey]*model.Service
	events   []string
	writes   int
	pools    []cluster.PoolStatus
	shown    int // how often pools were written
	fail     error
}

func (f *fakeCluster) WritePools(_ context.Context, pools []cluster.PoolStatus) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pools, f.shown = pools, f.shown+1
	return f.fail
}

func (f *fakeCluster) Recorder() cluster.Recorder { return f }

func (f *fakeCluster) WarnPod(model.PodRef, string, string) {}
func (f *fakeCluster) WarnNode(string, string, string)      {}

func (f *fakeCluster) Service(key model.ServiceKey, _ string, warning bool, reason, _ string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, fmt.Sprintf("%s %s %v", key, reason, warning))
}

func (f *fakeCluster) Given(context.Context) (out []cluster.LoadBalancerStatus, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, s := range f.services {
		if s.Allocation != nil {
			st := cluster.LoadBalancerStatus{Service: key, UID: s.UID}
			for _, ing := range s.Ingress {
				st.Addresses = append(st.Addresses, ing.IP)
			}
			out = append(out, st)
		}
	}
	return out, f.fail
}

func (f *fakeCluster) Write(_ context.Context, want cluster.LoadBalancerStatus) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.services[want.Service]
	if f.fail != nil || s == nil || s.UID != want.UID {
		return false, errors.Join(f.fail, cluster.ErrServiceChanged)
	}
	now := *s
	now.Ingress, now.Allocation = nil, want.Allocation
	for _, a := range want.Addresses {
		now.Ingress = append(now.Ingress, model.ServiceIngress{IP: a})
	}
	if reflect.DeepEqual(now.Ingress, s.Ingress) && reflect.DeepEqual(now.Allocation, s.Allocation) {
		return false, nil
	}
	f.writes++
	f.services[want.Service] = &now
	return true, nil
}

func (f *fakeCluster) put(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		s := &model.Service{
			Namespace: "default", Name: name, UID: name, Type: "LoadBalancer", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
			Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}},
		}
		f.services[s.Key()] = s
	}
}

// snapshot is what a watch that has caught up shows.
func (f *fakeCluster) snapshot(pool string) *model.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := &model.LoadBalancerPool{Name: "edge", Blocks: []model.AddressBlock{model.BlockOf(netip.MustParsePrefix(pool))}}
	out := &model.Snapshot{Pools: map[string]*model.LoadBalancerPool{"edge": p}, Services: map[model.ServiceKey]*model.Service{}}
	for key, s := range f.services {
		out.Services[key] = s
	}
	return out
}

// has returns the addresses that the cluster shows for a Service.
func (f *fakeCluster) has(name string) (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ing := range f.services[model.ServiceKey{Namespace: "default", Name: name}].Ingress {
		out = append(out, ing.IP.String())
	}
	return out
}

func allocatorDaemon(f *fakeCluster) *Daemon {
	return &Daemon{cfg: config.Default(), log: zap.NewNop(), source: f}
}

func soon(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// TestAllocator: addresses are written once and told once; a watch that lags behind makes nobody give an address twice; the next
// allocator goes on where the one before it stopped; errors are tried again.
func TestAllocator(t *testing.T) {
	f := &fakeCluster{services: map[model.ServiceKey]*model.Service{}}
	f.put("a")
	d := allocatorDaemon(f)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.newAllocator(f).run(ctx)
	}()
	stale := f.snapshot("192.0.2.0/30")
	d.newest.Set(stale)
	soon(t, "a has an address", func() bool { return slices.Equal(f.has("a"), []string{"192.0.2.0"}) })

	// The watch shows a new Service, and not yet what was written for the old one.
	f.put("b")
	lagging := f.snapshot("192.0.2.0/30")
	for key, s := range stale.Services {
		lagging.Services[key] = s
	}
	d.newest.Set(lagging)
	soon(t, "b has another address", func() bool { return slices.Equal(f.has("b"), []string{"192.0.2.1"}) })
	d.newest.Set(f.snapshot("192.0.2.0/30"))
	f.put("c", "d", "e")
	f.mu.Lock()
	f.fail = errors.New("the server is away")
	f.mu.Unlock()
	d.newest.Set(f.snapshot("192.0.2.0/30"))
	<-time.After(50 * time.Millisecond)
	f.mu.Lock()
	f.fail = nil
	f.mu.Unlock()
	soon(t, "everybody was told", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.events) == 5
	})
	soon(t, "the pool shows what is in use of it", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Equal(f.pools, []cluster.PoolStatus{{Name: "edge", Total: 4, Used: 4, Full: "IPv4"}})
	})
	f.mu.Lock()
	if f.shown > 6 { // one for each number, and some for the time without a server
		t.Errorf("the pools were written %d times", f.shown)
	}
	want := []string{"default/a Allocated false", "default/b Allocated false", "default/c Allocated false", "default/d Allocated false", "default/e PoolExhausted true"}
	if slices.Sort(f.events); !slices.Equal(f.events, want) {
		t.Errorf("told %v", f.events)
	}
	writes := f.writes
	f.mu.Unlock()
	cancel()
	<-done

	// Another node takes over. Its watch does not show a at all yet, and its address is not free all the same.
	other := allocatorDaemon(f)
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	go other.newAllocator(f).run(ctx)
	behind := f.snapshot("192.0.2.0/30")
	delete(behind.Services, model.ServiceKey{Namespace: "default", Name: "a"})
	other.newest.Set(behind)
	<-time.After(50 * time.Millisecond)
	other.newest.Set(f.snapshot("192.0.2.0/30"))
	soon(t, "the outcome is known", func() bool { r, leading := other.lbResult(); return leading && len(r.Assignments) == 5 })
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writes != writes || len(f.events) != 5 {
		t.Errorf("the new allocator wrote %d times and told %v", f.writes-writes, f.events[5:])
	}
}

// TestAssignAddresses: from files, every node lays the same addresses over its Services; unchanged Services keep their pointer.
func TestAssignAddresses(t *testing.T) {
	f := &fakeCluster{services: map[model.ServiceKey]*model.Service{}}
	f.put("a", "b", "c")
	d := allocatorDaemon(f)
	if s := f.snapshot("192.0.2.0/28"); d.assignAddresses(s) != s {
		t.Error("with an API server, the Snapshot changes")
	}
	d.cfg.Manifests = "/somewhere"
	raw := f.snapshot("192.0.2.0/28")
	first := d.assignAddresses(raw)
	e := allocatorDaemon(f)
	e.cfg.Manifests = "/somewhere"
	for key, s := range first.Services {
		if len(s.Ingress) != 1 || s.Allocation == nil || !s.Allocation.OK {
			t.Errorf("%s got %+v", key, s)
		}
		if other := e.assignAddresses(raw).Services[key]; !reflect.DeepEqual(other, s) {
			t.Errorf("another node gives %s %+v, this one %+v", key, other, s)
		}
		if raw.Services[key].Ingress != nil {
			t.Error("the Snapshot of the source was changed")
		}
	}
	f.put("d")
	next := f.snapshot("192.0.2.0/28")
	for key, s := range raw.Services {
		next.Services[key] = s
	}
	second := d.assignAddresses(next)
	kept := 0
	for key, s := range first.Services {
		if second.Services[key] == s {
			kept++
		}
	}
	if kept < 2 || len(second.Services) != 4 {
		t.Errorf("of 3 Services %d kept their pointer when a fourth came", kept)
	}
	if third := d.assignAddresses(next); reflect.ValueOf(third.Services).Pointer() != reflect.ValueOf(second.Services).Pointer() {
		t.Error("the same Services were copied again")
	}
	next = f.snapshot("192.0.2.0/28")
	next.Pools = nil
	if gone := d.assignAddresses(next); len(gone.Services[model.ServiceKey{Namespace: "default", Name: "a"}].Ingress) > 0 {
		t.Error("addresses stay without a pool")
	}
	if len(lb.Announcements(second)) != 4 {
		t.Error("the addresses are not announced")
	}
}
