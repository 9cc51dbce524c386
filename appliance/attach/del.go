package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/store"
)

// Del takes an attachment down. It succeeds when there is nothing (left) to take down.
func (a *Attacher) Del(ctx context.Context, key model.AttachmentKey, kind model.LeaseKind) error {
	unlock, err := a.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	a.mu.Lock()
	l, ok := a.leases[key]
	a.mu.Unlock()
	if !ok {
		// An ADD that died half-way may have left a link; its name follows from the key.
		l = &model.Lease{AttachmentKey: key, Kind: kind}
		if kind == model.LeasePod {
			l.HostIf = podnet.HostIfName(key)
		}
	}
	return a.takeDown(ctx, l, ok)
}

// takeDown removes the kernel part, then the lease: an address is free only when nothing answers to it any more. The Pod can
// have its addresses again (also after an ADD that failed: its runtime tries again), others only after a while. stored says
// whether the store may have the lease: on a full disk an ADD that could not be written must still be undone.
func (a *Attacher) takeDown(ctx context.Context, l *model.Lease, stored bool) error {
	if l.Kind == model.LeasePod {
		if err := a.kernel.DelPod(ctx, podnet.Compile(l)); err != nil {
			return fmt.Errorf("removing the link of %s: %w", l.AttachmentKey, err)
		}
	}
	if err := a.clearPorts(ctx, l.AttachmentKey); err != nil {
		return err
	}
	if l.Kind == model.LeasePod && len(l.Addresses) > 0 {
		a.kernel.ForgetFlows(l.Addresses)
	}
	return a.forget(ctx, l, stored)
}

// forget drops the lease from store and pool.
func (a *Attacher) forget(ctx context.Context, l *model.Lease, stored bool) error {
	rel := model.Release{Pod: l.Pod, At: a.now()}
	released := map[netip.Addr]model.Release{}
	for _, addr := range l.Addresses {
		released[addr] = rel
	}
	if stored {
		if err := a.store.Write(ctx, store.DeleteLease(l.AttachmentKey, released)); err != nil {
			return fmt.Errorf("releasing the lease of %s: %w", l.AttachmentKey, err)
		}
	}
	defer a.node.Freed()
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.leases, l.AttachmentKey)
	pool := a.pool(l.Network)
	for _, addr := range l.Addresses {
		if owner, ok := pool.Owner(addr); ok && owner != l.AttachmentKey {
			continue
		}
		pool.Release(addr, rel)
		for _, other := range a.leases { // two leases with one address (see New): now it is the other's
			if other.Network == l.Network && slices.Contains(other.Addresses, addr) {
				_ = pool.Hold(addr, other.AttachmentKey) // it was released above
			}
		}
	}
	return nil
}

// Check compares the lease, the kernel and the host ports with each other.
func (a *Attacher) Check(ctx context.Context, req Request) (res Result, err error) {
	unlock, err := a.lock(ctx, req.Key)
	if err != nil {
		return res, err
	}
	defer unlock()
	a.mu.Lock()
	l, ok := a.leases[req.Key]
	ports := a.ports[req.Key]
	a.mu.Unlock()
	if !ok || l.Kind != req.Kind {
		return res, fmt.Errorf("%s: %w", req.Key, ErrUnknown)
	}
	res = a.result(l, req.Ranges)
	if l.Kind == model.LeaseIPAM {
		return res, nil
	}
	if req.NSFD < 0 {
		return res, fmt.Errorf("opening the network namespace %s: %w", req.NetNS, ErrNetNSGone)
	}
	if err := a.kernel.CheckPod(ctx, req.NSFD, podnet.Compile(l)); err != nil {
		return res, err
	}
	if !l.Bandwidth.IsZero() {
		if err := a.kernel.CheckBandwidth(ctx, l.HostIf, l.Bandwidth); err != nil {
			return res, err
		}
	}
	if err := a.node.CheckGuards(); err != nil {
		return res, err
	}
	if len(req.Ports) > 0 && (ports == nil || !slices.Equal(ports.Mappings, req.Ports)) {
		return res, fmt.Errorf("attachment %s has not the host ports that were asked for", req.Key)
	}
	return res, nil
}

// Collect takes down every attachment of the network and kind that the runtime does not name (CNI verb GC).
func (a *Attacher) Collect(ctx context.Context, network string, kind model.LeaseKind, valid []model.AttachmentKey) error {
	var errs []error
	for _, l := range a.Leases() {
		if l.Network != network || l.Kind != kind || slices.Contains(valid, l.AttachmentKey) {
			continue
		}
		a.log.Info("the runtime no longer knows an attachment; taking it down", zap.Stringer("attachment", l.AttachmentKey), zap.Stringer("pod", l.Pod))
		errs = append(errs, a.Del(ctx, l.AttachmentKey, l.Kind))
	}
	return errors.Join(errs...)
}

// Leak is a lease that nothing stands behind any more.
type Leak struct {
	Lease *model.Lease
	Why   string
}

// graceTime is how long a new lease is left alone, in seconds: its ADD may still run, or the runtime may not list it yet.
const graceTime = 60

// Leaks finds leases whose sandbox is gone. sandboxes are the IDs the runtime lists, nil when it could not be asked. A lease
// is a leak only if the kernel shows nothing of it: another runtime's sandboxes are in nobody's list.
func (a *Attacher) Leaks(ctx context.Context, sandboxes map[string]bool) ([]Leak, error) {
	var out []Leak
	for _, l := range a.Leases() {
		if sandboxes[l.ContainerID] || a.now()-l.Created < graceTime {
			continue
		}
		if l.Kind == model.LeaseIPAM && sandboxes == nil {
			continue // the link is another plugin's: only the runtime knows
		}
		alive, err := a.alive(ctx, l)
		if err != nil {
			return nil, err
		}
		if !alive {
			why := "its interface and network namespace are gone"
			if sandboxes != nil {
				why += " and the container runtime does not list its sandbox"
			}
			out = append(out, Leak{l, why})
		}
	}
	return out, nil
}

// Free takes leaks down and tells of each that is gone. One that cannot be taken down does not keep the others.
func (a *Attacher) Free(ctx context.Context, leaks []Leak, freed func(Leak)) error {
	var errs []error
	for _, l := range leaks {
		if err := a.Release(ctx, l.Lease, false); err != nil {
			errs = append(errs, fmt.Errorf("freeing the leaked lease of %s: %w", l.Lease.AttachmentKey, err))
			continue
		}
		freed(l)
	}
	return errors.Join(errs...)
}

// Release takes a lease down by hand. Without force it refuses while the attachment's interface exists: its Pod would lose
// its network.
func (a *Attacher) Release(ctx context.Context, l *model.Lease, force bool) error {
	if force {
		return a.Del(ctx, l.AttachmentKey, l.Kind)
	}
	alive, err := a.bury(ctx, l)
	if err == nil && alive {
		err = fmt.Errorf("lease of %s (Pod %s) is in use: delete the Pod, or use --force to cut its network off", l.AttachmentKey, l.Pod)
	}
	return err
}

// bury takes a lease down unless something of it is alive. It looks while no other call for the attachment runs: an ADD that
// is repeated after a reboot makes a dead attachment alive again.
func (a *Attacher) bury(ctx context.Context, l *model.Lease) (alive bool, err error) {
	unlock, err := a.lock(ctx, l.AttachmentKey)
	if err != nil {
		return false, err
	}
	defer unlock()
	a.mu.Lock()
	l, ok := a.leases[l.AttachmentKey]
	a.mu.Unlock()
	if !ok {
		return false, nil
	}
	if alive, err = a.alive(ctx, l); err != nil || alive {
		return alive, err
	}
	return false, a.takeDown(ctx, l, true)
}
