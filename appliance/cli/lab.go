package cli

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/lab"
)

func labCommand() *cli.Command {
	return &cli.Command{
		Name:  "lab",
		Usage: "a cluster of network namespaces on this machine, with a real weftd on each node, to try things",
		Description: "weft lab up\nweft lab run web --node node2\nweft lab exec node1 -- ip route\n" +
			"weft lab exec default/web -- weft lab-pod get http://10.244.1.2:8080/\nweft lab down",
		OnUsageError: usageError,
		Subcommands: []*cli.Command{
			labUp(), labStatus(), labExec(), labRun(), labDelete(), labDaemon(), labReboot(), labMode(),
			labAddNode(), labRemoveNode(), labDown(),
		},
	}
}

// labFlag says which lab; several can run at the same time.
func labFlag() cli.Flag {
	return &cli.StringFlag{Name: "name", Value: "lab", Usage: "`NAME` of the lab", EnvVars: []string{"WEFT_LAB"}}
}

func openLab(c *cli.Context) (*lab.Lab, error) { return lab.Open(lab.DefaultDir(c.String("name"))) }

func labUp() *cli.Command {
	return &cli.Command{
		Name: "up", Usage: "build the nodes and start weftd on each", OnUsageError: usageError, Before: noArguments,
		Flags: []cli.Flag{
			labFlag(),
			&cli.IntFlag{Name: "nodes", Value: 3, Usage: "`NUMBER` of nodes"},
			&cli.IntFlag{Name: "subnets", Value: 1, Usage: "`NUMBER` of subnets the nodes are spread over, with a router between them"},
			&cli.StringFlag{Name: "mode", Value: "auto", Usage: "fabric.mode: auto, native or vxlan"},
			&cli.StringFlag{Name: "families", Value: "dual", Usage: "dual, ipv4 or ipv6"},
			&cli.IntFlag{Name: "mtu", Value: 1500, Usage: "`BYTES` of the links between nodes"},
			&cli.StringSliceFlag{Name: "pod-cidr", Usage: "Pod range of a node, `NODE=PREFIX`; may be repeated"},
			&cli.StringFlag{Name: "settings", Usage: "further lines for every node's weft.yaml, `YAML`"},
		},
		Action: func(c *cli.Context) error {
			ranges, err := nodeRanges(c.StringSlice("pod-cidr"))
			if err != nil {
				return err
			}
			_, err = lab.Up(c.Context, lab.Options{
				Name: c.String("name"), Nodes: c.Int("nodes"), Subnets: c.Int("subnets"), Mode: c.String("mode"),
				Families: lab.Families(c.String("families")), MTU: c.Int("mtu"), Progress: c.App.Writer,
				PodCIDRs: ranges, Settings: c.String("settings"),
			})
			if err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, "try: weft lab run web --node node2, weft lab status, weft lab exec node1 -- ip route")
			return nil
		},
	}
}

// nodeRanges reads NODE=PREFIX pairs.
func nodeRanges(pairs []string) (map[string][]netip.Prefix, error) {
	out := map[string][]netip.Prefix{}
	for _, pair := range pairs {
		node, text, _ := strings.Cut(pair, "=")
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, cli.Exit(fmt.Sprintf("--pod-cidr %q is not NODE=PREFIX", pair), 2)
		}
		out[node] = append(out[node], p)
	}
	return out, nil
}

func labAddNode() *cli.Command {
	return &cli.Command{
		Name: "add-node", Usage: "one more node", OnUsageError: usageError, Before: noArguments,
		Flags: []cli.Flag{labFlag(), &cli.StringSliceFlag{Name: "pod-cidr", Usage: "its Pod range, `PREFIX`; may be repeated"}},
		Action: func(c *cli.Context) error {
			l, err := openLab(c)
			if err != nil {
				return err
			}
			var ranges []netip.Prefix
			for _, text := range c.StringSlice("pod-cidr") {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return cli.Exit(fmt.Sprintf("--pod-cidr: %q is not a prefix", text), 2)
				}
				ranges = append(ranges, p)
			}
			n, err := l.AddNode(c.Context, ranges...)
			if err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, n.Name)
			return nil
		},
	}
}

func labRemoveNode() *cli.Command {
	return &cli.Command{
		Name: "remove-node", Usage: "take a node away, with its Pods", ArgsUsage: "NODE", Flags: []cli.Flag{labFlag()}, OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			l, err := openLab(c)
			if err != nil {
				return err
			}
			return l.RemoveNode(c.Context, c.Args().First())
		},
	}
}

func labStatus() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "nodes and Pods of the lab", Flags: []cli.Flag{labFlag(), outputFlag()},
		OnUsageError: usageError, Before: noArguments,
		Action: func(c *cli.Context) error {
			l, err := openLab(c)
			if err != nil {
				return err
			}
			r, err := l.Status(c.Context)
			if err != nil {
				return err
			}
			return show(c, r, func(p *printer) { printLab(p, r) })
		},
	}
}

func labExec() *cli.Command {
	return &cli.Command{
		Name: "exec", Usage: "run a command on a node or in a Pod (namespace/name)", ArgsUsage: "NODE|POD -- COMMAND [ARG ...]",
		Flags: []cli.Flag{labFlag()}, OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) > 1 && args[1] == "--" {
				args = append(args[:1:1], args[2:]...)
			}
			if len(args) < 2 {
				return cli.Exit("exec needs a node or Pod and a command: weft lab exec node1 -- ip route", 2)
			}
			l, err := openLab(c)
			if err != nil {
				return err
			}
			code, err := l.Exec(c.Context, args[0], args[1:], lab.Stdio{In: os.Stdin, Out: c.App.Writer, Err: os.Stderr})
			if err != nil {
				return err
			}
			if code != 0 {
				return cli.Exit("", code)
			}
			return nil
		},
	}
}

func labRun() *cli.Command {
	return &cli.Command{
		Name: "run", Usage: "start Pods as a kubelet would: a namespace, the real CNI call, a small server on :8080", ArgsUsage: "NAME [NAME ...]",
		Flags: []cli.Flag{
			labFlag(), outputFlag(),
			&cli.StringFlag{Name: "node", Value: "node1", Usage: "`NODE` to run on"},
			&cli.StringFlag{Name: "namespace", Value: "default", Usage: "Kubernetes `NAMESPACE`"},
			&cli.StringSliceFlag{Name: "port", Usage: "host port `[IP:]HOST:POD[/PROTO]`; may be repeated"},
			&cli.StringSliceFlag{Name: "address", Usage: "`ADDRESS` to ask for; may be repeated"},
			&cli.StringFlag{Name: "uid", Usage: "`UID` of the Pod; made up when absent"},
			&cli.BoolFlag{Name: "pause", Usage: "run no server in the Pod"},
			&cli.Uint64Flag{Name: "ingress", Usage: "limit what the Pod receives to `BITS` per second"},
			&cli.Uint64Flag{Name: "egress", Usage: "limit what the Pod sends to `BITS` per second"},
		},
		OnUsageError: usageError, Action: runPods,
	}
}

func runPods(c *cli.Context) error {
	l, err := openLab(c)
	if err != nil {
		return err
	}
	if !c.Args().Present() {
		return cli.Exit("run needs the name of a Pod", 2)
	}
	spec := lab.PodSpec{Namespace: c.String("namespace"), UID: c.String("uid"), Pause: c.Bool("pause")}
	if rate := c.Uint64("ingress"); rate > 0 {
		spec.Bandwidth.IngressRate, spec.Bandwidth.IngressBurst = rate, rate
	}
	if rate := c.Uint64("egress"); rate > 0 {
		spec.Bandwidth.EgressRate, spec.Bandwidth.EgressBurst = rate, rate
	}
	for _, text := range c.StringSlice("port") {
		m, err := lab.ParsePort(text)
		if err != nil {
			return cli.Exit(err, 2)
		}
		spec.Ports = append(spec.Ports, m)
	}
	for _, text := range c.StringSlice("address") {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return cli.Exit(fmt.Sprintf("--address: %q is not an IP address", text), 2)
		}
		spec.Addresses = append(spec.Addresses, a)
	}
	var specs []lab.PodSpec
	for _, name := range c.Args().Slice() {
		spec.Name = name
		specs = append(specs, spec)
	}
	results, err := l.RunPods(c.Context, c.String("node"), specs)
	if err != nil {
		return err
	}
	failed := 0
	err = show(c, results, func(p *printer) {
		for i, r := range results {
			if r.Err != nil {
				p.line("%s %s: %v", p.paint(red, "failed:"), specs[i].FullName(), r.Err)
				failed++
				continue
			}
			p.row(specs[i].FullName(), c.String("node"), addresses(r.Pod.Addresses))
		}
	})
	if err == nil && failed > 0 {
		return cli.Exit("", 1)
	}
	return err
}

func labDelete() *cli.Command {
	return &cli.Command{
		Name: "delete", Usage: "stop Pods (namespace/name)", ArgsUsage: "POD [POD ...]", Flags: []cli.Flag{labFlag()}, OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			l, err := openLab(c)
			if err != nil {
				return err
			}
			var names []string
			for _, n := range c.Args().Slice() {
				if !strings.Contains(n, "/") {
					n = "default/" + n
				}
				names = append(names, n)
			}
			errs, err := l.DeletePods(c.Context, names)
			if err != nil {
				return err
			}
			for i, e := range errs {
				if e != nil {
					return fmt.Errorf("%s: %w", names[i], e)
				}
			}
			return nil
		},
	}
}

func labDaemon() *cli.Command {
	return &cli.Command{
		Name: "daemon", Usage: "start, kill (SIGKILL) or stop (SIGTERM) weftd on a node", ArgsUsage: "start|kill|stop NODE",
		Flags: []cli.Flag{labFlag()}, OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return cli.Exit("daemon needs start, kill or stop, and a node", 2)
			}
			l, err := openLab(c)
			if err != nil {
				return err
			}
			node := c.Args().Get(1)
			switch verb := c.Args().First(); verb {
			case "start":
				if err := l.StartDaemon(c.Context, node); err != nil {
					return err
				}
				return l.WaitReady(c.Context, node)
			case "kill":
				return l.KillDaemon(c.Context, node, syscall.SIGKILL)
			case "stop":
				return l.KillDaemon(c.Context, node, syscall.SIGTERM)
			default:
				return cli.Exit(fmt.Sprintf("%q is none of start, kill, stop", verb), 2)
			}
		},
	}
}

func labReboot() *cli.Command {
	return &cli.Command{
		Name: "reboot", Usage: "cut a node's power and start it again; its disk is kept", ArgsUsage: "NODE", OnUsageError: usageError,
		Flags: []cli.Flag{labFlag(), &cli.BoolFlag{Name: "without-api", Usage: "the source of cluster objects is away"}},
		Action: func(c *cli.Context) error {
			l, err := openLab(c)
			if err != nil {
				return err
			}
			return l.Reboot(c.Context, c.Args().First(), lab.RebootOptions{WithoutAPI: c.Bool("without-api")})
		},
	}
}

func labMode() *cli.Command {
	return &cli.Command{
		Name: "mode", Usage: "change fabric.mode on every node while it runs", ArgsUsage: "auto|native|vxlan",
		Flags: []cli.Flag{labFlag()}, OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			mode := c.Args().First()
			if c.NArg() != 1 || !slices.Contains(config.Modes, mode) {
				return cli.Exit("mode needs exactly one of auto, native, vxlan; try weft lab mode --help", 2)
			}
			l, err := openLab(c)
			if err != nil {
				return err
			}
			return l.SetMode(c.Context, mode)
		},
	}
}

func labDown() *cli.Command {
	return &cli.Command{
		Name: "down", Usage: "remove the lab and everything in it", Flags: []cli.Flag{labFlag()}, OnUsageError: usageError, Before: noArguments,
		Action: func(c *cli.Context) error { return lab.Down(c.Context, lab.DefaultDir(c.String("name"))) },
	}
}

// labProcesses are what the lab starts inside its machines and Pods; people use lab-pod as a client.
func labProcesses() []*cli.Command {
	raw := func(name string, run func(c *cli.Context, args []string) error) *cli.Command {
		return &cli.Command{
			Name: name, Hidden: true, SkipFlagParsing: true,
			Action: func(c *cli.Context) error { return run(c, c.Args().Slice()) },
		}
	}
	return []*cli.Command{
		speakerCommand(),
		raw(lab.NodeCommand, func(c *cli.Context, args []string) error {
			return lab.NodeMain(c.Context, args, os.Stdin, os.Stdout)
		}),
		raw(lab.PodCommand, func(c *cli.Context, args []string) error {
			return lab.PodMain(c.Context, args, os.Stdin, os.Stdout, os.Stderr)
		}),
	}
}

func printLab(p *printer, r *lab.Report) {
	p.row("NODE", "ADDRESSES", "POD RANGES", "STATE")
	for _, n := range r.Nodes {
		state := p.paint(green, "ready")
		if !n.Ready {
			state = p.paint(red, n.Why)
		}
		p.row(n.Name, addresses(n.Addresses), prefixes(n.PodCIDRs), state)
	}
	p.line("")
	p.row("POD", "NODE", "ADDRESSES", "CONTAINER")
	for _, n := range r.Nodes {
		for _, pod := range n.Pods {
			p.row(pod.FullName(), n.Name, addresses(pod.Addresses), pod.ContainerID)
		}
	}
	p.line("")
	p.line("mode %s, folder %s, a host outside of the cluster at %s", r.Mode, r.Dir, addresses(r.Outside))
}
