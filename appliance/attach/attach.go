// Package attach carries out one CNI request from start to end: lease, kernel, host ports, or undo.
package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/ipam"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/store"
)

// Kernel is what the attacher needs of the node's kernel. All of it may be repeated safely.
type Kernel interface {
	// OpenNS opens a network namespace by path; ErrNetNSGone when there is none. The caller calls close.
	OpenNS(path string) (fd int, close func(), err error)
	AddPod(ctx context.Context, nsFD int, a podnet.Attachment) error
	// DelPod stops the traffic before it returns; the link and its bandwidth limit may go a little later.
	DelPod(ctx context.Context, a podnet.Attachment) error
	CheckPod(ctx context.Context, nsFD int, a podnet.Attachment) error
	// HasPod reports whether the host end exists.
	HasPod(ctx context.Context, hostIf string) (bool, error)
	// InUse says who uses an address on this node besides weft's own attachments; empty when nobody does.
	InUse(ctx context.Context, a netip.Addr) (string, error)
	SetBandwidth(ctx context.Context, hostIf string, b model.Bandwidth) error
	ClearBandwidth(ctx context.Context, hostIf string) error
	// ClearPodBandwidth is ClearBandwidth for the host end of an interface in a namespace.
	ClearPodBandwidth(ctx context.Context, nsFD int, ifName string) error
	CheckBandwidth(ctx context.Context, hostIf string, b model.Bandwidth) error
	Loopback(ctx context.Context, nsFD int, check bool) error
	// LetLocalhostReach makes host ports of these addresses answer on the node's 127.0.0.1.
	LetLocalhostReach(ctx context.Context, addrs []netip.Addr) error
	SetPodMTU(ctx context.Context, nsFD int, a podnet.Attachment) error
	// ForgetFlows drops the UDP connection tracking entries of a Pod that is gone, ForgetPortFlows those of its host ports.
	// Both may do so a moment later.
	ForgetFlows(addrs []netip.Addr)
	ForgetPortFlows(hp *model.HostPorts)
}

// Store keeps leases and host ports.
type Store interface {
	Write(ctx context.Context, ops ...store.Op) error
}

// Facts are what the attacher must know of the node at the time of a call.
type Facts struct {
	// NotReady says why Pods cannot be attached now; nil when they can.
	NotReady error
	// Ranges are this node's own, one set per family.
	Ranges [][]ipam.Range
	// MTU of Pod interfaces in bytes.
	MTU int
}

// Node tells what the attacher cannot know by itself.
type Node interface {
	Facts() Facts
	// Pod returns what the cluster says of the Pod, waiting a moment for news if the cluster can be reached; nil if unknown.
	Pod(ctx context.Context, ref model.PodRef) *model.Pod
	// SyncPorts programs the host ports given, all of them, before it returns.
	SyncPorts(ctx context.Context, ports []*model.HostPorts) error
	// Guard puts in force what policies say of all that Guarded names, before it returns: an attachment must not come up without.
	Guard(ctx context.Context) error
	// Freed is told that addresses are nobody's any more.
	Freed()
	// CheckGuards says whether the packet filter holds what protects Pods; nil when it does.
	CheckGuards() error
	// Exhausted is told when an address range is full, for the Event on the Pod.
	Exhausted(ref model.PodRef, err error)
}

// Attacher owns leases and host ports: what is in the store and what the pools hold is the same at all times.
type Attacher struct {
	kernel Kernel
	store  Store
	node   Node
	log    *zap.Logger
	now    func() int64 // seconds since 1970

	coolOff int64

	mu     sync.Mutex // guards the maps, and the pools in them; never held during a kernel change or a write
	leases map[model.AttachmentKey]*model.Lease
	ports  map[model.AttachmentKey]*model.HostPorts
	pools  map[string]*ipam.Pool
	busy   map[model.AttachmentKey]chan struct{}
	// building are attachments that are being made.
	building map[model.AttachmentKey]*model.Lease

	released map[netip.Addr]model.Release // as it was in the store at the start, for pools that are made later
}

// Options are the parts an Attacher works with.
type Options struct {
	Kernel  Kernel
	Store   Store
	Node    Node
	Log     *zap.Logger
	Now     func() int64
	CoolOff int64 // seconds
}

// State is what was in the store.
type State struct {
	Leases   []*model.Lease
	Released map[netip.Addr]model.Release
	Ports    []*model.HostPorts
}

// New returns an attacher that goes on where the store left off. Two leases with one address cannot both be right: the older
// keeps it, and the other is named in the log.
func New(o Options, s State) *Attacher {
	a := &Attacher{
		kernel: o.Kernel, store: o.Store, node: o.Node, log: o.Log, now: o.Now, coolOff: o.CoolOff,
		leases: map[model.AttachmentKey]*model.Lease{}, ports: map[model.AttachmentKey]*model.HostPorts{},
		pools: map[string]*ipam.Pool{}, busy: map[model.AttachmentKey]chan struct{}{}, building: map[model.AttachmentKey]*model.Lease{}, released: s.Released,
	}
	for _, l := range s.Leases {
		a.leases[l.AttachmentKey] = l
		for _, addr := range l.Addresses {
			if err := a.pool(l.Network).Hold(addr, l.AttachmentKey); err != nil {
				a.log.Error("two leases have one address; recreate one of the Pods",
					zap.Stringer("attachment", l.AttachmentKey), zap.Stringer("pod", l.Pod), zap.Error(err))
			}
		}
	}
	for _, p := range s.Ports {
		a.ports[p.AttachmentKey] = p
	}
	return a
}

// defaultNetwork is the name in the conflist that the daemon writes.
const defaultNetwork = "weft"

// pool returns the bookkeeping of a network; mu is held, or nobody else has the attacher yet. The store does not tell to which
// network a released address belonged: what no pool holds yet is remembered in each.
func (a *Attacher) pool(network string) *ipam.Pool {
	p := a.pools[network]
	if p == nil {
		p = ipam.NewPool(a.coolOff)
		for addr, r := range a.released {
			p.Release(addr, r)
		}
		a.pools[network] = p
	}
	return p
}

// lock makes calls for one attachment wait for each other: a runtime may send DEL while an ADD that it gave up still runs.
func (a *Attacher) lock(ctx context.Context, key model.AttachmentKey) (unlock func(), err error) {
	for {
		a.mu.Lock()
		wait, taken := a.busy[key]
		if !taken {
			done := make(chan struct{})
			a.busy[key] = done
			a.mu.Unlock()
			return func() {
				a.mu.Lock()
				delete(a.busy, key)
				a.mu.Unlock()
				close(done)
			}, nil
		}
		a.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another call for %s: %w", key, ctx.Err())
		}
	}
}

// Ready says why Pods cannot be attached now, or nil.
func (a *Attacher) Ready(context.Context) error { return a.node.Facts().NotReady }

// Leases returns all leases, in no order.
func (a *Attacher) Leases() []*model.Lease {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*model.Lease, 0, len(a.leases))
	for _, l := range a.leases {
		out = append(out, l)
	}
	return out
}

// Guarded returns all leases and those that are just being given, in no order: whose addresses policies must know.
func (a *Attacher) Guarded() []*model.Lease {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*model.Lease, 0, len(a.leases)+len(a.building))
	for _, l := range a.building {
		out = append(out, l)
	}
	for key, l := range a.leases {
		if a.building[key] == nil {
			out = append(out, l)
		}
	}
	return out
}

// Usage counts the node's own ranges; see ipam.Pool.Usage.
func (a *Attacher) Usage() (total, held, cooling int) {
	facts := a.node.Facts()
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, set := range facts.Ranges {
		t, h, c := a.pool(defaultNetwork).Usage(set, a.now())
		// The family that runs out first is what counts.
		if i == 0 || t-h < total-held {
			total, held, cooling = t, h, c
		}
	}
	return total, held, cooling
}

// Loopback sets the namespace's lo up, or with check compares.
func (a *Attacher) Loopback(ctx context.Context, nsFD int, check bool) error {
	if nsFD < 0 {
		return fmt.Errorf("opening CNI_NETNS: %w", ErrNetNSGone)
	}
	return a.kernel.Loopback(ctx, nsFD, check)
}

// SetBandwidth limits an interface that another plugin made.
func (a *Attacher) SetBandwidth(ctx context.Context, hostIf string, b model.Bandwidth) error {
	return a.kernel.SetBandwidth(ctx, hostIf, b)
}

// ClearBandwidth takes the limits back; it is no error when there are none.
func (a *Attacher) ClearBandwidth(ctx context.Context, hostIf string) error {
	return a.kernel.ClearBandwidth(ctx, hostIf)
}

// ClearPodBandwidth takes the limits of the host end of a Pod's interface back.
func (a *Attacher) ClearPodBandwidth(ctx context.Context, nsFD int, ifName string) error {
	return a.kernel.ClearPodBandwidth(ctx, nsFD, ifName)
}

// CheckBandwidth compares the limits in the kernel.
func (a *Attacher) CheckBandwidth(ctx context.Context, hostIf string, b model.Bandwidth) error {
	return a.kernel.CheckBandwidth(ctx, hostIf, b)
}

// result builds the answer for a lease.
func (a *Attacher) result(l *model.Lease, ranges [][]ipam.Range) Result {
	r := Result{Lease: l}
	for _, addr := range l.Addresses {
		p := netip.PrefixFrom(addr, addr.BitLen())
		gw := podnet.Gateway6
		if addr.Is4() {
			gw = podnet.Gateway4
		}
		if l.Kind == model.LeaseIPAM {
			gw = netip.Addr{}
			for _, set := range ranges {
				for _, rg := range set {
					if rg.Contains(addr) {
						p = netip.PrefixFrom(addr, rg.Prefix.Bits())
						if len(rg.Reserved) > 0 {
							gw = rg.Reserved[0]
						}
					}
				}
			}
		}
		r.Prefixes, r.Gateways = append(r.Prefixes, p), append(r.Gateways, gw)
	}
	return r
}

// undo joins what went wrong with what went wrong while taking it back.
func undo(err *error, what string, f func() error) {
	if *err == nil {
		return
	}
	if e := f(); e != nil {
		*err = errors.Join(*err, fmt.Errorf("undoing %s: %w", what, e))
	}
}
