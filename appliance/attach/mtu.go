package attach

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/store"
)

// SetMTU brings the interfaces of running Pods to the fabric's MTU, in bytes: larger ones would lose packets. Pods that asked
// for a smaller one keep it, unless they had what the fabric used before.
func (a *Attacher) SetMTU(ctx context.Context, before, now int) error {
	var errs []error
	for _, l := range a.Leases() {
		if l.Kind == model.LeasePod && (l.MTU > now || l.MTU == before && l.MTU != now) {
			if err := a.setMTU(ctx, l.AttachmentKey, now); err != nil {
				errs = append(errs, fmt.Errorf("setting the MTU of %s: %w", l.Pod, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (a *Attacher) setMTU(ctx context.Context, key model.AttachmentKey, mtu int) error {
	unlock, err := a.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	a.mu.Lock()
	old, ok := a.leases[key]
	a.mu.Unlock()
	if !ok {
		return nil
	}
	if old.NetNS == "" { // rebuilt from its link, and no runtime's result names it
		a.log.Warn("a Pod keeps its MTU, since nothing tells its network namespace: recreate it", zap.Stringer("pod", old.Pod),
			zap.Int("has", old.MTU), zap.Int("should have", mtu))
		return nil
	}
	fd, done, err := a.kernel.OpenNS(old.NetNS)
	if errors.Is(err, ErrNetNSGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer done()
	l := *old
	l.MTU = mtu
	if err := a.kernel.SetPodMTU(ctx, fd, podnet.Compile(&l)); err != nil {
		return err
	}
	if err := a.store.Write(ctx, store.PutLease(&l)); err != nil {
		return err
	}
	a.mu.Lock()
	a.leases[key] = &l
	a.mu.Unlock()
	a.log.Info("the MTU of a running Pod was changed", zap.Stringer("pod", l.Pod), zap.Int("mtu", mtu))
	return nil
}
