// Package gobgp carries the BGP speaker: it owns one gobgp server and brings it to what compile/peering asks for.
package gobgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/peering"
)

// Options are for the whole life of a Server.
type Options struct {
	Log *zap.Logger
	// Restarting is true when the kernel still forwards as an earlier speaker of this boot has told its peers: they are then asked
	// to keep what they know (RFC 4724).
	Restarting bool
	// OnChange is called soon after learned routes or the state of a session have changed, never twice at once.
	OnChange func()
}

// Server is the speaker. It is off until something is applied that has neighbours; then it listens and connects.
type Server struct {
	options Options

	applying sync.Mutex // one Apply or Close at a time; guards what follows
	bgp      *server.BgpServer
	stop     context.CancelFunc // of the watches
	have     applied
	// restarting holds until the first Apply that starts a server.
	restarting bool
	started    time.Time

	// running and neighbours are for those who only ask.
	running    atomic.Pointer[server.BgpServer]
	neighbours atomic.Pointer[map[netip.Addr]peering.Neighbour]
	state      state
}

// applied is what the running server was given.
type applied struct {
	global     global
	neighbours map[netip.Addr]peering.Neighbour
	groups     map[string]peering.Group
	members    map[string][]netip.Addr // neighbours by policy
	paths      map[netip.Prefix]appliedPath
}

// global is what cannot be changed without ending all sessions.
type global struct {
	asn      uint32
	routerID netip.Addr
	port     uint16
}

type appliedPath struct {
	path peering.Path
	sent *api.Path
}

// restartPause is the time between a failure inside gobgp and the next speaker.
const restartPause = 10 * time.Second

// New returns a server that is off.
func New(o Options) *Server {
	s := &Server{options: o, restarting: o.Restarting}
	s.state.init(o.OnChange)
	return s
}

// Apply brings the speaker to what is wanted and returns what it changed, a line each. Sessions whose neighbour did not change stay as they are.
// What cannot be done does not hold up the rest. Applied a second time it changes nothing.
func (s *Server) Apply(ctx context.Context, want peering.Speaker) (changes []string, err error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if why := s.state.broken(); why != "" && s.bgp != nil {
		s.end(true)
		changes = append(changes, "the speaker was stopped after a failure: "+why)
	}
	a := apply{s: s, ctx: ctx, want: want, changes: changes}
	g := global{want.ASN, want.RouterID, want.Port}
	switch {
	case len(want.Neighbours) == 0:
		if s.bgp != nil {
			s.end(false)
			a.say("the speaker was switched off")
		}
		return a.changes, nil
	case s.bgp != nil && s.have.global != g:
		s.end(false)
		a.say("the speaker starts anew: AS number, router ID or port have changed")
	}
	if s.bgp == nil {
		if why := s.state.broken(); why != "" && time.Since(s.started) < restartPause {
			return a.changes, fmt.Errorf("the BGP speaker failed (%s) and starts again in %s", why, restartPause)
		}
		if err := s.start(ctx, g); err != nil {
			return a.changes, err
		}
		a.say("the speaker was started: AS %d, router ID %s, port %d", g.asn, g.routerID, g.port)
	}
	if !s.guarded(a.run) {
		return nil, fmt.Errorf("the BGP speaker has failed: %s", s.state.broken())
	}
	known := maps.Clone(s.have.neighbours)
	s.neighbours.Store(&known)
	s.restarting = false
	return a.changes, errors.Join(a.errs...)
}

// guarded runs f, and leaves it behind when gobgp fails under it and does not answer any more.
func (s *Server) guarded(f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return true
	case <-s.state.breaks():
	}
	timer := time.NewTimer(stopWait)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// start makes a server that listens, without neighbours.
func (s *Server) start(ctx context.Context, g global) error {
	s.started = time.Now()
	s.state.reset()
	bgp := server.NewBgpServer(server.LoggerOption(&logger{zap: s.options.Log, state: &s.state}))
	go bgp.Serve()
	if err := bgp.StartBgp(ctx, &api.StartBgpRequest{Global: buildGlobal(g, hasIPv6())}); err != nil {
		_ = bgp.StopBgp(ctx, &api.StopBgpRequest{}) // it may listen in one family
		return fmt.Errorf("starting the BGP speaker on port %d: %w", g.port, err)
	}
	for _, direction := range []api.PolicyDirection{api.PolicyDirection_IMPORT, api.PolicyDirection_EXPORT} {
		if err := setDefault(ctx, bgp, direction); err != nil {
			_ = bgp.StopBgp(ctx, &api.StopBgpRequest{})
			return fmt.Errorf("starting the BGP speaker: %w", err)
		}
	}
	watch, stop := context.WithCancel(context.Background())
	if err := s.state.follow(watch, bgp, func() { s.closeOver(watch, bgp) }); err != nil {
		stop()
		_ = bgp.StopBgp(ctx, &api.StopBgpRequest{})
		return fmt.Errorf("watching the BGP speaker: %w", err)
	}
	s.bgp, s.stop = bgp, stop
	s.running.Store(bgp)
	s.have = applied{
		global: g, neighbours: map[netip.Addr]peering.Neighbour{}, groups: map[string]peering.Group{},
		members: map[string][]netip.Addr{}, paths: map[netip.Prefix]appliedPath{},
	}
	return nil
}

// closeOver closes the sessions whose peers told more than maxPrefixes, until their neighbour is changed. gobgp does so itself, but takes it for
// a restart and keeps the routes when the peer is quick to close the connection (established in fsm.go).
func (s *Server) closeOver(ctx context.Context, bgp *server.BgpServer) {
	s.applying.Lock()
	defer s.applying.Unlock()
	if s.bgp != bgp || s.state.broken() != "" {
		return
	}
	var over []netip.Addr
	s.guarded(func() {
		err := bgp.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
			if address, err := netip.ParseAddr(p.Conf.NeighborAddress); err == nil && tooMany(p) {
				over = append(over, address)
			}
		})
		for _, address := range over {
			n := s.have.neighbours[address]
			closed := buildPeer(&n, false)
			closed.Conf.AdminDown = true
			err = errors.Join(err, bgp.DeletePeer(ctx, &api.DeletePeerRequest{Address: address.String()}))
			if failed := bgp.AddPeer(ctx, &api.AddPeerRequest{Peer: closed}); failed != nil {
				err = errors.Join(err, failed)
				delete(s.have.neighbours, address) // the next Apply adds it
			}
		}
		if err != nil {
			s.options.Log.Error("closing sessions with too many routes", zap.Error(err))
		}
	})
}

// stopWait bounds the end of a speaker that may be stuck.
const stopWait = 5 * time.Second

// end stops the server and tells all peers. A server that has failed may not answer any more: its sockets are then closed under it.
func (s *Server) end(failed bool) {
	bgp, port := s.bgp, s.have.global.port
	s.stop()
	s.bgp, s.have = nil, applied{}
	s.running.Store(nil)
	done := make(chan struct{})
	go func() {
		_ = bgp.StopBgp(context.Background(), &api.StopBgpRequest{})
		close(done)
	}()
	timer := time.NewTimer(stopWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		s.options.Log.Error("the BGP speaker does not stop; closing its sockets", zap.Bool("failed", failed), zap.Int("sockets", shutdownSockets(port)))
	}
	s.state.forget()
}

// Close ends the watches and leaves the sessions to the end of the process: the kernel closes them without a word to the peers, which then
// keep our routes for the restart time. Stopping for good is Apply with the zero Speaker.
func (s *Server) Close() {
	s.applying.Lock()
	defer s.applying.Unlock()
	if s.bgp != nil {
		s.stop()
	}
}

// hasIPv6 reports whether the kernel has IPv6 at all.
func hasIPv6() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
}

// apply is one run of Apply on a running server.
type apply struct {
	s       *Server
	ctx     context.Context
	want    peering.Speaker
	changes []string
	errs    []error
}

func (a *apply) say(format string, args ...any) {
	a.changes = append(a.changes, fmt.Sprintf(format, args...))
}

func (a *apply) check(err error, format string, args ...any) bool {
	if err != nil {
		a.errs = append(a.errs, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err))
	}
	return err == nil
}

// run compares and changes. Policies come before what they decide about, and go after it; paths are complete before a session
// that restarts says so.
func (a *apply) run() {
	wanted := map[netip.Addr]peering.Neighbour{}
	for _, n := range a.want.Neighbours {
		wanted[n.Address] = n
	}
	for _, address := range sortedKeys(a.s.have.neighbours, netip.Addr.Compare) {
		old := a.s.have.neighbours[address]
		if n, ok := wanted[address]; !ok || !sameSession(old, n) {
			a.removePeer(old)
		}
	}
	moved := a.policies()
	a.paths()
	for _, n := range a.want.Neighbours {
		if _, ok := a.s.have.neighbours[n.Address]; !ok {
			a.addPeer(n)
			continue
		}
		a.s.have.neighbours[n.Address] = n
	}
	a.stalePolicies()
	for _, address := range moved {
		a.refresh(address)
	}
}

// sameSession reports whether one can become the other without a new session.
func sameSession(a, b peering.Neighbour) bool {
	a.Group, b.Group, a.Import, b.Import, a.Name, b.Name, a.Mesh, b.Mesh = "", "", nil, nil, "", "", false, false
	return reflect.DeepEqual(a, b)
}

func (a *apply) removePeer(n peering.Neighbour) {
	err := a.s.bgp.DeletePeer(a.ctx, &api.DeletePeerRequest{Address: n.Address.String()})
	if !a.check(err, "removing the session with %s", n.Address) {
		return
	}
	if n.Password != "" { // gobgp leaves the key on the listening socket, which then refuses connections without one
		clearMD5(a.s.have.global.port, n.Address)
	}
	delete(a.s.have.neighbours, n.Address)
	a.s.state.remove(n.Address)
	a.say("session with %s (%s) removed", n.Address, n.Name)
}

func (a *apply) addPeer(n peering.Neighbour) {
	a.s.state.add(n.Address)
	err := a.s.bgp.AddPeer(a.ctx, &api.AddPeerRequest{Peer: buildPeer(&n, a.s.restarting)})
	if !a.check(err, "adding the session with %s", n.Address) {
		return
	}
	a.s.have.neighbours[n.Address] = n
	a.say("session with %s (%s, AS %d) added", n.Address, n.Name, n.ASN)
}

// paths adds, replaces and withdraws what this node tells.
func (a *apply) paths() {
	have := a.s.have.paths
	wanted := make(map[netip.Prefix]bool, len(a.want.Paths))
	var added, removed []string
	for _, p := range a.want.Paths {
		wanted[p.Prefix] = true
		old, ok := have[p.Prefix]
		if ok && old.path.NextHop == p.NextHop && slices.Equal(old.path.Groups, p.Groups) {
			have[p.Prefix] = appliedPath{p, old.sent}
			continue
		}
		built := buildPath(&p)
		if _, err := a.s.bgp.AddPath(a.ctx, &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: built}); a.check(err, "telling %s", p.Prefix) {
			have[p.Prefix] = appliedPath{p, built}
			added = append(added, p.Prefix.String())
		}
	}
	for _, prefix := range sortedKeys(have, comparePrefix) {
		if wanted[prefix] {
			continue
		}
		err := a.s.bgp.DeletePath(a.ctx, &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Path: have[prefix].sent})
		if a.check(err, "withdrawing %s", prefix) {
			delete(have, prefix)
			removed = append(removed, prefix.String())
		}
	}
	a.summarise("told", added)
	a.summarise("withdrawn", removed)
}

func (a *apply) summarise(verb string, prefixes []string) {
	const most = 5
	switch n := len(prefixes); {
	case n > most:
		a.say("%d routes %s: %v …", n, verb, prefixes[:most])
	case n > 0:
		a.say("routes %s: %v", verb, prefixes)
	}
}

// refresh applies changed policies to what was said already, both ways, without a new session.
func (a *apply) refresh(address netip.Addr) {
	err := a.s.bgp.ResetPeer(a.ctx, &api.ResetPeerRequest{Address: address.String(), Soft: true, Direction: api.ResetPeerRequest_BOTH})
	a.check(err, "applying new rules to the session with %s", address)
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func sortedKeys[K comparable, V any](m map[K]V, compare func(a, b K) int) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compare)
	return keys
}
