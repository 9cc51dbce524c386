package model

import (
	"fmt"
	"net/netip"
)

// BGPPeer is a router or another speaker that nodes of the cluster have a BGP session with, as the administrator wants it.
type BGPPeer struct {
	Name string `json:"name"`
	// NodeSelector are labels that a node must have to be a neighbour of this peer; none selects every node.
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	Address      netip.Addr        `json:"address"`
	ASN          uint32            `json:"asn"`
	// LocalASN is what this peer sees as the node's AS; 0 is the node's own.
	LocalASN uint32 `json:"localASN,omitempty"`
	Port     uint16 `json:"port"`
	// Passive waits for the peer to connect.
	Passive bool `json:"passive,omitempty"`
	// Source is the local address of the session; the zero address leaves it to the routing table.
	Source netip.Addr `json:"source,omitzero"`
	// MultihopTTL is the TTL of packets to an external peer that is not on the node's subnet; 0 means that it is.
	MultihopTTL uint8 `json:"multihopTTL,omitempty"`
	// TTLSecurityHops refuses packets from further away (RFC 5082); 0 does not look.
	TTLSecurityHops uint8 `json:"ttlSecurityHops,omitempty"`

	HoldSeconds         uint32 `json:"holdSeconds"`
	KeepaliveSeconds    uint32 `json:"keepaliveSeconds"`
	ConnectRetrySeconds uint32 `json:"connectRetrySeconds"`

	// PasswordSecret or PasswordFile say where the TCP-MD5 password is; nil and empty mean none.
	PasswordSecret *SecretRef `json:"passwordSecret,omitempty"`
	PasswordFile   string     `json:"passwordFile,omitempty"`

	// RestartSeconds is how long the peer keeps our routes while we restart; 0 switches graceful restart off.
	RestartSeconds  uint32 `json:"restartSeconds,omitempty"`
	IPv4            bool   `json:"ipv4,omitempty"`
	IPv6            bool   `json:"ipv6,omitempty"`
	ReflectorClient bool   `json:"reflectorClient,omitempty"`
	// MaxPrefixes ends the session when the peer sends more in one family; 0 is no limit.
	MaxPrefixes uint32 `json:"maxPrefixes,omitempty"`

	Advertise BGPAdvertise `json:"advertise"`
	// Import says which routes are taken; none matching means no. Export says which are sent; none matching means yes.
	Import []PrefixRule `json:"import,omitempty"`
	Export []PrefixRule `json:"export,omitempty"`
}

// SecretRef names one key of a Secret, in the namespace that weft reads Secrets from.
type SecretRef struct {
	Name string `json:"name" yaml:"name"`
	Key  string `json:"key" yaml:"key"`
}

// BGPAdvertise is what a peer is told. A nil switch leaves the decision to the node's defaults.
type BGPAdvertise struct {
	PodCIDRs     *bool `json:"podCIDRs,omitempty"`
	LoadBalancer *bool `json:"loadBalancer,omitempty"`
	ExternalIPs  *bool `json:"externalIPs,omitempty"`
	ClusterIPs   *bool `json:"clusterIPs,omitempty"`

	Communities      []Community      `json:"communities,omitempty"`
	LargeCommunities []LargeCommunity `json:"largeCommunities,omitempty"`
	// LocalPreference is for internal peers, MED for external ones; nil sends none.
	LocalPreference *uint32 `json:"localPreference,omitempty"`
	MED             *uint32 `json:"med,omitempty"`
}

// PrefixRule decides about routes inside Prefix whose length is from GE to LE.
type PrefixRule struct {
	Prefix netip.Prefix `json:"prefix"`
	GE     int          `json:"ge"`
	LE     int          `json:"le"`
	Reject bool         `json:"reject,omitempty"`
}

// Matches reports whether the rule decides about the route.
func (r PrefixRule) Matches(p netip.Prefix) bool {
	return p.Addr().Is4() == r.Prefix.Addr().Is4() && r.Prefix.Contains(p.Addr()) && p.Bits() >= r.GE && p.Bits() <= r.LE
}

// Community is a BGP community (RFC 1997).
type Community uint32

// String prints the community as AS:value.
func (c Community) String() string { return fmt.Sprintf("%d:%d", uint32(c)>>16, uint32(c)&0xffff) }

// LargeCommunity is a large community (RFC 8092).
type LargeCommunity [3]uint32

// String prints the community as AS:value:value.
func (c LargeCommunity) String() string { return fmt.Sprintf("%d:%d:%d", c[0], c[1], c[2]) }

// SecretKey names a Secret.
type SecretKey struct{ Namespace, Name string }

// String prints namespace/name.
func (k SecretKey) String() string { return k.Namespace + "/" + k.Name }

// Secret is a Secret that another object refers to. Others are not read.
type Secret struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Data      map[string][]byte `json:"data,omitempty"`
}

// Key returns the Secret's namespace and name.
func (s *Secret) Key() SecretKey { return SecretKey{s.Namespace, s.Name} }

// LearnedRoute is a route that a BGP neighbour told this node.
type LearnedRoute struct {
	Prefix  netip.Prefix `json:"prefix"`
	NextHop netip.Addr   `json:"nextHop"`
	// Node is true when another node told it in the mesh, which may tell Pod ranges only.
	Node bool `json:"node,omitempty"`
}
