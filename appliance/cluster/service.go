package cluster

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"weft.network/weft/appliance/model"
)

const (
	// annotationPrefix begins weft's own annotations.
	annotationPrefix = "weft.network/"
	// allocationType is the condition that tells the users of a Service what became of its load-balancer addresses.
	allocationType = "weft.network/AddressAllocated"
	// otherProxyLabel says that somebody else serves a Service (KEP-2447).
	otherProxyLabel = "service.kubernetes.io/service-proxy-name"
	// mostAffinity is the longest sessionAffinity that the API takes, in seconds.
	mostAffinity = 86400
)

// otherPrefixes begin the annotations that people know from other allocators of load-balancer addresses, and that weft reads too.
var otherPrefixes = []string{"metallb.io/", "metallb.universe.tf/", "lbipam.cilium.io/", "kube-vip.io/"}

// fieldErrors gathers the fields of one object that cannot be used.
type fieldErrors []fieldError

// add notes an error. The indexes take the places of the "[]" in the name of the field, as far as there are any.
func (e *fieldErrors) add(err error, field string, indexes ...int) {
	for _, i := range indexes {
		field = strings.Replace(field, "[]", fmt.Sprintf("[%d]", i), 1)
	}
	*e = append(*e, fieldError{field, err})
}

// address reads an address that others can reach; ok is false after an error.
func (e *fieldErrors) address(text, field string, indexes ...int) (addr netip.Addr, ok bool) {
	addr, err := parseAddress(text)
	if err == nil {
		err = checkUnicast(addr)
	}
	if err != nil {
		e.add(err, field, indexes...)
	}
	return addr, err == nil
}

// port reads a port number; ok is false after an error.
func (e *fieldErrors) port(number int32, field string, indexes ...int) (port uint16, ok bool) {
	if number < 1 || number > 65535 {
		e.add(fmt.Errorf("%d is not a port; give one from 1 to 65535", number), field, indexes...)
		return 0, false
	}
	return uint16(number), true
}

// convertService takes from a Service what the network needs, with the defaults that the API server would have filled in. Fields
// that cannot be used are left out and returned as errors, and so are fields that do not count for the Service's type.
func convertService(s *corev1.Service) (*model.Service, []fieldError) {
	var bad fieldErrors
	spec := &s.Spec
	out := &model.Service{
		Namespace: s.Namespace, Name: s.Name, UID: string(s.UID), Labels: maps.Clone(s.Labels), Annotations: keptAnnotations(s.Annotations),
		Type: string(spec.Type), PublishNotReady: spec.PublishNotReadyAddresses,
	}
	if !s.CreationTimestamp.IsZero() {
		out.Created = s.CreationTimestamp.Unix()
	}
	if _, ok := s.Labels[corev1.IsHeadlessService]; ok {
		out.OtherProxy = "headless"
	}
	if proxy, ok := s.Labels[otherProxyLabel]; ok {
		out.OtherProxy = proxy
		if proxy == "" { // the label counts, whatever its value
			out.OtherProxy = "unnamed"
		}
	}
	switch spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName:
	case "":
		out.Type = string(corev1.ServiceTypeClusterIP)
	default:
		bad.add(fmt.Errorf("%q is not ClusterIP, NodePort, LoadBalancer or ExternalName", spec.Type), "spec.type")
		out.Type = string(corev1.ServiceTypeClusterIP)
	}
	for _, c := range s.Status.Conditions {
		if c.Type == allocationType {
			out.Allocation = &model.Allocation{OK: c.Status == metav1.ConditionTrue, Reason: c.Reason, Message: c.Message}
		}
	}
	out.Ports = servicePorts(spec, out.Type, &bad)
	if out.Type == string(corev1.ServiceTypeExternalName) {
		out.ExternalName = externalName(spec.ExternalName, &bad)
		return out, bad
	}
	out.ClusterIPs, out.Headless = clusterIPs(spec, &bad)
	for i, text := range spec.ExternalIPs {
		if addr, ok := bad.address(text, "spec.externalIPs[]", i); ok && !slices.Contains(out.ExternalIPs, addr) {
			out.ExternalIPs = append(out.ExternalIPs, addr)
		}
	}
	trafficPolicies(spec, out, &bad)
	if out.Type == string(corev1.ServiceTypeLoadBalancer) {
		loadBalancer(s, out, &bad)
	}
	return out, bad
}

// keptAnnotations returns those that weft reads.
func keptAnnotations(all map[string]string) (out map[string]string) {
	for key, value := range all {
		known := strings.HasPrefix(key, annotationPrefix) || slices.ContainsFunc(otherPrefixes, func(p string) bool { return strings.HasPrefix(key, p) })
		if known || key == corev1.AnnotationLoadBalancerSourceRangesKey {
			if out == nil {
				out = map[string]string{}
			}
			out[key] = value
		}
	}
	return out
}

func externalName(name string, bad *fieldErrors) string {
	if wrong := validation.IsDNS1123Subdomain(strings.TrimSuffix(name, ".")); len(wrong) > 0 {
		bad.add(fmt.Errorf("%q is not a name of the DNS: %s", name, wrong[0]), "spec.externalName")
		return ""
	}
	return name
}

// clusterIPs reads the virtual addresses, at most one per family.
func clusterIPs(spec *corev1.ServiceSpec, bad *fieldErrors) (out []netip.Addr, headless bool) {
	list, field := spec.ClusterIPs, "spec.clusterIPs[]"
	if len(list) == 0 && spec.ClusterIP != "" {
		list, field = []string{spec.ClusterIP}, "spec.clusterIP"
	}
	if len(list) > 0 && list[0] == corev1.ClusterIPNone {
		return nil, true
	}
	for i, text := range list {
		if text == "" { // a file may leave the choice to the API server
			continue
		}
		addr, ok := bad.address(text, field, i)
		if !ok {
			continue
		}
		if j := slices.IndexFunc(out, func(a netip.Addr) bool { return a.Is4() == addr.Is4() }); j >= 0 {
			bad.add(fmt.Errorf("%s is the second address of its family after %s; a Service has one per family", addr, out[j]), field, i)
			continue
		}
		out = append(out, addr)
	}
	return out, false
}

// servicePorts reads the ports. One that clashes with a port before it is left out.
func servicePorts(spec *corev1.ServiceSpec, kind string, bad *fieldErrors) (out []model.ServicePort) {
	for i := range spec.Ports {
		p := &spec.Ports[i]
		protocol, err := model.ParseProtocol(string(p.Protocol))
		if err != nil {
			bad.add(err, "spec.ports[].protocol", i)
			continue
		}
		number, ok := bad.port(p.Port, "spec.ports[].port", i)
		if !ok {
			continue
		}
		if slices.ContainsFunc(out, func(o model.ServicePort) bool { return o.Port == number && o.Protocol == protocol }) {
			bad.add(fmt.Errorf("%s port %d is there already", protocol, number), "spec.ports[].port", i)
			continue
		}
		if slices.ContainsFunc(out, func(o model.ServicePort) bool { return o.Name == p.Name }) {
			bad.add(fmt.Errorf("another port is named %q too; give each port of a Service its own name", p.Name), "spec.ports[].name", i)
			continue
		}
		port := model.ServicePort{Name: p.Name, Protocol: protocol, Port: number}
		if p.NodePort != 0 && (kind == string(corev1.ServiceTypeNodePort) || kind == string(corev1.ServiceTypeLoadBalancer)) {
			port.NodePort, _ = bad.port(p.NodePort, "spec.ports[].nodePort", i)
			if slices.ContainsFunc(out, func(o model.ServicePort) bool {
				return o.NodePort == port.NodePort && o.NodePort != 0 && o.Protocol == protocol
			}) {
				bad.add(fmt.Errorf("another port has %s node port %d already", protocol, port.NodePort), "spec.ports[].nodePort", i)
				port.NodePort = 0
			}
		}
		if p.AppProtocol != nil {
			port.AppProtocol = *p.AppProtocol
		}
		out = append(out, port)
	}
	return out
}

// trafficPolicies reads what says which endpoint a client gets.
func trafficPolicies(spec *corev1.ServiceSpec, out *model.Service, bad *fieldErrors) {
	switch spec.ExternalTrafficPolicy {
	case corev1.ServiceExternalTrafficPolicyLocal:
		out.ExternalLocal = true
	case "", corev1.ServiceExternalTrafficPolicyCluster:
	default:
		bad.add(fmt.Errorf("%q is not Cluster or Local", spec.ExternalTrafficPolicy), "spec.externalTrafficPolicy")
	}
	if p := spec.InternalTrafficPolicy; p != nil {
		switch *p {
		case corev1.ServiceInternalTrafficPolicyLocal:
			out.InternalLocal = true
		case "", corev1.ServiceInternalTrafficPolicyCluster:
		default:
			bad.add(fmt.Errorf("%q is not Cluster or Local", *p), "spec.internalTrafficPolicy")
		}
	}
	if d := spec.TrafficDistribution; d != nil {
		switch *d {
		case "", corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode:
			out.TrafficDistribution = *d
		default:
			bad.add(fmt.Errorf("%q is not PreferClose, PreferSameZone or PreferSameNode", *d), "spec.trafficDistribution")
		}
	}
	switch spec.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
	case corev1.ServiceAffinityClientIP:
		out.AffinityTimeout = int(corev1.DefaultClientIPServiceAffinitySeconds)
		if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			seconds := *c.ClientIP.TimeoutSeconds
			if seconds < 1 || seconds > mostAffinity {
				bad.add(fmt.Errorf("%d is not a number of seconds from 1 to %d", seconds, mostAffinity), "spec.sessionAffinityConfig.clientIP.timeoutSeconds")
				break
			}
			out.AffinityTimeout = int(seconds)
		}
	default:
		bad.add(fmt.Errorf("%q is not ClientIP or None", spec.SessionAffinity), "spec.sessionAffinity")
	}
}

// loadBalancer reads what counts for a Service of that type only.
func loadBalancer(s *corev1.Service, out *model.Service, bad *fieldErrors) {
	spec := &s.Spec
	if p := spec.IPFamilyPolicy; p != nil {
		switch *p {
		case corev1.IPFamilyPolicyRequireDualStack:
			out.DualStack = "require"
		case corev1.IPFamilyPolicyPreferDualStack:
			out.DualStack = "prefer"
		case corev1.IPFamilyPolicySingleStack:
		default:
			bad.add(fmt.Errorf("%q is not SingleStack, PreferDualStack or RequireDualStack", *p), "spec.ipFamilyPolicy")
		}
	}
	if spec.LoadBalancerClass != nil {
		out.LoadBalancerClass = *spec.LoadBalancerClass
	}
	if spec.LoadBalancerIP != "" {
		out.LoadBalancerIP = spec.LoadBalancerIP // whatever it is: the allocator tells the user of the Service
		if addr, ok := bad.address(spec.LoadBalancerIP, "spec.loadBalancerIP"); ok {
			out.LoadBalancerIP = addr.String()
		}
	}
	if spec.HealthCheckNodePort != 0 && out.ExternalLocal {
		out.HealthCheckNodePort, _ = bad.port(spec.HealthCheckNodePort, "spec.healthCheckNodePort")
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		if in.IP == "" {
			out.IngressName = in.Hostname
			continue
		}
		addr, ok := bad.address(in.IP, "status.loadBalancer.ingress[].ip", i)
		if !ok {
			continue
		}
		proxy := in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy
		if in.IPMode != nil && !proxy && *in.IPMode != corev1.LoadBalancerIPModeVIP {
			bad.add(fmt.Errorf("%q is not VIP or Proxy", *in.IPMode), "status.loadBalancer.ingress[].ipMode", i)
		}
		out.Ingress = append(out.Ingress, model.ServiceIngress{IP: addr, Proxy: proxy})
	}
	out.SourceRanges = sourceRanges(s, bad)
}

// sourceRanges reads who may use the load balancer: the field, or the annotation that was there before it. A range that cannot
// be read must not let everybody in: its family may be either one, so a family without another range gets one that holds nobody.
func sourceRanges(s *corev1.Service, bad *fieldErrors) (out []netip.Prefix) {
	list, field := s.Spec.LoadBalancerSourceRanges, "spec.loadBalancerSourceRanges[]"
	if text := strings.TrimSpace(s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]); len(list) == 0 && text != "" {
		list, field = strings.Split(text, ","), "metadata.annotations["+corev1.AnnotationLoadBalancerSourceRangesKey+"]"
	}
	before := len(*bad)
	for i, text := range list {
		prefix, err := parseRange(strings.TrimSpace(text))
		if err != nil {
			bad.add(err, field, i)
			continue
		}
		out = append(out, prefix)
	}
	if len(*bad) == before {
		return out
	}
	for _, nobody := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if !slices.ContainsFunc(out, func(p netip.Prefix) bool { return p.Addr().Is4() == nobody.Is4() }) {
			out = append(out, netip.PrefixFrom(nobody, nobody.BitLen()))
		}
	}
	return out
}

func parseRange(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return prefix, fmt.Errorf("%q is not a range of addresses such as 192.0.2.0/24 or 2001:db8::/64", text)
	case prefix.Addr().Is4In6():
		return prefix, errors.New("an IPv4 range in IPv6 form; write it as IPv4")
	}
	return prefix.Masked(), nil
}
