package appliance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/peering"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/reconcile"
	"weft.network/weft/appliance/store"
	"weft.network/weft/embedded/gobgp"
)

// bgp is the role of that name: after each round of the loop the speaker is brought to what the picture asks for, and what its
// neighbours tell goes into the next round.
type bgp struct {
	d      *Daemon
	server *gobgp.Speaker
	// wake asks for a look although there was no round.
	wake chan struct{}
	// restarting is true when a daemon before this one has told neighbours routes in this boot.
	restarting bool
	// told are the Services that have had an Event about it; only apply uses it.
	told map[model.ServiceKey]*serviceTold

	mu       sync.Mutex
	settings config.BGP
	drained  bool
	speaker  peering.Speaker
	err      string // of the last Apply
	// held are the routes of the daemon before this one, until holdUntil or until all neighbours are back.
	held      []model.LearnedRoute
	holdUntil time.Time
	learned   []model.LearnedRoute // what the loop was given last
}

// The pace of the role.
const (
	// bgpRetry is the pause after a speaker that could not be brought to what it should be.
	bgpRetry = 2 * time.Second
	// bgpAudit is how often password files are read and the speaker is compared although nothing has changed.
	bgpAudit = 30 * time.Second
	// holdTime is how long routes of the daemon before this one stay while its neighbours are not back.
	holdTime = 120 * time.Second
	// holdSettle is how long neighbours that are back may take to tell what they know.
	holdSettle = 5 * time.Second
	// askTime bounds a question to the speaker.
	askTime = 10 * time.Second
)

// markerName is a file in the run directory that says: the speaker of this boot has told its neighbours routes, and the kernel
// still forwards them.
const markerName = "bgp"

func (d *Daemon) newBGP() (*bgp, error) {
	identity, err := d.store.Identity()
	if err != nil {
		return nil, err
	}
	b := &bgp{d: d, wake: make(chan struct{}, 1), settings: d.cfg.BGP, drained: identity.Drained}
	_, err = os.Stat(b.marker())
	b.restarting = err == nil
	if b.restarting {
		b.held, b.holdUntil = identity.Learned, time.Now().Add(holdTime)
		b.learned = b.held
	}
	b.server = gobgp.NewSpeaker(gobgp.SpeakerOptions{
		Options: gobgp.Options{Log: d.log.Named("bgp"), Restarting: b.restarting, OnChange: b.changed},
		Args:    []string{"--log-level", d.cfg.Log.Level, "--log-format", d.cfg.Log.Format},
	})
	return b, nil
}

func (b *bgp) marker() string { return filepath.Join(b.d.cfg.RunDir, markerName) }

// changed is called when learned routes or sessions have changed.
func (b *bgp) changed() {
	b.publish()
	b.kick()
}

func (b *bgp) kick() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// configure takes new settings.
func (b *bgp) configure(c config.BGP) {
	b.mu.Lock()
	b.settings = c
	b.mu.Unlock()
	b.kick()
}

// runBGP follows the rounds of the loop until ctx ends. The sessions then end with the process, without a word.
func (d *Daemon) runBGP(ctx context.Context) {
	if d.bgp == nil {
		return
	}
	defer d.bgp.server.Close()
	audit := time.NewTicker(bgpAudit)
	defer audit.Stop()
	settle := time.NewTicker(holdSettle) // by itself: where something changes all the time, a timer of each turn would never end
	defer settle.Stop()
	for {
		_, changed := d.rounds.Watch()
		var retry <-chan time.Time
		if err := d.bgp.apply(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("the BGP speaker is not as it should be; trying again", zap.Error(err), zap.Duration("in", bgpRetry))
			retry = time.After(bgpRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-d.bgp.wake:
		case <-retry:
		case <-audit.C:
		case <-settle.C:
			if d.bgp.holding() {
				d.bgp.release(ctx)
			}
		}
	}
}

// apply brings the speaker to the newest picture that the kernel has.
func (b *bgp) apply(ctx context.Context) error {
	snap := b.d.rounds.Get()
	if snap.Node(b.d.cfg.NodeName) == nil {
		return nil // not known yet, or not any more: an empty answer is more often a mistake than a wish
	}
	b.mu.Lock()
	cfg := b.config()
	b.mu.Unlock()
	want := peering.Compile(snap, cfg)
	if err := b.mark(len(want.Neighbours) > 0); err != nil {
		b.d.log.Warn("a restart of weftd will look like a failure to BGP neighbours", zap.Error(err))
	}
	if b.server.Failure() != "" { // what was learned stays until it is learned again
		b.mu.Lock()
		b.held, b.holdUntil = b.learned, time.Now().Add(holdTime)
		b.mu.Unlock()
	}
	changes, err := b.server.Apply(ctx, want)
	if len(changes) > 0 {
		b.d.log.Info("BGP", zap.Strings("changes", changes))
	}
	b.mu.Lock()
	before := b.speaker.Problems
	b.speaker = want
	if b.err = ""; err != nil {
		b.err = err.Error()
	}
	b.mu.Unlock()
	for _, p := range want.Problems {
		if !slices.Contains(before, p) {
			b.d.log.Warn(p)
		}
	}
	if b.told == nil {
		if b.told = map[model.ServiceKey]*serviceTold{}; b.restarting { // what a daemon of this boot has told is no news
			b.told = servicesTold(&want)
		}
	}
	b.tellServices(snap, &want, func() map[netip.Addr]bool { return b.established(ctx) })
	b.publish()
	return err
}

// mark keeps the marker while there is a speaker.
func (b *bgp) mark(on bool) error {
	if on {
		return os.WriteFile(b.marker(), nil, 0o600)
	}
	if err := os.Remove(b.marker()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// config gathers what the compiler needs to know. The caller holds the lock.
func (b *bgp) config() peering.Config {
	s := &b.settings
	peers, _ := s.Resolved() // validated when it was read
	advertise, _ := s.Advertise.Resolve("")
	loop := b.d.loop.Status()
	native := !b.d.loop.NoFabric && b.d.loop.Settings().Mode == "native"
	c := peering.Config{
		NodeName: b.d.cfg.NodeName, ASN: s.ASN, RouterID: s.RouterID, Port: s.Port, Listen: s.Listen, Mesh: s.Mesh == config.MeshOn, MeshLimit: s.MeshLimit,
		MeshSecret: s.MeshPasswordSecretRef, MeshFile: s.MeshPasswordFile, Native: native, Advertise: advertise, Aggregate: s.Aggregate, Peers: peers, SecretNamespace: s.SecretNamespace, Drained: b.drained,
		Files: map[string]peering.Password{},
	}
	if s.Mesh == config.MeshAuto && native {
		for _, p := range loop.State.Peers {
			c.Mesh = c.Mesh || p.Routed
		}
	}
	files := []string{s.MeshPasswordFile}
	for _, p := range peers {
		files = append(files, p.PasswordFile)
	}
	for _, path := range files {
		if path != "" {
			c.Files[path] = readPassword(path)
		}
	}
	if under := b.d.kernel.underlay.Load(); under != nil {
		for _, l := range under.Links {
			for _, a := range l.Addresses {
				c.Subnets = append(c.Subnets, a.Masked())
			}
		}
	}
	return c
}

func readPassword(path string) peering.Password {
	text, err := os.ReadFile(path)
	if err != nil {
		return peering.Password{Problem: err.Error()}
	}
	return peering.Password{Text: string(text)}
}

// publish gives the loop what the neighbours tell, with what is held from before the restart.
func (b *bgp) publish() {
	if !b.learn() {
		return
	}
	b.d.loop.Kick(reconcile.Trigger{What: "BGP neighbours told other routes", Fabric: true})
	if err := b.d.store.UpdateIdentity(context.Background(), func(i *store.Identity) { i.Learned = b.routes() }); err != nil {
		b.d.log.Warn("keeping the routes of BGP neighbours for a restart", zap.Error(err))
	}
}

// learn puts together what is known of the neighbours' routes, and reports whether that is something else than before.
func (b *bgp) learn() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	mesh := map[netip.Addr]bool{}
	for _, n := range b.speaker.Neighbours {
		mesh[n.Address] = n.Mesh
	}
	if b.server.Failure() != "" {
		return false
	}
	var learned []model.LearnedRoute
	fresh := map[netip.Prefix]bool{}
	for _, r := range b.server.Routes() {
		learned = append(learned, model.LearnedRoute{Prefix: r.Prefix, NextHop: r.NextHop, Node: mesh[r.Neighbour]})
		fresh[r.Prefix] = true
	}
	for _, r := range b.held {
		if !fresh[r.Prefix] {
			learned = append(learned, r)
		}
	}
	if slices.Equal(learned, b.learned) {
		return false
	}
	b.learned = learned
	return true
}

// routes is asked by the loop.
func (b *bgp) routes() []model.LearnedRoute {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.learned
}

func (b *bgp) holding() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.held) > 0
}

// release lets go of the routes of the daemon before this one when all neighbours are back for a moment, or have had their time.
func (b *bgp) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	sessions, err := b.server.Sessions(ctx, false)
	back := err == nil
	for _, s := range sessions {
		back = back && s.State == "Established" && time.Since(s.Since) > holdSettle
	}
	b.mu.Lock()
	off := b.speaker.ASN != 0 && len(b.speaker.Neighbours) == 0
	done := off || back || time.Now().After(b.holdUntil)
	if done {
		b.held = nil
	}
	b.mu.Unlock()
	if done {
		b.publish()
	}
}

// drain takes the addresses of Services off this node, or puts them back. It outlasts a restart.
func (b *bgp) drain(ctx context.Context, on bool) error {
	if err := b.d.store.UpdateIdentity(ctx, func(i *store.Identity) { i.Drained = on }); err != nil {
		return fmt.Errorf("keeping that this node is drained: %w", err)
	}
	b.mu.Lock()
	b.drained = on
	b.mu.Unlock()
	b.kick()
	b.d.updateAnnouncer()
	return nil
}

// isDrained reports whether this node was drained by hand.
func (b *bgp) isDrained() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.drained
}
