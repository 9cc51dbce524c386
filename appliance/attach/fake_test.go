package attach

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/ipam"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/store"
)

var errInjected = errors.New("injected failure")

// faults makes steps fail: the nth one of a name, all of a name, or, as in a crash, everything from some step on.
type faults struct {
	mu    sync.Mutex
	count map[string]int
	nth   map[string]int // name -> which one fails; 0 none, -1 all
	fired int
	left  int // steps until the crash; 0 none
	dead  bool
}

func (f *faults) step(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count[name]++
	if f.left > 0 {
		f.left--
		f.dead = f.left == 0
	}
	if n := f.nth[name]; f.dead || n == -1 || n > 0 && n == f.count[name] {
		f.fired++
		return fmt.Errorf("%s: %w", name, errInjected)
	}
	return nil
}

// plan forgets what was counted and fails the nth step of that name from now on (-1: each).
func (f *faults) plan(name string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count, f.nth, f.fired, f.left, f.dead = map[string]int{}, map[string]int{name: n}, 0, 0, false
}

// crash lets n-1 more steps happen, and after that nothing until the next plan.
func (f *faults) crash(n int) {
	f.plan("", 0)
	f.left = n
}

// fakeKernel holds state as the kernel would, and fails on request before it changes anything.
type fakeKernel struct {
	*faults
	state     sync.Mutex
	ns        map[string]bool // paths of network namespaces
	fds       map[int]string
	next      int
	links     map[string]podnet.Attachment
	in        map[string]string // link -> namespace
	limit     map[string]model.Bandwidth
	inUse     map[netip.Addr]string
	flows     []netip.Addr // forgotten
	portFlows []uint16
	local     []netip.Addr
}

func (k *fakeKernel) OpenNS(path string) (int, func(), error) {
	if err := k.step("OpenNS"); err != nil {
		return -1, nil, err
	}
	k.state.Lock()
	defer k.state.Unlock()
	if !k.ns[path] {
		return -1, nil, fmt.Errorf("%s: %w", path, ErrNetNSGone)
	}
	k.next++
	fd := k.next
	k.fds[fd] = path
	return fd, func() {
		k.state.Lock()
		defer k.state.Unlock()
		delete(k.fds, fd)
	}, nil
}

func (k *fakeKernel) AddPod(ctx context.Context, nsFD int, a podnet.Attachment) error {
	if err := errors.Join(ctx.Err(), k.step("AddPod")); err != nil {
		return err
	}
	k.state.Lock()
	defer k.state.Unlock()
	path, ok := k.fds[nsFD]
	if !ok {
		return fmt.Errorf("descriptor %d is no namespace", nsFD)
	}
	for name, other := range k.links {
		for _, addr := range other.Addresses {
			if name != a.HostIf && slices.Contains(a.Addresses, addr) {
				return fmt.Errorf("route %s dev %s: file exists", addr, name) // as the real one: NLM_F_EXCL
			}
		}
	}
	k.links[a.HostIf], k.in[a.HostIf] = a, path
	return nil
}

func (k *fakeKernel) DelPod(ctx context.Context, a podnet.Attachment) error {
	if err := errors.Join(ctx.Err(), k.step("DelPod")); err != nil {
		return err
	}
	k.state.Lock()
	defer k.state.Unlock()
	delete(k.links, a.HostIf)
	delete(k.in, a.HostIf)
	delete(k.limit, a.HostIf) // as the real one: the ifb device goes with the link
	return nil
}

func (k *fakeKernel) CheckPod(_ context.Context, nsFD int, a podnet.Attachment) error {
	k.state.Lock()
	defer k.state.Unlock()
	have, ok := k.links[a.HostIf]
	switch {
	case !ok:
		return fmt.Errorf("link %s is missing", a.HostIf)
	case k.fds[nsFD] != k.in[a.HostIf]:
		return fmt.Errorf("link %s leads to another namespace", a.HostIf)
	case !slices.Equal(have.Addresses, a.Addresses):
		return fmt.Errorf("link %s has addresses %v, want %v", a.HostIf, have.Addresses, a.Addresses)
	}
	return nil
}

func (k *fakeKernel) HasPod(_ context.Context, hostIf string) (bool, error) {
	if err := k.step("HasPod"); err != nil {
		return false, err
	}
	k.state.Lock()
	defer k.state.Unlock()
	_, ok := k.links[hostIf]
	return ok, nil
}

func (k *fakeKernel) InUse(_ context.Context, a netip.Addr) (string, error) {
	if err := k.step("InUse"); err != nil {
		return "", err
	}
	k.state.Lock()
	defer k.state.Unlock()
	return k.inUse[a], nil
}

func (k *fakeKernel) SetBandwidth(_ context.Context, hostIf string, b model.Bandwidth) error {
	if err := k.step("SetBandwidth"); err != nil {
		return err
	}
	k.state.Lock()
	defer k.state.Unlock()
	if _, ok := k.links[hostIf]; !ok {
		return fmt.Errorf("link %s is missing", hostIf)
	}
	k.limit[hostIf] = b
	return nil
}

func (k *fakeKernel) ClearPodBandwidth(context.Context, int, string) error { return nil }

func (k *fakeKernel) ClearBandwidth(_ context.Context, hostIf string) error {
	if err := k.step("ClearBandwidth"); err != nil {
		return err
	}
	k.state.Lock()
	defer k.state.Unlock()
	delete(k.limit, hostIf)
	return nil
}

func (k *fakeKernel) CheckBandwidth(_ context.Context, hostIf string, b model.Bandwidth) error {
	k.state.Lock()
	defer k.state.Unlock()
	if k.limit[hostIf] != b {
		return fmt.Errorf("limit of %s is %v, want %v", hostIf, k.limit[hostIf], b)
	}
	return nil
}

func (k *fakeKernel) Loopback(context.Context, int, bool) error { return k.step("Loopback") }

func (k *fakeKernel) LetLocalhostReach(_ context.Context, addrs []netip.Addr) error {
	if err := k.step("LetLocalhostReach"); err != nil {
		return err
	}
	k.state.Lock()
	defer k.state.Unlock()
	k.local = append(k.local, addrs...)
	return nil
}

func (k *fakeKernel) SetPodMTU(_ context.Context, nsFD int, a podnet.Attachment) error {
	if err := k.step("SetPodMTU"); err != nil {
		return err
	}
	k.state.Lock()
	defer k.state.Unlock()
	have, ok := k.links[a.HostIf]
	if !ok || k.fds[nsFD] != k.in[a.HostIf] {
		return fmt.Errorf("link %s is missing", a.HostIf)
	}
	have.MTU = a.MTU
	k.links[a.HostIf] = have
	return nil
}

func (k *fakeKernel) ForgetFlows(addrs []netip.Addr) {
	k.state.Lock()
	defer k.state.Unlock()
	k.flows = append(k.flows, addrs...)
}

func (k *fakeKernel) ForgetPortFlows(hp *model.HostPorts) {
	k.state.Lock()
	defer k.state.Unlock()
	for _, m := range hp.Mappings {
		k.portFlows = append(k.portFlows, m.HostPort)
	}
}

// reboot takes every namespace and link away.
func (k *fakeKernel) reboot() {
	k.state.Lock()
	defer k.state.Unlock()
	clear(k.links)
	clear(k.in)
	clear(k.limit)
	clear(k.ns)
}

// failingStore is the real store with faults before a write.
type failingStore struct {
	*store.Store
	*faults
}

func (s failingStore) Write(ctx context.Context, ops ...store.Op) error {
	if err := s.step("store.Write"); err != nil {
		return err
	}
	return s.Store.Write(ctx, ops...)
}

// fakeNode is the rest of the node.
type fakeNode struct {
	*faults
	facts     Facts
	mu        sync.Mutex
	pods      map[model.PodRef]*model.Pod
	synced    []*model.HostPorts
	exhausted []string
	guard     func() error
	freed     atomic.Int32
}

func (n *fakeNode) Facts() Facts { return n.facts }

func (n *fakeNode) Pod(_ context.Context, ref model.PodRef) *model.Pod { return n.pods[ref] }

func (n *fakeNode) SyncPorts(_ context.Context, ports []*model.HostPorts) error {
	if err := n.step("SyncPorts"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.synced = ports
	return nil
}

func (n *fakeNode) CheckGuards() error { return nil }

// Guard remembers which addresses were guarded before their link came up.
func (n *fakeNode) Guard(context.Context) error {
	if err := n.step("Guard"); err != nil || n.guard == nil {
		return err
	}
	return n.guard()
}

// Freed counts.
func (n *fakeNode) Freed() { n.freed.Add(1) }

func (n *fakeNode) Exhausted(ref model.PodRef, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.exhausted = append(n.exhausted, ref.String()+": "+err.Error())
}

// rig is one node: everything but the attacher survives a restart.
type rig struct {
	*faults
	t      testing.TB
	kernel *fakeKernel
	node   *fakeNode
	store  *store.Store
	now    int64
	a      *Attacher
}

func newRig(t testing.TB, prefixes ...string) *rig {
	t.Helper()
	f := &faults{}
	f.plan("", 0)
	r := &rig{faults: f, t: t, now: 1000, node: &fakeNode{faults: f, pods: map[model.PodRef]*model.Pod{}, facts: Facts{MTU: 1450}}}
	r.kernel = &fakeKernel{
		faults: f, ns: map[string]bool{}, fds: map[int]string{}, next: 100, links: map[string]podnet.Attachment{},
		in: map[string]string{}, limit: map[string]model.Bandwidth{}, inUse: map[netip.Addr]string{},
	}
	for _, p := range prefixes {
		nr, err := ipam.NodeRange(netip.MustParsePrefix(p))
		if err != nil {
			t.Fatal(err)
		}
		r.node.facts.Ranges = append(r.node.facts.Ranges, []ipam.Range{nr})
	}
	var err error
	if r.store, err = store.Open(filepath.Join(t.TempDir(), "weft.db"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.store.Close() })
	r.restart()
	return r
}

// state reads the store as the daemon does.
func (r *rig) state() (s State) {
	r.t.Helper()
	var errs [3]error
	s.Leases, errs[0] = r.store.Leases()
	s.Released, errs[1] = r.store.Released()
	s.Ports, errs[2] = r.store.HostPorts()
	if err := errors.Join(errs[:]...); err != nil {
		r.t.Fatal(err)
	}
	slices.SortStableFunc(s.Leases, func(x, y *model.Lease) int { return int(x.Created - y.Created) })
	return s
}

// restart drops the attacher without notice and makes a new one from the store and the links, as the daemon does at its start.
func (r *rig) restart() {
	r.t.Helper()
	r.plan("", 0)
	s := r.state()
	known := map[string]bool{}
	for _, l := range s.Leases {
		known[l.HostIf] = true
	}
	for _, name := range slices.Sorted(maps.Keys(r.kernel.links)) {
		link := r.kernel.links[name]
		key, pod, ok := podnet.ParseAlias(link.Alias)
		if !ok {
			r.t.Fatalf("link %s has alias %q", name, link.Alias)
		}
		if !known[name] {
			l := &model.Lease{AttachmentKey: key, Kind: model.LeasePod, Pod: pod, Addresses: link.Addresses, HostIf: name, MAC: link.PodMAC, MTU: link.MTU, Created: r.now}
			s.Leases = append(s.Leases, l)
			if err := r.store.Write(context.Background(), store.PutLease(l)); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	r.a = New(Options{
		Kernel: r.kernel, Store: failingStore{r.store, r.faults}, Node: r.node, Log: zap.NewNop(),
		Now: func() int64 { return r.now }, CoolOff: 30,
	}, s)
}

func podRef(name string) model.PodRef {
	return model.PodRef{Namespace: "default", Name: name, UID: "uid-" + name}
}

func keyOf(network, container string) model.AttachmentKey {
	return model.AttachmentKey{Network: network, ContainerID: container, IfName: "eth0"}
}

// request is a plain ADD of a container for a Pod; it makes the namespace.
func (r *rig) request(container, pod string) Request {
	path := "/run/netns/" + container
	r.kernel.state.Lock()
	r.kernel.ns[path] = true
	r.kernel.state.Unlock()
	return Request{Key: keyOf("weft", container), Kind: model.LeasePod, Pod: podRef(pod), NetNS: path, NSFD: -1}
}

// leftovers lists everything that is there; empty means that nothing is.
func (r *rig) leftovers() (out []string) {
	r.t.Helper()
	s := r.state()
	for _, l := range s.Leases {
		out = append(out, "stored lease "+l.AttachmentKey.String())
	}
	for _, p := range s.Ports {
		out = append(out, "stored ports "+p.AttachmentKey.String())
	}
	for _, l := range r.a.Leases() {
		out = append(out, "lease "+l.AttachmentKey.String())
	}
	for _, p := range r.a.HostPorts() {
		out = append(out, "ports "+p.AttachmentKey.String())
	}
	for _, p := range r.node.synced {
		out = append(out, "open ports "+p.AttachmentKey.String())
	}
	for name := range r.kernel.links {
		out = append(out, "link "+name)
	}
	for name := range r.kernel.limit {
		out = append(out, "limit of "+name)
	}
	for fd, path := range r.kernel.fds {
		out = append(out, fmt.Sprintf("descriptor %d of %s", fd, path))
	}
	if _, held, _ := r.a.Usage(); held > 0 {
		out = append(out, fmt.Sprintf("%d held addresses", held))
	}
	for key := range r.a.busy {
		out = append(out, "lock "+key.String())
	}
	return out
}

func texts[T fmt.Stringer](list []T) string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, " ")
}
