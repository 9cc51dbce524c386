// Package service decides, for each Service, at which addresses this node serves it and which endpoints get the connections.
package service

import (
	"fmt"
	"net/netip"

	"weft.network/weft/appliance/model"
)

// Input is what the outcome depends on besides the Snapshot.
type Input struct {
	// NodeName and Zone are this node's name and its label topology.kubernetes.io/zone.
	NodeName, Zone string
	// NodeAddresses are addresses of this node: an endpoint there is a process of the node or a Pod in its network.
	NodeAddresses []netip.Addr
}

// Result is what Compile returns. It shares memory with later results and must not be changed.
type Result struct {
	// Frontends has every Service that this node serves. The pointer stays the same while the Service, its endpoints and
	// this node's place do; and so does the map while no pointer changes.
	Frontends map[model.ServiceKey]*Frontends
	// HealthChecks are the ports on which load balancers ask whether this node has endpoints.
	HealthChecks map[model.ServiceKey]HealthCheck
	// Problems are sorted by Service.
	Problems []Problem
	// Changed is what was new in this call of Compile.
	Changed Changed
}

// Changed counts the objects that differ from those of the call before.
type Changed struct {
	Services, Slices int
	// Triggered has, for each slice that knows it, when the change happened that made it, in nanoseconds since 1970.
	Triggered []int64
}

// HealthCheck is one healthCheckNodePort.
type HealthCheck struct {
	Port uint16
	// LocalEndpoints counts the ready ones on this node, in the Service's first family.
	LocalEndpoints int
}

// Problem is a part of a Service that is not served, or not as its author may think.
type Problem struct {
	Service model.ServiceKey
	// Text names the field, what is wrong with it and what to do.
	Text string
}

// String prints the Service and what is wrong.
func (p Problem) String() string { return "Service " + p.Service.String() + ": " + p.Text }

// Frontends is one Service as this node serves it. It does not change once made.
type Frontends struct {
	Service model.ServiceKey
	Ports   []Port
}

// Port is one port of a Service in one address family.
type Port struct {
	Name     string
	Protocol model.Protocol
	IPv6     bool
	// Affinity is for how many seconds after its last connection a client keeps its endpoint (sessionAffinity ClientIP); 0 means
	// that it does not.
	Affinity uint32
	// Hashed says that every node sends a client to the same endpoint, whatever came before (annotation HashAnnotation).
	Hashed bool
	// Cluster and Local are the endpoints for the two traffic policies. The order is the one of the kernel's numbered maps.
	Cluster, Local []netip.AddrPort
	// Hairpin are the addresses of Pods of this node among them: a connection from such a Pod to itself needs another source.
	Hairpin []netip.Addr
	// Serving are all endpoints that may have connections, terminating ones too, sorted; UDP only.
	Serving   []netip.AddrPort
	Frontends []Frontend
}

// Frontend is one address and port at which connections arrive.
type Frontend struct {
	Kind Kind
	// Addr is invalid for a node port, which is on the node's own addresses.
	Addr netip.Addr
	Port uint16
	// Inside is for connections of this node and of its Pods, Outside for all others.
	Inside, Outside Target
	// Alone says that no machine has the address: what asks for other ports is refused here, since nobody else will answer.
	Alone bool
	// Sources are the only sources that may connect; empty means everybody.
	Sources []netip.Prefix
}

// HashAnnotation on a Service, with the value "true", chooses endpoints by a hash of the client's address that is the same on every
// node and that few clients notice when an endpoint comes or goes. It is for addresses that routers spread over several nodes
// (ECMP): a connection that a router moves to another node finds its endpoint there.
const HashAnnotation = "weft.network/consistent-hash"

// Kind is the field of the Service that a frontend comes from.
type Kind uint8

// The kinds. Where one Service has an address twice, the first of them counts.
const (
	ClusterIP Kind = iota
	LoadBalancer
	ExternalIP
	NodePort
)

// String prints the name that kubectl users know.
func (k Kind) String() string {
	return [...]string{"ClusterIP", "LoadBalancer", "ExternalIP", "NodePort"}[k]
}

// Target is what becomes of a new connection.
type Target uint8

// The targets.
const (
	// Refuse tells the client: nobody serves it anywhere.
	Refuse Target = iota
	// NoLocal drops: the policy is Local, and endpoints are elsewhere only. A load balancer then tries another node.
	NoLocal
	// ToCluster and ToLocal send it to one of the port's endpoints of that name.
	ToCluster
	ToLocal
)

// String prints the target in a word or two.
func (t Target) String() string {
	return [...]string{"refuse", "drop, no local endpoint", "cluster endpoints", "local endpoints"}[t]
}

// String prints address, port and protocol.
func (f Frontend) text(p model.Protocol) string {
	if f.Kind == NodePort {
		return fmt.Sprintf("node port %d/%s", f.Port, p)
	}
	return fmt.Sprintf("%s/%s (%s)", netip.AddrPortFrom(f.Addr, f.Port), p, f.Kind)
}
