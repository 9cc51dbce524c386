package appliance

import (
	"context"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/ruleset"
	"weft.network/weft/appliance/store"
)

// formerRoles returns the roles that a daemon with this store has had and that this one has not. What they left in the kernel is this
// store's, and goes with the first round. Another weft on the node, with a store of its own, keeps what is its own.
func (d *Daemon) formerRoles(ctx context.Context) (former []config.Role, err error) {
	identity, err := d.store.Identity()
	if err != nil {
		return nil, err
	}
	for _, r := range identity.Roles {
		if !d.cfg.Has(config.Role(r)) {
			former = append(former, config.Role(r))
		}
	}
	// Those that are gone stay in the list until what they left is gone, too.
	err = d.store.UpdateIdentity(ctx, func(i *store.Identity) {
		for _, r := range d.cfg.Roles {
			if !slices.Contains(i.Roles, string(r)) {
				i.Roles = append(i.Roles, string(r))
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("storing the roles: %w", err)
	}
	return former, nil
}

// formerTables are those of roles that are off, all of them empty.
func formerTables(roles []config.Role) (out []ruleset.Table) {
	if slices.Contains(roles, config.RoleServices) {
		out = append(out, ruleset.Table{Family: ruleset.INet, Name: ruleset.ServiceTable})
	}
	if slices.Contains(roles, config.RolePolicy) {
		for _, t := range ruleset.PolicyShape() {
			out = append(out, ruleset.Table{Family: t.Family, Name: t.Name})
		}
	}
	return out
}

// forgetRoles notes that nothing is left of roles that are off. It is called after each round and acts after the first that succeeds.
func (d *Daemon) forgetRoles() {
	if d.former == nil {
		return
	}
	roles := make([]string, len(d.cfg.Roles))
	for i, r := range d.cfg.Roles {
		roles[i] = string(r)
	}
	if err := d.store.UpdateIdentity(context.Background(), func(i *store.Identity) { i.Roles = roles }); err != nil {
		d.log.Warn("the roles could not be stored; what is gone of them is looked for again at the next start", zap.Error(err))
	}
	d.log.Info("removed what roles that are off had in the kernel", zap.Any("roles", d.former))
	d.former = nil
}
