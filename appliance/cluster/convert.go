package cluster

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"weft.network/weft/appliance/model"
)

// AddressesAnnotation on a Pod asks for certain addresses: at most one per family, separated by a comma.
const AddressesAnnotation = "weft.network/addresses"

// fieldError is a field of an object that cannot be used, as the Kubernetes API would name it.
type fieldError struct {
	field string
	err   error
}

func (e fieldError) Error() string { return e.field + ": " + e.err.Error() }

// convertNode takes from a Node what the network needs. Fields that cannot be used are left out and returned as errors.
func convertNode(n *corev1.Node) (*model.Node, []fieldError) {
	out := &model.Node{Name: n.Name, UID: string(n.UID), Labels: maps.Clone(n.Labels)}
	var bad []fieldError
	for i, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := parseAddress(a.Address)
		if err != nil {
			bad = append(bad, fieldError{fmt.Sprintf("status.addresses[%d].address", i), err})
			continue
		}
		out.Addresses = append(out.Addresses, addr)
	}
	cidrs, field := n.Spec.PodCIDRs, "spec.podCIDRs[%d]"
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs, field = []string{n.Spec.PodCIDR}, "spec.podCIDR"
	}
	for i, text := range cidrs {
		prefix, err := parsePodCIDR(text, out.PodCIDRs)
		if err != nil {
			if len(n.Spec.PodCIDRs) > 0 {
				field = fmt.Sprintf("spec.podCIDRs[%d]", i)
			}
			bad = append(bad, fieldError{field, err})
			continue
		}
		out.PodCIDRs = append(out.PodCIDRs, prefix)
	}
	return out, bad
}

// parsePodCIDR reads one range of a node, which has the ranges in others already.
func parsePodCIDR(text string, others []netip.Prefix) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return prefix, fmt.Errorf("%q is not a range of addresses such as 10.244.1.0/24 or fd00:10:244:1::/64", text)
	}
	if err := checkUnicast(prefix.Addr()); err != nil {
		return prefix, fmt.Errorf("range %s: %w", text, err)
	}
	if prefix.Bits() == 0 {
		return prefix, fmt.Errorf("range %s holds every address", text)
	}
	for _, o := range others {
		if o.Addr().Is4() == prefix.Addr().Is4() {
			return prefix, fmt.Errorf("%s is the second range of its family after %s; a node has one per family", text, o)
		}
	}
	return prefix.Masked(), nil
}

// mirrorAnnotation is on the object of a static Pod, which kubelet reads from a file and shows in the API: the UID that kubelet itself
// knows that Pod by, and gives to CNI (kubernetes/pkg/kubelet/types).
const mirrorAnnotation = "kubernetes.io/config.mirror"

// convertPod takes from a Pod what the network needs. Fields that cannot be used are left out and returned as errors; the
// annotation for addresses is not among them, since its error belongs to the user of the Pod.
func convertPod(p *corev1.Pod) (*model.Pod, []fieldError) {
	out := &model.Pod{
		PodRef:      model.PodRef{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)},
		Node:        p.Spec.NodeName,
		HostNetwork: p.Spec.HostNetwork,
		Labels:      maps.Clone(p.Labels),
		Completed:   p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	if hash := p.Annotations[mirrorAnnotation]; hash != "" {
		out.UID = hash
	}
	var bad fieldErrors
	for i, ip := range p.Status.PodIPs {
		addr, err := parseAddress(ip.IP)
		if err != nil {
			bad.add(err, "status.podIPs[].ip", i)
			continue
		}
		out.Addresses = append(out.Addresses, addr)
	}
	out.Ports = namedPorts(p, &bad)
	if text, ok := p.Annotations[AddressesAnnotation]; ok {
		requested, err := ParseAddresses(text)
		if err != nil {
			out.RequestError = fmt.Sprintf("annotation %s: %v", AddressesAnnotation, err)
		}
		out.Requested = requested
	}
	return out, bad
}

// ParseAddresses reads a list of addresses that are wanted for one interface: separated by commas, at least one, at most one
// per family, each one that an interface can have.
func ParseAddresses(text string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, part := range strings.Split(text, ",") {
		addr, err := parseAddress(strings.TrimSpace(part))
		if err == nil {
			err = checkUnicast(addr)
		}
		if err != nil {
			return nil, err
		}
		for _, o := range out {
			if o.Is4() == addr.Is4() {
				return nil, fmt.Errorf("%s and %s are of the same family; give at most one IPv4 and one IPv6 address", o, addr)
			}
		}
		out = append(out, addr)
	}
	return out, nil
}

func parseAddress(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is not an IPv4 or IPv6 address", text)
	}
	return addr.Unmap(), nil
}

// checkUnicast says why neither a Pod nor a Service can have the address.
func checkUnicast(addr netip.Addr) error {
	switch {
	case addr.Is4In6():
		return errors.New("an IPv4 address in IPv6 form; write it as IPv4")
	case addr.IsUnspecified(), addr.IsLoopback(), addr.IsMulticast(), addr.IsLinkLocalUnicast():
		return fmt.Errorf("%s is a loopback, link-local, multicast or unspecified address; give one that others can reach", addr)
	}
	return nil
}
