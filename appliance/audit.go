package appliance

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/kernel/conntrack"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/reconcile"
)

// The pace of the audit: all of it once in auditEvery, for it reads the whole connection table; the look for node ports in use also when
// Services changed, but not more often than once in portsEvery.
const (
	auditTick  = 5 * time.Second
	auditEvery = time.Minute
	portsEvery = 10 * time.Second
	// auditAgain is when a flow that looks stale is looked at once more: the change that makes it right may be on its way.
	auditAgain = time.Second
	// conntrackFull is the part of the connection table from which on it is a warning, in percent.
	conntrackFull = 80
)

// audit is a slow look at what the immediate ways may have missed: UDP flows to who is gone, and processes that listen where
// a node port is.
type audit struct {
	mu       sync.Mutex
	warnings []string
}

func (a *audit) found() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.warnings)
}

// openServices makes the part of the loop that serves Services, if this node has that role.
func (d *Daemon) openServices() {
	if !d.cfg.Has(config.RoleServices) {
		return
	}
	d.loop.Services = &reconcile.Services{
		Flows: d.kernel, Yield: d.newProxyWatch().other, Metrics: reconcile.NewServiceMetrics(), NodePortAddresses: d.nodePortAddresses, OtherNetwork: !d.cfg.Has(config.RoleFabric),
	}
}

// nodePortAddresses turns the setting into ranges; nil is all addresses.
func (d *Daemon) nodePortAddresses(self *model.Node) (out []netip.Prefix) {
	for _, text := range d.cfg.Services.NodePortAddresses {
		if text != config.Primary {
			out = append(out, netip.MustParsePrefix(text)) // checked when it was read
			continue
		}
		for _, is4 := range []bool{true, false} {
			i := slices.IndexFunc(self.Addresses, func(a netip.Addr) bool { return a.Is4() == is4 })
			if i >= 0 {
				out = append(out, netip.PrefixFrom(self.Addresses[i], self.Addresses[i].BitLen()))
			}
		}
	}
	return out
}

// watchFlows audits until ctx ends.
func (d *Daemon) watchFlows(ctx context.Context) {
	ticker := time.NewTicker(auditTick)
	defer ticker.Stop()
	var flowsAt, portsAt time.Time
	var seen uintptr
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		status := d.loop.Status()
		now := reflect.ValueOf(status.Services.Frontends).Pointer()
		if !status.Applied {
			continue
		}
		if time.Since(flowsAt) >= auditEvery {
			flowsAt = time.Now()
			if err := d.auditFlows(ctx); err != nil && ctx.Err() == nil {
				d.log.Warn("looking for UDP flows to who is gone", zap.Error(err))
			}
		}
		if since := time.Since(portsAt); since >= auditEvery || now != seen && since >= portsEvery {
			portsAt, seen = time.Now(), now
			d.auditPorts(ctx, status.Services.Frontends)
		}
	}
}

// auditPorts looks for processes that listen where a node port is, and for what a kube-proxy left behind.
func (d *Daemon) auditPorts(ctx context.Context, all map[model.ServiceKey]*service.Frontends) {
	var warnings []string
	if self := d.snapshot().Node(d.cfg.NodeName); self != nil {
		ranges := d.nodePortAddresses(self)
		warnings = usedNodePorts(all, ranges, listeners("/proc/self/net"), func(inode string) string { return socketOwner("/proc", inode) })
		if len(ranges) > 0 && !slices.ContainsFunc(self.Addresses, func(a netip.Addr) bool {
			return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) })
		}) {
			warnings = append(warnings, fmt.Sprintf("services.nodePortAddresses %v has none of this node's addresses %v: node ports may not answer", d.cfg.Services.NodePortAddresses, self.Addresses))
		}
	}
	if d.loop.Services != nil {
		left, err := d.leftoverWarning(ctx)
		if err != nil {
			d.log.Warn("looking for what a kube-proxy left behind", zap.Error(err))
		}
		if left != "" {
			warnings = append(warnings, left)
		}
	}
	d.audit.mu.Lock()
	defer d.audit.mu.Unlock()
	for _, w := range warnings {
		if !slices.Contains(d.audit.warnings, w) {
			d.log.Warn(w)
		}
	}
	d.audit.warnings = warnings
}

// auditFlows forgets UDP flows to endpoints, host ports and Pods that are gone, and that were missed when they went: while no
// daemon ran, for instance. What is stale must be so twice.
func (d *Daemon) auditFlows(ctx context.Context) error {
	found, err := d.kernel.flows.table.FindUDP(ctx, d.stale())
	if err != nil || len(found) == 0 {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(auditAgain):
	}
	still := d.stale()
	found = slices.DeleteFunc(found, func(s conntrack.Seen) bool { return !still(s) })
	n, err := d.kernel.flows.table.Remove(ctx, found)
	if n > 0 {
		d.metrics.flows.WithLabelValues("audit").Add(float64(n))
		d.log.Warn("forgot UDP flows to who is gone, which were missed when it went", zap.Int("flows", n),
			zap.Stringer("one to", found[0].Dst), zap.Stringer("answered by", found[0].Backend))
	}
	return err
}

// stale returns the test for a UDP flow that nobody stands behind, as things are now.
func (d *Daemon) stale() func(conntrack.Seen) bool {
	status := d.loop.Status()
	v := flowView{services: service.NewAuditor(status.Services.Frontends), ranges: status.State.PodRanges}
	if d.loop.NoFabric {
		v.ranges = nil // another network's Pods
	}
	v.serves = d.loop.Services != nil && findOtherProxy("/proc") == ""
	v.node = slices.Clone(status.State.HostNet.NodeAddresses) // in the Pod ranges, and no Pod's, also while the Node is being made anew
	if self := d.snapshot().Node(d.cfg.NodeName); self != nil {
		v.node = append(v.node, self.Addresses...)
	}
	v.held = map[netip.Addr]bool{}
	for _, l := range d.attacher.Leases() {
		for _, a := range l.Addresses {
			v.held[a] = true
		}
	}
	v.ports = d.attacher.HostPorts()
	return v.stale
}

// flowView is what is known when flows are looked at.
type flowView struct {
	services *service.Auditor
	serves   bool           // Services are weft's: no other proxy sends flows to our Pods
	ranges   []netip.Prefix // of this node's Pods
	node     []netip.Addr
	held     map[netip.Addr]bool
	ports    []*model.HostPorts
}

func (v *flowView) stale(s conntrack.Seen) bool {
	local := slices.Contains(v.node, s.Dst.Addr())
	if v.services.Stale(s.Dst, s.Backend, local) {
		return true
	}
	if v.gone(s.Backend.Addr()) || v.gone(s.Src.Addr()) {
		return true
	}
	// A translated flow from an address of the node to a Pod of ours: by a node port, or by a host port that must be there still.
	return v.serves && local && s.Backend != s.Dst && v.held[s.Backend.Addr()] && !v.services.Serves(s.Dst, true) && !v.mapped(s.Dst, s.Backend)
}

// gone says whether an address is one of a Pod of this node that is not there.
func (v *flowView) gone(a netip.Addr) bool {
	return !v.held[a] && !slices.Contains(v.node, a) && slices.ContainsFunc(v.ranges, func(r netip.Prefix) bool { return r.Contains(a) })
}

// mapped says whether a host port leads there.
func (v *flowView) mapped(dst, backend netip.AddrPort) bool {
	return slices.ContainsFunc(v.ports, func(h *model.HostPorts) bool {
		return slices.Contains(h.Addresses, backend.Addr()) && slices.ContainsFunc(h.Mappings, func(m model.PortMapping) bool {
			return m.Protocol == model.UDP && m.HostPort == dst.Port() && m.ContainerPort == backend.Port()
		})
	})
}

// conntrackWarning says that the connection table is nearly full; empty if it is not.
func conntrackWarning(count, limit int) string {
	if limit == 0 || count*100 < limit*conntrackFull {
		return ""
	}
	return fmt.Sprintf("the connection tracking table holds %d of at most %d entries, and when it is full, new connections are dropped: raise net.netfilter.nf_conntrack_max, or see with `conntrack -L` who opens so many", count, limit)
}
