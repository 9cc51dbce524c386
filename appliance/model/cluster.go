package model

import (
	"net/netip"
	"reflect"
)

// Node is one machine of the cluster, trimmed to what the network needs.
type Node struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
	// Addresses are the node's InternalIPs in the order of node.status.addresses; the first one is the primary.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// PodCIDRs are the ranges of node.spec.podCIDRs, at most one per family, masked.
	PodCIDRs []netip.Prefix `json:"podCIDRs,omitempty"`
	// Labels are the node's labels (topology, peer selection).
	Labels map[string]string `json:"labels,omitempty"`
}

// Pod is one Pod, trimmed to what the network needs.
type Pod struct {
	PodRef
	Node        string            `json:"node,omitempty"`
	HostNetwork bool              `json:"hostNetwork,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	// Addresses are status.podIPs.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Requested are the addresses asked for by the annotation weft.network/addresses.
	Requested []netip.Addr `json:"requested,omitempty"`
	// RequestError says why the annotation could not be used; empty when it is absent or fine.
	RequestError string `json:"requestError,omitempty"`
	// Completed is true for a Pod that has succeeded or failed: its addresses are free again.
	Completed bool `json:"completed,omitempty"`
	// Ports are the ports of its containers that have a name.
	Ports []NamedPort `json:"ports,omitempty"`
}

// PodRef names one incarnation of a Pod.
type PodRef struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// PodKey names a Pod within the cluster, whatever its incarnation.
type PodKey struct{ Namespace, Name string }

// Key returns the Pod's namespace and name.
func (p PodRef) Key() PodKey { return PodKey{p.Namespace, p.Name} }

// IsZero reports whether no Pod is named (an attachment made by hand or by another runtime).
func (p PodRef) IsZero() bool { return p.Name == "" && p.UID == "" }

// String prints namespace/name.
func (p PodRef) String() string {
	if p.IsZero() {
		return "-"
	}
	return p.Namespace + "/" + p.Name
}

// Snapshot is what is known of the cluster at one moment. See the package comment: it is immutable.
type Snapshot struct {
	// Revision grows by one with each published Snapshot of this process.
	Revision uint64
	// Stored is true for the Snapshot that the daemon read from its own store because no source has spoken yet.
	Stored bool
	Nodes  map[string]*Node
	// Pods are those of the whole cluster where policies are in force, else those of this node only.
	Pods       map[PodKey]*Pod
	Services   map[ServiceKey]*Service
	Slices     map[SliceKey]*EndpointSlice
	Namespaces map[string]*Namespace
	Policies   map[PolicyKey]*NetworkPolicy
	BGPPeers   map[string]*BGPPeer
	// Secrets are those that other objects refer to.
	Secrets map[SecretKey]*Secret
	Pools   map[string]*LoadBalancerPool
	// ConfigMaps are those that weft reads.
	ConfigMaps map[ConfigMapKey]*ConfigMap
}

// Node returns the node of that name, or nil. It may be called on a nil Snapshot.
func (s *Snapshot) Node(name string) *Node {
	if s == nil {
		return nil
	}
	return s.Nodes[name]
}

// Service returns the Service of that namespace and name, or nil. It may be called on a nil Snapshot.
func (s *Snapshot) Service(key ServiceKey) *Service {
	if s == nil {
		return nil
	}
	return s.Services[key]
}

// Pod returns the Pod of that namespace and name, or nil. It may be called on a nil Snapshot.
func (s *Snapshot) Pod(key PodKey) *Pod {
	if s == nil {
		return nil
	}
	return s.Pods[key]
}

// SameMap reports whether two maps of Snapshots are one and the same: what did not change is shared between them.
func SameMap[K comparable, V any](a, b map[K]V) bool {
	return len(a) == len(b) && reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}
