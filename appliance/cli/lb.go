package cli

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/announcer"
	"weft.network/weft/appliance/control"
)

func lbCommand() *cli.Command {
	return &cli.Command{
		Name: "lb", Usage: "addresses of load balancers: who has which, and who announces it", OnUsageError: usageError,
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "every Service of type LoadBalancer with its addresses and who answers for them",
				Flags: []cli.Flag{outputFlag(), runDirFlag()}, OnUsageError: usageError, Before: noArguments,
				Action: func(c *cli.Context) error {
					var list []appliance.LoadBalancerStatus
					if err := control.NewClient(c.String("run-dir")).Get(c.Context, "/v1/lb", &list); err != nil {
						return err
					}
					return show(c, list, func(p *printer) { printLoadBalancers(p, list) })
				},
			},
			{
				Name: "pools", Usage: "every LoadBalancerPool and how much of it is in use",
				Flags: []cli.Flag{outputFlag(), runDirFlag()}, OnUsageError: usageError, Before: noArguments,
				Action: func(c *cli.Context) error {
					var list []appliance.PoolReport
					if err := control.NewClient(c.String("run-dir")).Get(c.Context, "/v1/lb/pools", &list); err != nil {
						return err
					}
					return show(c, list, func(p *printer) { printPools(p, list) })
				},
			},
			{
				Name: "why", Usage: "why a Service has its addresses, or none, and why they are announced where they are", ArgsUsage: "[NAMESPACE/]NAME",
				Flags: []cli.Flag{outputFlag(), runDirFlag()}, OnUsageError: usageError,
				Action: whyLoadBalancer,
			},
		},
	}
}

func whyLoadBalancer(c *cli.Context) error {
	if c.NArg() != 1 {
		return cli.Exit("why needs the name of a Service; try weft lb list", 2)
	}
	namespace, name, ok := strings.Cut(c.Args().First(), "/")
	if !ok {
		namespace, name = "default", namespace
	}
	var r appliance.WhyReport
	query := url.Values{"namespace": {namespace}, "name": {name}}
	if err := control.NewClient(c.String("run-dir")).Get(c.Context, "/v1/lb/why?"+query.Encode(), &r); err != nil {
		return err
	}
	return show(c, r, func(p *printer) { printWhy(p, namespace+"/"+name, &r) })
}

func printLoadBalancers(p *printer, list []appliance.LoadBalancerStatus) {
	if len(list) == 0 {
		p.line("no Services of type LoadBalancer")
		return
	}
	p.row("SERVICE", "ADDRESS", "POOL", "ANNOUNCED BY", "")
	for _, s := range list {
		name := s.Namespace + "/" + s.Name
		if len(s.Addresses) == 0 {
			note := s.Message
			if note == "" && !s.Ours {
				note = "not weft's to look after (weft lb why says why)"
			}
			p.row(name, "", "", "", p.paint(yellow, note))
			continue
		}
		for _, a := range s.Addresses {
			p.row(name, a.Address, a.Pool, answeredBy(&a), p.paint(yellow, addressNote(&s, &a)))
		}
	}
}

// answeredBy says who announces an address, as far as this node knows.
func answeredBy(a *appliance.LoadBalancerAddress) string {
	if a.Node != "" {
		return "node " + a.Node + ", whose own it is"
	}
	var parts []string
	for _, l := range a.L2 {
		switch {
		case l.Node != "":
			parts = append(parts, fmt.Sprintf("%s (%s, %s)", l.Node, l.Link, ago(l.Since)))
		case l.Probing:
			parts = append(parts, "asking on "+l.Link)
		}
	}
	if len(a.BGP) > 0 {
		parts = append(parts, "BGP to "+strings.Join(a.BGP, ","))
	}
	return strings.Join(parts, ", ")
}

func addressNote(s *appliance.LoadBalancerStatus, a *appliance.LoadBalancerAddress) string {
	for _, l := range a.L2 {
		if l.Culprit != "" {
			return "also used by " + l.Culprit + ", which is no node"
		}
	}
	switch {
	case a.Why != "":
		return a.Why
	case s.Reason == "OutsidePool", s.Reason == "MalformedRequest":
		return s.Message
	}
	return ""
}

func printPools(p *printer, list []appliance.PoolReport) {
	if len(list) == 0 {
		p.line("no LoadBalancerPools")
		return
	}
	p.row("POOL", "ADDRESSES", "USED", "SIZE", "PRIORITY", "")
	for _, pool := range list {
		what := strings.Join(pool.Addresses, ",")
		if pool.NodeAddresses {
			what = "those of the nodes"
		}
		note := p.paint(yellow, pool.Problem)
		if pool.Problem == "" && !pool.AutoAssign {
			note = "on request only"
		}
		p.row(pool.Name, what, pool.Used, pool.Size, pool.Priority, note)
	}
}

func printWhy(p *printer, name string, r *appliance.WhyReport) {
	p.line("Service %s", name)
	for _, line := range r.Lines {
		p.line("  %s", line)
	}
	for _, a := range r.Addresses {
		p.line("")
		p.line("%s", a.Address)
		if a.Node != "" {
			p.line("  is the address of node %s, which answers for it as for any other", a.Node)
			continue
		}
		if a.Why != "" {
			p.line("  %s", p.paint(yellow, a.Why))
		}
		var order []string
		for _, n := range r.Ranks[a.Address] {
			if !n.Alive {
				n.Node += " (not heard here)"
			}
			order = append(order, n.Node)
		}
		if len(order) > 0 {
			p.line("  order of the nodes that may answer for it: %s", strings.Join(order, ", "))
		}
		for _, l := range a.L2 {
			p.line("  on %s: %s", l.Link, segmentState(&l))
		}
		if len(a.BGP) > 0 {
			p.line("  this node tells BGP peers: %s", strings.Join(a.BGP, ", "))
		}
		if len(a.L2) == 0 && len(a.BGP) == 0 && len(a.May) > 0 {
			p.line("  no link of this node is in its subnet: other nodes, or BGP, announce it (spec.l2.interfaces of the pool can name a link)")
		}
	}
	for _, l := range r.Links {
		p.line("")
		p.line("nodes heard on %s (%s):", l.Link, l.MAC)
		for _, peer := range l.Peers {
			state := p.paint(green, "alive")
			if !peer.Alive {
				state = p.paint(red, "silent for "+ago(peer.Heard))
			}
			p.row("  "+peer.Node, peer.MAC, state)
		}
	}
}

func segmentState(l *announcer.Status) string {
	state := "nobody answers for it"
	switch {
	case l.Self:
		state = fmt.Sprintf("this node, %s, answers for it since %s", l.Node, ago(l.Since))
	case l.Node != "":
		state = fmt.Sprintf("%s answers for it, seen for %s", l.Node, ago(l.Since))
	case l.Probing:
		state = "this node asks whether anybody uses it, and takes it then"
	}
	if l.Culprit != "" {
		state += fmt.Sprintf("; %s uses it too and is no node", l.Culprit)
	}
	return state
}
