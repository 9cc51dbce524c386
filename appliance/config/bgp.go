package config

import (
	"fmt"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// BGP is this node's speaker. It is silent and listens nowhere until a peer is configured, here or in the cluster, or nodes are to
// speak with each other.
type BGP struct {
	ASN      uint32     `yaml:"asn"`
	RouterID netip.Addr `yaml:"routerID"`
	Port     uint16     `yaml:"port"`
	Listen   bool       `yaml:"listen"`
	// Mesh is auto, on or off.
	Mesh      string `yaml:"mesh"`
	MeshLimit int    `yaml:"meshLimit"`
	// MeshPasswordSecretRef and MeshPasswordFile say where the password of the sessions between nodes is; neither means none.
	MeshPasswordSecretRef *model.SecretRef `yaml:"meshPasswordSecretRef"`
	MeshPasswordFile      string           `yaml:"meshPasswordFile"`

	Advertise       model.BGPAdvertiseSpec `yaml:"advertise"`
	Aggregate       []netip.Prefix         `yaml:"aggregate"`
	SecretNamespace string                 `yaml:"secretNamespace"`
	Peers           []BGPPeer              `yaml:"peers"`
}

// BGPPeer is a BGPPeer for this node alone.
type BGPPeer struct {
	Name              string `yaml:"name"`
	model.BGPPeerSpec `yaml:",inline"`
}

// The values of bgp.mesh.
const (
	MeshAuto = "auto" // when fabric.mode is native and nodes are on several subnets
	MeshOn   = "on"
	MeshOff  = "off"
)

func defaultBGP() BGP {
	return BGP{
		ASN: 64512, Port: model.DefaultBGPPort, Listen: true, Mesh: MeshAuto, MeshLimit: 100, SecretNamespace: "kube-system",
		Aggregate: []netip.Prefix{}, Peers: []BGPPeer{},
	}
}

// Resolved returns the peers of this node.
func (b *BGP) Resolved() ([]*model.BGPPeer, []error) {
	var out []*model.BGPPeer
	var errs []error
	names := map[string]bool{}
	for i := range b.Peers {
		p, bad := b.Peers[i].Resolve(b.Peers[i].Name)
		for _, e := range bad {
			errs = append(errs, fmt.Errorf("bgp.peers[%d].%w", i, e))
		}
		if p.Name == "" || names[p.Name] {
			errs = append(errs, fmt.Errorf("bgp.peers[%d].name: %q: give each peer a name of its own", i, p.Name))
		}
		names[p.Name] = true
		out = append(out, p)
	}
	return out, errs
}

func (b *BGP) validate() []error {
	_, errs := b.Resolved()
	bad := func(key string, value any, fix string) {
		errs = append(errs, fmt.Errorf("bgp.%s: %v: %s", key, value, fix))
	}
	if b.ASN == 0 {
		bad("asn", b.ASN, "must be 1 to 4294967295")
	}
	if b.RouterID.IsValid() && !b.RouterID.Is4() {
		bad("routerID", b.RouterID, "must be written as an IPv4 address, or be empty")
	}
	if b.Port == 0 {
		bad("port", b.Port, "must be 1 to 65535")
	}
	if !slices.Contains([]string{MeshAuto, MeshOn, MeshOff}, b.Mesh) {
		bad("mesh", b.Mesh, "must be auto, on or off")
	}
	if b.MeshLimit < 2 {
		bad("meshLimit", b.MeshLimit, "must be at least 2")
	}
	if ref := b.MeshPasswordSecretRef; ref != nil && (ref.Name == "" || ref.Key == "") {
		bad("meshPasswordSecretRef", *ref, "needs name and key")
	}
	if b.MeshPasswordSecretRef != nil && b.MeshPasswordFile != "" {
		bad("meshPasswordFile", b.MeshPasswordFile, "cannot be used together with meshPasswordSecretRef")
	}
	if b.SecretNamespace == "" {
		bad("secretNamespace", `""`, "name a namespace")
	}
	_, more := b.Advertise.Resolve("bgp.advertise.")
	for _, e := range more {
		errs = append(errs, e)
	}
	for i, p := range b.Aggregate {
		if p != p.Masked() {
			bad(fmt.Sprintf("aggregate[%d]", i), p, "has host bits set: write "+p.Masked().String())
		}
	}
	return errs
}

// Secrets returns the names of the Secrets that the mesh and the peers of this node refer to.
func (b *BGP) Secrets() (out []string) {
	if b.MeshPasswordSecretRef != nil {
		out = append(out, b.MeshPasswordSecretRef.Name)
	}
	for i := range b.Peers {
		if ref := b.Peers[i].PasswordSecretRef; ref != nil {
			out = append(out, ref.Name)
		}
	}
	return out
}
