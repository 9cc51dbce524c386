package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/model"
)

// The annotations with which a Service asks for something: weft's own first, then those that people know from elsewhere.
var (
	addressAnnotations = []string{
		"weft.network/load-balancer-ips", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs",
		"lbipam.cilium.io/ips", "kube-vip.io/loadbalancerIPs",
	}
	poolAnnotations  = []string{"weft.network/load-balancer-pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"}
	shareAnnotations = []string{
		"weft.network/allow-shared-ip", "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip", "lbipam.cilium.io/sharing-key",
	}
)

// wish is what a Service asks for.
type wish struct {
	addrs []netip.Addr // at most one per family
	from  string       // the field that names them
	pool  string
	share string
}

func annotation(s *model.Service, keys []string) (key, value string) {
	for _, k := range keys {
		if v := strings.TrimSpace(s.Annotations[k]); v != "" {
			return k, v
		}
	}
	return "", ""
}

// wishOf reads what a Service asks for. The annotation goes before spec.loadBalancerIP, which knows one family only.
func wishOf(s *model.Service) (wish, error) {
	var w wish
	_, w.pool = annotation(s, poolAnnotations)
	_, w.share = annotation(s, shareAnnotations)
	key, text := annotation(s, addressAnnotations)
	w.from = "annotation " + key
	if text == "" {
		w.from, text = "spec.loadBalancerIP", s.LoadBalancerIP
	}
	if text == "" || text == "0.0.0.0" { // kube-vip's word for "by DHCP", which means none in particular
		w.from = ""
		return w, nil
	}
	for _, part := range strings.Split(text, ",") {
		addr, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil || addr.Zone() != "" {
			return w, fmt.Errorf("%s: %q is not an IPv4 or IPv6 address; write one address, or one of each family with a comma between", w.from, part)
		}
		addr = addr.Unmap()
		for _, o := range w.addrs {
			if o.Is4() == addr.Is4() {
				return w, fmt.Errorf("%s: %s and %s are of the same family; ask for one address per family", w.from, o, addr)
			}
		}
		w.addrs = append(w.addrs, addr)
	}
	return w, nil
}

// of returns the address of a family that is asked for.
func (w wish) of(v6 bool) netip.Addr {
	for _, a := range w.addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// dangerous are ports of a node that no Service may take over: whoever does locks everybody out.
var dangerous = []uint16{22, 2379, 2380, 6443, 10250}

// ownPort returns a port of a Service that is dangerous on a node's own address, or 0.
func ownPort(s *model.Service) uint16 {
	for _, p := range s.Ports {
		if p.Protocol == model.TCP && slices.Contains(dangerous, p.Port) {
			return p.Port
		}
	}
	return 0
}
