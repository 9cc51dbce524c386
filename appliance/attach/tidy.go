package attach

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/store"
)

// maxReleased is how many released addresses are remembered: in an IPv6 range the next address is always a new one, and each
// Pod that ever ran would leave a record.
const maxReleased = 4096

// Tidy drops what nobody needs any more: the memory of addresses released long ago, and host ports without a sandbox.
// sandboxes are the IDs the runtime lists, nil when it could not be asked.
func (a *Attacher) Tidy(ctx context.Context, sandboxes map[string]bool) error {
	a.mu.Lock()
	var ops []store.Op
	for _, p := range a.pools {
		if old := p.Trim(maxReleased); len(old) > 0 {
			ops = append(ops, store.DeleteRelease(old...))
		}
	}
	var lost []model.AttachmentKey
	for key := range a.ports {
		if _, leased := a.leases[key]; !leased && sandboxes != nil && !sandboxes[key.ContainerID] {
			lost = append(lost, key)
		}
	}
	a.mu.Unlock()
	var errs []error
	if len(ops) > 0 {
		if err := a.store.Write(ctx, ops...); err != nil {
			errs = append(errs, fmt.Errorf("forgetting addresses released long ago: %w", err))
		}
	}
	for _, key := range lost {
		a.log.Warn("closing host ports of a sandbox that is gone", zap.Stringer("attachment", key))
		errs = append(errs, a.ClearPorts(ctx, key))
	}
	return errors.Join(errs...)
}
