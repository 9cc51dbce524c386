// Package trace follows the first packet of a connection from node to node through the tables that weft makes, and says what becomes of it and which rule decided.
package trace

import (
	"net/netip"

	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// Node is one machine as a packet meets it.
type Node struct {
	Name   string
	Tables []ruleset.Table
	// Route is what the machine's routing table does with a packet.
	Route func(to netip.Addr) Route
	// Returns reports whether a packet to an address would leave over a link.
	Returns func(to netip.Addr, link string) bool
	// Arrives is the link over which a packet from an address that is none of the machine's comes in.
	Arrives func(from netip.Addr) string
}

// Route is the way to an address.
type Route struct {
	ruleset.Way
	// Via is the next hop, Src the address of the machine that its own packets and masqueraded ones get; both may be invalid.
	Via, Src netip.Addr
}

// World is what is known when a question is asked.
type World struct {
	Snapshot *model.Snapshot
	// This is the node that is asked, Leases are its own: it knows them before the cluster does.
	This   string
	Leases []*model.Lease
	// Node returns a machine of the cluster; nil if it is not known.
	Node func(name string) *Node
	// Policy, if it is set, says what network policy thinks of a connection between two addresses of the Pod network: the name
	// of what decided, for the report; what the packet meets is in the tables of its node.
	Policy func(src netip.Addr, dst netip.AddrPort, p model.Protocol) string
}

// Report is the answer.
type Report struct {
	From     Point          `json:"from"`
	To       Point          `json:"to"`
	Protocol model.Protocol `json:"protocol"`
	// Paths has one for each address family, at most.
	Paths []Path `json:"paths"`
}

// Point is one end of the question.
type Point struct {
	// Kind is Pod, Service, node or address.
	Kind string `json:"kind"`
	// Name is namespace/name of a Pod or Service, or the name of a node.
	Name string `json:"name,omitempty"`
	// Node is where a Pod runs.
	Node      string       `json:"node,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Port      uint16       `json:"port,omitempty"`
	// host says that its packets are the node's own: the node, or a Pod in its network.
	host bool
}

// Path is what becomes of a connection in one address family.
type Path struct {
	Source      netip.Addr     `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	// Service is what the destination belongs to; empty if no Service.
	Service string `json:"service,omitempty"`
	// Verdict is the outcome in a few words, where it is the same for all endpoints.
	Verdict string `json:"verdict"`
	Works   bool   `json:"works"`
	// Hops are those up to the choice of an endpoint, or all of them if none was chosen.
	Hops []Hop `json:"hops"`
	// Remembered is the endpoint that this client will get since it had it last (sessionAffinity); invalid if there is none.
	Remembered netip.AddrPort `json:"remembered,omitzero"`
	// Policy is what network policies say where no endpoint was chosen; an endpoint has its own.
	Policy string `json:"policy,omitempty"`
	// Endpoints are those that may get the connection.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Hop is one hook of one machine.
type Hop struct {
	Node string `json:"node"`
	Hook string `json:"hook"`
	// Rules are those that had a say; the last one decided.
	Rules []Rule `json:"rules,omitempty"`
	// Route is the way out that was chosen before this hook.
	Route string `json:"route,omitempty"`
}

// Rule is one rule of a chain.
type Rule struct {
	Table string `json:"table"`
	Chain string `json:"chain"`
	Text  string `json:"text"`
}

// Endpoint is a backend that may get the connection.
type Endpoint struct {
	Address netip.AddrPort `json:"address"`
	Pod     string         `json:"pod,omitempty"`
	Node    string         `json:"node,omitempty"`
	// Share is the part of new connections that goes there, from 0 to 1.
	Share float64 `json:"share"`
	// Source is the client as the endpoint sees it.
	Source       netip.Addr `json:"source"`
	Masqueraded  bool       `json:"masqueraded,omitempty"`
	MasqueradeBy string     `json:"masqueradeBy,omitempty"`
	Hops         []Hop      `json:"hops,omitempty"`
	Verdict      string     `json:"verdict"`
	Works        bool       `json:"works"`
	Policy       string     `json:"policy,omitempty"`
}
