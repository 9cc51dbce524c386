package gobgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"google.golang.org/protobuf/types/known/anypb"

	"weft.network/weft/appliance/compile/peering"
	"weft.network/weft/appliance/model"
)

// Session is one session as it is now.
type Session struct {
	Neighbour peering.Neighbour
	// State is one of Idle, Connect, Active, OpenSent, OpenConfirm, Established.
	State string
	// Since is when it became established; zero when it is not.
	Since        time.Time
	LocalAddress netip.Addr
	RouterID     netip.Addr
	HoldSeconds  uint64
	// Families are those that both ends speak.
	Families []string
	// RestartSeconds is what the peer asks for as its own restart time; Restart says whether both ends do graceful restart.
	Restart        bool
	RestartSeconds uint32
	Received       uint64
	Accepted       uint64
	Advertised     uint64
	// Ended is how often an established session has ended.
	Ended uint64
	// LastError says why there is no session.
	LastError string
}

// Detail is a route with its attributes.
type Detail struct {
	Prefix           netip.Prefix `json:"prefix"`
	NextHop          netip.Addr   `json:"nextHop"`
	Neighbour        netip.Addr   `json:"neighbour,omitzero"` // invalid for our own
	ASPath           []uint32     `json:"asPath,omitempty"`
	Communities      []string     `json:"communities,omitempty"`
	LargeCommunities []string     `json:"largeCommunities,omitempty"`
	LocalPreference  *uint32      `json:"localPreference,omitempty"`
	MED              *uint32      `json:"med,omitempty"`
	// Filtered is true for a route that no import rule takes.
	Filtered bool `json:"filtered,omitempty"`
	// Stale is true for a route of a peer that restarts.
	Stale bool `json:"stale,omitempty"`
}

// errOff is returned when there is no speaker to ask.
var errOff = errors.New("the BGP speaker is off: no peer is configured for this node")

// ask calls f with the running server. gobgp's own calls do not look at a context, so a stuck server is left behind.
func (s *Server) ask(ctx context.Context, f func(*server.BgpServer) error) error {
	bgp := s.running.Load()
	if bgp == nil {
		return errOff
	}
	if why := s.state.broken(); why != "" {
		return fmt.Errorf("the BGP speaker has failed: %s", why)
	}
	done := make(chan error, 1)
	go func() { done <- f(bgp) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("asking the BGP speaker: %w", ctx.Err())
	}
}

// Failure says what went wrong inside the speaker; empty when nothing did.
func (s *Server) Failure() string { return s.state.broken() }

// Routes returns the best routes that neighbours told us, sorted.
func (s *Server) Routes() []Route {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	out := make([]Route, 0, len(s.state.learned))
	for _, r := range s.state.learned {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Route) int { return comparePrefix(a.Prefix, b.Prefix) })
	return out
}

// Sessions returns the sessions sorted by address. Counting what each peer was told costs time, and is done only on request.
func (s *Server) Sessions(ctx context.Context, advertised bool) ([]Session, error) {
	var out []Session
	err := s.ask(ctx, func(bgp *server.BgpServer) error {
		return bgp.ListPeer(ctx, &api.ListPeerRequest{EnableAdvertised: advertised}, func(p *api.Peer) {
			if session, ok := s.session(p); ok {
				out = append(out, session)
			}
		})
	})
	if err != nil {
		return nil, err
	}
	for i := range out {
		if err := s.accepted(ctx, &out[i]); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b Session) int { return a.Neighbour.Address.Compare(b.Neighbour.Address) })
	return out, nil
}

// accepted counts the routes that the import rules take: gobgp's own number is of those that came in. Where the rules are clear
// without a look at each route, there is none.
func (s *Server) accepted(ctx context.Context, session *Session) error {
	if session.Neighbour.Mesh || session.Received == 0 {
		return nil
	}
	session.Accepted = 0
	if len(session.Neighbour.Import) == 0 {
		return nil
	}
	routes, err := s.Received(ctx, session.Neighbour.Address)
	for i := range routes {
		if !routes[i].Filtered {
			session.Accepted++
		}
	}
	return err
}

func (s *Server) session(p *api.Peer) (Session, bool) {
	address, err := netip.ParseAddr(p.Conf.NeighborAddress)
	if err != nil {
		return Session{}, false
	}
	out := Session{State: stateName(p.State.SessionState)}
	out.Neighbour.Address = address
	if known := s.neighbours.Load(); known != nil {
		if n, ok := (*known)[address]; ok {
			out.Neighbour = n
		}
	}
	out.LastError, out.Ended = s.state.of(address)
	for _, f := range p.AfiSafis {
		if st := f.State; st != nil {
			out.Received += st.Received
			out.Accepted += st.Accepted
			out.Advertised += st.Advertised
		}
	}
	if p.State.AdminState != api.PeerState_UP { // nothing else closes a session
		out.LastError = fmt.Sprintf("the peer sent more than maxPrefixes (%d): the session stays down until the peer is changed, or removed and added", out.Neighbour.MaxPrefixes)
	}
	if p.State.SessionState != api.PeerState_ESTABLISHED {
		return out, true
	}
	out.LastError = ""
	if t := p.Timers.GetState(); t != nil {
		out.HoldSeconds = t.NegotiatedHoldTime
		out.Since = t.Uptime.AsTime()
	}
	out.LocalAddress, _ = netip.ParseAddr(p.Transport.GetLocalAddress())
	out.RouterID, _ = netip.ParseAddr(p.State.RouterId)
	out.capabilities(p)
	if out.Restart { // gobgp counts the End-of-RIB marker of each family
		out.Advertised -= min(out.Advertised, uint64(len(p.AfiSafis)))
	}
	return out, true
}

// capabilities reads what both ends have said of themselves.
func (s *Session) capabilities(p *api.Peer) {
	var peerRestart *api.GracefulRestartCapability
	theirs := map[api.Family_Afi]bool{}
	for _, c := range p.State.RemoteCap {
		switch m := unpack(c).(type) {
		case *api.MultiProtocolCapability:
			if m.Family.Safi == api.Family_SAFI_UNICAST {
				theirs[m.Family.Afi] = true
			}
		case *api.GracefulRestartCapability:
			peerRestart = m
		}
	}
	if s.Neighbour.IPv4 && theirs[api.Family_AFI_IP] {
		s.Families = append(s.Families, "ipv4")
	}
	if s.Neighbour.IPv6 && theirs[api.Family_AFI_IP6] {
		s.Families = append(s.Families, "ipv6")
	}
	if peerRestart != nil && s.Neighbour.RestartSeconds > 0 {
		s.Restart, s.RestartSeconds = true, peerRestart.Time
	}
}

// Received returns what a neighbour has told us, with what the import rules did not take.
func (s *Server) Received(ctx context.Context, neighbour netip.Addr) ([]Detail, error) {
	return s.list(ctx, api.TableType_ADJ_IN, neighbour)
}

// Advertised returns what a neighbour was told.
func (s *Server) Advertised(ctx context.Context, neighbour netip.Addr) ([]Detail, error) {
	return s.list(ctx, api.TableType_ADJ_OUT, neighbour)
}

func (s *Server) list(ctx context.Context, table api.TableType, neighbour netip.Addr) ([]Detail, error) {
	var out []Detail
	for _, f := range []*api.Family{familyIPv4, familyIPv6} {
		request := &api.ListPathRequest{TableType: table, Family: f, Name: neighbour.String(), EnableFiltered: table == api.TableType_ADJ_IN}
		err := s.ask(ctx, func(bgp *server.BgpServer) error {
			return bgp.ListPath(ctx, request, func(d *api.Destination) {
				for _, p := range d.Paths {
					if detail, ok := readPath(p); ok && !(table == api.TableType_ADJ_OUT && p.Filtered) {
						out = append(out, detail)
					}
				}
			})
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b Detail) int {
		return cmp.Or(comparePrefix(a.Prefix, b.Prefix), a.NextHop.Compare(b.NextHop))
	})
	return out, nil
}

// readPath turns a path of gobgp into ours; ok is false for one that is no plain IPv4 or IPv6 route.
func readPath(p *api.Path) (d Detail, ok bool) {
	nlri, isPrefix := unpack(p.GetNlri()).(*api.IPAddressPrefix)
	if !isPrefix {
		return d, false
	}
	address, err := netip.ParseAddr(nlri.Prefix)
	if err != nil {
		return d, false
	}
	d.Prefix = netip.PrefixFrom(address, int(nlri.PrefixLen))
	d.Neighbour, _ = netip.ParseAddr(p.NeighborIp)
	d.Filtered, d.Stale = p.Filtered, p.Stale
	for _, a := range p.Pattrs {
		switch m := unpack(a).(type) {
		case *api.NextHopAttribute:
			d.NextHop, _ = netip.ParseAddr(m.NextHop)
		case *api.MpReachNLRIAttribute:
			if len(m.NextHops) > 0 {
				d.NextHop, _ = netip.ParseAddr(m.NextHops[0])
			}
		case *api.AsPathAttribute:
			for _, segment := range m.Segments {
				d.ASPath = append(d.ASPath, segment.Numbers...)
			}
		case *api.CommunitiesAttribute:
			for _, c := range m.Communities {
				d.Communities = append(d.Communities, model.Community(c).String())
			}
		case *api.LargeCommunitiesAttribute:
			for _, c := range m.Communities {
				d.LargeCommunities = append(d.LargeCommunities, model.LargeCommunity{c.GlobalAdmin, c.LocalData1, c.LocalData2}.String())
			}
		case *api.LocalPrefAttribute:
			d.LocalPreference = &m.LocalPref
		case *api.MultiExitDiscAttribute:
			d.MED = &m.Med
		}
	}
	return d, true
}

func unpack(a *anypb.Any) any {
	if a == nil {
		return nil
	}
	m, err := a.UnmarshalNew()
	if err != nil {
		return nil
	}
	return m
}
