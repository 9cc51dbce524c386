package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/model"
)

// Packet is the first packet of a connection, after Services have chosen its destination.
type Packet struct {
	Src, Dst netip.Addr
	Proto    model.Protocol
	Port     uint16 // of the destination; without meaning unless Proto is TCP, UDP or SCTP
}

// Judge says by the policies themselves, one after the other, what becomes of a packet. It shares nothing with the Compiler but
// the input, and it is for tests and for people, who want to know why. It is not for several goroutines at once.
type Judge struct {
	Snapshot *model.Snapshot
	Input    Input
	// Everywhere judges Pods of all nodes; otherwise only those of this node, as its kernel does.
	Everywhere bool
	// NodeAddresses are this node's own: with them its Pods talk freely.
	NodeAddresses []netip.Addr

	byAddress map[netip.Addr]*model.Pod // of the Snapshot, made when it is first asked for
}

// Opinion is what the policies say about one direction of a packet.
type Opinion struct {
	Direction Direction `json:"-"`
	Pod       model.PodRef
	// Isolated says that some policy is in force for the Pod in that direction. Policies are those.
	Isolated bool
	Policies []model.PolicyKey
	// Audit says that all of them only audit.
	Audit bool
	// Allowed is true where nothing isolates the Pod, or Rule of Policy lets the packet pass.
	Allowed bool
	Policy  model.PolicyKey
	Rule    int
	Why     string
}

// Verdict is what becomes of a packet.
type Verdict struct {
	Allowed  bool
	Opinions []Opinion
	// Why is the reason in words.
	Why string
}

const noPod = "policies are about Pods, and neither end is one"

// Words are the reasons for each direction that some policy isolates, or the one reason why none counts.
func (v Verdict) Words() string {
	var out []string
	for _, o := range v.Opinions {
		if o.Isolated {
			out = append(out, o.Why)
		}
	}
	switch {
	case v.Why == noPod:
		return "" // policies have no say
	case len(out) == 0:
		return v.Why
	}
	return strings.Join(out, "; ")
}

// side is what is known of one end of a packet.
type side struct {
	addr netip.Addr
	ref  model.PodRef
	pod  *model.Pod // nil: no Pod, or one that the cluster does not know
	is   bool       // some Pod has the address
	own  bool
}

// Verdict judges a packet.
func (j *Judge) Verdict(p Packet) Verdict {
	if p.Src == p.Dst {
		return Verdict{Allowed: true, Why: "a Pod always reaches itself"}
	}
	src, dst := j.side(p.Src), j.side(p.Dst)
	if !src.is && !dst.is {
		return Verdict{Allowed: true, Why: noPod}
	}
	dns := slices.Contains(j.Input.DNS, netip.AddrPortFrom(p.Dst, p.Port)) && (p.Proto == model.TCP || p.Proto == model.UDP)
	switch node := j.ownNode(src, dst) || j.ownNode(dst, src) || slices.Contains(dnsAddresses(j.Input.DNS), p.Dst); {
	case node && !dns:
		return Verdict{Allowed: true, Why: "a Pod and its own node always reach each other"}
	case slices.Contains(dnsAddresses(j.Input.DNS), p.Src):
		return Verdict{Allowed: true, Why: "the node's own DNS always reaches its Pods"}
	}
	out := Verdict{Allowed: true, Why: "no policy isolates either end"}
	for _, end := range []struct {
		d          Direction
		self, peer side
	}{{Egress, src, dst}, {Ingress, dst, src}} {
		if !end.self.is || !end.self.own && !j.Everywhere || end.self.ref.Name == dnsName {
			continue
		}
		o := j.opinion(end.d, end.self, end.peer, p)
		out.Opinions = append(out.Opinions, o)
		if o.Isolated && (out.Allowed || !o.Allowed) {
			out.Why = o.Why
		}
		if !o.Allowed && !o.Audit {
			out.Allowed, out.Why = false, o.Why
			break
		}
	}
	return out
}

// ownNode reports whether one end is an address of the node on which the other one runs.
func (j *Judge) ownNode(node, pod side) bool {
	if slices.Contains(j.NodeAddresses, node.addr) && (!j.Everywhere || !pod.is || pod.own) {
		return true
	}
	if !j.Everywhere || pod.pod == nil {
		return false
	}
	n := j.Snapshot.Node(pod.pod.Node)
	return n != nil && slices.Contains(n.Addresses, node.addr)
}

// side finds the Pod that has an address: what this node attached counts first.
func (j *Judge) side(addr netip.Addr) side {
	s := side{addr: addr}
	for _, a := range j.Input.Attached {
		if !slices.Contains(a.Addresses, addr) {
			continue
		}
		pod := j.Snapshot.Pod(a.Pod.Key())
		if pod != nil && pod.UID != "" && a.Pod.UID != "" && pod.UID != a.Pod.UID {
			pod = nil
		}
		if pod != nil && (pod.HostNetwork || pod.Completed) {
			continue
		}
		return side{addr: addr, ref: a.Pod, pod: pod, is: true, own: true}
	}
	if pod := j.podAt(addr); pod != nil {
		s = side{addr: addr, ref: pod.PodRef, pod: pod, is: true, own: pod.Node == j.Input.NodeName}
	}
	if slices.Contains(dnsAddresses(j.Input.DNS), addr) {
		pod := &model.Pod{
			PodRef: model.PodRef{Namespace: dnsNamespace, Name: dnsName}, Labels: map[string]string{dnsLabel: dnsValue},
			Ports: dnsPorts,
		}
		s = side{addr: addr, ref: pod.PodRef, pod: pod, is: true}
	}
	return s
}

// podAt finds the Pod that has an address by what the cluster says.
func (j *Judge) podAt(addr netip.Addr) *model.Pod {
	if j.byAddress == nil {
		j.byAddress = make(map[netip.Addr]*model.Pod, len(j.Snapshot.Pods))
		for _, pod := range j.Snapshot.Pods {
			if !pod.HostNetwork && !pod.Completed {
				for _, a := range pod.Addresses {
					j.byAddress[a] = pod
				}
			}
		}
	}
	return j.byAddress[addr]
}

// opinion asks every policy of the Pod's namespace about one direction.
func (j *Judge) opinion(d Direction, self, peer side, p Packet) Opinion {
	o := Opinion{Direction: d, Pod: self.ref, Allowed: true, Rule: -1}
	var enforced, audited []*model.NetworkPolicy
	for _, np := range j.Snapshot.Policies {
		isolates := np.IsolatesIngress && d == Ingress || np.IsolatesEgress && d == Egress
		if np.Namespace != self.ref.Namespace || !isolates || self.pod != nil && !np.Pods.Matches(self.pod.Labels) || self.pod == nil && np.AuditOnly {
			continue
		}
		if np.AuditOnly {
			audited = append(audited, np)
		} else {
			enforced = append(enforced, np)
		}
	}
	if len(enforced) == 0 {
		enforced, o.Audit = audited, len(audited) > 0
	}
	if len(enforced) == 0 {
		o.Why = fmt.Sprintf("no policy isolates %s for %s", self.ref, d)
		return o
	}
	slices.SortFunc(enforced, func(a, b *model.NetworkPolicy) int { return strings.Compare(a.Name, b.Name) })
	o.Isolated, o.Allowed = true, false
	for _, np := range enforced {
		o.Policies = append(o.Policies, np.Key())
	}
	if self.pod == nil {
		o.Why = fmt.Sprintf("the cluster has not told of the labels of %s yet, and policies of its namespace may isolate it for %s", self.ref, d)
		return o
	}
	for _, np := range enforced {
		rules := np.Ingress
		if d == Egress {
			rules = np.Egress
		}
		for i := range rules {
			if j.ruleAllows(&rules[i], np.Namespace, d, self, peer, p) {
				o.Allowed, o.Policy, o.Rule = true, np.Key(), i
				o.Why = fmt.Sprintf("rule %d for %s of policy %s allows it", i, d, np.Key())
				return o
			}
		}
	}
	o.Why = fmt.Sprintf("%s is isolated for %s by %s, and no rule allows this", self.ref, d, names(o.Policies))
	if o.Audit {
		o.Why += " (audit only: it passes all the same)"
	}
	return o
}

func names(keys []model.PolicyKey) string {
	var out []string
	for _, k := range keys {
		out = append(out, k.String())
	}
	return strings.Join(out, ", ")
}

func (j *Judge) ruleAllows(r *model.PolicyRule, namespace string, d Direction, self, peer side, p Packet) bool {
	target := self.pod // whose names of ports count
	if d == Egress {
		target = peer.pod
	}
	matches := func(block bool) bool {
		return r.AnyPort || slices.ContainsFunc(r.Ports, func(port model.PolicyPort) bool {
			switch {
			case port.Protocol != p.Proto:
				return false
			case port.Name == "":
				return port.First <= p.Port && p.Port <= port.Last
			case target == nil || block && d == Egress:
				return false
			}
			for _, n := range target.Ports { // the first of that name counts
				if n.Name == port.Name && n.Protocol == p.Proto {
					return n.Port == p.Port
				}
			}
			return false
		})
	}
	if r.AnyPeer {
		return matches(false)
	}
	return slices.ContainsFunc(r.Peers, func(m model.PolicyPeer) bool {
		return j.peerMatches(&m, namespace, peer) && matches(m.Block.IsValid())
	})
}

func (j *Judge) peerMatches(m *model.PolicyPeer, namespace string, peer side) bool {
	if m.Block.IsValid() {
		return m.Block.Contains(peer.addr) && !slices.ContainsFunc(m.Except, func(e netip.Prefix) bool { return e.Contains(peer.addr) })
	}
	if !peer.is {
		return false
	}
	if m.Namespaces == nil && peer.ref.Namespace != namespace {
		return false
	}
	if m.Namespaces != nil {
		labels := map[string]string{"kubernetes.io/metadata.name": peer.ref.Namespace}
		if n := j.Snapshot.Namespaces[peer.ref.Namespace]; n != nil {
			labels = n.Labels
		}
		if !m.Namespaces.Matches(labels) {
			return false
		}
	}
	if m.Pods == nil || len(*m.Pods) == 0 {
		return true
	}
	return peer.pod != nil && m.Pods.Matches(peer.pod.Labels)
}

// Name says who has an address: the Pod, or else the address itself.
func (j *Judge) Name(addr netip.Addr) string {
	if s := j.side(addr); s.is {
		return s.ref.String()
	}
	return addr.String()
}
