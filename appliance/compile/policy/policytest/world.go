// Package policytest makes random clusters with policies, for tests that compare what is made of them.
package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/model"
)

// World makes random clusters. Everything in them comes from short lists, so that things meet.
type World struct {
	r    *rand.Rand
	Snap *model.Snapshot
	In   policy.Input
}

var (
	// NodeAddrs are the addresses of node "a", which the filters are for.
	NodeAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	spaces    = []string{"shop", "bank", "kube-system"}
	// DNSAddresses may be this node's own.
	DNSAddresses = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")}
	dnsServer    = []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("[fd00:96::a]:53")}
)

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func (w *World) labels() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"app", "tier"} {
		if w.r.IntN(4) > 0 {
			out[k] = pick(w.r, "a", "b", "c")
		}
	}
	if w.r.IntN(6) == 0 {
		out["k8s-app"] = "kube-dns"
	}
	return out
}

func (w *World) selector() model.Selector {
	out := model.Selector{}
	for range w.r.IntN(3) {
		r := model.Requirement{Key: pick(w.r, "app", "tier", "k8s-app"), Op: pick(w.r, model.OpIn, model.OpIn, model.OpNotIn, model.OpExists, model.OpDoesNotExist)}
		if r.Op == model.OpIn || r.Op == model.OpNotIn {
			for range 1 + w.r.IntN(2) {
				r.Values = append(r.Values, pick(w.r, "a", "b", "c", "kube-dns"))
			}
		}
		out = append(out, r)
	}
	out.Sort()
	return out
}

func (w *World) spaceSelector() model.Selector {
	switch w.r.IntN(4) {
	case 0:
		return model.Selector{}
	case 1:
		return model.Selector{{Key: "kubernetes.io/metadata.name", Op: model.OpIn, Values: []string{pick(w.r, spaces...)}}}
	}
	return model.Selector{{Key: "team", Op: pick(w.r, model.OpIn, model.OpNotIn), Values: []string{pick(w.r, "x", "y")}}}
}

var blocks = []string{
	"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/24", "10.1.0.0/29", "10.1.0.4/30", "10.1.0.8/29", "198.51.100.0/24", "198.51.100.128/25", "198.51.100.7/32", "255.255.255.0/24",
	"::/0", "fd00::/16", "fd00:1::/64", "fd00:1::4/126", "2001:db8:5::/48", "2001:db8:5::80/121",
}

func (w *World) peer() model.PolicyPeer {
	if w.r.IntN(3) == 0 {
		p := model.PolicyPeer{Block: netip.MustParsePrefix(pick(w.r, blocks...))}
		for range w.r.IntN(3) {
			if e := netip.MustParsePrefix(pick(w.r, blocks...)); e.Bits() >= p.Block.Bits() && p.Block.Contains(e.Addr()) {
				p.Except = append(p.Except, e)
			}
		}
		return p
	}
	var p model.PolicyPeer
	kind := w.r.IntN(3)
	if kind != 1 {
		s := w.selector()
		p.Pods = &s
	}
	if kind != 0 {
		s := w.spaceSelector()
		p.Namespaces = &s
	}
	return p
}

func (w *World) rules() (out []model.PolicyRule) {
	for range w.r.IntN(3) {
		r := model.PolicyRule{AnyPeer: w.r.IntN(4) == 0, AnyPort: w.r.IntN(3) == 0}
		for range w.r.IntN(3) {
			if !r.AnyPeer {
				r.Peers = append(r.Peers, w.peer())
			}
		}
		for range w.r.IntN(3) {
			if r.AnyPort {
				break
			}
			p := model.PolicyPort{Protocol: pick(w.r, model.TCP, model.TCP, model.UDP, model.SCTP)}
			switch w.r.IntN(4) {
			case 0:
				p.Name = pick(w.r, "http", "dns")
			case 1:
				p.Last = 65535
			case 2:
				p.First = pick[uint16](w.r, 53, 79, 80)
				p.Last = p.First + uint16(w.r.IntN(3))
			default:
				p.First = pick[uint16](w.r, 53, 80, 81)
				p.Last = p.First
			}
			r.Ports = append(r.Ports, p)
		}
		out = append(out, r)
	}
	return out
}

func (w *World) policy(name string) *model.NetworkPolicy {
	p := &model.NetworkPolicy{Namespace: pick(w.r, spaces...), Name: name, Pods: w.selector(), Ingress: w.rules(), Egress: w.rules(), AuditOnly: w.r.IntN(8) == 0}
	kind := w.r.IntN(3)
	p.IsolatesIngress, p.IsolatesEgress = kind != 1, kind != 0
	return p
}

func (w *World) pod(i int) *model.Pod {
	p := &model.Pod{
		PodRef: model.PodRef{Namespace: pick(w.r, spaces...), Name: fmt.Sprintf("pod-%d", i), UID: fmt.Sprint(i)}, Node: pick(w.r, "a", "a", "b"),
		Labels: w.labels(), HostNetwork: w.r.IntN(12) == 0, Completed: w.r.IntN(12) == 0,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})},
	}
	if w.r.IntN(2) == 0 {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", i)))
	}
	if p.HostNetwork {
		p.Addresses = NodeAddrs
	}
	for _, n := range []string{"http", "dns"} {
		if w.r.IntN(2) == 0 {
			p.Ports = append(p.Ports, model.NamedPort{Name: n, Protocol: pick(w.r, model.TCP, model.UDP), Port: pick[uint16](w.r, 53, 80, 81)})
		}
	}
	return p
}

// New makes a cluster; the same seed makes the same one.
func New(seed uint64) *World {
	w := &World{r: rand.New(rand.NewPCG(seed, 1)), In: policy.Input{NodeName: "a"}}
	w.Snap = &model.Snapshot{Pods: map[model.PodKey]*model.Pod{}, Policies: map[model.PolicyKey]*model.NetworkPolicy{}, Namespaces: map[string]*model.Namespace{}}
	if w.r.IntN(2) == 0 {
		w.In.DNS = dnsServer
	}
	for range w.r.IntN(12) {
		w.Change()
	}
	for range 3 + w.r.IntN(10) {
		w.Change()
	}
	return w
}

// Change makes one change, in new maps where it changes one.
func (w *World) Change() {
	s := *w.Snap
	switch w.r.IntN(8) {
	case 0, 1, 2:
		p := w.pod(2 + w.r.IntN(14))
		s.Pods = cloneMap(s.Pods)
		for k, old := range s.Pods {
			if old.Name == p.Name {
				delete(s.Pods, k)
			}
		}
		w.In.Attached = slices.DeleteFunc(slices.Clone(w.In.Attached), func(a policy.Attached) bool { return a.Pod.Name == p.Name })
		if w.r.IntN(5) == 0 {
			break
		}
		s.Pods[p.Key()] = p
		if p.Node == "a" && !p.HostNetwork && w.r.IntN(2) == 0 {
			w.In.Attached = append(w.In.Attached, policy.Attached{Pod: p.PodRef, Addresses: p.Addresses})
			p.Addresses = p.Addresses[:w.r.IntN(len(p.Addresses)+1)]
			switch w.r.IntN(8) {
			case 0:
				delete(s.Pods, p.Key()) // not known yet
			case 1:
				p.UID = "another"
			}
		}
	case 3, 4, 5:
		p := w.policy(fmt.Sprintf("np-%d", w.r.IntN(6)))
		s.Policies = cloneMap(s.Policies)
		if delete(s.Policies, p.Key()); w.r.IntN(4) > 0 {
			s.Policies[p.Key()] = p
		}
	case 6:
		name := pick(w.r, spaces...)
		s.Namespaces = cloneMap(s.Namespaces)
		if delete(s.Namespaces, name); w.r.IntN(4) > 0 {
			s.Namespaces[name] = &model.Namespace{Name: name, Labels: map[string]string{"kubernetes.io/metadata.name": name, "team": pick(w.r, "x", "y")}}
		}
	case 7:
		if w.In.DNS = nil; w.r.IntN(2) == 0 {
			w.In.DNS = dnsServer
		}
	}
	w.Snap = &s
}

func cloneMap[K comparable, V any](m map[K]V) map[K]V {
	out := make(map[K]V, len(m)+1)
	for k, v := range m {
		out[k] = v
	}
	return out
}

var outside = []string{"198.51.100.7", "198.51.100.200", "8.8.8.8", "255.255.255.9", "10.1.0.200", "2001:db8:5::81", "2001:db8:5::1", "2001:db8:9::1", "192.0.2.1", "2001:db8::1", "10.96.0.10", "fd00:96::a"}

func (w *World) addr() netip.Addr {
	switch w.r.IntN(6) {
	case 0:
		return netip.MustParseAddr(pick(w.r, outside...))
	case 1, 2:
		return netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", 1+w.r.IntN(16)))
	}
	return netip.AddrFrom4([4]byte{10, 1, 0, byte(1 + w.r.IntN(16))})
}

// Packet makes a packet between addresses that occur, and others.
func (w *World) Packet() policy.Packet {
	for {
		p := policy.Packet{Src: w.addr(), Dst: w.addr(), Proto: pick(w.r, model.TCP, model.TCP, model.UDP, model.SCTP, 1), Port: pick[uint16](w.r, 52, 53, 54, 79, 80, 81, 82, 443)}
		if p.Src.Is4() == p.Dst.Is4() {
			return p
		}
	}
}

// Crosses says whether a packet is one that the rules see: with the node itself Pods talk freely, but for its DNS.
func (w *World) Crosses(p policy.Packet) bool {
	dns := slices.Contains(w.In.DNS, netip.AddrPortFrom(p.Dst, p.Port)) && (p.Proto == model.TCP || p.Proto == model.UDP)
	if len(w.In.DNS) == 0 {
		return !slices.Contains(NodeAddrs, p.Src) && !slices.Contains(NodeAddrs, p.Dst)
	}
	local := append(slices.Clone(NodeAddrs), DNSAddresses...)
	return dns && !slices.Contains(local, p.Src) || !slices.Contains(local, p.Src) && !slices.Contains(local, p.Dst)
}
