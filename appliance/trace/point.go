package trace

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weft.network/weft/appliance/model"
)

// The kinds of Point.
const (
	kindPod     = "Pod"
	kindService = "Service"
	kindNode    = "node"
	kindAddress = "address"
)

// source understands who connects: an address, a node, or [pod/]NAMESPACE/NAME.
func (w *World) source(text string) (Point, error) {
	p, err := w.named(text, kindPod)
	if err == nil && p.Kind == kindService {
		err = fmt.Errorf("%q is a Service, and Services open no connections; name a Pod, a node or an address", text)
	}
	return p, err
}

// destination understands DST:PORT: an address, a node, or [svc/|pod/]NAMESPACE/NAME. The port is a number or, of a Service, a name.
func (w *World) destination(text string, proto model.Protocol) (Point, error) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 || i == len(text)-1 || strings.HasSuffix(text[:i], ":") {
		return Point{}, fmt.Errorf("%q has no port; write DESTINATION:PORT, an IPv6 address as [ADDRESS]:PORT", text)
	}
	name, port := text[:i], text[i+1:]
	if strings.HasPrefix(name, "[") {
		name = strings.TrimSuffix(name[1:], "]")
	}
	p, err := w.named(name, kindService)
	if err != nil {
		return p, err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
		p.Port = uint16(n)
		return p, nil
	}
	if p.Kind != kindService {
		return p, fmt.Errorf("port %q must be 1 to 65535", port)
	}
	key := serviceKey(p.Name)
	var names []string
	for _, sp := range w.Snapshot.Services[key].Ports {
		if sp.Name == port && sp.Protocol == proto {
			p.Port = sp.Port
			return p, nil
		}
		names = append(names, fmt.Sprintf("%s (%d/%s)", sp.Name, sp.Port, sp.Protocol))
	}
	return p, fmt.Errorf("the Service %s has no port %q over %s; it has %s", p.Name, port, proto, strings.Join(names, ", "))
}

func serviceKey(name string) model.ServiceKey {
	namespace, rest, _ := strings.Cut(name, "/")
	return model.ServiceKey{Namespace: namespace, Name: rest}
}

// named finds what a text means; prefer says which of a Pod and a Service of one name is meant.
func (w *World) named(text, prefer string) (Point, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return w.address(a.Unmap()), nil
	}
	kind, rest, ok := strings.Cut(text, "/")
	short := map[string]string{"pod": kindPod, "svc": kindService, "service": kindService, "node": kindNode}[kind]
	if ok && short != "" && (strings.Contains(rest, "/") || short == kindNode) {
		return w.ofKind(short, rest)
	}
	if !strings.Contains(text, "/") {
		if w.Snapshot.Node(text) != nil {
			return w.ofKind(kindNode, text)
		}
		text = "default/" + text
	}
	other := kindPod
	if prefer == kindPod {
		other = kindService
	}
	p, err := w.ofKind(prefer, text)
	if err != nil {
		if q, err2 := w.ofKind(other, text); err2 == nil {
			return q, nil
		}
	}
	return p, err
}

func (w *World) ofKind(kind, name string) (Point, error) {
	switch kind {
	case kindNode:
		if n := w.Snapshot.Node(name); n != nil {
			return Point{Kind: kindNode, Name: name, Node: name, Addresses: n.Addresses, host: true}, nil
		}
		return Point{}, fmt.Errorf("the cluster has no node %q", name)
	case kindService:
		key := serviceKey(name)
		s := w.Snapshot.Services[key]
		switch {
		case s == nil:
			return Point{}, fmt.Errorf("nothing is known of a Service or Pod %q (NAMESPACE/NAME, an address or a node is wanted)", name)
		case len(s.ClusterIPs) == 0:
			return Point{}, fmt.Errorf("the Service %s is headless or of type %s: its name leads straight to Pods; trace to one of those", name, s.Type)
		}
		return Point{Kind: kindService, Name: name, Addresses: s.ClusterIPs}, nil
	}
	if p, ok := w.pod(name); ok {
		return p, nil
	}
	return Point{}, fmt.Errorf("nothing is known of a Pod %q: it is neither on this node nor an endpoint of a Service; give its address instead", name)
}

// pod finds a Pod among this node's leases, the cluster's Pods and the endpoints of Services.
func (w *World) pod(name string) (Point, bool) {
	for _, l := range w.Leases {
		if l.Kind == model.LeasePod && l.Pod.String() == name {
			return Point{Kind: kindPod, Name: name, Node: w.This, Addresses: l.Addresses}, true
		}
	}
	for _, p := range w.Snapshot.Pods {
		if p.String() == name && len(p.Addresses) > 0 && !p.Completed {
			return Point{Kind: kindPod, Name: name, Node: p.Node, Addresses: p.Addresses, host: p.HostNetwork}, true
		}
	}
	out := Point{Kind: kindPod, Name: name}
	for _, s := range w.Snapshot.Slices {
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if e.Pod.String() != name {
				continue
			}
			out.Node = e.Node
			for _, a := range e.Addresses {
				if !slices.Contains(out.Addresses, a) {
					out.Addresses = append(out.Addresses, a)
				}
				out.host = out.host || w.nodeWith(a) != ""
			}
		}
	}
	slices.SortFunc(out.Addresses, netip.Addr.Compare)
	return out, len(out.Addresses) > 0
}

// address finds whose address it is.
func (w *World) address(a netip.Addr) Point {
	if n := w.nodeWith(a); n != "" {
		return Point{Kind: kindNode, Name: n, Node: n, Addresses: []netip.Addr{a}, host: true}
	}
	pod, node := w.owner(a)
	if pod != "" {
		return Point{Kind: kindPod, Name: pod, Node: node, Addresses: []netip.Addr{a}}
	}
	return Point{Kind: kindAddress, Node: node, Addresses: []netip.Addr{a}}
}

// nodeWith returns the node that has an address of its own; empty if none.
func (w *World) nodeWith(a netip.Addr) string {
	if w.Snapshot == nil {
		return ""
	}
	for _, n := range w.Snapshot.Nodes {
		if slices.Contains(n.Addresses, a) {
			return n.Name
		}
	}
	return ""
}

// owner returns the Pod that has an address and the node that it belongs to; a node alone where only the range is known.
func (w *World) owner(a netip.Addr) (pod, node string) {
	for _, l := range w.Leases {
		if slices.Contains(l.Addresses, a) {
			return l.Pod.String(), w.This
		}
	}
	if w.Snapshot == nil {
		return "", ""
	}
	for _, p := range w.Snapshot.Pods {
		if !p.HostNetwork && !p.Completed && slices.Contains(p.Addresses, a) {
			return p.String(), p.Node
		}
	}
	for _, s := range w.Snapshot.Slices {
		for i := range s.Endpoints {
			if e := &s.Endpoints[i]; e.Node != "" && slices.Contains(e.Addresses, a) {
				if e.Pod.IsZero() {
					return "", e.Node
				}
				return e.Pod.String(), e.Node
			}
		}
	}
	for _, n := range w.Snapshot.Nodes {
		for _, r := range n.PodCIDRs {
			if r.Contains(a) {
				return "", n.Name
			}
		}
	}
	return "", w.nodeWith(a)
}

// serviceAt names the Service that an address and port belong to.
func (w *World) serviceAt(at netip.AddrPort, proto model.Protocol) string {
	if w.Snapshot == nil {
		return ""
	}
	ofNode := w.nodeWith(at.Addr()) != ""
	byPort := ""
	for key, s := range w.Snapshot.Services {
		addrs := slices.Concat(s.ClusterIPs, s.ExternalIPs)
		for _, in := range s.Ingress {
			addrs = append(addrs, in.IP)
		}
		has := slices.Contains(addrs, at.Addr())
		for _, p := range s.Ports {
			switch {
			case p.Protocol != proto:
			case has && p.Port == at.Port():
				return key.String()
			case ofNode && p.NodePort == at.Port():
				byPort = key.String()
			}
		}
		if has && byPort == "" {
			byPort = key.String()
		}
	}
	return byPort
}
