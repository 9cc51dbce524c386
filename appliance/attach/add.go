package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/ipam"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/store"
)

// undoTime bounds taking back a failed ADD; the caller's own time may be over by then.
const undoTime = 20e9 // nanoseconds

// Add attaches, or answers an ADD that is repeated with the same result. When it returns without an error everything is in the
// kernel and in the store; when it returns an error nothing of it is left.
func (a *Attacher) Add(ctx context.Context, req Request) (res Result, err error) {
	facts := a.node.Facts()
	ranges := req.Ranges
	if len(ranges) == 0 || req.Kind == model.LeasePod {
		if facts.NotReady != nil {
			return res, facts.NotReady
		}
		if ranges, err = within(req.Ranges, facts.Ranges); err != nil {
			return res, err
		}
	}
	unlock, err := a.lock(ctx, req.Key)
	if err != nil {
		return res, err
	}
	defer unlock()

	if req.Kind == model.LeasePod && req.NSFD < 0 {
		fd, done, err := a.kernel.OpenNS(req.NetNS)
		if err != nil {
			return res, fmt.Errorf("opening the network namespace %s: %w", req.NetNS, err)
		}
		defer done()
		req.NSFD = fd
	}
	if err := a.requested(ctx, &req); err != nil {
		return res, err
	}
	l, fresh, err := a.lease(ctx, req, ranges, facts)
	if err != nil {
		var full *ipam.ExhaustedError
		if errors.As(err, &full) {
			a.node.Exhausted(req.Pod, err)
		}
		return res, err
	}
	if err := a.build(ctx, req, l, fresh); err != nil {
		return res, err
	}
	return a.result(l, ranges), nil
}

// within lets a runtime choose among the node's own ranges, and no others: nobody could route an address from elsewhere.
func within(asked, own [][]ipam.Range) ([][]ipam.Range, error) {
	for _, set := range asked {
		for _, r := range set {
			if !slices.ContainsFunc(own, func(s []ipam.Range) bool {
				return slices.ContainsFunc(s, func(o ipam.Range) bool { return o.Contains(r.First) && o.Contains(r.Last) })
			}) {
				return nil, fmt.Errorf("%w: range %s-%s lies outside this node's Pod ranges: other nodes have no route to it", ErrRefused, r.First, r.Last)
			}
		}
	}
	if len(asked) > 0 {
		return asked, nil
	}
	return own, nil
}

// requested takes the addresses from the Pod's annotation when the runtime asks for none.
func (a *Attacher) requested(ctx context.Context, req *Request) error {
	if len(req.Want) > 0 || req.Kind != model.LeasePod || req.Pod.IsZero() {
		return nil
	}
	pod := a.node.Pod(ctx, req.Pod)
	if pod == nil {
		return nil
	}
	if pod.RequestError != "" {
		return fmt.Errorf("%w: pod %s: %s", ErrRefused, req.Pod, pod.RequestError)
	}
	req.Want = pod.Requested
	return nil
}

// lease returns the attachment's lease: the one it has, the one its Pod had in a sandbox that is dead, or a new one.
func (a *Attacher) lease(ctx context.Context, req Request, ranges [][]ipam.Range, facts Facts) (l *model.Lease, fresh bool, err error) {
	a.mu.Lock()
	old, ok := a.leases[req.Key]
	a.mu.Unlock()
	if ok && old.Kind != req.Kind {
		return nil, false, fmt.Errorf("%w: attachment %s has a lease of kind %s already, from another plugin", ErrRefused, req.Key, old.Kind)
	}
	if ok {
		l := *old
		l.NetNS = req.NetNS
		return &l, false, nil
	}
	if err := a.buryPredecessors(ctx, req); err != nil {
		return nil, false, err
	}
	addrs, err := a.pick(ctx, req, ranges, facts.Ranges)
	if err != nil {
		return nil, false, err
	}
	l = &model.Lease{
		AttachmentKey: req.Key, Kind: req.Kind, Pod: req.Pod, Addresses: addrs, NetNS: req.NetNS, Created: a.now(),
	}
	if req.Kind == model.LeasePod {
		l.HostIf, l.MAC, l.MTU, l.Bandwidth = podnet.HostIfName(req.Key), req.MAC, req.MTU, req.Bandwidth
		if l.MAC.IsZero() {
			l.MAC = podnet.MACFor(addrs)
		}
		if l.MTU == 0 || l.MTU > facts.MTU {
			l.MTU = facts.MTU
		}
	}
	return l, true, nil
}

// buryPredecessors frees what dead sandboxes hold that this one should have: those of the same Pod incarnation (a node that
// rebooted), and holders of a requested address or host port. A sandbox is dead when its host interface is gone.
func (a *Attacher) buryPredecessors(ctx context.Context, req Request) error {
	var dead []*model.Lease
	a.mu.Lock()
	for _, l := range a.leases {
		samePod := req.Pod.UID != "" && l.Pod == req.Pod && l.IfName == req.Key.IfName
		wanted := slices.ContainsFunc(req.Want, func(w netip.Addr) bool { return slices.Contains(l.Addresses, w) })
		inTheWay := l.Network == req.Key.Network && (samePod || wanted) || a.portTaken(l.AttachmentKey, req.Ports)
		if inTheWay && l.AttachmentKey != req.Key {
			dead = append(dead, l)
		}
	}
	a.mu.Unlock()
	for _, l := range dead {
		if _, err := a.bury(ctx, l); err != nil {
			return fmt.Errorf("freeing what the dead sandbox %s of %s holds: %w", l.ContainerID, l.Pod, err)
		}
	}
	return nil
}

// alive reports whether anything of the attachment still exists: the host end, or without one the network namespace.
func (a *Attacher) alive(ctx context.Context, l *model.Lease) (bool, error) {
	if l.Kind == model.LeasePod {
		return a.kernel.HasPod(ctx, l.HostIf)
	}
	_, done, err := a.kernel.OpenNS(l.NetNS)
	if errors.Is(err, ErrNetNSGone) {
		return false, nil
	}
	if err != nil {
		return true, nil // cannot be told: keep it
	}
	done()
	return true, nil
}

// pick chooses addresses. Networks have their own bookkeeping, since their ranges may be the same on purpose (two bridges that
// never meet), but what lies in the node's own Pod ranges is routed in the whole cluster and can be there only once.
func (a *Attacher) pick(ctx context.Context, req Request, ranges, own [][]ipam.Range) ([]netip.Addr, error) {
	pr := ipam.Request{Key: req.Key, Pod: req.Pod, Ranges: ranges, Want: req.Want, Now: a.now()}
	pr.InUse = func(addr netip.Addr) string {
		if who, ok := a.ownerElsewhere(req.Key.Network, addr, own); ok {
			return "held by " + who.String()
		}
		if req.Taken != nil {
			if who := req.Taken(addr); who != "" {
				return who
			}
		}
		if req.Kind != model.LeasePod {
			return ""
		}
		who, err := a.kernel.InUse(ctx, addr)
		if err != nil {
			a.log.Warn("asking the kernel whether an address is in use", zap.Stringer("address", addr), zap.Error(err))
		}
		return who
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pool(req.Key.Network).Pick(pr)
}

// ownerElsewhere finds who holds an address of the node's own ranges in another network; mu is held.
func (a *Attacher) ownerElsewhere(network string, addr netip.Addr, own [][]ipam.Range) (owner model.AttachmentKey, ok bool) {
	if !slices.ContainsFunc(own, func(s []ipam.Range) bool {
		return slices.ContainsFunc(s, func(r ipam.Range) bool { return r.Contains(addr) })
	}) {
		return owner, false
	}
	for name, p := range a.pools {
		if owner, ok = p.Owner(addr); ok && name != network {
			return owner, true
		}
	}
	return model.AttachmentKey{}, false
}

// build writes the lease and makes the kernel part at the same time: neither waits for the other, and if one fails both are
// taken back. A crash in between leaves a link whose alias names the attachment, so the address is not given twice.
func (a *Attacher) build(ctx context.Context, req Request, l *model.Lease, fresh bool) (err error) {
	written := make(chan error, 1)
	go func() { written <- a.store.Write(ctx, store.PutLease(l), store.DeleteRelease(l.Addresses...)) }()

	a.mu.Lock()
	a.building[l.AttachmentKey] = l
	a.mu.Unlock()
	defer a.built(l, &err)
	if !l.Pod.IsZero() {
		err = a.node.Guard(ctx)
	}
	if l.Kind == model.LeasePod && err == nil {
		err = a.plumb(ctx, req, l)
	}
	notStored := <-written
	err = errors.Join(err, notStored)
	if err == nil {
		a.mu.Lock()
		a.leases[l.AttachmentKey] = l
		a.mu.Unlock()
		if len(req.Ports) > 0 {
			err = a.setPorts(ctx, &model.HostPorts{
				AttachmentKey: l.AttachmentKey, Pod: l.Pod, Addresses: l.Addresses, Mappings: req.Ports, NoSNAT: req.NoSNAT,
			})
		}
	}
	if err != nil && fresh {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		undo(&err, "the attachment", func() error { return a.takeBack(back, l, notStored == nil) })
	}
	return err
}

// built ends the time in which only Guarded knows of an attachment.
func (a *Attacher) built(l *model.Lease, err *error) {
	a.mu.Lock()
	delete(a.building, l.AttachmentKey)
	a.mu.Unlock()
	if *err != nil {
		a.node.Freed()
	}
}

// takeBack takes a failed ADD down. If that fails too, the lease is kept, so that DEL or the search for leaks can finish it:
// otherwise nobody would know any more what the address is held for.
func (a *Attacher) takeBack(ctx context.Context, l *model.Lease, stored bool) error {
	err := a.takeDown(ctx, l, stored)
	if err != nil {
		a.mu.Lock()
		a.leases[l.AttachmentKey] = l
		a.mu.Unlock()
	}
	return err
}

// plumb makes the kernel part of a Pod's lease.
func (a *Attacher) plumb(ctx context.Context, req Request, l *model.Lease) error {
	att := podnet.Compile(l)
	if err := a.kernel.AddPod(ctx, req.NSFD, att); err != nil {
		return fmt.Errorf("wiring %s for %s: %w", l.IfName, l.Pod, err)
	}
	if l.Bandwidth.IsZero() {
		return nil
	}
	if err := a.kernel.SetBandwidth(ctx, l.HostIf, l.Bandwidth); err != nil {
		return fmt.Errorf("limiting the bandwidth of %s for %s: %w", l.IfName, l.Pod, err)
	}
	return nil
}
