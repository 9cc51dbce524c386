package cli

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/control"
)

func serviceCommand() *cli.Command {
	return &cli.Command{
		Name: "service", Usage: "Services as this node serves them", OnUsageError: usageError,
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "every Service with its addresses and how many endpoints they lead to",
				Flags: []cli.Flag{outputFlag(), runDirFlag()}, OnUsageError: usageError, Before: noArguments,
				Action: func(c *cli.Context) error {
					list, err := services(c)
					if err != nil {
						return err
					}
					return show(c, list, func(p *printer) { printServices(p, list) })
				},
			},
			{
				Name: "show", Usage: "one Service: addresses, endpoints, policy, connections, and whether the kernel agrees", ArgsUsage: "[NAMESPACE/]NAME",
				Flags: []cli.Flag{outputFlag(), runDirFlag()}, OnUsageError: usageError,
				Action: showService,
			},
			{
				Name: "cleanup-kube-proxy", Usage: "take away what a kube-proxy that does not run any more left in the kernel",
				Description: "Its nftables tables, its chains of iptables-nft, and the virtual servers and link of its IPVS mode are removed by\n" +
					"netlink. For chains of iptables-legacy, which have no such interface, it prints the command to run. It refuses while a\n" +
					"kube-proxy runs on this node. Rules of the kubelet, of kube-router and of others stay.",
				Flags: []cli.Flag{&cli.BoolFlag{Name: "dry-run", Usage: "only say what would be removed"}, outputFlag()}, OnUsageError: usageError, Before: noArguments,
				Action: func(c *cli.Context) error {
					found, err := appliance.CleanKubeProxy(c.Context, c.Bool("dry-run"))
					if err != nil {
						return err
					}
					return show(c, found, func(p *printer) { printLeftovers(p, &found) })
				},
			},
		},
	}
}

func services(c *cli.Context) (list []appliance.ServiceStatus, err error) {
	err = control.NewClient(c.String("run-dir")).Get(c.Context, "/v1/services", &list)
	return list, err
}

func showService(c *cli.Context) error {
	if c.NArg() != 1 {
		return cli.Exit("show needs the name of a Service; try weft service list", 2)
	}
	namespace, name, ok := strings.Cut(c.Args().First(), "/")
	if !ok {
		namespace, name = "default", namespace
	}
	var s appliance.ServiceDetail
	path := "/v1/services/" + url.PathEscape(namespace) + "/" + url.PathEscape(name)
	if err := control.NewClient(c.String("run-dir")).Get(c.Context, path, &s); err != nil {
		return err
	}
	if err := show(c, s, func(p *printer) { printService(p, &s) }); err != nil {
		return err
	}
	if !s.Agrees {
		return cli.Exit("", 1)
	}
	return nil
}

func printServices(p *printer, list []appliance.ServiceStatus) {
	if len(list) == 0 {
		p.line("no Services")
		return
	}
	p.row("SERVICE", "TYPE", "ADDRESS", "ENDPOINTS", "")
	for _, s := range list {
		for _, port := range s.Ports {
			for _, f := range port.Frontends {
				note := ""
				if len(port.Endpoints) == 0 {
					note = p.paint(yellow, "refused: no endpoints")
				}
				p.row(s.Namespace+"/"+s.Name, s.Type, frontend(&f, &port), len(port.Endpoints), note)
			}
		}
	}
}

func frontend(f *appliance.ServiceFrontend, p *appliance.ServicePort) string {
	if !f.Address.IsValid() {
		family := "IPv4"
		if p.IPv6 {
			family = "IPv6"
		}
		return fmt.Sprintf("%s :%d/%s (%s)", f.Kind, f.Port, p.Protocol, family)
	}
	return fmt.Sprintf("%s %s/%s", f.Kind, netip.AddrPortFrom(f.Address, f.Port), p.Protocol)
}

func printService(p *printer, s *appliance.ServiceDetail) {
	connections := func(port *appliance.ServicePort, e netip.AddrPort) string {
		for _, c := range s.Connections {
			if c.Endpoint == e && c.Protocol == port.Protocol {
				return fmt.Sprintf(", %d connections", c.Count)
			}
		}
		return ""
	}
	p.line("%s/%s, %s", s.Namespace, s.Name, s.Type)
	for _, port := range s.Ports {
		p.line("")
		for _, f := range port.Frontends {
			p.row("  "+frontend(&f, &port), "from this node: "+f.Inside, "from elsewhere: "+f.Outside)
			if len(f.Sources) > 0 {
				p.line("    only from %s", prefixes(f.Sources))
			}
		}
		switch {
		case port.Hashed:
			p.line("    the client's address decides, on every node alike")
		case port.Affinity > 0:
			p.line("    a client keeps its endpoint for %v after its last connection", time.Duration(port.Affinity)*time.Second)
		}
		for _, e := range port.Endpoints {
			p.line("    -> %s%s", e, connections(&port, e))
		}
		for _, e := range port.Local {
			p.line("    -> %s (policy Local)%s", e, connections(&port, e))
		}
	}
	p.line("")
	if s.Clients > 0 {
		p.line("%d clients are remembered", s.Clients)
	}
	if s.Agrees {
		p.line("The kernel %s.", p.paint(green, "agrees"))
	} else {
		p.line("The kernel %s:", p.paint(red, "differs"))
	}
	for _, d := range s.Differences {
		p.line("  %s", d)
	}
	for _, problem := range s.Problems {
		p.line("%s %s", p.paint(yellow, "warning:"), problem)
	}
}

func printLeftovers(p *printer, l *appliance.ProxyLeftovers) {
	verb := "removed"
	if l.DryRun {
		verb = "would remove"
	}
	for _, what := range l.Removed {
		p.line("%s %s", verb, what)
	}
	if len(l.Removed)+len(l.Left) == 0 {
		p.line("kube-proxy has left nothing behind")
	}
	for _, what := range l.Left {
		p.line("%s %s has chains of kube-proxy, which only its own program can remove", p.paint(yellow, "left:"), what)
	}
	for _, command := range l.Commands {
		p.line("  run: %s", command)
	}
}
