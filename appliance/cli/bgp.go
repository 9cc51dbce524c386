package cli

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/control"
	"weft.network/weft/embedded/gobgp"
)

func bgpCommand() *cli.Command {
	flags := func() []cli.Flag { return []cli.Flag{outputFlag(), runDirFlag()} }
	return &cli.Command{
		Name: "bgp", Usage: "what this node tells routers, and what they tell it", OnUsageError: usageError,
		Subcommands: []*cli.Command{
			{
				Name: "peers", Usage: "every BGP session, and why one is not there", Flags: flags(), OnUsageError: usageError, Before: noArguments,
				Action: func(c *cli.Context) error {
					var s appliance.BGPStatus
					if err := control.NewClient(c.String("run-dir")).Get(c.Context, "/v1/bgp", &s); err != nil {
						return err
					}
					return show(c, s, func(p *printer) { printBGP(p, &s) })
				},
			},
			{
				Name: "routes", Usage: "every route that is told, with its reason, and every route that was learned", Flags: flags(), OnUsageError: usageError, Before: noArguments,
				Action: func(c *cli.Context) error {
					var r appliance.BGPRoutes
					if err := control.NewClient(c.String("run-dir")).Get(c.Context, "/v1/bgp/routes", &r); err != nil {
						return err
					}
					return show(c, r, func(p *printer) { printBGPRoutes(p, &r) })
				},
			},
			peerRoutes("advertised", "what one peer was told", flags()),
			peerRoutes("received", "what one peer has told, also what the import rules leave out", flags()),
			drainCommand("drain", "take the addresses of Services off this node before maintenance; it stays so over a restart", true, flags()),
			drainCommand("undrain", "put them back", false, flags()),
		},
	}
}

func peerRoutes(verb, usage string, flags []cli.Flag) *cli.Command {
	return &cli.Command{
		Name: verb, Usage: usage, ArgsUsage: "PEER", Flags: flags, OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return cli.Exit(verb+" needs the name or the address of a peer; try weft bgp peers", 2)
			}
			var list []gobgp.Detail
			path := "/v1/bgp/" + verb + "?" + url.Values{"peer": {c.Args().First()}}.Encode()
			if err := control.NewClient(c.String("run-dir")).Get(c.Context, path, &list); err != nil {
				return err
			}
			return show(c, list, func(p *printer) { printDetails(p, list) })
		},
	}
}

func drainCommand(verb, usage string, on bool, flags []cli.Flag) *cli.Command {
	return &cli.Command{
		Name: verb, Usage: usage, Flags: flags, OnUsageError: usageError, Before: noArguments,
		Action: func(c *cli.Context) error {
			var done appliance.DrainRequest
			if err := control.NewClient(c.String("run-dir")).Post(c.Context, "/v1/bgp/drain", appliance.DrainRequest{Drain: on}, &done); err != nil {
				return err
			}
			return show(c, done, func(p *printer) {
				if on {
					p.line("drained: BGP peers are told no addresses of Services any more (weft bgp undrain takes it back)")
				} else {
					p.line("not drained any more")
				}
			})
		},
	}
}

func printBGP(p *printer, s *appliance.BGPStatus) {
	switch {
	case s.On && s.Port > 0:
		p.line("AS %d, router ID %s, port %d; %d routes told, %d learned", s.ASN, s.RouterID, s.Port, s.Told, s.Learned)
	case s.On:
		p.line("AS %d, router ID %s, listening nowhere; %d routes told, %d learned", s.ASN, s.RouterID, s.Told, s.Learned)
	case s.Error == "":
		p.line("no speaker: no peer is configured for this node")
	}
	if s.Error != "" {
		p.line("%s %s", p.paint(red, "error:"), s.Error)
	}
	if s.Drained != "" {
		p.line("%s by %s: no addresses of Services are told", p.paint(yellow, "drained"), s.Drained)
	}
	if len(s.Peers) == 0 {
		return
	}
	p.row("PEER", "ADDRESS", "AS", "STATE", "SINCE", "SOURCE", "FAMILIES", "RECEIVED", "TAKEN", "TOLD", "GRACEFUL RESTART", "")
	for _, peer := range s.Peers {
		state, since := p.paint(yellow, peer.State), ""
		if peer.State == "Established" {
			state, since = p.paint(green, peer.State), ago(peer.Since)
		}
		p.row(peer.Name, peer.Address, peer.ASN, state, since, address(peer.Source), strings.Join(peer.Families, ","), peer.Received, peer.Accepted,
			peer.Advertised, peer.GracefulRestart, peer.Why)
	}
}

func printBGPRoutes(p *printer, r *appliance.BGPRoutes) {
	if len(r.Told)+len(r.Learned) == 0 {
		p.line("no routes")
		return
	}
	if len(r.Told) > 0 {
		p.row("TOLD", "TO", "FOR")
		for _, t := range r.Told {
			p.row(t.Prefix, strings.Join(t.Peers, ","), t.For)
		}
		p.line("")
	}
	if len(r.Learned) > 0 {
		p.row("LEARNED", "NEXT HOP", "FROM", "")
		for _, l := range r.Learned {
			note := "installed"
			if !l.Installed {
				note = "not installed"
			}
			from := l.From
			if from == "" {
				from = "before the restart"
			}
			p.row(l.Prefix, l.NextHop, from, note)
		}
	}
}

func printDetails(p *printer, list []gobgp.Detail) {
	if len(list) == 0 {
		p.line("no routes")
		return
	}
	p.row("PREFIX", "NEXT HOP", "AS PATH", "COMMUNITIES", "")
	for _, d := range list {
		path := make([]string, len(d.ASPath))
		for i, as := range d.ASPath {
			path[i] = fmt.Sprint(as)
		}
		var notes []string
		if d.Filtered {
			notes = append(notes, "not taken: no import rule")
		}
		if d.Stale {
			notes = append(notes, "stale: the peer restarts")
		}
		if d.LocalPreference != nil {
			notes = append(notes, fmt.Sprintf("local preference %d", *d.LocalPreference))
		}
		if d.MED != nil {
			notes = append(notes, fmt.Sprintf("MED %d", *d.MED))
		}
		communities := append(append([]string{}, d.Communities...), d.LargeCommunities...)
		p.row(d.Prefix, d.NextHop, strings.Join(path, " "), strings.Join(communities, " "), strings.Join(notes, ", "))
	}
}

// bgpLine is what the status screen says.
func bgpLine(p *printer, s *appliance.BGPStatus) string {
	up := 0
	for _, peer := range s.Peers {
		if peer.State == "Established" {
			up++
		}
	}
	line := fmt.Sprintf("AS %d, %d of %d sessions established, %d routes told, %d learned", s.ASN, up, len(s.Peers), s.Told, s.Learned)
	if up < len(s.Peers) {
		line = p.paint(yellow, line)
	}
	if s.Drained != "" {
		line += ", drained"
	}
	return line
}

// speakerCommand is the process of the speaker, which weftd starts.
func speakerCommand() *cli.Command {
	return &cli.Command{
		Name: gobgp.ChildCommand, Hidden: true,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "restarting"}, &cli.StringFlag{Name: "log-level", Value: "info"}, &cli.StringFlag{Name: "log-format", Value: "auto"}},
		Action: func(c *cli.Context) error {
			log, err := newLogger(config.Log{Level: c.String("log-level"), Format: c.String("log-format")})
			if err != nil {
				return err
			}
			defer func() { _ = log.Sync() }()
			return gobgp.ChildMain(log.Named("bgp"), c.Bool("restarting"))
		},
	}
}
