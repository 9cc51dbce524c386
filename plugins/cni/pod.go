package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/model"
)

// request turns the call into what the attacher needs.
func (t *task) request(kind model.LeaseKind) (attach.Request, error) {
	req := attach.Request{
		Key: t.key(), Kind: kind, Pod: t.pod(), NetNS: t.env("CNI_NETNS"), NSFD: t.call.NSFD,
		MTU: t.conf.MTU, NoSNAT: t.conf.SNAT != nil && !*t.conf.SNAT,
	}
	var err error
	if req.Want, err = t.want(); err != nil {
		return req, err
	}
	if req.Ranges, err = t.conf.ranges(); err != nil {
		return req, err
	}
	if kind == model.LeaseIPAM {
		return req, nil
	}
	if req.MAC, err = t.mac(); err != nil {
		return req, err
	}
	if req.Ports, err = t.conf.ports(); err != nil {
		return req, err
	}
	req.Bandwidth, err = t.conf.limits()
	return req, err
}

func podAdd(ctx context.Context, t *task) (*types100.Result, error) {
	req, err := t.request(model.LeasePod)
	if err != nil {
		return nil, err
	}
	got, err := t.a.Add(ctx, req)
	if err != nil {
		return nil, err
	}
	return t.podResult(got), nil
}

// podResult describes the veth pair, addresses and default routes, after whatever a plugin before us made.
func (t *task) podResult(got attach.Result) *types100.Result {
	res := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if t.conf.prev != nil {
		res = t.conf.prev
	}
	l := got.Lease
	res.Interfaces = append(res.Interfaces,
		&types100.Interface{Name: l.HostIf, Mac: podnet.HostMAC.String(), Mtu: l.MTU},
		&types100.Interface{Name: l.IfName, Mac: l.MAC.String(), Mtu: l.MTU, Sandbox: t.env("CNI_NETNS")})
	inPod := len(res.Interfaces) - 1
	for i, p := range got.Prefixes {
		gw := got.Gateways[i]
		res.IPs = append(res.IPs, &types100.IPConfig{Interface: &inPod, Address: ipNet(p), Gateway: gw.AsSlice()})
		res.Routes = append(res.Routes, &types.Route{Dst: ipNet(netip.PrefixFrom(zero(gw), 0)), GW: gw.AsSlice()})
	}
	if d := t.conf.RuntimeConfig.DNS; d != nil {
		res.DNS = types.DNS{Nameservers: d.Servers, Search: d.Searches, Options: d.Options}
	} else if !t.conf.DNS.IsEmpty() {
		res.DNS = t.conf.DNS
	}
	return res
}

func zero(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// ipNet converts at the border: the CNI library speaks net.IPNet.
func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}

func podDel(ctx context.Context, t *task) error { return t.a.Del(ctx, t.key(), model.LeasePod) }

// podCheck compares three things with each other: what ADD answered (prevResult), the lease, and the kernel.
func podCheck(ctx context.Context, t *task) error {
	req, err := t.request(model.LeasePod)
	if err != nil {
		return err
	}
	if t.conf.prev == nil {
		return badConf("CHECK needs prevResult, the result of ADD")
	}
	got, err := t.a.Check(ctx, req)
	if err != nil {
		return err
	}
	if err := t.sameAddresses(got.Prefixes); err != nil {
		return err
	}
	for _, i := range t.conf.prev.Interfaces {
		if i.Sandbox != "" && i.Name == got.Lease.IfName && i.Mac != "" && !strings.EqualFold(i.Mac, got.Lease.MAC.String()) {
			return fmt.Errorf("interface %s has MAC address %s, but ADD answered %s", i.Name, got.Lease.MAC, i.Mac)
		}
	}
	return nil
}

// sameAddresses says whether every address that is held was in the result of ADD.
func (t *task) sameAddresses(held []netip.Prefix) error {
	var told []netip.Addr
	for _, ip := range t.conf.prev.IPs {
		if p, ok := prefixOf(ip.Address); ok {
			told = append(told, p.Addr())
		}
	}
	for _, p := range held {
		if !slices.Contains(told, p.Addr()) {
			return fmt.Errorf("attachment %s holds %s, but ADD answered %v", t.key(), p.Addr(), told)
		}
	}
	return nil
}

func (t *task) collect(ctx context.Context, kind model.LeaseKind) error {
	raw := t.conf.Valid
	if raw == nil {
		raw = t.conf.OldValid
	}
	if raw == nil {
		return badConf("GC needs cni.dev/valid-attachments: without the list every Pod of the network would lose its interface")
	}
	var named []types.GCAttachment
	if err := json.Unmarshal(raw, &named); err != nil {
		return types.NewError(types.ErrDecodingFailure, "cni.dev/valid-attachments cannot be read", err.Error())
	}
	valid := make([]model.AttachmentKey, 0, len(named))
	for _, v := range named {
		valid = append(valid, model.AttachmentKey{Network: t.conf.Name, ContainerID: v.ContainerID, IfName: v.IfName})
	}
	return t.a.Collect(ctx, t.conf.Name, kind, valid)
}

func podGC(ctx context.Context, t *task) error { return t.collect(ctx, model.LeasePod) }

// podStatus answers code 50 while ADD would fail (CNI specification 1.1.0, section 2, STATUS).
func podStatus(ctx context.Context, t *task) error {
	err := t.a.Ready(ctx)
	if err == nil {
		return nil
	}
	if !errors.Is(err, attach.ErrNotReady) {
		return err
	}
	return types.NewError(types.ErrPluginNotAvailable, "weft cannot attach Pods on this node yet", err.Error())
}
