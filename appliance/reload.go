package appliance

import (
	"context"
	"os"
	"os/signal"
	"reflect"
	"syscall"

	"go.uber.org/zap"

	"weft.network/weft/appliance/config"
)

// reloadOnHangup reads the settings again at each SIGHUP. A file with a mistake changes nothing.
func (d *Daemon) reloadOnHangup(ctx context.Context, load func() (config.Config, error)) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		cfg, err := load()
		if err != nil {
			d.log.Error("the settings have a mistake and were not taken", zap.Error(err))
			continue
		}
		d.reload(cfg)
	}
}

// reload takes what can change while the daemon runs, and names what needs a restart.
func (d *Daemon) reload(cfg config.Config) {
	cfg.NodeName = d.cfg.NodeName
	live := d.cfg
	live.Fabric.Mode, live.Fabric.MTU, live.Fabric.VXLAN, live.Masquerade = cfg.Fabric.Mode, cfg.Fabric.MTU, cfg.Fabric.VXLAN, cfg.Masquerade
	live.BGP = cfg.BGP
	live.BGP.SecretNamespace = d.cfg.BGP.SecretNamespace // another one needs a restart: all the Secrets are watched there
	if !reflect.DeepEqual(live, cfg) {
		d.log.Warn("some of the changed settings need a restart of weftd; fabric.mode, fabric.mtu, fabric.vxlan, masquerade and bgp were taken")
	}
	if d.bgp != nil {
		if source, ok := d.source.(interface{ ReferTo([]string) }); ok {
			source.ReferTo(cfg.BGP.Secrets())
		}
		d.bgp.configure(live.BGP)
	}
	d.loop.Configure(routeConfig(&cfg))
}

// followPodMTU brings running Pods along when the fabric's MTU changes.
func (d *Daemon) followPodMTU(ctx context.Context) {
	var pods podMTU
	for {
		_, changed := d.rounds.Watch()
		if s := d.loop.Status(); s.Applied {
			err := pods.follow(s.State.PodMTU, func(before, now int) error { return d.attacher.SetMTU(ctx, before, now) })
			if err != nil {
				d.log.Warn("some Pods keep their MTU; trying again after the next round", zap.Error(err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// podMTU is what all Pods have been brought to; not yet while one of them failed.
type podMTU int

func (p *podMTU) follow(now int, set func(before, now int) error) error {
	if now == int(*p) {
		return nil
	}
	if err := set(int(*p), now); err != nil {
		return err
	}
	*p = podMTU(now)
	return nil
}
