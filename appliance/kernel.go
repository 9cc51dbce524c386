package appliance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/kernel/conntrack"
	"weft.network/weft/appliance/kernel/iface"
	"weft.network/weft/appliance/kernel/nft"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/reconcile"
	"weft.network/weft/appliance/ruleset"
)

// kernel joins the backends into what attach and reconcile ask for.
type kernel struct {
	*iface.Backend
	rules *nft.Backend
	flows flows
	log   *zap.Logger
	// underlay is what Underlay returned last.
	underlay atomic.Pointer[route.Underlay]
	// forwards is a file that says that weft made this node forward IPv6; its folder is empty after a boot.
	forwards string
}

func openKernel(log *zap.Logger) (*kernel, error) {
	links, err := iface.Open(iface.Options{})
	if err != nil {
		return nil, fmt.Errorf("opening the kernel's links and routes: %w", err)
	}
	rules, err := nft.Open(nft.Options{})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the kernel's packet filter: %w", err), links.Close())
	}
	return &kernel{Backend: links, rules: rules, flows: flows{table: conntrack.Open(0), log: log}, log: log}, nil
}

func (k *kernel) close() error {
	k.flows.close()
	k.rules.Close()
	return k.Backend.Close()
}

// OpenNS opens a network namespace for the attacher.
func (k *kernel) OpenNS(path string) (int, func(), error) {
	f, err := iface.OpenNS(path)
	if errors.Is(err, iface.ErrNetNSGone) {
		return -1, nil, fmt.Errorf("%s: %w", path, attach.ErrNetNSGone)
	}
	if err != nil {
		return -1, nil, err
	}
	return int(f.Fd()), func() { _ = f.Close() }, nil
}

// isNetNS reports whether a file that the runtime's plugin passed is a network namespace.
func isNetNS(f *os.File) bool { return iface.IsNetNS(f) }

// Underlay returns the node's links and remembers them.
func (k *kernel) Underlay(ctx context.Context) (route.Underlay, error) {
	u, err := k.Backend.Underlay(ctx)
	if err == nil {
		k.underlay.Store(&u)
	}
	return u, err
}

// HasPod reports whether the host end exists.
func (k *kernel) HasPod(ctx context.Context, hostIf string) (bool, error) {
	return k.HasLink(ctx, hostIf)
}

// ForgetFlows drops the UDP flows of Pods that are gone. Reading the table takes a while on a busy node, so that it happens
// behind the call, for all Pods that go at the same time at once.
func (k *kernel) ForgetFlows(addrs []netip.Addr) {
	filters := make([]conntrack.Filter, 0, 2*len(addrs))
	for _, a := range addrs {
		filters = append(filters, conntrack.Filter{Proto: model.UDP, Src: a}, conntrack.Filter{Proto: model.UDP, Backend: a})
	}
	k.flows.forget(filters)
}

// ForgetPortFlows drops UDP flows that host ports which were opened or closed would have sent elsewhere.
func (k *kernel) ForgetPortFlows(hp *model.HostPorts) {
	under := k.underlay.Load()
	if under == nil { // a call without weftd, where no loop has read them
		if u, err := k.Underlay(context.Background()); err == nil {
			under = &u
		}
	}
	k.flows.forget(portFlows(hp, under))
}

// portFlows are the flows to host ports: those to an address of the node that nobody translated, and those to the Pod.
func portFlows(hp *model.HostPorts, under *route.Underlay) (filters []conntrack.Filter) {
	node := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	if under != nil {
		for _, l := range under.Links {
			for _, p := range l.Addresses {
				node = append(node, p.Addr())
			}
		}
	}
	for _, m := range hp.Mappings {
		if m.Protocol != model.UDP {
			continue
		}
		at := node
		if m.HostIP.IsValid() && !m.HostIP.IsUnspecified() {
			at = []netip.Addr{m.HostIP}
		}
		for _, a := range at { // the port alone would be that of strangers' flows, too
			filters = append(filters, conntrack.Filter{Proto: model.UDP, Dst: a, DstPort: m.HostPort, Untranslated: true})
		}
		for _, a := range hp.Addresses {
			filters = append(filters, conntrack.Filter{Proto: model.UDP, DstPort: m.HostPort, Backend: a})
		}
	}
	return filters
}

// ForgetService drops UDP flows whose endpoint or Service is gone.
func (k *kernel) ForgetService(gone []service.Flow) {
	var filters []conntrack.Filter
	for _, f := range gone {
		filters = append(filters, conntrack.Filter{
			Proto: f.Protocol, Dst: f.Addr, DstPort: f.Port, Backend: f.Backend.Addr(), BackendPort: f.Backend.Port(), Untranslated: f.Untranslated,
		})
	}
	k.flows.forget(filters)
}

// LetLocalhostReach makes host ports of these addresses answer on the node's 127.0.0.1.
func (k *kernel) LetLocalhostReach(ctx context.Context, addrs []netip.Addr) error {
	for _, a := range addrs {
		if a.Is4() {
			link, err := k.LinkOf(ctx, a)
			if err != nil {
				return err
			}
			return k.SetRouteLocalnet(ctx, link, true)
		}
	}
	return nil
}

// Apply sets whole tables of the packet filter.
func (k *kernel) Apply(ctx context.Context, want []ruleset.Table) (int, error) {
	s, err := k.rules.Apply(ctx, want)
	if s.Retry != nil {
		k.log.Warn("the packet filter was not as remembered and was read again", zap.Error(s.Retry))
	}
	return s.ElementsAdded + s.ElementsDeleted + s.Chains, err
}

// Update sets these tables of the packet filter and leaves all others.
func (k *kernel) Update(ctx context.Context, want []ruleset.Table) (int, error) {
	s, err := k.rules.Update(ctx, want)
	return s.ElementsAdded + s.ElementsDeleted + s.Chains, err
}

// Elements reads the elements of a table's sets.
func (k *kernel) Elements(t ruleset.Table) (map[string][]ruleset.Element, error) {
	return k.rules.Elements(t)
}

// missing names what this kernel's packet filter cannot do, each with the option that a kernel needs for it.
func (k *kernel) missing() ([]string, error) {
	problems, err := k.rules.Probe()
	if err != nil {
		return nil, fmt.Errorf("trying what the kernel's packet filter can do: %w", err)
	}
	out := make([]string, 0, len(problems))
	for _, p := range problems {
		out = append(out, p.String())
	}
	return out, nil
}

// Differs says how much Apply would change.
func (k *kernel) Differs(want []ruleset.Table) (int, error) { return k.rules.Differs(want) }

// Exists says whether the kernel has the table.
func (k *kernel) Exists(t ruleset.Table) (bool, error) { return k.rules.Exists(t) }

// Invalidate forgets what the packet filter holds.
func (k *kernel) Invalidate() { k.rules.Invalidate() }

// EnsureSysctls sets what routing Pods needs.
func (k *kernel) EnsureSysctls(ctx context.Context) (changes, problems []string) {
	turnedOn, err := k.turnedOn()
	if err != nil {
		problems = append(problems, err.Error())
	}
	want, err := k.HostSysctls(ctx, turnedOn)
	if err != nil {
		return nil, append(problems, err.Error())
	}
	changes, more := k.Backend.EnsureSysctls(ctx, want)
	return changes, append(problems, more...)
}

// turnedOn reports whether it is weft that makes this node forward IPv6: now, or earlier in this boot. It is noted before it is so.
func (k *kernel) turnedOn() (bool, error) {
	on, err := k.Forwards6()
	if err != nil {
		return false, err
	}
	if on {
		_, err := os.Stat(k.forwards)
		return err == nil, nil
	}
	if err := os.WriteFile(k.forwards, nil, 0o600); err != nil {
		return true, fmt.Errorf("noting that weft switched forwarding on: %w", err)
	}
	return true, nil
}

// watch merges what links, routes and the packet filter report. It ends with ctx.
func (k *kernel) watch(ctx context.Context) <-chan reconcile.Trigger {
	out := make(chan reconcile.Trigger)
	links := follow(ctx, k.log, "changes of links and routes are only seen by the audit, once a minute", k.Watch)
	rules := follow(ctx, k.log, "changes of the packet filter are only seen by the audit, once a minute", k.rules.Watch)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			var t reconcile.Trigger
			select {
			case <-ctx.Done():
				return
			case e := <-links:
				t = linkTrigger(e)
			case e := <-rules:
				t = reconcile.Trigger{Foreign: true, Rules: true, Deleted: e.Deleted || e.Lost, What: e.String()}
			}
			select {
			case out <- t:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// reopen is the pause before a socket is opened again that has failed. The audit finds what nobody told of meanwhile.
const reopen = time.Minute

// follow tells of events until ctx ends, from one channel after the other: one that is closed before has lost its socket. without says
// what is amiss while there is none.
func follow[E any](ctx context.Context, log *zap.Logger, without string, open func(context.Context) (<-chan E, error)) <-chan E {
	out := make(chan E)
	go func() {
		said := ""
		for ctx.Err() == nil {
			events, err := open(ctx)
			for ok := err == nil; ok; {
				var e E
				if e, ok = <-events; ok {
					select {
					case out <- e:
					case <-ctx.Done():
						return
					}
				}
			}
			if ctx.Err() != nil {
				return
			}
			if text := fmt.Sprint(err); text != said { // a kernel without it will not have it in a minute
				log.Error(without, zap.Error(err))
				said = text
			}
			select {
			case <-ctx.Done():
			case <-time.After(reopen):
			}
		}
	}()
	return out
}

func linkTrigger(e iface.Event) reconcile.Trigger {
	t := reconcile.Trigger{Foreign: len(e.Ours) > 0 || e.Resync, Fabric: true, Rules: e.Resync}
	switch {
	case len(e.Ours) > 0:
		t.What = fmt.Sprint(e.Ours)
	case e.Underlay:
		t.What = "a link of the node changed"
	default:
		t.What = "notifications of the kernel were lost"
	}
	return t
}

// The backends are what the users of them ask for.
var (
	_ attach.Kernel   = (*kernel)(nil)
	_ reconcile.Host  = (*kernel)(nil)
	_ reconcile.Rules = (*kernel)(nil)
)

// SetBandwidth limits an interface.
func (k *kernel) SetBandwidth(ctx context.Context, hostIf string, b model.Bandwidth) error {
	return k.Backend.SetBandwidth(ctx, hostIf, iface.Bandwidth(b))
}

// CheckBandwidth compares the limits of an interface.
func (k *kernel) CheckBandwidth(ctx context.Context, hostIf string, b model.Bandwidth) error {
	return k.Backend.CheckBandwidth(ctx, hostIf, iface.Bandwidth(b))
}
