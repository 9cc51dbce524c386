package cni

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/model"
)

// fakeAttacher answers every call, or fails every call, and writes down what it was asked in the words of the operator.
type fakeAttacher struct {
	err   error
	calls []string
}

func (f *fakeAttacher) say(format string, args ...any) error {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fakeAttacher) Ready(context.Context) error { return f.err }

func (f *fakeAttacher) Add(_ context.Context, req attach.Request) (attach.Result, error) {
	if err := f.say("add %s", requestText(req)); err != nil {
		return attach.Result{}, err
	}
	return answer(req), nil
}

func (f *fakeAttacher) Del(_ context.Context, key model.AttachmentKey, kind model.LeaseKind) error {
	return f.say("del %s %s", kind, key)
}

func (f *fakeAttacher) Check(_ context.Context, req attach.Request) (attach.Result, error) {
	if err := f.say("check %s", requestText(req)); err != nil {
		return attach.Result{}, err
	}
	return answer(req), nil
}

func (f *fakeAttacher) Collect(_ context.Context, network string, kind model.LeaseKind, valid []model.AttachmentKey) error {
	return f.say("collect %s %s, valid %v", kind, network, valid)
}

func (f *fakeAttacher) SetPorts(_ context.Context, hp *model.HostPorts) error {
	return f.say("open %s", portsText(hp))
}

func (f *fakeAttacher) ClearPorts(_ context.Context, key model.AttachmentKey) error {
	return f.say("close %s", key)
}

func (f *fakeAttacher) CheckPorts(_ context.Context, hp *model.HostPorts) error {
	return f.say("check %s", portsText(hp))
}

func (f *fakeAttacher) SetBandwidth(_ context.Context, hostIf string, b model.Bandwidth) error {
	return f.say("limit %s to %s", hostIf, limitText(b))
}

func (f *fakeAttacher) ClearPodBandwidth(_ context.Context, _ int, ifName string) error {
	return f.ClearBandwidth(context.Background(), "host end of "+ifName)
}

func (f *fakeAttacher) ClearBandwidth(_ context.Context, hostIf string) error {
	return f.say("unlimit %s", hostIf)
}

func (f *fakeAttacher) CheckBandwidth(_ context.Context, hostIf string, b model.Bandwidth) error {
	return f.say("check that %s is limited to %s", hostIf, limitText(b))
}

func (f *fakeAttacher) Loopback(_ context.Context, nsFD int, check bool) error {
	return f.say("lo of %d, only check: %t", nsFD, check)
}

// answer gives the second address of each range, or of the node's own.
func answer(req attach.Request) (res attach.Result) {
	res.Lease = &model.Lease{AttachmentKey: req.Key, Kind: req.Kind, Pod: req.Pod, MTU: 1450, HostIf: podnet.HostIfName(req.Key), MAC: req.MAC}
	own := []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24"), netip.MustParsePrefix("fd01::2/64")}
	gateways := []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd01::1")}
	if req.Kind == model.LeasePod {
		own = []netip.Prefix{netip.MustParsePrefix("10.1.0.2/32"), netip.MustParsePrefix("fd01::2/128")}
		gateways = []netip.Addr{podnet.Gateway4, podnet.Gateway6}
	}
	for i, set := range req.Ranges {
		if i == 0 {
			own, gateways = nil, nil
		}
		own = append(own, netip.PrefixFrom(set[0].First.Next(), set[0].Prefix.Bits()))
		gateways = append(gateways, set[0].Reserved[0])
	}
	res.Prefixes, res.Gateways = own, gateways
	for _, p := range own {
		res.Lease.Addresses = append(res.Lease.Addresses, p.Addr())
	}
	if res.Lease.MAC.IsZero() {
		res.Lease.MAC = podnet.MACFor(res.Lease.Addresses)
	}
	return res
}

// requestText prints what is set.
func requestText(r attach.Request) string {
	out := []string{string(r.Kind), r.Key.String()}
	add := func(set bool, format string, args ...any) {
		if set {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	add(!r.Pod.IsZero(), "pod %s uid %s", r.Pod, r.Pod.UID)
	add(r.NetNS != "", "netns %s", r.NetNS)
	for _, set := range r.Ranges {
		var rs []string
		for _, rg := range set {
			rs = append(rs, fmt.Sprintf("%s %s-%s but %v", rg.Prefix, rg.First, rg.Last, rg.Reserved))
		}
		add(true, "range %s", strings.Join(rs, " or "))
	}
	add(len(r.Want) > 0, "want %v", r.Want)
	add(!r.MAC.IsZero(), "mac %s", r.MAC)
	add(r.MTU != 0, "mtu %d", r.MTU)
	add(len(r.Ports) > 0, "ports%s", mappingsText(r.Ports))
	add(r.NoSNAT, "no snat")
	add(!r.Bandwidth.IsZero(), "limit %s", limitText(r.Bandwidth))
	return strings.Join(out, ", ")
}

func portsText(hp *model.HostPorts) string {
	snat := ""
	if hp.NoSNAT {
		snat = " without snat"
	}
	return fmt.Sprintf("%s to %v:%s%s", hp.AttachmentKey, hp.Addresses, mappingsText(hp.Mappings), snat)
}

func mappingsText(list []model.PortMapping) string {
	out := ""
	for _, m := range list {
		host := "*"
		if m.HostIP.IsValid() {
			host = m.HostIP.String()
		}
		out += fmt.Sprintf(" %s:%d->%d/%s", host, m.HostPort, m.ContainerPort, m.Protocol)
	}
	return out
}

func limitText(b model.Bandwidth) string {
	return fmt.Sprintf("in %d/%d out %d/%d", b.IngressRate, b.IngressBurst, b.EgressRate, b.EgressBurst)
}
