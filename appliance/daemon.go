// Package appliance is the composition root: it builds every part of the daemon in one readable function and runs them.
package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/cluster"
	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/control"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/prober"
	"weft.network/weft/appliance/reconcile"
	"weft.network/weft/appliance/store"
)

// StoreName is the name of the store in the state directory.
const StoreName = "weft.db"

// Daemon is the running appliance of one node.
type Daemon struct {
	cfg     config.Config
	version string
	log     *zap.Logger
	started time.Time

	store *store.Store
	// recovered says what was wrong with the store when it was opened; empty when nothing was.
	recovered string

	kernel   *kernel
	attacher *attach.Attacher
	loop     *reconcile.Loop
	source   cluster.Source
	prober   *prober.Prober
	metrics  *metrics
	bgp      *bgp // nil without that role
	lb       loadBalancers
	health   healthServers
	drops    *drops
	audit    audit
	dns      *dnsRole // nil without the role

	// former are roles that are off, and of which something may be left in the kernel; only rounds use it.
	former []config.Role
	// newest is the picture of the cluster with this node's own settings laid over it.
	newest cluster.Holder
	// rounds wakes who waits for a round of the loop.
	rounds cluster.Holder
	save   chan *model.Snapshot
	kept   atomic.Uint64 // the revision of the picture that was written last
	ready  atomic.Bool
	// firewalls are the chains of other programs that may drop what Pods send, firewallsSeen when they were looked for; only afterRound uses that.
	firewalls     atomic.Pointer[[]string]
	firewallsSeen time.Time
	told          string // why the node is not ready, as was logged last; only afterRound uses it
}

// gcPercent is how much may be allocated before the next collection, in percent of what is in use.
const gcPercent = 50

// Run is weftd: it takes the store, adopts what the kernel holds, and works until ctx ends. The data path stays as it is
// when Run returns. load reads the settings, now and again at each SIGHUP.
func Run(ctx context.Context, load func() (config.Config, error), version string, log *zap.Logger) (err error) {
	cfg, err := load()
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		// A node has little memory to spare, and little garbage comes: some 7 of 48 MB less with 5,000 Pods.
		debug.SetGCPercent(gcPercent)
	}
	cluster.RouteLogs(func(line string) { log.Debug(line) })
	d := &Daemon{cfg: cfg, version: version, log: log, started: time.Now(), save: make(chan *model.Snapshot, 1)}
	if err := d.open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if cfg.Has(config.RoleFabric) {
		if err := d.hideConflist(); err != nil {
			return err
		}
	}
	listener, err := control.Listen(cfg.RunDir)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return control.Serve(ctx, listener, d.handler(), shutdownGrace) })
	g.Go(func() error { return d.serveHTTP(ctx) })
	g.Go(func() error { return d.runSource(ctx) })
	g.Go(func() error { d.loop.Run(ctx); return nil })
	g.Go(func() error { d.watchKernel(ctx); return nil })
	g.Go(func() error { d.saveSnapshots(ctx); return nil })
	g.Go(func() error { d.watchLeaks(ctx); return nil })
	g.Go(func() error { d.watchFlows(ctx); return nil })
	g.Go(func() error { d.runProber(ctx); return nil })
	g.Go(func() error { d.watchDrops(ctx); return nil })
	g.Go(func() error { d.followPodMTU(ctx); return nil })
	g.Go(func() error { d.keepConflist(ctx); return nil })
	g.Go(func() error { d.announceAddresses(ctx); return nil })
	g.Go(func() error { return d.runDNS(ctx) })
	g.Go(func() error { d.runBGP(ctx); return nil })
	g.Go(func() error { d.reloadOnHangup(ctx, load); return nil })
	log.Info("weftd started", zap.String("version", version), zap.String("node", d.cfg.NodeName), zap.String("source", d.source.Status().Kind))
	err = g.Wait()
	d.saveSnapshots(ctx) // what was published after its own end
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("weftd stopped; traffic goes on without it")
	return nil
}

// shutdownGrace is how long requests under way may take when the daemon stops.
const shutdownGrace = 10 * time.Second

// open builds the parts in the order in which they need each other.
func (d *Daemon) open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.cfg.NodeName == "" {
		if d.cfg.NodeName, err = hostname(); err != nil {
			return err
		}
	}
	if d.store, err = openStore(d.cfg.StateDir, d.version, storeWait); err != nil {
		return err
	}
	if d.recovered = d.store.Recovered(); d.recovered != "" {
		d.log.Error("THE STORE WAS DAMAGED; leases are rebuilt from the kernel", zap.String("store", d.recovered))
	}
	if d.kernel, err = openKernel(d.log); err != nil {
		return err
	}
	d.kernel.forwards = filepath.Join(d.cfg.RunDir, forwardsMark)
	stored := d.storedPicture()
	if d.source, err = d.newSource(ctx, stored); err != nil {
		return err
	}
	state, err := d.restore(ctx)
	if err != nil {
		return err
	}
	d.attacher = attach.New(attach.Options{
		Kernel: d.kernel, Store: d.store, Node: d, Log: d.log.Named("attach"),
		Now: unixNow, CoolOff: int64(d.cfg.IPAM.CoolOff / time.Second),
	}, state)
	d.loop = reconcile.New(routeConfig(&d.cfg), reconcile.Inputs{
		Snapshot: d.snapshot, Leases: d.attacher.Leases, Ports: d.attacher.HostPorts,
	}, d.kernel, d.kernel, d.log.Named("reconcile"))
	d.loop.OnChange = d.afterRound
	d.loop.NoFabric = !d.cfg.Has(config.RoleFabric)
	if d.loop.Missing, err = d.kernel.missing(); err != nil {
		return err
	}
	if d.former, err = d.formerRoles(ctx); err != nil {
		return err
	}
	d.loop.Former = formerTables(d.former)
	d.openServices()
	if d.cfg.Has(config.RolePolicy) {
		d.loop.Policies = d.newPolicies()
	}
	d.lb.announcer = d.newAnnouncer()
	d.drops = newDrops()
	if err := d.openDNS(); err != nil {
		return err
	}
	if d.cfg.Has(config.RoleBGP) {
		if d.bgp, err = d.newBGP(); err != nil {
			return err
		}
		d.loop.Inputs.Learned = d.bgp.routes
	}
	d.metrics = newMetrics(d)
	d.health = healthServers{log: d.log, servers: map[model.ServiceKey]*healthServer{}}
	d.prober = d.newProber()
	d.publish(stored)
	return nil
}

// storeWait is how long a starting daemon waits for the one before it to let go of the store.
const storeWait = 10 * time.Second

func openStore(dir, version string, wait time.Duration) (*store.Store, error) {
	s, err := store.Open(filepath.Join(dir, StoreName), store.Options{Timeout: wait, Version: version})
	if errors.Is(err, store.ErrBusy) {
		return nil, fmt.Errorf("another weftd owns the store %s: stop it first (systemctl stop weftd): %w", filepath.Join(dir, StoreName), err)
	}
	return s, err
}

func (d *Daemon) close() error {
	var errs []error
	if d.kernel != nil {
		errs = append(errs, d.kernel.close())
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	return errors.Join(errs...)
}

func unixNow() int64 { return time.Now().Unix() }

func routeConfig(c *config.Config) route.Config {
	return route.Config{
		NodeName: c.NodeName, Mode: route.Mode(c.Fabric.Mode), MTU: c.Fabric.MTU,
		VNI: c.Fabric.VXLAN.VNI, Port: c.Fabric.VXLAN.Port,
		NoMasquerade: c.Masquerade.Exclude, Masquerade: c.Masquerade.Enabled,
	}
}

// afterRound decides about the conflist: it is written once a round has succeeded and this node has addresses to give.
func (d *Daemon) afterRound(s reconcile.Status) {
	if s.Held {
		d.updateAnnouncer() // the others wait for a picture that is not older than what they have
	} else {
		d.rounds.Set(d.snapshot())
		if s.Err == "" && s.Applied && d.snapshot().Node(d.cfg.NodeName) != nil {
			d.forgetRoles()
		}
	}
	d.health.apply(s.Services.HealthChecks)
	d.watchFirewalls()
	why := d.blocked()
	if why != nil {
		if text := why.Error(); text != d.told {
			d.told = text
			d.ready.Store(false)
			d.log.Warn("Pods cannot be attached", zap.String("why", text))
			d.source.Recorder().WarnNode(d.cfg.NodeName, "NetworkNotReady", text)
		}
		return
	}
	d.told = ""
	if d.ready.Load() {
		return
	}
	if d.loop.NoFabric {
		d.ready.Store(true)
		return
	}
	if err := d.showConflist(); err != nil {
		d.log.Error("telling the runtime that the network is ready", zap.Error(err))
		return
	}
	d.ready.Store(true)
	d.log.Info("this node is ready: Pods can be attached", zap.Duration("after", time.Since(d.started)))
}

// watchLeaks frees what nothing stands behind any more, at start and then periodically: containerd never calls GC.
func (d *Daemon) watchLeaks(ctx context.Context) {
	ticker := time.NewTicker(d.cfg.IPAM.ReconcileInterval)
	defer ticker.Stop()
	for {
		if err := d.freeLeaks(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("looking for leaked addresses", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// leaks finds the leases that nothing stands behind any more. Those of Pods that the cluster has on this node are none: after a reboot
// the runtime brings them back, and they get the addresses that they had.
func (d *Daemon) leaks(ctx context.Context, sandboxes map[string]bool) ([]attach.Leak, error) {
	all, err := d.attacher.Leaks(ctx, sandboxes)
	return slices.DeleteFunc(all, func(l attach.Leak) bool { return d.expects(l.Lease.Pod) }), err
}

// expects says whether the cluster has that very Pod on this node.
func (d *Daemon) expects(ref model.PodRef) bool {
	pod := d.snapshot().Pod(ref.Key())
	return pod != nil && pod.UID == ref.UID && pod.Node == d.cfg.NodeName && !pod.Completed
}

func (d *Daemon) freeLeaks(ctx context.Context) error {
	sandboxes := d.sandboxes(ctx)
	leaks, err := d.leaks(ctx, sandboxes)
	if err != nil {
		return err
	}
	err = d.attacher.Free(ctx, leaks, func(l attach.Leak) {
		d.log.Warn("a leaked lease was freed", zap.Stringer("attachment", l.Lease.AttachmentKey), zap.Stringer("pod", l.Lease.Pod),
			zap.Stringers("addresses", l.Lease.Addresses), zap.String("why", l.Why))
		d.metrics.leaks.Inc()
	})
	err = errors.Join(err, d.attacher.Tidy(ctx, sandboxes))
	removed, sweepErr := d.kernel.SweepBandwidth(ctx)
	if len(removed) > 0 {
		d.log.Warn("removed bandwidth limits of Pods that are gone", zap.Strings("links", removed))
	}
	return errors.Join(err, sweepErr)
}

// watchKernel turns what happens in the kernel into rounds of the loop.
func (d *Daemon) watchKernel(ctx context.Context) {
	for t := range d.kernel.watch(ctx) {
		d.loop.Kick(t)
	}
}
