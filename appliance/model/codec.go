package model

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// stored is the form of a Snapshot in the store: lists sorted by name, so that equal Snapshots give equal bytes.
type stored struct {
	Revision uint64  `json:"revision"`
	Nodes    []*Node `json:"nodes"`
	Pods     []*Pod  `json:"pods"`

	Services []*Service       `json:"services,omitempty"`
	Slices   []*EndpointSlice `json:"slices,omitempty"`

	Namespaces []*Namespace     `json:"namespaces,omitempty"`
	Policies   []*NetworkPolicy `json:"policies,omitempty"`
	BGPPeers   []*BGPPeer       `json:"bgpPeers,omitempty"`
	Secrets    []*Secret        `json:"secrets,omitempty"`

	Pools []*LoadBalancerPool `json:"loadBalancerPools,omitempty"`

	ConfigMaps []*ConfigMap `json:"configMaps,omitempty"`
}

// MarshalJSON prints the Snapshot with its objects sorted by name.
func (s *Snapshot) MarshalJSON() ([]byte, error) {
	out := stored{
		Revision: s.Revision, Nodes: s.SortedNodes(), Pods: sorted(s.Pods, byNamespace),
		Services: sorted(s.Services, byNamespace), Slices: sorted(s.Slices, byNamespace),
		Namespaces: sorted(s.Namespaces, strings.Compare), Policies: sorted(s.Policies, byNamespace),
		BGPPeers: sorted(s.BGPPeers, strings.Compare), Secrets: sorted(s.Secrets, byNamespace),
		Pools: sorted(s.Pools, strings.Compare), ConfigMaps: sorted(s.ConfigMaps, byNamespace),
	}
	return json.Marshal(out)
}

// sorted returns the objects of a map in the order of their keys; nil when there are none.
func sorted[K comparable, V any](objects map[K]V, compare func(a, b K) int) (out []V) {
	for _, key := range slices.SortedFunc(maps.Keys(objects), compare) {
		out = append(out, objects[key])
	}
	return out
}

// byNamespace compares the keys of any namespaced kind.
func byNamespace[K ~struct{ Namespace, Name string }](a, b K) int {
	return PolicyKey(a).Compare(PolicyKey(b))
}

// UnmarshalJSON reads what MarshalJSON printed.
func (s *Snapshot) UnmarshalJSON(b []byte) error {
	var in stored
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*s = Snapshot{
		Revision: in.Revision,
		Nodes:    byKey(in.Nodes, func(n *Node) string { return n.Name }),
		Pods:     byKey(in.Pods, func(p *Pod) PodKey { return p.Key() }),
		Services: byKey(in.Services, (*Service).Key),
		Slices:   byKey(in.Slices, (*EndpointSlice).Key),

		Namespaces: byKey(in.Namespaces, func(n *Namespace) string { return n.Name }),
		Policies:   byKey(in.Policies, (*NetworkPolicy).Key),
		BGPPeers:   byKey(in.BGPPeers, func(p *BGPPeer) string { return p.Name }),
		Secrets:    byKey(in.Secrets, (*Secret).Key),
		Pools:      byKey(in.Pools, func(p *LoadBalancerPool) string { return p.Name }),
		ConfigMaps: byKey(in.ConfigMaps, (*ConfigMap).Key),
	}
	return nil
}

func byKey[K comparable, V any](list []V, key func(V) K) map[K]V {
	if list == nil {
		return nil
	}
	out := make(map[K]V, len(list))
	for _, v := range list {
		out[key(v)] = v
	}
	return out
}

// SortedNodes returns the nodes in the order of their names. It may be called on a nil Snapshot.
func (s *Snapshot) SortedNodes() []*Node {
	if s == nil {
		return nil
	}
	out := make([]*Node, 0, len(s.Nodes))
	for _, n := range s.Nodes {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b *Node) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
