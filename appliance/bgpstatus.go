package appliance

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"weft.network/weft/appliance/compile/peering"
	"weft.network/weft/appliance/control"
	"weft.network/weft/embedded/gobgp"
)

// BGPStatus is the answer to GET /v1/bgp.
type BGPStatus struct {
	// On is false while nothing is configured: then there is no speaker and no open port.
	On       bool       `json:"on"`
	ASN      uint32     `json:"asn,omitempty"`
	RouterID netip.Addr `json:"routerID,omitzero"`
	Port     uint16     `json:"port,omitempty"`
	// Drained says why no address of a Service is told; empty when that is not so.
	Drained  string          `json:"drained,omitempty"`
	Error    string          `json:"error,omitempty"`
	Peers    []BGPPeerStatus `json:"peers"`
	Told     int             `json:"told"`
	Learned  int             `json:"learned"`
	Problems []string        `json:"problems"`
	// Starts counts the processes of the speaker since weftd started: more than one means that it crashed.
	Starts int `json:"starts,omitempty"`
	PID    int `json:"pid,omitempty"`
}

// BGPPeerStatus is one session, or a peer that has none.
type BGPPeerStatus struct {
	Name string `json:"name"`
	// Node is true for a session of the mesh.
	Node     bool       `json:"node,omitempty"`
	Address  netip.Addr `json:"address"`
	ASN      uint32     `json:"asn"`
	LocalASN uint32     `json:"localASN,omitempty"`
	// State is Refused, or one of Idle, Connect, Active, OpenSent, OpenConfirm, Established.
	State string `json:"state"`
	// Why says why the session is not established.
	Why      string     `json:"why,omitempty"`
	Since    time.Time  `json:"since,omitzero"`
	Source   netip.Addr `json:"source,omitzero"`
	RouterID netip.Addr `json:"routerID,omitzero"`
	Hold     uint64     `json:"holdSeconds,omitempty"`
	Families []string   `json:"families,omitempty"`
	Password bool       `json:"password,omitempty"`
	// GracefulRestart says what both ends agreed on.
	GracefulRestart string `json:"gracefulRestart,omitempty"`
	Received        uint64 `json:"received"`
	Accepted        uint64 `json:"accepted"`
	Advertised      uint64 `json:"advertised"`
	// Ended is how often an established session has ended.
	Ended uint64 `json:"ended"`
}

// BGPRoutes is the answer to GET /v1/bgp/routes.
type BGPRoutes struct {
	Told    []BGPTold        `json:"told"`
	Learned []BGPLearnedInfo `json:"learned"`
}

// BGPTold is a route of this node's own.
type BGPTold struct {
	Prefix netip.Prefix `json:"prefix"`
	For    string       `json:"for"`
	Peers  []string     `json:"peers"`
}

// BGPLearnedInfo is a route that a neighbour told, and what became of it.
type BGPLearnedInfo struct {
	Prefix  netip.Prefix `json:"prefix"`
	NextHop netip.Addr   `json:"nextHop"`
	// From is the peer's name; empty for a route that is kept from before a restart.
	From      string `json:"from,omitempty"`
	Installed bool   `json:"installed"`
}

// BGP says how the speaker is doing. counts adds how many routes each peer was told, which costs time.
func (d *Daemon) BGP(ctx context.Context, counts bool) BGPStatus {
	out := BGPStatus{Peers: []BGPPeerStatus{}, Problems: []string{}}
	if d.bgp == nil {
		out.Error = "the role bgp is off on this node (roles in weft.yaml)"
		return out
	}
	d.bgp.mu.Lock()
	s := d.bgp.speaker
	out.Error, out.Learned, out.Starts = d.bgp.err, len(d.bgp.learned), d.bgp.server.Starts()
	d.bgp.mu.Unlock()
	out.On, out.ASN, out.RouterID, out.Port, out.Drained, out.Told = len(s.Neighbours) > 0, s.ASN, s.RouterID, s.Port, s.Drained, len(s.Paths)
	out.Problems = append(out.Problems, s.Problems...)
	for _, r := range s.Refused {
		out.Peers = append(out.Peers, BGPPeerStatus{Name: r.Name, Address: r.Address, ASN: r.ASN, State: "Refused", Why: r.Why})
	}
	if !out.On {
		return out
	}
	out.PID = d.bgp.server.PID()
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	sessions, err := d.bgp.server.Sessions(ctx, counts)
	if err != nil && out.Error == "" {
		out.Error = err.Error()
	}
	for i := range sessions {
		out.Peers = append(out.Peers, peerOf(&sessions[i]))
	}
	slices.SortFunc(out.Peers, func(a, b BGPPeerStatus) int { return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Name, b.Name)) })
	return out
}

func peerOf(s *gobgp.Session) BGPPeerStatus {
	n := &s.Neighbour
	p := BGPPeerStatus{
		Name: n.Name, Node: n.Mesh, Address: n.Address, ASN: n.ASN, LocalASN: n.LocalASN, State: s.State, Why: s.LastError, Since: s.Since,
		Source: s.LocalAddress, RouterID: s.RouterID, Hold: s.HoldSeconds, Families: s.Families, Password: n.Password != "",
		Received: s.Received, Accepted: s.Accepted, Advertised: s.Advertised, Ended: s.Ended,
	}
	if s.State == established {
		switch {
		case n.RestartSeconds == 0:
			p.GracefulRestart = "off"
		case !s.Restart:
			p.GracefulRestart = "the peer does not do it"
		default:
			p.GracefulRestart = fmt.Sprintf("%d s, the peer %d s", n.RestartSeconds, s.RestartSeconds)
		}
		return p
	}
	if p.Why == "" {
		p.Why = noConnection(n)
	}
	return p
}

// established is the state of a session that works.
const established = "Established"

// noConnection says what a session without any message may lack.
func noConnection(n *peering.Neighbour) string {
	why := fmt.Sprintf("no connection to port %d yet: is the peer reachable, does it listen, and does it expect this node's address", n.Port)
	if n.Passive {
		why = "the peer has not connected yet"
	}
	if n.Password != "" {
		why += "; a wrong password looks the same"
	}
	return why
}

// bgpRoutes lists what this node tells, and what it was told.
func (d *Daemon) bgpRoutes() BGPRoutes {
	out := BGPRoutes{Told: []BGPTold{}, Learned: []BGPLearnedInfo{}}
	if d.bgp == nil {
		return out
	}
	d.bgp.mu.Lock()
	s, learned := d.bgp.speaker, d.bgp.learned
	d.bgp.mu.Unlock()
	members, names := map[string][]string{}, map[netip.Addr]string{}
	for _, n := range s.Neighbours {
		members[n.Group] = append(members[n.Group], n.Name)
		names[n.Address] = n.Name
	}
	for _, p := range s.Paths {
		told := BGPTold{Prefix: p.Prefix, For: p.Why, Peers: []string{}}
		for _, g := range p.Groups {
			told.Peers = append(told.Peers, members[g]...)
		}
		slices.Sort(told.Peers)
		out.Told = append(out.Told, told)
	}
	from := map[netip.Prefix]string{}
	for _, r := range d.bgp.server.Routes() {
		from[r.Prefix] = names[r.Neighbour]
	}
	installed := map[netip.Prefix]bool{}
	for _, r := range d.loop.Status().State.HostNet.Routes {
		installed[r.Dst] = true
	}
	for _, r := range learned {
		out.Learned = append(out.Learned, BGPLearnedInfo{Prefix: r.Prefix, NextHop: r.NextHop, From: from[r.Prefix], Installed: installed[r.Prefix]})
	}
	return out
}

// bgpHandlers add the part of the control socket that is about BGP.
func (d *Daemon) bgpHandlers(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/bgp", func(w http.ResponseWriter, r *http.Request) { control.WriteJSON(w, d.BGP(r.Context(), true)) })
	mux.HandleFunc("GET /v1/bgp/routes", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, d.bgpRoutes()) })
	mux.HandleFunc("GET /v1/bgp/advertised", d.servePeerRoutes((*gobgp.Speaker).Advertised))
	mux.HandleFunc("GET /v1/bgp/received", d.servePeerRoutes((*gobgp.Speaker).Received))
	mux.HandleFunc("POST /v1/bgp/drain", d.serveDrain)
}

// servePeerRoutes answers with the routes of one peer, which is named by its name or address.
func (d *Daemon) servePeerRoutes(list func(*gobgp.Speaker, context.Context, netip.Addr) ([]gobgp.Detail, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), askTime)
		defer cancel()
		name := r.URL.Query().Get("peer")
		address, err := d.bgpPeer(name)
		if err != nil {
			control.WriteError(w, http.StatusNotFound, err)
			return
		}
		routes, err := list(d.bgp.server, ctx, address)
		if err != nil {
			control.WriteError(w, http.StatusInternalServerError, err)
			return
		}
		if routes == nil {
			routes = []gobgp.Detail{}
		}
		control.WriteJSON(w, routes)
	}
}

// bgpPeer finds the neighbour with a name or an address.
func (d *Daemon) bgpPeer(name string) (netip.Addr, error) {
	if d.bgp != nil {
		d.bgp.mu.Lock()
		defer d.bgp.mu.Unlock()
		for _, n := range d.bgp.speaker.Neighbours {
			if n.Name == name || n.Address.String() == name {
				return n.Address, nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("this node has no BGP peer %q (weft bgp peers shows all)", name)
}

// DrainRequest asks to take the addresses of Services off this node, or to put them back.
type DrainRequest struct {
	Drain bool `json:"drain"`
}

func (d *Daemon) serveDrain(w http.ResponseWriter, r *http.Request) {
	var req DrainRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		control.WriteError(w, http.StatusBadRequest, fmt.Errorf("reading the request: %w", err))
		return
	}
	if d.bgp == nil {
		control.WriteError(w, http.StatusConflict, fmt.Errorf("the role bgp is off on node %s: there is nothing to drain", d.cfg.NodeName))
		return
	}
	if err := d.bgp.drain(r.Context(), req.Drain); err != nil {
		control.WriteError(w, http.StatusInternalServerError, err)
		return
	}
	control.WriteJSON(w, req)
}

// bgpWarnings are for the status screen.
func (d *Daemon) bgpWarnings(s *BGPStatus) (out []string) {
	if d.bgp == nil {
		return nil
	}
	out = append(out, s.Problems...)
	if s.Error != "" {
		out = append(out, "BGP: "+s.Error)
	}
	for _, p := range s.Peers {
		if p.State != established && p.State != "Refused" {
			out = append(out, fmt.Sprintf("BGP peer %s (%s) is %s: %s", p.Name, p.Address, p.State, p.Why))
		}
	}
	if s.Drained != "" && s.On {
		out = append(out, fmt.Sprintf("this node is drained (%s): BGP peers are told no addresses of Services", s.Drained))
	}
	return out
}
