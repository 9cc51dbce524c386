package model

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// BGPPeerSpec is a BGPPeer as people write it: the spec of the custom resource, and an entry of bgp.peers in weft.yaml.
type BGPPeerSpec struct {
	NodeSelector        map[string]string    `json:"nodeSelector,omitempty" yaml:"nodeSelector"`
	PeerAddress         string               `json:"peerAddress" yaml:"peerAddress"`
	PeerASN             uint32               `json:"peerASN" yaml:"peerASN"`
	LocalASN            uint32               `json:"localASN,omitempty" yaml:"localASN"`
	Port                uint16               `json:"port,omitempty" yaml:"port"`
	Passive             bool                 `json:"passive,omitempty" yaml:"passive"`
	SourceAddress       string               `json:"sourceAddress,omitempty" yaml:"sourceAddress"`
	MultihopTTL         uint8                `json:"multihopTTL,omitempty" yaml:"multihopTTL"`
	TTLSecurityHops     uint8                `json:"ttlSecurityHops,omitempty" yaml:"ttlSecurityHops"`
	HoldSeconds         uint32               `json:"holdSeconds,omitempty" yaml:"holdSeconds"`
	KeepaliveSeconds    uint32               `json:"keepaliveSeconds,omitempty" yaml:"keepaliveSeconds"`
	ConnectRetrySeconds uint32               `json:"connectRetrySeconds,omitempty" yaml:"connectRetrySeconds"`
	PasswordSecretRef   *SecretRef           `json:"passwordSecretRef,omitempty" yaml:"passwordSecretRef"`
	PasswordFile        string               `json:"passwordFile,omitempty" yaml:"passwordFile"`
	GracefulRestart     *GracefulRestartSpec `json:"gracefulRestart,omitempty" yaml:"gracefulRestart"`
	Families            []string             `json:"families,omitempty" yaml:"families"`
	ReflectorClient     bool                 `json:"reflectorClient,omitempty" yaml:"reflectorClient"`
	MaxPrefixes         uint32               `json:"maxPrefixes,omitempty" yaml:"maxPrefixes"`
	Advertise           BGPAdvertiseSpec     `json:"advertise,omitzero" yaml:"advertise"`
	Import              []PrefixRuleSpec     `json:"import,omitempty" yaml:"import"`
	Export              []PrefixRuleSpec     `json:"export,omitempty" yaml:"export"`
}

// GracefulRestartSpec is on when it is left out.
type GracefulRestartSpec struct {
	Enabled        *bool  `json:"enabled,omitempty" yaml:"enabled"`
	RestartSeconds uint32 `json:"restartSeconds,omitempty" yaml:"restartSeconds"`
}

// BGPAdvertiseSpec is a BGPAdvertise as people write it.
type BGPAdvertiseSpec struct {
	PodCIDRs         *bool    `json:"podCIDRs,omitempty" yaml:"podCIDRs,omitempty"`
	LoadBalancer     *bool    `json:"loadBalancer,omitempty" yaml:"loadBalancer,omitempty"`
	ExternalIPs      *bool    `json:"externalIPs,omitempty" yaml:"externalIPs,omitempty"`
	ClusterIPs       *bool    `json:"clusterIPs,omitempty" yaml:"clusterIPs,omitempty"`
	Communities      []string `json:"communities,omitempty" yaml:"communities,omitempty"`
	LargeCommunities []string `json:"largeCommunities,omitempty" yaml:"largeCommunities,omitempty"`
	LocalPreference  *uint32  `json:"localPreference,omitempty" yaml:"localPreference,omitempty"`
	MED              *uint32  `json:"med,omitempty" yaml:"med,omitempty"`
}

// PrefixRuleSpec is a PrefixRule as people write it. Without ge and le the length must be that of the prefix.
type PrefixRuleSpec struct {
	Prefix string `json:"prefix" yaml:"prefix"`
	GE     int    `json:"ge,omitempty" yaml:"ge"`
	LE     int    `json:"le,omitempty" yaml:"le"`
	Action string `json:"action,omitempty" yaml:"action"`
}

// FieldError is a field that cannot be used, and why.
type FieldError struct {
	Field string
	Err   error
}

func (e FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

// The defaults of a BGPPeer. RFC 4271 suggests 90 s and a third of it; the restart time must outlast a start of the daemon and
// the connect retries of both sides.
const (
	DefaultBGPPort      = 179
	defaultHold         = 90
	defaultConnectRetry = 10
	defaultRestart      = 120
	// maxRestart is what fits into the capability (RFC 4724: 12 bits).
	maxRestart = 4095
)

// Resolve checks a peer and fills in the defaults. It returns all that is wrong at once; then the peer is not usable.
func (s *BGPPeerSpec) Resolve(name string) (*BGPPeer, []FieldError) {
	r := resolver{}
	p := &BGPPeer{
		Name: name, NodeSelector: s.NodeSelector, ASN: s.PeerASN, LocalASN: s.LocalASN, Port: orElse(s.Port, DefaultBGPPort),
		Passive: s.Passive, MultihopTTL: s.MultihopTTL, TTLSecurityHops: s.TTLSecurityHops,
		HoldSeconds: orElse(s.HoldSeconds, defaultHold), ConnectRetrySeconds: orElse(s.ConnectRetrySeconds, defaultConnectRetry),
		PasswordFile: s.PasswordFile, RestartSeconds: defaultRestart, ReflectorClient: s.ReflectorClient, MaxPrefixes: s.MaxPrefixes,
		PasswordSecret: s.PasswordSecretRef,
	}
	p.KeepaliveSeconds = orElse(s.KeepaliveSeconds, max(1, p.HoldSeconds/3))
	if s.PeerAddress == "" {
		r.bad("peerAddress", "missing; give the peer's IPv4 or IPv6 address")
	} else {
		p.Address = r.addr("peerAddress", s.PeerAddress)
	}
	if s.SourceAddress != "" {
		p.Source = r.addr("sourceAddress", s.SourceAddress)
		if p.Source.IsValid() && p.Address.IsValid() && p.Source.Is4() != p.Address.Is4() {
			r.bad("sourceAddress", "%s and peerAddress %s are of different families", p.Source, p.Address)
		}
	}
	if s.PeerASN == 0 {
		r.bad("peerASN", "missing; give the AS number of the peer, 1 to 4294967295")
	}
	s.timers(p, &r)
	s.password(&r)
	if g := s.GracefulRestart; g != nil {
		if p.RestartSeconds = orElse(g.RestartSeconds, defaultRestart); p.RestartSeconds > maxRestart {
			r.bad("gracefulRestart.restartSeconds", "%d is more than %d, the most that the protocol can say", p.RestartSeconds, maxRestart)
		}
		if g.Enabled != nil && !*g.Enabled {
			p.RestartSeconds = 0
		}
	}
	if s.MultihopTTL > 0 && s.TTLSecurityHops > 0 {
		r.bad("ttlSecurityHops", "cannot be used together with multihopTTL: give the number of hops here and no multihopTTL")
	}
	p.IPv4, p.IPv6 = s.families(&r)
	var more []FieldError
	p.Advertise, more = s.Advertise.Resolve("advertise.")
	r.errs = append(r.errs, more...)
	p.Import, p.Export = r.rules("import", s.Import), r.rules("export", s.Export)
	return p, r.errs
}

func (s *BGPPeerSpec) timers(p *BGPPeer, r *resolver) {
	switch {
	case p.HoldSeconds < 3 || p.HoldSeconds > 65535:
		r.bad("holdSeconds", "%d is not from 3 to 65535", p.HoldSeconds)
	case p.KeepaliveSeconds >= p.HoldSeconds:
		r.bad("keepaliveSeconds", "%d is not less than holdSeconds %d: the session would expire between two messages", p.KeepaliveSeconds, p.HoldSeconds)
	}
	if p.ConnectRetrySeconds > 3600 {
		r.bad("connectRetrySeconds", "%d is more than 3600", p.ConnectRetrySeconds)
	}
}

func (s *BGPPeerSpec) password(r *resolver) {
	if ref := s.PasswordSecretRef; ref != nil {
		if ref.Name == "" || ref.Key == "" {
			r.bad("passwordSecretRef", "needs name and key")
		}
		if s.PasswordFile != "" {
			r.bad("passwordFile", "cannot be used together with passwordSecretRef")
		}
	}
}

// families are both when none is named.
func (s *BGPPeerSpec) families(r *resolver) (v4, v6 bool) {
	if len(s.Families) == 0 {
		return true, true
	}
	for i, f := range s.Families {
		switch f {
		case "ipv4":
			v4 = true
		case "ipv6":
			v6 = true
		default:
			r.bad(fmt.Sprintf("families[%d]", i), "%q is neither ipv4 nor ipv6", f)
		}
	}
	return v4, v6
}

// Resolve checks what is advertised. prefix goes before the names of fields in errors.
func (s *BGPAdvertiseSpec) Resolve(prefix string) (BGPAdvertise, []FieldError) {
	r := resolver{}
	out := BGPAdvertise{
		PodCIDRs: s.PodCIDRs, LoadBalancer: s.LoadBalancer, ExternalIPs: s.ExternalIPs, ClusterIPs: s.ClusterIPs,
		LocalPreference: s.LocalPreference, MED: s.MED,
	}
	for i, text := range s.Communities {
		n, err := numbers(text, 2, 16)
		if err != nil {
			r.bad(fmt.Sprintf("%scommunities[%d]", prefix, i), "%q is not a community such as 64512:100", text)
			continue
		}
		out.Communities = append(out.Communities, Community(n[0]<<16|n[1]))
	}
	for i, text := range s.LargeCommunities {
		n, err := numbers(text, 3, 32)
		if err != nil {
			r.bad(fmt.Sprintf("%slargeCommunities[%d]", prefix, i), "%q is not a large community such as 64512:1:100", text)
			continue
		}
		out.LargeCommunities = append(out.LargeCommunities, LargeCommunity(n))
	}
	slices.Sort(out.Communities)
	out.Communities = slices.Compact(out.Communities)
	return out, r.errs
}

// numbers reads a list of numbers with colons between them.
func numbers(text string, count, bits int) ([]uint32, error) {
	parts := strings.Split(text, ":")
	if len(parts) != count {
		return nil, errors.New("wrong number of parts")
	}
	var out []uint32
	for _, part := range parts {
		n, err := strconv.ParseUint(part, 10, bits)
		if err != nil {
			return nil, err
		}
		out = append(out, uint32(n))
	}
	return out, nil
}

// resolver gathers what is wrong.
type resolver struct{ errs []FieldError }

func (r *resolver) bad(field, format string, args ...any) {
	r.errs = append(r.errs, FieldError{field, fmt.Errorf(format, args...)})
}

func (r *resolver) addr(field, text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil || a.Zone() != "":
		r.bad(field, "%q is not an IPv4 or IPv6 address", text)
	case a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast():
		r.bad(field, "%s is a link-local, multicast or unspecified address; give one of a single machine", a)
	}
	return a.Unmap()
}

func (r *resolver) rules(field string, specs []PrefixRuleSpec) (out []PrefixRule) {
	for i, s := range specs {
		at := fmt.Sprintf("%s[%d]", field, i)
		p, err := netip.ParsePrefix(s.Prefix)
		if err != nil {
			r.bad(at+".prefix", "%q is not a range of addresses such as 192.0.2.0/24", s.Prefix)
			continue
		}
		rule := PrefixRule{Prefix: p.Masked(), GE: s.GE, LE: s.LE, Reject: s.Action == "reject"}
		switch {
		case s.GE == 0 && s.LE == 0:
			rule.GE, rule.LE = p.Bits(), p.Bits()
		case s.GE == 0:
			rule.GE = p.Bits()
		case s.LE == 0:
			rule.LE = p.Addr().BitLen()
		}
		if rule.GE < p.Bits() || rule.LE < rule.GE || rule.LE > p.Addr().BitLen() {
			r.bad(at, "ge %d and le %d must be in order and from %d to %d", rule.GE, rule.LE, p.Bits(), p.Addr().BitLen())
		}
		if s.Action != "" && s.Action != "accept" && s.Action != "reject" {
			r.bad(at+".action", "%q is neither accept nor reject", s.Action)
		}
		out = append(out, rule)
	}
	return out
}

func orElse[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}
