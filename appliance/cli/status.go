package cli

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/control"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:         "status",
		Usage:        "show one screen about this node: daemon, source, store, peers, Pods, warnings",
		Description:  "Exit code 0 when the node is ready, 1 when it is not or when weftd does not answer.",
		Flags:        []cli.Flag{outputFlag(), runDirFlag()},
		OnUsageError: usageError,
		Before:       noArguments,
		Action: func(c *cli.Context) error {
			var s appliance.Status
			if err := control.NewClient(c.String("run-dir")).Get(c.Context, "/v1/status", &s); err != nil {
				return err
			}
			if err := show(c, s, func(p *printer) { printStatus(p, &s) }); err != nil {
				return err
			}
			if !s.Node.Ready {
				return cli.Exit("", 1)
			}
			return nil
		},
	}
}

func printStatus(p *printer, s *appliance.Status) {
	ready := p.paint(green, "ready")
	if !s.Node.Ready {
		ready = p.paint(red, "NOT READY") + ": " + s.Node.Why
	}
	p.row("Node", s.Node.Name+", "+ready)
	p.row("weftd", fmt.Sprintf("%s, up %s, roles %s, pid %d", s.Node.Version, ago(s.Node.Since), strings.Join(s.Node.Roles, ","), s.Node.PID))
	p.row("Source", sourceLine(p, &s.Source))
	p.row("Store", fmt.Sprintf("%s, %d KiB, %d leases", s.Store.Path, s.Store.Bytes/1024, s.Store.Leases))
	p.row("Pods", fmt.Sprintf("%d attached; addresses: %d of %d held, %d cooling off", s.Pods, s.IPAM.Held, s.IPAM.Total, s.IPAM.Cooling))
	fabric := fmt.Sprintf("mode %s, Pod ranges %s, Pod MTU %d, %d rounds, %d repairs", s.Fabric.Mode, prefixes(s.Fabric.PodCIDRs), s.Fabric.MTU, s.Fabric.Rounds, s.Fabric.Repairs)
	if s.Fabric.Error != "" {
		fabric += ", " + p.paint(red, "failing: "+s.Fabric.Error)
	}
	p.row("Fabric", fabric)
	if s.BGP != nil {
		p.row("BGP", bgpLine(p, s.BGP))
	}
	if v := s.Services; v != nil {
		p.row("Services", fmt.Sprintf("%d served, to %d endpoints; the kernel tracks %d of at most %d connections", v.Served, v.Endpoints, v.Tracked, v.Trackable))
	}
	if s.DNS != nil {
		p.row("DNS", dnsLine(p, s))
	}
	if b := s.LoadBalancers; b != nil {
		line := fmt.Sprintf("%d pools, %d Services with %d addresses, this node answers for %d", b.Pools, b.Services, b.Addresses, b.Held)
		if b.Waiting > 0 {
			line += ", " + p.paint(yellow, fmt.Sprintf("%d Services wait for one (weft lb list)", b.Waiting))
		}
		p.row("Balancers", line)
	}
	if len(s.Fabric.Peers) > 0 {
		p.line("")
		p.row("PEER", "MODE", "ADDRESS", "POD RANGES", "RTT", "PATH MTU", "STATE")
		for _, peer := range s.Fabric.Peers {
			p.row(peer.Node, peer.Mode, address(peer.Outer), prefixes(peer.PodCIDRs), rtt(peer.RTT), number(peer.MTU), peerState(p, &peer))
		}
	}
	if len(s.Warnings) > 0 {
		p.line("")
		for _, w := range s.Warnings {
			p.line("%s %s", p.paint(yellow, "warning:"), w)
		}
	}
}

func sourceLine(p *printer, s *appliance.SourceStatus) string {
	state := p.paint(green, "connected")
	if !s.Connected {
		state = p.paint(yellow, "AWAY")
		if !s.Since.IsZero() {
			state += " for " + ago(s.Since)
		}
		if s.Error != "" {
			state += " (" + s.Error + ")"
		}
	}
	line := fmt.Sprintf("%s %s, %s, %d nodes, revision %d", s.Kind, s.Server, state, s.Nodes, s.Revision)
	if s.Stored {
		line += ", running from the stored picture"
	}
	return line
}

func peerState(p *printer, s *appliance.PeerStatus) string {
	switch {
	case s.Problem != "":
		return p.paint(red, s.Problem)
	case s.LastSeen.IsZero():
		return "not probed yet"
	}
	return p.paint(green, "ok") + ", seen " + ago(s.LastSeen) + " ago"
}

func ago(t time.Time) string { return time.Since(t).Round(time.Second).String() }

func rtt(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.Round(10 * time.Microsecond).String()
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func prefixes(ps []netip.Prefix) string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
	}
	return strings.Join(out, ",")
}
