package policy

import (
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// Passes evaluates the filters for a packet that crosses this node as the rules in the kernel do: by the data alone.
func (f *Filters) Passes(p Packet) bool {
	if p.Src == p.Dst {
		return true
	}
	if own := f.Own[p.Src]; own != nil && !own.Directions[Egress].passes(f, p.Dst, p) {
		return false
	}
	own := f.Own[p.Dst]
	return own == nil || own.Directions[Ingress].passes(f, p.Src, p)
}

func (a *Allowed) passes(f *Filters, peer netip.Addr, p Packet) bool {
	return a == nil || a.Audit || a.Allows(f, peer, p.Proto, p.Port)
}

// Allows reports whether a peer is allowed with that port, whether the rest is dropped or only told.
func (a *Allowed) Allows(f *Filters, peer netip.Addr, proto model.Protocol, port uint16) bool {
	in := func(q Ports) bool { return q.Protocol == proto && q.First <= port && port <= q.Last }
	if s := f.Peers[ShardOf(peer)]; s != nil {
		if who, ok := s.Peers[peer]; ok {
			id := who.Class.ID
			if a.Pods || slices.Contains(a.Any, id) || slices.ContainsFunc(a.PodPorts, in) ||
				slices.ContainsFunc(a.Ports, func(q PeerPorts) bool { return q.Peer == id && in(q.Ports) }) {
				return true
			}
		}
	}
	within := func(r Range) bool { return !peer.Less(r.From) && !r.To.Less(peer) }
	return slices.ContainsFunc(a.Nets, within) || slices.ContainsFunc(a.Blocks, func(b RangePorts) bool { return within(b.Range) && in(b.Ports) })
}

// DNSServers are the addresses and ports at which this node's Pods find the cluster DNS, after Services have chosen.
func DNSServers(snap *model.Snapshot, in Input) []netip.AddrPort {
	if len(in.DNS) > 0 { // without those where it tells its metrics
		return slices.DeleteFunc(slices.Clone(in.DNS), func(a netip.AddrPort) bool { return a.Port() != model.DNSPort })
	}
	var out []netip.AddrPort
	if snap == nil {
		return nil
	}
	for _, s := range snap.Slices {
		if s.Namespace != dnsNamespace || s.Service != dnsService {
			continue
		}
		for _, port := range s.Ports {
			for i := range s.Endpoints {
				if port.Protocol == model.UDP && port.Name != "metrics" {
					for _, a := range s.Endpoints[i].Addresses {
						out = append(out, netip.AddrPortFrom(a, port.Port))
					}
				}
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// dnsService is the name of the Service of the cluster DNS, whatever serves it.
const dnsService = "kube-dns"

// WithoutDNS returns the Pods of this node that a policy keeps from every DNS server: nearly always by mistake.
func (f *Filters) WithoutDNS(servers []netip.AddrPort) (out []model.PodRef) {
	if len(servers) == 0 {
		return nil
	}
	for addr, own := range f.Own {
		egress := own.Directions[Egress]
		same := func(s netip.AddrPort) bool { return s.Addr().Is4() == addr.Is4() }
		if egress == nil || egress.Audit || !slices.ContainsFunc(servers, same) || slices.Contains(out, own.Pod) {
			continue
		}
		if !slices.ContainsFunc(servers, func(s netip.AddrPort) bool { return same(s) && egress.Allows(f, s.Addr(), model.UDP, s.Port()) }) {
			out = append(out, own.Pod)
		}
	}
	slices.SortFunc(out, func(a, b model.PodRef) int {
		return model.PolicyKey(a.Key()).Compare(model.PolicyKey(b.Key()))
	})
	return out
}
