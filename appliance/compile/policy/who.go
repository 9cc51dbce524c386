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
	pods     map[model.PodKey]*model.Pod
	attached []Attached
	dns      []netip.AddrPort
	dnsPod   *model.Pod

	endpoints map[endpointKey]*endpoint
	own       map[*endpoint]bool
	// owners are the endpoints that claim an address; one, unless something is wrong.
	owners map[netip.Addr][]*endpoint
	// raw are the Pods that have an address according to the cluster, leased the addresses of which this node knows better.
	raw    map[netip.Addr][]model.PodKey
	leased map[netip.Addr]bool
	shared map[netip.Addr]bool

	// The last update: what came, what went, what took whose place, and the addresses of which any of that is true.
	came, went []*endpoint
	former     map[*endpoint]*endpoint
	touched    map[netip.Addr]bool
}

func (w *who) start(size int) {
	w.endpoints, w.own = make(map[endpointKey]*endpoint, size), map[*endpoint]bool{}
	w.owners, w.raw = make(map[netip.Addr][]*endpoint, size), make(map[netip.Addr][]model.PodKey, size)
	w.leased, w.shared = map[netip.Addr]bool{}, map[netip.Addr]bool{}
}

// update takes a new picture over and reports whether any endpoint differs. It looks at what changed, and at nothing else.
func (w *who) update(snap *model.Snapshot, in Input) bool {
	if w.endpoints == nil {
		w.start(len(snap.Pods))
	}
	w.came, w.went, w.former, w.touched = nil, nil, map[*endpoint]*endpoint{}, map[netip.Addr]bool{}
	dirty := map[model.PodKey]bool{}
	w.changedPods(snap.Pods, dirty)
	if !slices.EqualFunc(w.attached, in.Attached, equalAttached) || w.attachedChanged(dirty) {
		w.updateAttached(snap, in, dirty)
	}
	for key := range dirty {
		w.updatePod(key, snap.Pods[key], in.NodeName)
	}
	if !slices.Equal(w.dns, in.DNS) {
		w.updateDNS(in.DNS)
	}
	w.pods, w.attached, w.dns = snap.Pods, in.Attached, in.DNS
	return len(w.came)+len(w.went) > 0
}

// changedPods notes the Pods that differ, and whose is which address according to the cluster.
func (w *who) changedPods(now map[model.PodKey]*model.Pod, dirty map[model.PodKey]bool) {
	if model.SameMap(w.pods, now) {
		return
	}
	kept := 0
	note := func(key model.PodKey, old, pod *model.Pod) {
		dirty[key] = true
		if old != nil {
			for _, a := range old.Addresses {
				if w.raw[a] = slices.DeleteFunc(slices.Clone(w.raw[a]), func(k model.PodKey) bool { return k == key }); len(w.raw[a]) == 0 {
					delete(w.raw, a)
				}
			}
		}
		if pod != nil {
			for _, a := range pod.Addresses {
				w.raw[a] = append(w.raw[a], key)
			}
		}
	}
	for key, pod := range now {
		old := w.pods[key]
		if old != nil {
			kept++
		}
		if old != pod {
			note(key, old, pod)
		}
	}
	if kept < len(w.pods) {
		for key, old := range w.pods {
			if now[key] == nil {
				note(key, old, nil)
			}
		}
	}
}

// attachedChanged reports whether the Pod of an attachment is among those that differ.
func (w *who) attachedChanged(dirty map[model.PodKey]bool) bool {
	return slices.ContainsFunc(w.attached, func(a Attached) bool { return dirty[a.Pod.Key()] })
}

// updateAttached takes over what this node itself knows of its Pods: what the cluster says of their addresses is older.
func (w *who) updateAttached(snap *model.Snapshot, in Input, dirty map[model.PodKey]bool) {
	leased, keys := map[netip.Addr]bool{}, map[endpointKey]bool{}
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
		key := endpointKey{a.Pod.Key(), a.Addresses[0].String()}
		keys[key] = true
		w.set(key, &endpoint{ref: a.Pod, pod: pod, addr: a.Addresses, own: true})
	}
	for _, a := range w.attached {
		if len(a.Addresses) > 0 {
			if key := (endpointKey{a.Pod.Key(), a.Addresses[0].String()}); !keys[key] {
				w.set(key, nil)
			}
		}
	}
	for _, both := range [][2]map[netip.Addr]bool{{leased, w.leased}, {w.leased, leased}} {
		for addr := range both[0] {
			if !both[1][addr] {
				for _, key := range w.raw[addr] {
					dirty[key] = true
				}
			}
		}
	}
	w.leased = leased
}

func (w *who) updatePod(key model.PodKey, pod *model.Pod, node string) {
	if pod == nil || pod.HostNetwork || pod.Completed {
		w.set(endpointKey{PodKey: key}, nil)
		return
	}
	addr := pod.Addresses
	if len(w.leased) > 0 && slices.ContainsFunc(addr, func(a netip.Addr) bool { return w.leased[a] }) {
		addr = slices.DeleteFunc(slices.Clone(addr), func(a netip.Addr) bool { return w.leased[a] })
	}
	w.set(endpointKey{PodKey: key}, &endpoint{ref: pod.PodRef, pod: pod, addr: addr, own: pod.Node == node})
}

func (w *who) updateDNS(list []netip.AddrPort) {
	if w.dnsPod == nil {
		w.dnsPod = &model.Pod{
			PodRef: model.PodRef{Namespace: dnsNamespace, Name: dnsName}, Labels: map[string]string{dnsLabel: dnsValue},
			Ports: dnsPorts,
		}
	}
	w.set(endpointKey{attachment: "dns"}, &endpoint{ref: w.dnsPod.PodRef, pod: w.dnsPod, addr: dnsAddresses(list)})
}

// set puts an endpoint in the place of the one before; one without addresses is none.
func (w *who) set(key endpointKey, e *endpoint) {
	if e != nil && len(e.addr) == 0 {
		e = nil
	}
	old := w.endpoints[key]
	if old == nil && e == nil || old != nil && e != nil && old.pod == e.pod && old.ref == e.ref && old.own == e.own && slices.Equal(old.addr, e.addr) {
		return
	}
	if old != nil {
		w.went = append(w.went, old)
		delete(w.endpoints, key)
		delete(w.own, old)
		for _, a := range old.addr {
			w.claim(a, func(list []*endpoint) []*endpoint {
				return slices.DeleteFunc(list, func(x *endpoint) bool { return x == old })
			})
		}
	}
	if e == nil {
		return
	}
	w.came = append(w.came, e)
	w.endpoints[key] = e
	if e.own {
		w.own[e] = true
	}
	if old != nil {
		w.former[e] = old
	}
	for _, a := range e.addr {
		w.claim(a, func(list []*endpoint) []*endpoint { return append(list, e) })
	}
}

func (w *who) claim(a netip.Addr, edit func([]*endpoint) []*endpoint) {
	list := edit(slices.Clone(w.owners[a]))
	if w.owners[a] = list; len(list) == 0 {
		delete(w.owners, a)
	}
	if delete(w.shared, a); len(list) > 1 {
		w.shared[a] = true
	}
	w.touched[a] = true
}

// owner returns whose an address is; nil if it is nobody's, or if several claim it: nobody can say whose labels count then, and
// nobody's allow the least.
func (w *who) owner(a netip.Addr) *endpoint {
	if list := w.owners[a]; len(list) == 1 {
		return list[0]
	}
	return nil
}

// problems names the addresses that several Pods claim.
func (w *who) problems() (out []Problem) {
	for a := range w.shared {
		out = append(out, Problem{Text: fmt.Sprintf("several Pods claim the address %s: no policy lets it pass by labels until only one does", a)})
	}
	slices.SortFunc(out, func(a, b Problem) int { return cmp.Compare(a.Text, b.Text) })
	return out
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
