package appliance

import (
	"context"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/kernel/probe"
	"weft.network/weft/appliance/prober"
)

// newProber connects the prober with the kernel.
func (d *Daemon) newProber() *prober.Prober {
	port := d.cfg.Fabric.Probe.Port
	return prober.New(prober.Options{
		Interval: d.cfg.Fabric.Probe.Interval, Port: port,
		Send: func(ctx context.Context, from, to netip.Addr, size int, timeout time.Duration) (time.Duration, error) {
			r, err := probe.Send(ctx, from, to, port, size, timeout)
			return r.RTT, err
		},
		SetTxChecksum: func(ctx context.Context, on bool) error { return d.kernel.SetTxChecksum(ctx, route.TunnelLink, on) },
		OnChange: func(_, now prober.PeerStatus) {
			switch {
			case now.Finding != "":
				d.log.Warn("peer: "+now.Finding, zap.String("peer", now.Node), zap.Int("family", now.Family))
			case now.Up:
				d.log.Info("peer is reachable", zap.String("peer", now.Node), zap.Int("family", now.Family),
					zap.Duration("rtt", now.RTT), zap.Int("mtu", now.MTU))
			}
		},
		OnError: func(err error) { d.log.Error("checksum offload of the tunnel", zap.Error(err)) },
	})
}

// runProber answers and sends probes until ctx ends. A port that is taken costs the answers, not the network.
func (d *Daemon) runProber(ctx context.Context) {
	answers, err := probe.Listen(ctx, probe.Options{Port: d.cfg.Fabric.Probe.Port})
	if err != nil {
		d.log.Error("probes of other nodes are not answered: choose another fabric.probe.port on all nodes", zap.Error(err))
	}
	// Run takes back what it tried with checksum offload before it returns.
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.prober.Run(ctx)
	}()
	for {
		_, changed := d.rounds.Watch()
		d.updateProber(answers)
		select {
		case <-ctx.Done():
			<-done
			return
		case <-changed:
		}
	}
}

// updateProber tells both sides what the last round made of the cluster. answers is nil when the port is taken.
func (d *Daemon) updateProber(answers *probe.Responder) {
	state := d.loop.Status().State
	view := prober.View{
		Peers: state.Peers, Inner: state.HostNet.NodeAddresses, PodMTU: state.PodMTU, TunnelPort: d.loop.Settings().Port,
	}
	if self := d.snapshot().Node(d.cfg.NodeName); self != nil {
		view.Outer = self.Addresses
	}
	if answers != nil {
		if err := answers.SetAddrs(append(append([]netip.Addr{}, view.Inner...), view.Outer...)); err != nil {
			d.log.Warn("answering probes", zap.Error(err))
		}
	}
	d.prober.Update(view)
}

// probeResults returns what was measured, by node.
func (d *Daemon) probeResults() map[string][]prober.PeerStatus {
	out := map[string][]prober.PeerStatus{}
	for _, s := range d.prober.Results() {
		out[s.Node] = append(out[s.Node], s)
	}
	return out
}
