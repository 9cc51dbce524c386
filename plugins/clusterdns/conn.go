package clusterdns

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/kubernetes/object"
	corev1 "k8s.io/api/core/v1"

	"weft.network/weft/appliance/model"
)

// conn is what the kubernetes plugin reads the cluster from, in place of watches of its own. What it returns is made for each
// question and forgotten after it.
type conn struct{ names *Names }

// noPort stands for "no port at all" in the plugin's own objects.
const noPort = -1

func (c conn) picture() *picture { return c.names.current.Load() }

// cut splits the plugin's key, SERVICE.NAMESPACE.
func (c conn) cut(key string) (*picture, *model.Service) {
	p := c.picture()
	name, namespace, _ := strings.Cut(key, ".")
	if p == nil {
		return nil, nil
	}
	return p, p.service(namespace, name)
}

// SvcIndex returns the Service with the key SERVICE.NAMESPACE.
func (c conn) SvcIndex(key string) []*object.Service {
	if _, s := c.cut(key); s != nil {
		return []*object.Service{serviceObject(s)}
	}
	return nil
}

// SvcIndexReverse returns the Services with that virtual address.
func (c conn) SvcIndexReverse(ip string) (out []*object.Service) {
	for _, o := range c.owners(ip) {
		if o.service != nil {
			out = append(out, serviceObject(o.service))
		}
	}
	return out
}

// EpIndex returns the endpoints of the Service with the key SERVICE.NAMESPACE.
func (c conn) EpIndex(key string) (out []*object.Endpoints) {
	p := c.picture()
	if p == nil {
		return nil
	}
	name, namespace, _ := strings.Cut(key, ".")
	for _, s := range p.slices.get(model.ServiceKey{Namespace: namespace, Name: name}) {
		out = append(out, p.endpointsObject(s))
	}
	return out
}

// EpIndexReverse returns the endpoints that have an address.
func (c conn) EpIndexReverse(ip string) (out []*object.Endpoints) {
	p := c.picture()
	for _, o := range c.owners(ip) {
		if o.slice != nil && p.published(o.slice, &o.slice.Endpoints[o.index]) {
			out = append(out, p.endpointsObject(o.slice))
		}
	}
	return out
}

func (c conn) owners(ip string) []owner {
	a, err := netip.ParseAddr(ip)
	p := c.picture()
	if err != nil || p == nil {
		return nil
	}
	return p.reverse.get(a.Unmap())
}

// PodIndex returns the Pods with an address; the plugin asks with "pods verified" only.
func (c conn) PodIndex(ip string) []*object.Pod {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return nil
	}
	pod := c.names.Pod(a.Unmap())
	if pod == nil {
		return nil
	}
	out := &object.Pod{Name: pod.Name, Namespace: pod.Namespace}
	for _, a := range pod.Addresses {
		out.PodIPs = append(out.PodIPs, a.String())
	}
	return []*object.Pod{out}
}

// GetNamespaceByName returns the namespace, or an error when there is none of that name.
func (c conn) GetNamespaceByName(name string) (*object.Namespace, error) {
	if p := c.picture(); p != nil && p.namespace(name) {
		return &object.Namespace{Name: name}, nil
	}
	return nil, errors.New("namespace not found")
}

// HasSynced reports whether anything is known.
func (c conn) HasSynced() bool { return c.names.Synced() }

// Modified returns when names changed last.
func (c conn) Modified(kubernetes.ModifiedMode) int64 {
	if p := c.picture(); p != nil {
		return p.changed
	}
	return 0
}

// The rest of the interface serves plugins that weft does not link (zone transfers, external names, other clusters).

func (conn) ServiceList() []*object.Service                   { return nil }
func (conn) EndpointsList() []*object.Endpoints               { return nil }
func (conn) ServiceImportList() []*object.ServiceImport       { return nil }
func (conn) SvcExtIndexReverse(string) []*object.Service      { return nil }
func (conn) SvcImportIndex(string) []*object.ServiceImport    { return nil }
func (conn) McEpIndex(string) []*object.MultiClusterEndpoints { return nil }
func (conn) Run()                                             {}
func (conn) Stop() error                                      { return nil }
func (conn) GetNodeByName(context.Context, string) (*corev1.Node, error) {
	return nil, errors.New("nodes have no names here")
}

func serviceObject(s *model.Service) *object.Service {
	out := &object.Service{
		Name: s.Name, Namespace: s.Namespace, Index: object.ServiceKey(s.Name, s.Namespace),
		Type: corev1.ServiceType(s.Type), ExternalName: s.ExternalName,
		Ports: make([]corev1.ServicePort, 0, max(1, len(s.Ports))),
	}
	for _, a := range s.ClusterIPs {
		out.ClusterIPs = append(out.ClusterIPs, a.String())
	}
	switch {
	case s.Headless:
		out.ClusterIPs = []string{corev1.ClusterIPNone}
	case len(out.ClusterIPs) == 0:
		out.ClusterIPs = []string{""}
	}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, corev1.ServicePort{Name: p.Name, Protocol: corev1.Protocol(p.Protocol.String()), Port: int32(p.Port)})
	}
	if len(s.Ports) == 0 {
		out.Ports = append(out.Ports, corev1.ServicePort{Port: noPort})
	}
	return out
}

func (p *picture) endpointsObject(s *model.EndpointSlice) *object.Endpoints {
	out := &object.Endpoints{Name: s.Name, Namespace: s.Namespace, Index: object.EndpointsKey(s.Service, s.Namespace), Subsets: make([]object.EndpointSubset, 1)}
	sub := &out.Subsets[0]
	for _, port := range s.Ports {
		number := int32(port.Port)
		if number == 0 {
			number = noPort
		}
		sub.Ports = append(sub.Ports, object.EndpointPort{Name: port.Name, Protocol: port.Protocol.String(), Port: number})
	}
	if len(s.Ports) == 0 {
		sub.Ports = []object.EndpointPort{{Port: noPort}}
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if !p.published(s, e) {
			continue
		}
		for _, a := range e.Addresses {
			sub.Addresses = append(sub.Addresses, object.EndpointAddress{IP: a.String(), Hostname: e.Hostname, NodeName: e.Node, TargetRefName: e.Pod.Name})
			out.IndexIP = append(out.IndexIP, a.String())
		}
	}
	return out
}
