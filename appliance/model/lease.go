package model

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// AttachmentKey identifies one interface of one sandbox, as the CNI specification does (network name, container ID, interface name).
type AttachmentKey struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// String prints the key as network/container/interface.
func (k AttachmentKey) String() string { return k.Network + "/" + k.ContainerID + "/" + k.IfName }

// LeaseKind says which plugin asked for the addresses.
type LeaseKind string

// The kinds of lease.
const (
	LeasePod  LeaseKind = "pod"  // weft-cni: addresses, veth pair and routes belong to weft
	LeaseIPAM LeaseKind = "ipam" // weft-ipam or host-local: addresses only, another plugin owns the interface
)

// Lease is one attachment's hold on its addresses, and all that is needed to take the attachment down or make it anew.
type Lease struct {
	AttachmentKey
	Kind      LeaseKind    `json:"kind"`
	Pod       PodRef       `json:"pod,omitzero"`
	Addresses []netip.Addr `json:"addresses"`
	// NetNS is the path of the network namespace as the runtime gave it.
	NetNS string `json:"netns,omitempty"`
	// HostIf is the name of the host end of the veth pair.
	HostIf string `json:"hostIf,omitempty"`
	// MAC is the address of the Pod's end.
	MAC MAC `json:"mac,omitzero"`
	// MTU of both ends, in bytes.
	MTU int `json:"mtu,omitempty"`
	// Bandwidth is what the interface was limited to when it was attached.
	Bandwidth Bandwidth `json:"bandwidth,omitzero"`
	// Created is when the lease was first given, in seconds since 1970.
	Created int64 `json:"created"`
}

// Release remembers who held an address until when, so that the same Pod can have it again and no one else gets it too early.
type Release struct {
	Pod PodRef `json:"pod,omitzero"`
	// At is when the address was released, in seconds since 1970.
	At int64 `json:"at"`
}

// HostPorts are the port mappings of one attachment (CNI capability portMappings).
type HostPorts struct {
	AttachmentKey
	Pod       PodRef        `json:"pod,omitzero"`
	Addresses []netip.Addr  `json:"addresses"`
	Mappings  []PortMapping `json:"mappings"`
	// NoSNAT leaves the client address of node-local and hairpin connections alone (portmap's "snat": false).
	NoSNAT bool `json:"noSNAT,omitempty"`
}

// PortMapping is one hostPort of a Pod, as in the CNI capability portMappings.
type PortMapping struct {
	HostPort      uint16   `json:"hostPort"`
	ContainerPort uint16   `json:"containerPort"`
	Protocol      Protocol `json:"protocol"`
	// HostIP limits the mapping to one address of the node; the zero value means all of them.
	HostIP netip.Addr `json:"hostIP,omitzero"`
}

// Protocol is a transport protocol by its IANA number.
type Protocol uint8

// The protocols that Kubernetes Services and host ports know.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String prints the lower-case name that nft(8) uses.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("%d", uint8(p))
}

// ParseProtocol reads tcp, udp or sctp in either case; the empty text means TCP, as in the Kubernetes API.
func ParseProtocol(s string) (Protocol, error) {
	switch strings.ToLower(s) {
	case "", "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	case "sctp":
		return SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q is not tcp, udp or sctp", s)
}

// MarshalText prints the name, for JSON.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the name, for JSON.
func (p *Protocol) UnmarshalText(b []byte) (err error) {
	*p, err = ParseProtocol(string(b))
	return err
}

// MAC is an EUI-48 hardware address; the zero value means none.
type MAC [6]byte

// IsZero reports whether the address is unset.
func (m MAC) IsZero() bool { return m == MAC{} }

// String prints aa:bb:cc:dd:ee:ff.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// ParseMAC reads aa:bb:cc:dd:ee:ff; a group address or all zeros is an error, since no interface can have one.
func ParseMAC(s string) (MAC, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.ReplaceAll(s, ":", ""), "-", ""))
	if err != nil || len(b) != 6 {
		return MAC{}, fmt.Errorf("MAC address %q is not of the form aa:bb:cc:dd:ee:ff", s)
	}
	m := MAC(b)
	if m.IsZero() || m[0]&1 != 0 {
		return MAC{}, fmt.Errorf("MAC address %q is zero or a group address; an interface needs a unicast one", s)
	}
	return m, nil
}

// MarshalText prints the address, for JSON.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the address, for JSON.
func (m *MAC) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMAC(string(b))
	return err
}

// Bandwidth limits one Pod interface, as in the CNI capability bandwidth: rates in bits per second, bursts in bits, seen from
// the Pod (ingress is what it receives). A zero rate means no limit in that direction.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// IsZero reports whether nothing is limited.
func (b Bandwidth) IsZero() bool { return b.IngressRate == 0 && b.EgressRate == 0 }
