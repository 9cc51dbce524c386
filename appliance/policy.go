package appliance

import (
	"context"
	"crypto/rand"
	"encoding/binary"

	"weft.network/weft/appliance/reconcile"
)

// newPolicies makes the part of the loop that enforces NetworkPolicies.
func (d *Daemon) newPolicies() *reconcile.Policies {
	var seed [4]byte
	_, _ = rand.Read(seed[:]) // never fails
	return &reconcile.Policies{
		Attached: d.attacher.Guarded, CutFlows: d.cfg.Policy.CutFlows,
		// A number that no flow of an earlier life of this node still carries: flows outlive the tables.
		Seed: binary.NativeEndian.Uint32(seed[:]),
	}
}

// Guard puts the policies of every attachment in force, also of those that are being made.
func (d *Daemon) Guard(ctx context.Context) error { return d.loop.SyncPolicies(ctx) }

// Freed sweeps what policies said of addresses that are free, a little later and for many at once.
func (d *Daemon) Freed() { d.loop.SweepPolicies() }
