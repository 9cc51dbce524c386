package model

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Namespace is one namespace, trimmed to what selectors look at.
type Namespace struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
}

// NamedPort is a port of a container that has a name.
type NamedPort struct {
	Name     string   `json:"name"`
	Protocol Protocol `json:"protocol"`
	Port     uint16   `json:"port"`
}

// PolicyKey names a NetworkPolicy.
type PolicyKey struct{ Namespace, Name string }

// String prints namespace/name.
func (k PolicyKey) String() string { return k.Namespace + "/" + k.Name }

// Compare orders keys by namespace, then name.
func (k PolicyKey) Compare(o PolicyKey) int {
	return cmp.Or(cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name))
}

// NetworkPolicy is one NetworkPolicy with the defaults of the API filled in. A Pod that a policy selects for a direction is
// isolated there: only what some rule of some policy names may pass.
type NetworkPolicy struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	UID       string   `json:"uid,omitempty"`
	Pods      Selector `json:"pods"`
	// Isolates say for which directions the policy counts (policyTypes).
	IsolatesIngress bool         `json:"isolatesIngress,omitempty"`
	IsolatesEgress  bool         `json:"isolatesEgress,omitempty"`
	Ingress         []PolicyRule `json:"ingress,omitempty"`
	Egress          []PolicyRule `json:"egress,omitempty"`
	// AuditOnly is the annotation weft.network/audit-only: what the policy would drop is told, and not dropped.
	AuditOnly bool `json:"auditOnly,omitempty"`
}

// Key returns the policy's namespace and name.
func (p *NetworkPolicy) Key() PolicyKey { return PolicyKey{p.Namespace, p.Name} }

// PolicyRule allows traffic between the Pods of its policy and the peers, to the ports. A rule whose peers or ports could not be
// read has none of them and allows nothing.
type PolicyRule struct {
	AnyPeer bool         `json:"anyPeer,omitempty"`
	Peers   []PolicyPeer `json:"peers,omitempty"`
	AnyPort bool         `json:"anyPort,omitempty"`
	Ports   []PolicyPort `json:"ports,omitempty"`
}

// PolicyPeer is a range of addresses, or Pods by their labels and those of their namespace.
type PolicyPeer struct {
	// Pods is nil for every Pod of the namespaces.
	Pods *Selector `json:"pods,omitempty"`
	// Namespaces is nil for the namespace of the policy.
	Namespaces *Selector `json:"namespaces,omitempty"`
	// Block is valid for a range of addresses; then the selectors are nil.
	Block  netip.Prefix   `json:"block,omitzero"`
	Except []netip.Prefix `json:"except,omitempty"`
}

// PolicyPort is the ports of one protocol from First to Last, or the one that Pods give a name to.
type PolicyPort struct {
	Protocol Protocol `json:"protocol"`
	Name     string   `json:"name,omitempty"`
	First    uint16   `json:"first,omitempty"`
	Last     uint16   `json:"last,omitempty"`
}

// The operators of a Requirement.
const (
	OpIn           = "In"
	OpNotIn        = "NotIn"
	OpExists       = "Exists"
	OpDoesNotExist = "DoesNotExist"
)

// Requirement is one condition on the labels of an object.
type Requirement struct {
	Key    string   `json:"key"`
	Op     string   `json:"op"`
	Values []string `json:"values,omitempty"`
}

// Matches reports whether the labels meet the requirement. NotIn is met by an object without the label, as the API says.
func (r *Requirement) Matches(labels map[string]string) bool {
	value, has := labels[r.Key]
	switch r.Op {
	case OpIn:
		return has && slices.Contains(r.Values, value)
	case OpNotIn:
		return !has || !slices.Contains(r.Values, value)
	case OpExists:
		return has
	case OpDoesNotExist:
		return !has
	}
	return false
}

// Selector selects objects whose labels meet every requirement; an empty one selects all.
type Selector []Requirement

// Matches reports whether the selector selects an object with these labels.
func (s Selector) Matches(labels map[string]string) bool {
	for i := range s {
		if !s[i].Matches(labels) {
			return false
		}
	}
	return true
}

// Sort brings a selector into one order, so that equal ones print equally.
func (s Selector) Sort() {
	for i := range s {
		slices.Sort(s[i].Values)
		s[i].Values = slices.Compact(s[i].Values)
	}
	slices.SortFunc(s, func(a, b Requirement) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Op, b.Op), slices.Compare(a.Values, b.Values))
	})
}

// String prints the selector as kubectl does; the empty one as "all".
func (s Selector) String() string {
	if len(s) == 0 {
		return "all"
	}
	var parts []string
	for _, r := range s {
		switch {
		case r.Op == OpIn && len(r.Values) == 1:
			parts = append(parts, r.Key+"="+r.Values[0])
		case r.Op == OpIn:
			parts = append(parts, r.Key+" in ("+strings.Join(r.Values, ",")+")")
		case r.Op == OpNotIn:
			parts = append(parts, r.Key+" notin ("+strings.Join(r.Values, ",")+")")
		case r.Op == OpExists:
			parts = append(parts, r.Key)
		default:
			parts = append(parts, "!"+r.Key)
		}
	}
	return strings.Join(parts, ",")
}
