package cni

import (
	"context"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"weft.network/weft/appliance/model"
)

// needPrev is for the plugins that only work behind another one.
func (t *task) needPrev() error {
	if t.conf.prev == nil {
		return badConf("%s must be called as a chained plugin: the configuration has no prevResult", t.call.Plugin)
	}
	return nil
}

// The loopback plugin: sets lo up. Its result names lo with the addresses the kernel gives it.
func loopbackAdd(ctx context.Context, t *task) (*types100.Result, error) {
	if err := t.a.Loopback(ctx, t.call.NSFD, false); err != nil {
		return nil, err
	}
	if t.conf.prev != nil {
		return t.conf.prev, nil
	}
	lo := 0
	return &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: t.env("CNI_NETNS")}},
		IPs: []*types100.IPConfig{
			{Interface: &lo, Address: ipNet(netip.MustParsePrefix("127.0.0.1/8"))},
			{Interface: &lo, Address: ipNet(netip.MustParsePrefix("::1/128"))},
		},
	}, nil
}

func loopbackCheck(ctx context.Context, t *task) error { return t.a.Loopback(ctx, t.call.NSFD, true) }

// The portmap plugin: host ports for the addresses that the plugin before gave.
func (t *task) hostPorts() (*model.HostPorts, error) {
	if err := t.needPrev(); err != nil {
		return nil, err
	}
	if err := t.conf.unsupported(); err != nil {
		return nil, err
	}
	mappings, err := t.conf.ports()
	if err != nil {
		return nil, err
	}
	hp := &model.HostPorts{
		AttachmentKey: t.key(), Pod: t.pod(), Mappings: mappings, NoSNAT: t.conf.SNAT != nil && !*t.conf.SNAT,
	}
	hp.Addresses = t.podAddresses()
	if len(hp.Addresses) == 0 && len(mappings) > 0 {
		return nil, badConf("prevResult has no address of %s that a host port could lead to", t.env("CNI_IFNAME"))
	}
	return hp, nil
}

// podAddresses are the first address of each family in prevResult, without those that it says are on another interface.
func (t *task) podAddresses() (out []netip.Addr) {
	prev := t.conf.prev
	for _, ip := range prev.IPs {
		p, ok := prefixOf(ip.Address)
		if !ok || slices.ContainsFunc(out, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() }) {
			continue
		}
		if n := ip.Interface; n != nil && *n >= 0 && *n < len(prev.Interfaces) {
			if i := prev.Interfaces[*n]; i.Sandbox == "" || i.Name != t.env("CNI_IFNAME") {
				continue
			}
		}
		out = append(out, p.Addr())
	}
	return out
}

func portmapAdd(ctx context.Context, t *task) (*types100.Result, error) {
	hp, err := t.hostPorts()
	if err != nil {
		return nil, err
	}
	if len(hp.Mappings) > 0 {
		if err := t.a.SetPorts(ctx, hp); err != nil {
			return nil, err
		}
	}
	return t.conf.prev, nil
}

func portmapDel(ctx context.Context, t *task) error { return t.a.ClearPorts(ctx, t.key()) }

func portmapCheck(ctx context.Context, t *task) error {
	hp, err := t.hostPorts()
	if err != nil || len(hp.Mappings) == 0 {
		return err
	}
	return t.a.CheckPorts(ctx, hp)
}

// hostIf finds the host end of the Pod's interface in prevResult: the last one outside the sandbox before the Pod's own.
func (t *task) hostIf() (string, error) {
	host := ""
	for _, i := range t.conf.prev.Interfaces {
		if i.Sandbox == "" {
			host = i.Name
		} else if i.Name == t.env("CNI_IFNAME") && host != "" {
			return host, nil
		}
	}
	if host == "" {
		return "", types.NewError(types.ErrInvalidNetworkConfig, "prevResult names no interface on the host whose traffic could be limited", "")
	}
	return host, nil
}

// limitTask reads what all verbs of the bandwidth plugin need; limited is false when there is nothing to do.
func (t *task) limitTask() (hostIf string, b model.Bandwidth, limited bool, err error) {
	if err = t.needPrev(); err != nil {
		return "", b, false, err
	}
	if b, err = t.conf.limits(); err != nil || b.IsZero() {
		return "", b, false, err
	}
	hostIf, err = t.hostIf()
	return hostIf, b, err == nil, err
}

func bandwidthAdd(ctx context.Context, t *task) (*types100.Result, error) {
	hostIf, b, limited, err := t.limitTask()
	if err != nil {
		return nil, err
	}
	if limited {
		if err := t.a.SetBandwidth(ctx, hostIf, b); err != nil {
			return nil, err
		}
	}
	return t.conf.prev, nil
}

func bandwidthDel(ctx context.Context, t *task) error {
	if t.conf.prev == nil { // versions before 0.4.0, or a runtime that lost its cache: ask the Pod's end
		if t.call.NSFD < 0 {
			return nil // the interface is gone, and weftd sweeps what is left of the limit
		}
		return t.a.ClearPodBandwidth(ctx, t.call.NSFD, t.env("CNI_IFNAME"))
	}
	hostIf, err := t.hostIf()
	if err != nil {
		return nil // DEL must succeed when there is nothing to take down
	}
	return t.a.ClearBandwidth(ctx, hostIf)
}

func bandwidthCheck(ctx context.Context, t *task) error {
	hostIf, b, limited, err := t.limitTask()
	if err != nil || !limited {
		return err
	}
	return t.a.CheckBandwidth(ctx, hostIf, b)
}
