package cli

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/trace"
)

// storeFlags are for commands that read the store when weftd does not run.
func storeFlags() []cli.Flag {
	d := config.Default()
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Value: defaultConfig, Usage: "settings of this node, YAML `FILE`, for when weftd does not run"},
		&cli.StringFlag{Name: "node-name", Usage: "`NAME` of this node, for when weftd does not run", DefaultText: "hostname", EnvVars: []string{"NODE_NAME"}},
		&cli.StringFlag{Name: "state-dir", Usage: "`DIR` of the store, for when weftd does not run", DefaultText: d.StateDir},
		outputFlag(), runDirFlag(),
	}
}

// storeConfig reads the settings that storeFlags name.
func storeConfig(c *cli.Context) (config.Config, error) {
	cfg, err := config.Load(c.String("config"), c.IsSet("config"))
	if err != nil {
		return cfg, err
	}
	for flag, field := range map[string]*string{"node-name": &cfg.NodeName, "state-dir": &cfg.StateDir, "run-dir": &cfg.RunDir} {
		if c.IsSet(flag) {
			*field = c.String(flag)
		}
	}
	return cfg, nil
}

func traceCommand() *cli.Command {
	return &cli.Command{
		Name: "trace", Usage: "what becomes of a connection, and which rule decides", ArgsUsage: "SOURCE DESTINATION:PORT",
		Description: "SOURCE is a Pod (NAMESPACE/NAME), a node or an address; DESTINATION also a Service. pod/, svc/ or node/ before a name\n" +
			"says which is meant. The first packet of such a connection is followed from node to node through the tables that weft\n" +
			"makes, and through those that this node's kernel holds: where the two differ, it says so. No packet is sent and nothing\n" +
			"is changed; when weftd does not run, its store is read.\n\n" +
			"   weft trace default/client default/web:80\n" +
			"   weft trace node1 10.96.0.10:53 --proto udp\n" +
			"   weft trace 198.51.100.7 node1:30080\n\n" +
			"Exit code 0 when the connection arrives and the kernel agrees, 1 otherwise.",
		Flags:        append([]cli.Flag{&cli.StringFlag{Name: "proto", Value: "tcp", Usage: "`PROTOCOL`: tcp, udp or sctp"}}, storeFlags()...),
		OnUsageError: usageError,
		Action:       runTrace,
	}
}

func runTrace(c *cli.Context) error {
	if c.NArg() != 2 {
		return cli.Exit("trace needs a source and a destination with its port; try weft trace --help", 2)
	}
	if _, err := model.ParseProtocol(c.String("proto")); err != nil {
		return cli.Exit(fmt.Sprintf("--proto %q: must be tcp, udp or sctp", c.String("proto")), 2)
	}
	cfg, err := storeConfig(c)
	if err != nil {
		return err
	}
	answer, err := appliance.Trace(c.Context, cfg, c.Args().Get(0), c.Args().Get(1), c.String("proto"))
	if err != nil {
		return err
	}
	if err := show(c, answer, func(p *printer) { printTrace(p, &answer) }); err != nil {
		return err
	}
	for _, path := range answer.Paths {
		if !path.Works || !answer.Agrees {
			return cli.Exit("", 1)
		}
	}
	return nil
}

func printTrace(p *printer, t *appliance.TraceAnswer) {
	p.line("%s to %s over %s, by %s of %s", tracePoint(&t.From), tracePoint(&t.To), t.Protocol, t.Picture, t.Node)
	for i := range t.Paths {
		printPath(p, &t.Paths[i])
	}
	p.line("")
	if t.Agrees {
		p.line("The kernel of %s %s.", t.Node, p.paint(green, "agrees"))
	} else {
		p.line("The kernel of %s %s:", t.Node, p.paint(red, "differs"))
		for _, d := range t.Differences {
			p.line("  %s", d)
		}
	}
	for _, w := range t.Warnings {
		p.line("%s %s", p.paint(yellow, "warning:"), w)
	}
}

func tracePoint(pt *trace.Point) string {
	name := pt.Kind + " " + pt.Name
	if pt.Name == "" {
		name = pt.Kind + " " + pt.Addresses[0].String()
	}
	if pt.Kind == "Pod" && pt.Node != "" {
		name += " on " + pt.Node
	}
	if pt.Port != 0 {
		name += fmt.Sprintf(" port %d", pt.Port)
	}
	return name
}

func printPath(p *printer, path *trace.Path) {
	p.line("")
	title := fmt.Sprintf("%s -> %s", path.Source, path.Destination)
	if path.Service != "" {
		title += ", Service " + path.Service
	}
	p.line("%s", p.paint(bold, title))
	printHops(p, path.Hops, "  ")
	for i := range path.Endpoints {
		printEndpoint(p, &path.Endpoints[i], len(path.Endpoints) <= 8)
	}
	if path.Policy != "" {
		p.line("  policy: %s", path.Policy)
	}
	if path.Remembered.IsValid() {
		p.line("  this client is remembered and gets %s", path.Remembered)
	}
	color := green
	if !path.Works {
		color = red
	}
	p.line("  => %s", p.paint(color, path.Verdict))
}

// printHops leaves out the hooks at which nothing was said.
func printHops(p *printer, hops []trace.Hop, indent string) {
	for _, h := range hops {
		if len(h.Rules) == 0 && h.Route == "" {
			continue
		}
		p.row(indent+h.Node, h.Hook, h.Route+" ", " ")
		for _, r := range h.Rules {
			p.row(indent, " ", strings.TrimPrefix(r.Table, "inet ")+" "+r.Chain, r.Text)
		}
	}
	_ = p.w.Flush()
}

func printEndpoint(p *printer, e *trace.Endpoint, whole bool) {
	text := fmt.Sprintf("  -> %s", e.Address)
	if e.Pod != "" {
		text += ", Pod " + e.Pod
	}
	if e.Node != "" {
		text += " on " + e.Node
	}
	if e.Share < 1 {
		text += fmt.Sprintf(", %.3g %% of connections", 100*e.Share)
	}
	if e.Masqueraded {
		text += fmt.Sprintf(", which sees %s", e.Source)
	}
	p.line("%s", text)
	if whole {
		printHops(p, e.Hops, "     ")
	}
	if e.Policy != "" {
		p.line("     policy: %s", e.Policy)
	}
	if !e.Works {
		p.line("     %s", p.paint(red, e.Verdict))
	}
}
