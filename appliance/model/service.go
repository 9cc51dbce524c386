package model

import "net/netip"

// ServiceKey names a Service.
type ServiceKey struct{ Namespace, Name string }

// String prints namespace/name.
func (k ServiceKey) String() string { return k.Namespace + "/" + k.Name }

// Service is one Service that has virtual addresses, trimmed to what the network needs. Headless Services and those of type
// ExternalName are here too, since names are made of them; they have no ClusterIPs.
type Service struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	UID       string            `json:"uid,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	// Annotations are only those that weft reads.
	Annotations map[string]string `json:"annotations,omitempty"`
	// Type is ClusterIP, NodePort, LoadBalancer or ExternalName.
	Type         string        `json:"type"`
	ExternalName string        `json:"externalName,omitempty"`
	ClusterIPs   []netip.Addr  `json:"clusterIPs,omitempty"`
	Headless     bool          `json:"headless,omitempty"`
	ExternalIPs  []netip.Addr  `json:"externalIPs,omitempty"`
	Ports        []ServicePort `json:"ports,omitempty"`
	// Ingress are status.loadBalancer.ingress addresses.
	Ingress []ServiceIngress `json:"ingress,omitempty"`
	// IngressName is the name of a load balancer in the status that has no address there; whoever it belongs to delivers.
	IngressName string `json:"ingressName,omitempty"`
	// SourceRanges limits who may use the load-balancer addresses; empty means everybody.
	SourceRanges []netip.Prefix `json:"sourceRanges,omitempty"`
	// AffinityTimeout is sessionAffinity ClientIP in seconds; 0 means none.
	AffinityTimeout int `json:"affinityTimeout,omitempty"`
	// ExternalLocal and InternalLocal are the traffic policies "Local".
	ExternalLocal bool `json:"externalLocal,omitempty"`
	InternalLocal bool `json:"internalLocal,omitempty"`
	// TrafficDistribution is PreferClose, PreferSameZone, PreferSameNode or empty.
	TrafficDistribution string `json:"trafficDistribution,omitempty"`
	HealthCheckNodePort uint16 `json:"healthCheckNodePort,omitempty"`
	PublishNotReady     bool   `json:"publishNotReady,omitempty"`
	// DualStack is ipFamilyPolicy: "require" (RequireDualStack), "prefer" (PreferDualStack) or empty.
	DualStack string `json:"dualStack,omitempty"`
	// Allocation is the condition that weft left in the status; nil when weft never gave the Service an address.
	Allocation *Allocation `json:"allocation,omitempty"`
	// LoadBalancerClass and LoadBalancerIP are for the allocator of addresses.
	LoadBalancerClass string `json:"loadBalancerClass,omitempty"`
	LoadBalancerIP    string `json:"loadBalancerIP,omitempty"`
	// OtherProxy is the label service.kubernetes.io/service-proxy-name: somebody else serves this Service. It is "headless"
	// with the label service.kubernetes.io/headless: nobody does, although it may have a ClusterIP.
	OtherProxy string `json:"otherProxy,omitempty"`
	// Created is creationTimestamp in seconds since 1970: the older Service wins a conflict.
	Created int64 `json:"created,omitempty"`
}

// Key returns the Service's namespace and name.
func (s *Service) Key() ServiceKey { return ServiceKey{s.Namespace, s.Name} }

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string   `json:"name,omitempty"`
	Protocol Protocol `json:"protocol"`
	Port     uint16   `json:"port"`
	NodePort uint16   `json:"nodePort,omitempty"`
	// AppProtocol is a hint for people.
	AppProtocol string `json:"appProtocol,omitempty"`
}

// ServiceIngress is one address of a load balancer.
type ServiceIngress struct {
	IP netip.Addr `json:"ip"`
	// Proxy is ipMode Proxy: the load balancer itself delivers, and nodes must not take the address as their own.
	Proxy bool `json:"proxy,omitempty"`
}

// SliceKey names an EndpointSlice.
type SliceKey struct{ Namespace, Name string }

// EndpointSlice is one EndpointSlice; a Service may have any number of them.
type EndpointSlice struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Service is the name in the label kubernetes.io/service-name.
	Service string `json:"service"`
	// Unproxied is true with either of the labels that say so: no service proxy may send connections there; names may lead there.
	Unproxied bool           `json:"unproxied,omitempty"`
	IPv6      bool           `json:"ipv6,omitempty"`
	Ports     []EndpointPort `json:"ports,omitempty"`
	Endpoints []Endpoint     `json:"endpoints,omitempty"`
	// Triggered is the annotation endpoints.kubernetes.io/last-change-trigger-time in nanoseconds since 1970; 0 if absent.
	Triggered int64 `json:"triggered,omitempty"`
}

// Key returns the slice's namespace and name.
func (s *EndpointSlice) Key() SliceKey { return SliceKey{s.Namespace, s.Name} }

// ServiceKey names the Service that the slice belongs to.
func (s *EndpointSlice) ServiceKey() ServiceKey { return ServiceKey{s.Namespace, s.Service} }

// EndpointPort is one port of all endpoints of a slice; Port 0 means every port.
type EndpointPort struct {
	Name     string   `json:"name,omitempty"`
	Protocol Protocol `json:"protocol"`
	Port     uint16   `json:"port"`
}

// Endpoint is one Pod behind a Service.
type Endpoint struct {
	Addresses []netip.Addr `json:"addresses"`
	// The conditions; absent ones are already filled in as the API says (ready and serving true, terminating false).
	Ready       bool   `json:"ready"`
	Serving     bool   `json:"serving"`
	Terminating bool   `json:"terminating,omitempty"`
	Hostname    string `json:"hostname,omitempty"`
	Node        string `json:"node,omitempty"`
	Zone        string `json:"zone,omitempty"`
	// ForZones and ForNodes are the topology hints.
	ForZones []string `json:"forZones,omitempty"`
	ForNodes []string `json:"forNodes,omitempty"`
	Pod      PodRef   `json:"pod,omitzero"`
}
