package model

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
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
	out := stored{Revision: s.Revision, Nodes: s.SortedNodes()}
	for _, p := range s.Pods {
		out.Pods = append(out.Pods, p)
	}
	slices.SortFunc(out.Pods, func(a, b *Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, v := range s.Services {
		out.Services = append(out.Services, v)
	}
	slices.SortFunc(out.Services, func(a, b *Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, v := range s.Slices {
		out.Slices = append(out.Slices, v)
	}
	slices.SortFunc(out.Slices, func(a, b *EndpointSlice) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, v := range s.Namespaces {
		out.Namespaces = append(out.Namespaces, v)
	}
	slices.SortFunc(out.Namespaces, func(a, b *Namespace) int { return cmp.Compare(a.Name, b.Name) })
	for _, v := range s.Policies {
		out.Policies = append(out.Policies, v)
	}
	slices.SortFunc(out.Policies, func(a, b *NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, name := range slices.Sorted(maps.Keys(s.BGPPeers)) {
		out.BGPPeers = append(out.BGPPeers, s.BGPPeers[name])
	}
	for _, v := range s.Secrets {
		out.Secrets = append(out.Secrets, v)
	}
	slices.SortFunc(out.Secrets, func(a, b *Secret) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, v := range s.Pools {
		out.Pools = append(out.Pools, v)
	}
	slices.SortFunc(out.Pools, func(a, b *LoadBalancerPool) int { return cmp.Compare(a.Name, b.Name) })
	for _, v := range s.ConfigMaps {
		out.ConfigMaps = append(out.ConfigMaps, v)
	}
	slices.SortFunc(out.ConfigMaps, func(a, b *ConfigMap) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return json.Marshal(out)
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
