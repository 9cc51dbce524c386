package cni

import (
	"context"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/model"
)

func ipamAdd(ctx context.Context, t *task) (*types100.Result, error) {
	req, err := t.request(model.LeaseIPAM)
	if err != nil {
		return nil, err
	}
	if t.call.Plugin == "host-local" && len(req.Ranges) == 0 {
		return nil, badConf("ipam.ranges is missing: host-local needs at least one subnet (weft-ipam takes the node's Pod ranges)")
	}
	if t.call.Plugin == "host-local" {
		req.Taken = t.takenBefore
	}
	for i, r := range t.conf.IPAM.Routes {
		if r == nil || r.Dst.IP == nil {
			return nil, badConf("ipam.routes[%d] has no dst", i)
		}
	}
	dns := t.conf.DNS
	if file := t.conf.IPAM.ResolvConf; file != "" {
		if dns, err = readResolvConf(file); err != nil {
			return nil, types.NewError(types.ErrIOFailure, "reading ipam.resolvConf", err.Error())
		}
	}
	got, err := t.a.Add(ctx, req)
	if err != nil {
		return nil, err
	}
	return t.ipamResult(got, dns), nil
}

// readResolvConf reads a file as in resolv.conf(5), as far as the result of a plugin has words for it.
func readResolvConf(path string) (dns types.DNS, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return dns, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, f[1])
		case "domain":
			dns.Domain = f[1]
		case "search":
			dns.Search = f[1:] // the last one counts
		case "options":
			dns.Options = append(dns.Options, f[1:]...)
		}
	}
	return dns, nil
}

// ipamResult reports addresses with their subnet's length and gateway, and the routes of the configuration.
func (t *task) ipamResult(got attach.Result, dns types.DNS) *types100.Result {
	res := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: t.conf.IPAM.Routes, DNS: dns}
	for i, p := range got.Prefixes {
		ip := &types100.IPConfig{Address: ipNet(p)}
		if gw := got.Gateways[i]; gw.IsValid() {
			ip.Gateway = gw.AsSlice()
		}
		res.IPs = append(res.IPs, ip)
	}
	return res
}

func ipamDel(ctx context.Context, t *task) error {
	if err := t.a.Del(ctx, t.key(), model.LeaseIPAM); err != nil || t.call.Plugin != "host-local" {
		return err
	}
	return t.releaseBefore()
}

func ipamCheck(ctx context.Context, t *task) error {
	req, err := t.request(model.LeaseIPAM)
	if err != nil {
		return err
	}
	got, err := t.a.Check(ctx, req)
	if err != nil || t.conf.prev == nil {
		return err
	}
	var held []netip.Prefix
	held = append(held, got.Prefixes...)
	return t.sameAddresses(held)
}

func ipamGC(ctx context.Context, t *task) error { return t.collect(ctx, model.LeaseIPAM) }

func ipamStatus(ctx context.Context, t *task) error {
	if ranges, err := t.conf.ranges(); err != nil || len(ranges) > 0 {
		return err // its own ranges need nothing of the node
	}
	return podStatus(ctx, t)
}
