package policy

import (
	"maps"
	"net/netip"
	"strconv"

	"weft.network/weft/appliance/model"
)

// portName is a port by the name that Pods give it.
type portName struct {
	protocol model.Protocol
	name     string
}

// selector picks Pods by namespace and labels. Equal selectors of all policies are one.
type selector struct {
	attribute int32
	// namespace is set when only the Pods of that one are meant; else namespaces decides.
	namespace  string
	namespaces model.Selector
	pods       model.Selector
	text       string
}

// all reports whether the selector picks every Pod of the cluster.
func (s *selector) all() bool {
	return s.namespace == "" && len(s.namespaces) == 0 && len(s.pods) == 0
}

// inNamespace reports whether Pods of the namespace may be picked.
func (s *selector) inNamespace(name string, labels map[string]string) bool {
	if s.namespace != "" {
		return s.namespace == name
	}
	return s.namespaces.Matches(labels)
}

// rule is one rule of a policy with its selectors looked up.
type rule struct {
	anyPeer   bool
	everyPod  bool // some peer is every Pod of the cluster
	selectors []*selector
	blocks    []Range // with the exceptions taken out
	anyPort   bool
	ports     []Ports    // sorted and joined
	named     []portName // ports that depend on the Pod
}

// parsed is one policy with its selectors looked up.
type parsed struct {
	policy *model.NetworkPolicy
	rules  [2][]rule
	// attributes are those of its selectors; 0, which every class has, when the names of its ports depend on the peers.
	attributes []int32
}

func (p *parsed) isolates(d Direction) bool {
	if d == Ingress {
		return p.policy.IsolatesIngress
	}
	return p.policy.IsolatesEgress
}

// selectors gives equal selectors and equal named ports one number for the life of the Compiler.
type selectors struct {
	known map[string]*selector
	ports map[numbered]int32
	// byNumber is the way back from a number to the port.
	byNumber map[int32]numbered
	last     int32
}

// numbered is the fact that a Pod calls a port so.
type numbered struct {
	name   portName
	number uint16
}

func (s *selectors) next() int32 {
	s.last++
	return s.last
}

// of returns the selector of a peer in a policy of that namespace.
func (s *selectors) of(namespace string, p *model.PolicyPeer) *selector {
	out := selector{namespace: namespace, text: peerText(namespace, p)}
	if p.Pods != nil {
		out.pods = *p.Pods
	}
	if p.Namespaces != nil {
		out.namespace, out.namespaces = "", *p.Namespaces
	}
	key := out.namespace + "\x00" + key(out.namespaces) + "\x00" + key(out.pods)
	if found := s.known[key]; found != nil {
		return found
	}
	out.attribute = s.next()
	s.known[key] = &out
	return &out
}

// keep forgets selectors that no policy has any more.
func (s *selectors) keep(policies map[*model.NetworkPolicy]*parsed) {
	used := make(map[*selector]bool, len(s.known))
	for _, p := range policies {
		for d := range p.rules {
			for i := range p.rules[d] {
				for _, sel := range p.rules[d][i].selectors {
					used[sel] = true
				}
			}
		}
	}
	maps.DeleteFunc(s.known, func(_ string, sel *selector) bool { return !used[sel] })
}

// key is a text that only equal selectors share.
func key(s model.Selector) string {
	var b []byte
	for _, r := range s {
		b = strconv.AppendQuote(b, r.Key)
		b = append(b, r.Op...)
		for _, v := range r.Values {
			b = strconv.AppendQuote(b, v)
		}
	}
	return string(b)
}

// port returns the number for "calls that port number by this name".
func (s *selectors) port(n portName, number uint16) int32 {
	key := numbered{n, number}
	if s.ports[key] == 0 {
		s.ports[key] = s.next()
		s.byNumber[s.ports[key]] = key
	}
	return s.ports[key]
}

func (s *selectors) parse(p *model.NetworkPolicy) *parsed {
	out := &parsed{policy: p}
	for i := range p.Ingress {
		out.rules[Ingress] = append(out.rules[Ingress], s.rule(p.Namespace, &p.Ingress[i]))
	}
	for i := range p.Egress {
		out.rules[Egress] = append(out.rules[Egress], s.rule(p.Namespace, &p.Egress[i]))
	}
	for d := range out.rules {
		for _, r := range out.rules[d] {
			for _, sel := range r.selectors {
				out.attributes = append(out.attributes, sel.attribute)
			}
			if len(r.named) > 0 {
				out.attributes = append(out.attributes, 0)
			}
		}
	}
	return out
}

func (s *selectors) rule(namespace string, r *model.PolicyRule) rule {
	out := rule{anyPeer: r.AnyPeer, anyPort: r.AnyPort}
	for i := range r.Peers {
		p := &r.Peers[i]
		if p.Block.IsValid() {
			out.blocks = append(out.blocks, without(p.Block, p.Except)...)
			continue
		}
		sel := s.of(namespace, p)
		out.selectors = append(out.selectors, sel)
		out.everyPod = out.everyPod || sel.all()
	}
	for _, p := range r.Ports {
		if p.Name != "" {
			out.named = append(out.named, portName{p.Protocol, p.Name})
		} else {
			out.ports = append(out.ports, Ports{p.Protocol, p.First, p.Last})
		}
	}
	out.ports = union(out.ports)
	return out
}

// portOf returns the port that a Pod calls so.
func portOf(p *model.Pod, n portName) (uint16, bool) {
	if p != nil {
		for _, port := range p.Ports {
			if port.Name == n.name && port.Protocol == n.protocol {
				return port.Port, true
			}
		}
	}
	return 0, false
}

// whole are the ranges that hold every address of a family.
func whole(v4 bool) Range {
	zero := netip.IPv6Unspecified()
	if v4 {
		zero = netip.IPv4Unspecified()
	}
	return Range{zero, lastOf(netip.PrefixFrom(zero, 0))}
}

// portNumber says which number an attribute stands for, if it is one for that name.
func (s *selectors) portNumber(n portName, attribute int32) (uint16, bool) {
	p, ok := s.byNumber[attribute]
	return p.number, ok && p.name == n
}
