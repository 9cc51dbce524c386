package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// endpoint is one Pod with its addresses. It keeps its pointer while both stay.
type endpoint struct {
	ref  model.PodRef
	pod  *model.Pod // nil: attached here, and not known to the cluster (yet)
	addr []netip.Addr
	own  bool
}

// endpointKey tells endpoints apart: by the Pod, and where this node knows better than the cluster by the attachment.
type endpointKey struct {
	model.PodKey
	attachment string
}

// who keeps all endpoints: whose is which address.
type who struct {
	pods      map[model.PodKey]*model.Pod
	attached  []Attached
	dns       []netip.AddrPort
	endpoints map[endpointKey]*endpoint
	seen      map[netip.Addr]*endpoint
	// former is what took the place of which, in the last update.
	former   map[*endpoint]*endpoint
	problems []Problem
	dnsPod   *model.Pod
}

// update takes a new picture over and reports whether any endpoint differs.
func (w *who) update(snap *model.Snapshot, in Input) bool {
	if w.endpoints != nil && sameMap(w.pods, snap.Pods) && slices.EqualFunc(w.attached, in.Attached, equalAttached) && slices.Equal(w.dns, in.DNS) {
		return false
	}
	w.pods, w.attached, w.dns = snap.Pods, in.Attached, in.DNS
	before := w.endpoints
	w.endpoints, w.problems = make(map[endpointKey]*endpoint, len(before)+1), nil
	w.seen = make(map[netip.Addr]*endpoint, len(before)+1)
	w.former = map[*endpoint]*endpoint{}
	changed := 0
	add := func(key endpointKey, e endpoint) {
		if len(e.addr) == 0 {
			return
		}
		old := before[key]
		if old == nil || old.pod != e.pod || old.ref != e.ref || old.own != e.own || !slices.Equal(old.addr, e.addr) {
			changed++
			now := e
			if old != nil {
				w.former[&now] = old
			}
			old = &now
		}
		w.endpoints[key] = old
	}
	leased := w.addAttached(snap, in, add)
	for key, pod := range snap.Pods {
		if pod.HostNetwork || pod.Completed || len(pod.Addresses) == 0 {
			continue
		}
		addr := pod.Addresses
		if len(leased) > 0 && slices.ContainsFunc(addr, func(a netip.Addr) bool { return leased[a] }) {
			addr = slices.DeleteFunc(slices.Clone(addr), func(a netip.Addr) bool { return leased[a] })
		}
		add(endpointKey{PodKey: key}, endpoint{ref: pod.PodRef, pod: pod, addr: addr, own: pod.Node == in.NodeName})
	}
	if addr := dnsAddresses(in.DNS); len(addr) > 0 {
		if w.dnsPod == nil {
			w.dnsPod = &model.Pod{
				PodRef: model.PodRef{Namespace: dnsNamespace, Name: dnsName}, Labels: map[string]string{dnsLabel: dnsValue},
				Ports: []model.NamedPort{{Name: "dns", Protocol: model.UDP, Port: 53}, {Name: "dns-tcp", Protocol: model.TCP, Port: 53}},
			}
		}
		add(endpointKey{attachment: "dns"}, endpoint{ref: w.dnsPod.PodRef, pod: w.dnsPod, addr: addr})
	}
	w.drop()
	for key := range before {
		if w.endpoints[key] == nil {
			changed++
		}
	}
	return changed > 0
}

// addAttached adds what this node itself knows of its Pods, and returns those addresses: what the cluster says of them is older.
func (w *who) addAttached(snap *model.Snapshot, in Input, add func(endpointKey, endpoint)) map[netip.Addr]bool {
	leased := map[netip.Addr]bool{}
	for _, a := range in.Attached {
		if len(a.Addresses) == 0 {
			continue
		}
		pod := snap.Pod(a.Pod.Key())
		if pod != nil && pod.UID != "" && a.Pod.UID != "" && pod.UID != a.Pod.UID {
			pod = nil // another one of the same name: its labels are not this one's
		}
		if pod != nil && (pod.HostNetwork || pod.Completed) {
			continue
		}
		for _, addr := range a.Addresses {
			leased[addr] = true
		}
		add(endpointKey{a.Pod.Key(), a.Addresses[0].String()}, endpoint{ref: a.Pod, pod: pod, addr: a.Addresses, own: true})
	}
	return leased
}

// drop takes away addresses that several Pods claim: nobody can say whose labels count, and nobody's allow the least.
func (w *who) drop() {
	var twice map[netip.Addr]bool
	for _, e := range w.endpoints {
		for _, a := range e.addr {
			other := w.seen[a]
			w.seen[a] = e
			if other == nil {
				continue
			}
			if twice == nil {
				twice = map[netip.Addr]bool{}
			}
			twice[a] = true
		}
	}
	for a := range twice {
		delete(w.seen, a)
		w.problems = append(w.problems, Problem{Text: fmt.Sprintf("several Pods claim the address %s: no policy lets it pass by labels until only one does", a)})
	}
	slices.SortFunc(w.problems, func(a, b Problem) int { return cmp.Compare(a.Text, b.Text) })
}

func equalAttached(a, b Attached) bool {
	return a.Pod == b.Pod && slices.Equal(a.Addresses, b.Addresses)
}

// dnsAddresses are the addresses alone.
func dnsAddresses(list []netip.AddrPort) (out []netip.Addr) {
	for _, a := range list {
		if !slices.Contains(out, a.Addr()) {
			out = append(out, a.Addr())
		}
	}
	return out
}
