package appliance

import (
	"context"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/kernel/iface"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
	"weft.network/weft/appliance/store"
)

// restore reads the store and adds what only the kernel still knows: a link whose lease was not written (a crash in the middle
// of an ADD) or was lost (a damaged file). Its alias names the attachment, its routes the addresses.
func (d *Daemon) restore(ctx context.Context) (attach.State, error) {
	state, err := readState(d.store)
	if err != nil {
		return state, err
	}
	links, err := d.kernel.ListPods(ctx)
	if err != nil {
		return state, fmt.Errorf("listing the links of Pods: %w", err)
	}
	known := map[string]bool{}
	for _, l := range state.Leases {
		known[l.HostIf] = true
	}
	var ops []store.Op
	for _, link := range links {
		if known[link.HostIf] {
			continue
		}
		l, ok := leaseOf(link)
		if !ok {
			d.log.Warn("removing a link that names no attachment", zap.String("link", link.HostIf))
			if err := d.kernel.DelPod(ctx, podnet.Attachment{HostIf: link.HostIf, Addresses: link.Addresses}); err != nil {
				return state, err
			}
			continue
		}
		l.NetNS = resultNetNS(cniResults, l.AttachmentKey)
		d.log.Warn("a lease was rebuilt from the kernel", zap.Stringer("attachment", l.AttachmentKey), zap.Stringer("pod", l.Pod), zap.Stringers("addresses", l.Addresses))
		state.Leases = append(state.Leases, l)
		ops = append(ops, store.PutLease(l))
	}
	if d.store.NeedsRebuild() {
		lost, err := lostResults(state, ipamPlugins(d.cfg.CNIBinDir), d.kernel.OpenNS)
		if err != nil {
			return state, err
		}
		for _, l := range lost {
			d.log.Warn("a lease was rebuilt from the runtime's results", zap.Stringer("attachment", l.AttachmentKey), zap.Stringers("addresses", l.Addresses))
			state.Leases = append(state.Leases, l)
			ops = append(ops, store.PutLease(l))
		}
		ports, err := d.lostPorts(state)
		if err != nil {
			return state, err
		}
		for _, hp := range ports {
			d.log.Warn("host ports were rebuilt from the kernel", zap.Stringer("pod", hp.Pod), zap.Any("ports", hp.Mappings))
			state.Ports = append(state.Ports, hp)
			ops = append(ops, store.PutHostPorts(hp))
		}
	}
	if len(ops) > 0 {
		if err := d.store.Write(ctx, ops...); err != nil {
			return state, fmt.Errorf("storing rebuilt leases: %w", err)
		}
	}
	if d.store.NeedsRebuild() {
		return state, d.store.Rebuilt(ctx)
	}
	return state, nil
}

// lostPorts reads the host ports of attachments that the store knows none of from the maps in the kernel.
func (d *Daemon) lostPorts(state attach.State) ([]*model.HostPorts, error) {
	elements, err := d.kernel.rules.Elements(ruleset.HostPortTable(nil, true))
	if err != nil {
		return nil, fmt.Errorf("reading host ports from the kernel: %w", err)
	}
	found := ruleset.ReadHostPorts(elements)
	var out []*model.HostPorts
	for _, l := range state.Leases {
		if slices.ContainsFunc(state.Ports, func(p *model.HostPorts) bool { return p.AttachmentKey == l.AttachmentKey }) {
			continue
		}
		hp := &model.HostPorts{AttachmentKey: l.AttachmentKey, Pod: l.Pod, Addresses: l.Addresses}
		for _, a := range l.Addresses {
			for _, m := range found[a] {
				if !slices.Contains(hp.Mappings, m) {
					hp.Mappings = append(hp.Mappings, m)
				}
			}
		}
		if len(hp.Mappings) > 0 {
			out = append(out, hp)
		}
	}
	return out, nil
}

func readState(s *store.Store) (state attach.State, err error) {
	if state.Leases, err = s.Leases(); err != nil {
		return state, fmt.Errorf("reading leases: %w", err)
	}
	if state.Released, err = s.Released(); err != nil {
		return state, fmt.Errorf("reading released addresses: %w", err)
	}
	if state.Ports, err = s.HostPorts(); err != nil {
		return state, fmt.Errorf("reading host ports: %w", err)
	}
	// The older lease wins a conflict.
	slices.SortFunc(state.Leases, func(a, b *model.Lease) int { return int(a.Created - b.Created) })
	return state, nil
}

// leaseOf rebuilds a lease from a link.
func leaseOf(link iface.PodLink) (*model.Lease, bool) {
	key, pod, ok := podnet.ParseAlias(link.Alias)
	if !ok || len(link.Addresses) == 0 || podnet.HostIfName(key) != link.HostIf {
		return nil, false
	}
	// IPv4 first, as ADD gives them.
	slices.SortFunc(link.Addresses, addr.Compare)
	l := &model.Lease{
		AttachmentKey: key, Kind: model.LeasePod, Pod: pod, Addresses: link.Addresses, HostIf: link.HostIf,
		MAC: link.MAC, MTU: link.MTU, Created: unixNow(),
	}
	if l.MAC.IsZero() {
		l.MAC = podnet.MACFor(l.Addresses)
	}
	return l, true
}
