package gobgp

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"weft.network/weft/appliance/compile/peering"
	"weft.network/weft/appliance/model"
)

var (
	familyIPv4 = &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
	familyIPv6 = &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
)

func familyOf(p netip.Prefix) *api.Family {
	if p.Addr().Is4() {
		return familyIPv4
	}
	return familyIPv6
}

// buildGlobal describes the speaker itself.
func buildGlobal(g global, ipv6 bool) *api.Global {
	out := &api.Global{Asn: g.asn, RouterId: g.routerID.String(), ListenPort: -1}
	if g.port > 0 {
		out.ListenPort = int32(g.port)
		out.ListenAddresses = []string{"0.0.0.0"}
		if ipv6 {
			out.ListenAddresses = append(out.ListenAddresses, "::")
		}
	}
	return out
}

// Seconds of graceful restart that no protocol field tells: how long a restarted speaker waits for all peers before it speaks, and
// how long routes of a peer that is back may stay unconfirmed.
const (
	deferral  = 5
	staleTime = 300
)

// buildPeer describes one session. restarting asks the peer to keep the routes that an earlier speaker of this node told it.
func buildPeer(n *peering.Neighbour, restarting bool) *api.Peer {
	p := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: n.Address.String(), PeerAsn: n.ASN, LocalAsn: n.LocalASN, AuthPassword: n.Password, Description: n.Name,
		},
		Transport: &api.Transport{RemotePort: uint32(n.Port), PassiveMode: n.Passive},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: uint64(n.HoldSeconds), KeepaliveInterval: uint64(n.KeepaliveSeconds), ConnectRetry: uint64(n.ConnectRetrySeconds),
			IdleHoldTimeAfterReset: uint64(min(n.ConnectRetrySeconds, 5)),
		}},
	}
	if n.Source.IsValid() {
		p.Transport.LocalAddress = n.Source.String()
	}
	if n.MultihopTTL > 0 && !n.Internal() {
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(n.MultihopTTL)}
	}
	if n.TTLSecurityHops > 0 {
		p.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 256 - uint32(n.TTLSecurityHops)}
	}
	if n.ReflectorClient {
		p.RouteReflector = &api.RouteReflector{RouteReflectorClient: true}
		if n.ClusterID.IsValid() {
			p.RouteReflector.RouteReflectorClusterId = n.ClusterID.String()
		}
	}
	if n.RestartSeconds > 0 {
		p.GracefulRestart = &api.GracefulRestart{
			Enabled: true, RestartTime: n.RestartSeconds, DeferralTime: deferral, StaleRoutesTime: staleTime, LocalRestarting: restarting,
		}
	}
	if n.IPv4 {
		p.AfiSafis = append(p.AfiSafis, buildFamily(n, familyIPv4))
	}
	if n.IPv6 {
		p.AfiSafis = append(p.AfiSafis, buildFamily(n, familyIPv6))
	}
	return p
}

func buildFamily(n *peering.Neighbour, f *api.Family) *api.AfiSafi {
	out := &api.AfiSafi{Config: &api.AfiSafiConfig{Family: f, Enabled: true}}
	if n.RestartSeconds > 0 {
		out.MpGracefulRestart = &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}}
	}
	if n.MaxPrefixes > 0 {
		out.PrefixLimits = &api.PrefixLimit{Family: f, MaxPrefixes: n.MaxPrefixes}
	}
	return out
}

// buildPath describes one route of ours. Each group that is told has its mark on the path; the mark never leaves the node.
func buildPath(p *peering.Path) *api.Path {
	nextHop := p.NextHop
	if !nextHop.IsValid() {
		nextHop = netip.IPv6Unspecified()
		if p.Prefix.Addr().Is4() {
			nextHop = netip.IPv4Unspecified()
		}
	}
	nlri := pack(&api.IPAddressPrefix{Prefix: p.Prefix.Addr().String(), PrefixLen: uint32(p.Prefix.Bits())})
	marks := &api.LargeCommunitiesAttribute{}
	for _, g := range p.Groups {
		m := markOf(g)
		marks.Communities = append(marks.Communities, &api.LargeCommunity{GlobalAdmin: m[0], LocalData1: m[1], LocalData2: m[2]})
	}
	attrs := []*anypb.Any{pack(&api.OriginAttribute{Origin: 0})}
	if p.Prefix.Addr().Is4() {
		attrs = append(attrs, pack(&api.NextHopAttribute{NextHop: nextHop.String()}))
	} else {
		attrs = append(attrs, pack(&api.MpReachNLRIAttribute{Family: familyIPv6, NextHops: []string{nextHop.String()}, Nlris: []*anypb.Any{nlri}}))
	}
	return &api.Path{Family: familyOf(p.Prefix), Nlri: nlri, Pattrs: append(attrs, pack(marks))}
}

// pack cannot fail: the messages are our own, and complete.
func pack(m proto.Message) *anypb.Any {
	out, err := anypb.New(m)
	if err != nil {
		panic(fmt.Sprintf("packing %T: %v", m, err))
	}
	return out
}

// markOf is the large community that stands for a group inside this speaker; "reserved" AS 4294967295 keeps it apart from others' (RFC 7300).
func markOf(group string) model.LargeCommunity {
	sum := sha256.Sum256([]byte("weft group " + group))
	return model.LargeCommunity{4294967295, binary.BigEndian.Uint32(sum[:4]), binary.BigEndian.Uint32(sum[4:8])}
}

// Policies are per group for what is told, and per set of import rules for what is taken. Both name their neighbours in a set, so that
// a neighbour that comes or goes changes that set only. Without a policy the answer is no.

// policy is one of them with all that it refers to, except for the set of neighbours.
type policy struct {
	name      string
	direction api.PolicyDirection
	sets      []*api.DefinedSet
	policy    *api.Policy
}

func neighboursOf(policy string) string { return policy + " neighbours" }

func accept() *api.Actions { return &api.Actions{RouteAction: api.RouteAction_ACCEPT} }

// exportPolicy tells a group what is marked for it: with the session's own address as next hop where that is of the route's family, and with
// the group's own communities in the place of the marks.
func exportPolicy(g *peering.Group) policy {
	out := policy{name: "export " + g.Name, direction: api.PolicyDirection_EXPORT}
	mark := out.name + " mark"
	out.sets = []*api.DefinedSet{{DefinedType: api.DefinedType_LARGE_COMMUNITY, Name: mark, List: []string{"^" + markOf(g.Name).String() + "$"}}}
	conditions := func(f *api.Family) *api.Conditions {
		return &api.Conditions{
			NeighborSet:       &api.MatchSet{Name: neighboursOf(out.name)},
			LargeCommunitySet: &api.MatchSet{Name: mark},
			AfiSafiIn:         []*api.Family{f},
		}
	}
	actions := func() *api.Actions {
		a := accept()
		var communities, large []string
		for _, c := range g.Communities {
			communities = append(communities, c.String())
		}
		for _, c := range g.LargeCommunities {
			large = append(large, c.String())
		}
		if communities != nil {
			a.Community = &api.CommunityAction{Type: api.CommunityAction_REPLACE, Communities: communities}
		}
		a.LargeCommunity = &api.CommunityAction{Type: api.CommunityAction_REPLACE, Communities: large}
		if g.LocalPreference != nil {
			a.LocalPref = &api.LocalPrefAction{Value: *g.LocalPreference}
		}
		if g.MED != nil {
			a.Med = &api.MedAction{Type: api.MedAction_REPLACE, Value: int64(*g.MED)}
		}
		return a
	}
	same, other := familyIPv4, familyIPv6
	if g.IPv6 {
		same, other = other, same
	}
	self := actions()
	self.Nexthop = &api.NexthopAction{Self: true}
	statements := []*api.Statement{
		{Name: out.name + " own family", Conditions: conditions(same), Actions: self},
		{Name: out.name + " other family", Conditions: conditions(other), Actions: actions()},
	}
	if g.Reflect {
		statements = append(statements, &api.Statement{Name: out.name + " reflected", Actions: accept(), Conditions: &api.Conditions{
			NeighborSet: &api.MatchSet{Name: neighboursOf(out.name)}, RouteType: api.Conditions_ROUTE_TYPE_INTERNAL,
		}})
	}
	out.policy = &api.Policy{Name: out.name, Statements: statements}
	return out
}

// importPolicy takes what the rules allow. Rules of one kind that follow each other are one set, in which order does not matter.
func importPolicy(rules []model.PrefixRule) policy {
	out := policy{name: importName(rules), direction: api.PolicyDirection_IMPORT}
	out.policy = &api.Policy{Name: out.name}
	for start := 0; start < len(rules); {
		end := start
		sets := map[bool]*api.DefinedSet{}
		for ; end < len(rules) && rules[end].Reject == rules[start].Reject; end++ {
			r := rules[end]
			is4 := r.Prefix.Addr().Is4()
			if sets[is4] == nil { // gobgp refuses a set of both families
				sets[is4] = &api.DefinedSet{DefinedType: api.DefinedType_PREFIX, Name: fmt.Sprintf("%s rule %d %v", out.name, start, is4)}
			}
			sets[is4].Prefixes = append(sets[is4].Prefixes, &api.Prefix{
				IpPrefix: r.Prefix.String(), MaskLengthMin: uint32(r.GE), MaskLengthMax: uint32(r.LE),
			})
		}
		for _, is4 := range []bool{true, false} {
			set := sets[is4]
			if set == nil {
				continue
			}
			actions := accept()
			if rules[start].Reject {
				actions.RouteAction = api.RouteAction_REJECT
			}
			out.sets = append(out.sets, set)
			out.policy.Statements = append(out.policy.Statements, &api.Statement{Name: set.Name, Actions: actions, Conditions: &api.Conditions{
				NeighborSet: &api.MatchSet{Name: neighboursOf(out.name)}, PrefixSet: &api.MatchSet{Name: set.Name},
			}})
		}
		start = end
	}
	return out
}

// importName is empty for a neighbour from whom nothing is taken.
func importName(rules []model.PrefixRule) string {
	if len(rules) == 0 {
		return ""
	}
	sum := sha256.Sum256(fmt.Append(nil, rules))
	return "import " + hex.EncodeToString(sum[:8])
}

// neighbourSet names members of the set of a policy.
func neighbourSet(policy string, members []netip.Addr) *api.DefinedSet {
	out := &api.DefinedSet{DefinedType: api.DefinedType_NEIGHBOR, Name: neighboursOf(policy)}
	for _, m := range members {
		out.List = append(out.List, netip.PrefixFrom(m, m.BitLen()).String())
	}
	return out
}

// stateName turns SESSION_STATE names into the words of RFC 4271.
func stateName(s api.PeerState_SessionState) string {
	switch s {
	case api.PeerState_OPENSENT:
		return "OpenSent"
	case api.PeerState_OPENCONFIRM:
		return "OpenConfirm"
	}
	name := s.String()
	return name[:1] + strings.ToLower(name[1:])
}
