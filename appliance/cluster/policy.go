package cluster

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"weft.network/weft/appliance/model"
)

// AuditAnnotation on a NetworkPolicy, with the value "true", makes weft tell what the policy would drop instead of dropping it.
const AuditAnnotation = "weft.network/audit-only"

// onlyPods leaves out the Pods of other nodes where nobody asks for them.
func (k *Kubernetes) onlyPods(o *metav1.ListOptions) {
	if !k.options.Policies && !k.options.EveryPod {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", k.options.NodeName).String()
	}
}

// namespaceKind is what a node with policies or with pools of addresses watches: both select Namespaces by labels.
func (k *Kubernetes) namespaceKind(c kubernetes.Interface) kind {
	return kind{
		name:    kindNamespaces,
		example: &corev1.Namespace{},
		client:  typed[*corev1.NamespaceList]{c.CoreV1().Namespaces()},
		into: &feed[*corev1.Namespace, string, model.Namespace]{
			name: "Namespace", objects: k.objects, collection: &k.objects.namespaces, convert: convertNamespace, key: nodeKey,
			listed: func() { k.listed(kindNamespaces) },
		},
	}
}

// policyKind is what only a node with policies watches.
func (k *Kubernetes) policyKind(c kubernetes.Interface) kind {
	return kind{
		name:    kindPolicies,
		example: &networkingv1.NetworkPolicy{},
		client:  typed[*networkingv1.NetworkPolicyList]{c.NetworkingV1().NetworkPolicies(metav1.NamespaceAll)},
		into: &feed[*networkingv1.NetworkPolicy, model.PolicyKey, model.NetworkPolicy]{
			name: "NetworkPolicy", objects: k.objects, collection: &k.objects.policies, convert: convertPolicy, key: policyKey,
			listed: func() { k.listed(kindPolicies) },
		},
	}
}

func policyKey(m metav1.Object) model.PolicyKey {
	return model.PolicyKey{Namespace: m.GetNamespace(), Name: m.GetName()}
}

func convertNamespace(n *corev1.Namespace) (*model.Namespace, []fieldError) {
	out := &model.Namespace{Name: n.Name, Labels: maps.Clone(n.Labels)}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	out.Labels[corev1.LabelMetadataName] = n.Name // the API server sets it; a file need not
	return out, nil
}

// namedPorts returns the ports of a Pod's containers that have a name; the first of one name and protocol counts.
func namedPorts(p *corev1.Pod, bad *fieldErrors) (out []model.NamedPort) {
	for i := range p.Spec.Containers {
		out = containerPorts(out, &p.Spec.Containers[i], bad, "spec.containers[].ports[]", i)
	}
	for i := range p.Spec.InitContainers { // those that are sidecars run as long as the Pod
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = containerPorts(out, c, bad, "spec.initContainers[].ports[]", i)
		}
	}
	return out
}

func containerPorts(out []model.NamedPort, c *corev1.Container, bad *fieldErrors, field string, i int) []model.NamedPort {
	for j, port := range c.Ports {
		if port.Name == "" {
			continue
		}
		protocol, err := model.ParseProtocol(string(port.Protocol))
		if err != nil {
			bad.add(err, field+".protocol", i, j)
			continue
		}
		number, ok := bad.port(port.ContainerPort, field+".containerPort", i, j)
		if ok && !slices.ContainsFunc(out, func(o model.NamedPort) bool { return o.Name == port.Name && o.Protocol == protocol }) {
			out = append(out, model.NamedPort{Name: port.Name, Protocol: protocol, Port: number})
		}
	}
	return out
}

// convertPolicy takes a NetworkPolicy over, with the defaults of the API. What cannot be used allows nothing: a policy may
// become stricter by a mistake, never wider.
func convertPolicy(p *networkingv1.NetworkPolicy) (*model.NetworkPolicy, []fieldError) {
	var bad fieldErrors
	out := &model.NetworkPolicy{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)}
	pods, ok := selector(&p.Spec.PodSelector, "spec.podSelector", &bad)
	if !ok {
		pods = &model.Selector{}
	}
	out.Pods = *pods
	for i, kind := range p.Spec.PolicyTypes {
		switch kind {
		case networkingv1.PolicyTypeIngress:
			out.IsolatesIngress = true
		case networkingv1.PolicyTypeEgress:
			out.IsolatesEgress = true
		default:
			bad.add(fmt.Errorf("%q is not Ingress or Egress", kind), "spec.policyTypes[]", i)
		}
	}
	if len(p.Spec.PolicyTypes) == 0 {
		out.IsolatesIngress, out.IsolatesEgress = true, len(p.Spec.Egress) > 0
	}
	for i, rule := range p.Spec.Ingress {
		out.Ingress = append(out.Ingress, policyRule(rule.From, rule.Ports, fmt.Sprintf("spec.ingress[%d]", i), "from", &bad))
	}
	for i, rule := range p.Spec.Egress {
		out.Egress = append(out.Egress, policyRule(rule.To, rule.Ports, fmt.Sprintf("spec.egress[%d]", i), "to", &bad))
	}
	switch text, ok := p.Annotations[AuditAnnotation]; {
	case ok && text == "true":
		out.AuditOnly = true
	case ok && text != "false":
		bad.add(fmt.Errorf("%q is not \"true\" or \"false\"", text), "metadata.annotations["+AuditAnnotation+"]")
	}
	if !ok { // whom it is about is not known: it isolates the namespace, and opens nothing in it
		out.Ingress, out.Egress = nil, nil
	}
	return out, bad
}

func policyRule(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, field, peerField string, bad *fieldErrors) model.PolicyRule {
	out := model.PolicyRule{AnyPeer: len(peers) == 0, AnyPort: len(ports) == 0}
	for i := range peers {
		if peer, ok := policyPeer(&peers[i], fmt.Sprintf("%s.%s[%d]", field, peerField, i), bad); ok {
			out.Peers = append(out.Peers, peer)
		}
	}
	for i := range ports {
		if port, ok := policyPort(&ports[i], fmt.Sprintf("%s.ports[%d]", field, i), bad); ok {
			out.Ports = append(out.Ports, port)
		}
	}
	return out
}

func policyPeer(p *networkingv1.NetworkPolicyPeer, field string, bad *fieldErrors) (out model.PolicyPeer, ok bool) {
	switch {
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		bad.add(errors.New("ipBlock stands beside a selector; make two peers of it"), field)
		return out, false
	case p.IPBlock != nil:
		return blockPeer(p.IPBlock, field+".ipBlock", bad)
	case p.PodSelector == nil && p.NamespaceSelector == nil:
		bad.add(errors.New("an empty peer; give podSelector, namespaceSelector or ipBlock, or leave the whole list out to allow everybody"), field)
		return out, false
	}
	ok = true
	if p.PodSelector != nil {
		out.Pods, ok = selector(p.PodSelector, field+".podSelector", bad)
	}
	if p.NamespaceSelector != nil {
		var okNamespaces bool
		out.Namespaces, okNamespaces = selector(p.NamespaceSelector, field+".namespaceSelector", bad)
		ok = ok && okNamespaces
	}
	return out, ok
}

func blockPeer(b *networkingv1.IPBlock, field string, bad *fieldErrors) (out model.PolicyPeer, ok bool) {
	var err error
	if out.Block, err = parseRange(strings.TrimSpace(b.CIDR)); err != nil {
		bad.add(err, field+".cidr")
		return out, false
	}
	for i, text := range b.Except {
		except, err := parseRange(strings.TrimSpace(text))
		if err != nil { // it may mean any part of the range
			bad.add(err, field+".except[]", i)
			return out, false
		}
		if except.Addr().Is4() != out.Block.Addr().Is4() || except.Bits() < out.Block.Bits() || !out.Block.Contains(except.Addr()) {
			bad.add(fmt.Errorf("%s lies not in the range %s and takes nothing out of it; widen the range or remove the exception", except, out.Block), field+".except[]", i)
			if !except.Overlaps(out.Block) {
				continue
			}
		}
		out.Except = append(out.Except, except)
	}
	slices.SortFunc(out.Except, netip.Prefix.Compare)
	out.Except = slices.Compact(out.Except)
	return out, true
}

func policyPort(p *networkingv1.NetworkPolicyPort, field string, bad *fieldErrors) (out model.PolicyPort, ok bool) {
	protocol := ""
	if p.Protocol != nil {
		protocol = string(*p.Protocol)
	}
	var err error
	if out.Protocol, err = model.ParseProtocol(protocol); err != nil {
		bad.add(err, field+".protocol")
		return out, false
	}
	switch {
	case p.Port == nil && p.EndPort != nil:
		bad.add(errors.New("it needs port, where the range begins"), field+".endPort")
		return out, false
	case p.Port == nil:
		out.Last = 65535
		return out, true
	case p.Port.Type == intstr.String && p.EndPort != nil:
		bad.add(fmt.Errorf("port %q is a name; a range needs a number", p.Port.StrVal), field+".endPort")
		return out, false
	case p.Port.Type == intstr.String && p.Port.StrVal == "":
		bad.add(errors.New("an empty name"), field+".port")
		return out, false
	case p.Port.Type == intstr.String:
		out.Name = p.Port.StrVal
		return out, true
	}
	if out.First, ok = bad.port(p.Port.IntVal, field+".port"); !ok {
		return out, false
	}
	out.Last = out.First
	if p.EndPort == nil {
		return out, true
	}
	if out.Last, ok = bad.port(*p.EndPort, field+".endPort"); !ok {
		return out, false
	}
	if out.Last < out.First {
		bad.add(fmt.Errorf("%d is below port %d; write the smaller one first", out.Last, out.First), field+".endPort")
		return out, false
	}
	return out, true
}

// selector reads a selector into one order; ok is false when a part of it cannot be used.
func selector(s *metav1.LabelSelector, field string, bad *fieldErrors) (out *model.Selector, ok bool) {
	ok = true
	list := model.Selector{}
	for key, value := range s.MatchLabels {
		list = append(list, model.Requirement{Key: key, Op: model.OpIn, Values: []string{value}})
	}
	for i, e := range s.MatchExpressions {
		at := fmt.Sprintf("%s.matchExpressions[%d]", field, i)
		r := model.Requirement{Key: e.Key, Op: string(e.Operator)}
		switch e.Operator {
		case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn:
			if r.Values = slices.Clone(e.Values); len(r.Values) == 0 {
				bad.add(fmt.Errorf("%s needs at least one value", e.Operator), at+".values")
				ok = false
			}
		case metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist:
			if len(e.Values) > 0 {
				bad.add(fmt.Errorf("%s takes no values", e.Operator), at+".values")
				ok = false
			}
		default:
			bad.add(fmt.Errorf("%q is not In, NotIn, Exists or DoesNotExist", e.Operator), at+".operator")
			ok = false
		}
		list = append(list, r)
	}
	list.Sort()
	return &list, ok
}
