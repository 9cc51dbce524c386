package cluster

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weft.network/weft/appliance/model"
)

// convertSlice takes from an EndpointSlice what the network needs, with the defaults of the API. Fields that cannot be used are
// left out and returned as errors. A slice that belongs to no Service, or holds names instead of addresses, gives nil.
func convertSlice(s *discoveryv1.EndpointSlice) (*model.EndpointSlice, []fieldError) {
	var bad fieldErrors
	service := s.Labels[discoveryv1.LabelServiceName]
	switch {
	case service == "" || s.AddressType == discoveryv1.AddressTypeFQDN:
		return nil, nil
	case s.AddressType != discoveryv1.AddressTypeIPv4 && s.AddressType != discoveryv1.AddressTypeIPv6:
		bad.add(fmt.Errorf("%q is not IPv4 or IPv6", s.AddressType), "addressType")
		return nil, bad
	}
	out := &model.EndpointSlice{
		Namespace: s.Namespace, Name: s.Name, Service: service, IPv6: s.AddressType == discoveryv1.AddressTypeIPv6,
		Ports: endpointPorts(s.Ports, &bad),
	}
	_, headless := s.Labels[corev1.IsHeadlessService]
	_, other := s.Labels[otherProxyLabel]
	out.Unproxied = headless || other
	if text, ok := s.Annotations[corev1.EndpointsLastChangeTriggerTime]; ok {
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			bad.add(fmt.Errorf("%q is not a time such as 2026-01-02T15:04:05Z", text), "metadata.annotations["+corev1.EndpointsLastChangeTriggerTime+"]")
		} else {
			out.Triggered = at.UnixNano()
		}
	}
	if len(s.Endpoints) > 0 {
		out.Endpoints = make([]model.Endpoint, 0, len(s.Endpoints))
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		addresses := endpointAddresses(e.Addresses, i, s.AddressType, &bad)
		if len(addresses) == 0 {
			continue
		}
		out.Endpoints = append(out.Endpoints, convertEndpoint(e, s.Namespace, addresses))
	}
	return out, bad
}

func endpointPorts(list []discoveryv1.EndpointPort, bad *fieldErrors) (out []model.EndpointPort) {
	for i, p := range list {
		port := model.EndpointPort{Name: value(p.Name, "")}
		var err error
		if port.Protocol, err = model.ParseProtocol(string(value(p.Protocol, ""))); err != nil {
			bad.add(err, "ports[].protocol", i)
			continue
		}
		if p.Port != nil {
			var ok bool
			if port.Port, ok = bad.port(*p.Port, "ports[].port", i); !ok {
				continue
			}
		}
		out = append(out, port)
	}
	return out
}

// endpointAddresses reads the addresses of the endpoint at that index.
func endpointAddresses(list []string, index int, family discoveryv1.AddressType, bad *fieldErrors) []netip.Addr {
	out := make([]netip.Addr, 0, len(list))
	for i, text := range list {
		addr, ok := bad.address(text, "endpoints[].addresses[]", index, i)
		if !ok {
			continue
		}
		if addr.Is4() != (family == discoveryv1.AddressTypeIPv4) {
			bad.add(fmt.Errorf("%s does not belong into a slice with addressType %s", addr, family), "endpoints[].addresses[]", index, i)
			continue
		}
		out = append(out, addr)
	}
	return out
}

func convertEndpoint(e *discoveryv1.Endpoint, namespace string, addresses []netip.Addr) model.Endpoint {
	out := model.Endpoint{
		Addresses: addresses,
		Ready:     value(e.Conditions.Ready, true), Serving: value(e.Conditions.Serving, true), Terminating: value(e.Conditions.Terminating, false),
		Hostname: value(e.Hostname, ""), Node: value(e.NodeName, ""), Zone: value(e.Zone, ""),
	}
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			out.ForZones = append(out.ForZones, z.Name)
		}
		for _, n := range e.Hints.ForNodes {
			out.ForNodes = append(out.ForNodes, n.Name)
		}
	}
	if t := e.TargetRef; t != nil && t.Kind == "Pod" {
		out.Pod = model.PodRef{Namespace: t.Namespace, Name: t.Name, UID: string(t.UID)}
		if out.Pod.Namespace == "" {
			out.Pod.Namespace = namespace
		}
	}
	return out
}

// value returns what the pointer leads to, or the default.
func value[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
