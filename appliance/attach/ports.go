package attach

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"go.uber.org/zap"

	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/store"
)

// SetPorts opens host ports for an attachment.
func (a *Attacher) SetPorts(ctx context.Context, hp *model.HostPorts) (err error) {
	unlock, err := a.lock(ctx, hp.AttachmentKey)
	if err != nil {
		return err
	}
	defer unlock()
	if err := a.setPorts(ctx, hp); err != nil {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		undo(&err, "the host ports", func() error { return a.clearPorts(back, hp.AttachmentKey) })
		return err
	}
	return nil
}

func (a *Attacher) setPorts(ctx context.Context, hp *model.HostPorts) error {
	a.mu.Lock()
	conflict := a.portConflict(hp)
	if conflict == nil {
		a.ports[hp.AttachmentKey] = hp
	}
	a.mu.Unlock()
	if conflict != nil {
		return conflict
	}
	if err := a.store.Write(ctx, store.PutHostPorts(hp)); err != nil {
		return fmt.Errorf("storing the host ports of %s: %w", hp.AttachmentKey, err)
	}
	if err := a.node.SyncPorts(ctx, a.HostPorts()); err != nil {
		return fmt.Errorf("opening the host ports of %s: %w", hp.AttachmentKey, err)
	}
	a.kernel.ForgetPortFlows(hp)
	if err := a.kernel.LetLocalhostReach(ctx, hp.Addresses); err != nil {
		a.log.Warn("host ports do not answer on 127.0.0.1", zap.Stringer("attachment", hp.AttachmentKey), zap.Error(err))
	}
	return nil
}

// portConflict refuses a host port that another attachment has; mu is held.
func (a *Attacher) portConflict(hp *model.HostPorts) error {
	for _, other := range a.ports {
		if other.AttachmentKey == hp.AttachmentKey {
			continue
		}
		if m, taken := clash(hp.Mappings, other.Mappings); taken {
			return fmt.Errorf("host port %d/%s is taken by %s (attachment %s): choose another hostPort or hostIP",
				m.HostPort, m.Protocol, other.Pod, other.AttachmentKey)
		}
	}
	return nil
}

// portTaken reports whether an attachment has a host port that is wanted; mu is held.
func (a *Attacher) portTaken(key model.AttachmentKey, want []model.PortMapping) bool {
	hp := a.ports[key]
	if hp == nil {
		return false
	}
	_, taken := clash(want, hp.Mappings)
	return taken
}

// clash finds the first wanted host port that is among the others.
func clash(want, others []model.PortMapping) (model.PortMapping, bool) {
	for _, m := range want {
		for _, o := range others {
			if m.HostPort == o.HostPort && m.Protocol == o.Protocol && overlap(m.HostIP, o.HostIP) {
				return m, true
			}
		}
	}
	return model.PortMapping{}, false
}

// overlap reports whether two host addresses share one; the zero value stands for all.
func overlap(a, b netip.Addr) bool { return !a.IsValid() || !b.IsValid() || a == b }

// ClearPorts closes an attachment's host ports; it is no error when there are none.
func (a *Attacher) ClearPorts(ctx context.Context, key model.AttachmentKey) error {
	unlock, err := a.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	return a.clearPorts(ctx, key)
}

func (a *Attacher) clearPorts(ctx context.Context, key model.AttachmentKey) (err error) {
	a.mu.Lock()
	hp, ok := a.ports[key]
	delete(a.ports, key)
	a.mu.Unlock()
	if !ok {
		return nil
	}
	defer func() {
		if err != nil { // they are still in the store: the next try must know of them
			a.mu.Lock()
			a.ports[key] = hp
			a.mu.Unlock()
		}
	}()
	if err := a.node.SyncPorts(ctx, a.HostPorts()); err != nil {
		return fmt.Errorf("closing the host ports of %s: %w", key, err)
	}
	a.kernel.ForgetPortFlows(hp)
	if err := a.store.Write(ctx, store.DeleteHostPorts(key)); err != nil {
		return fmt.Errorf("forgetting the host ports of %s: %w", key, err)
	}
	return nil
}

// CheckPorts compares what is open with what should be.
func (a *Attacher) CheckPorts(_ context.Context, hp *model.HostPorts) error {
	a.mu.Lock()
	have := a.ports[hp.AttachmentKey]
	a.mu.Unlock()
	if have == nil || !slices.Equal(have.Mappings, hp.Mappings) || !slices.Equal(have.Addresses, hp.Addresses) {
		return fmt.Errorf("attachment %s has not the host ports that were asked for", hp.AttachmentKey)
	}
	return a.node.CheckGuards()
}

// HostPorts returns all host ports, sorted by attachment.
func (a *Attacher) HostPorts() []*model.HostPorts {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*model.HostPorts, 0, len(a.ports))
	for _, p := range a.ports {
		out = append(out, p)
	}
	slices.SortFunc(out, func(x, y *model.HostPorts) int { return cmp.Compare(x.String(), y.String()) })
	return out
}
