package cli

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/control"
	"weft.network/weft/appliance/model"
)

func ipamCommand() *cli.Command {
	return &cli.Command{
		Name:         "ipam",
		Usage:        "list, check and release the Pod addresses of this node",
		OnUsageError: usageError,
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "which attachment holds which addresses",
				Flags: []cli.Flag{outputFlag(), runDirFlag()}, OnUsageError: usageError, Before: noArguments,
				Action: func(c *cli.Context) error {
					var leases []*model.Lease
					if err := control.NewClient(c.String("run-dir")).Get(c.Context, "/v1/leases", &leases); err != nil {
						return err
					}
					return show(c, leases, func(p *printer) { printLeases(p, leases) })
				},
			},
			{
				Name: "check", Usage: "find leases that nothing stands behind any more; exit code 1 when there are some",
				Flags: []cli.Flag{outputFlag(), runDirFlag()}, OnUsageError: usageError, Before: noArguments,
				Action: checkIPAM,
			},
			{
				Name: "release", Usage: "take down the attachment that holds an address", ArgsUsage: "ADDRESS",
				Flags: []cli.Flag{
					runDirFlag(),
					&cli.BoolFlag{Name: "force", Usage: "also when its interface exists; the Pod loses its network"},
				},
				OnUsageError: usageError, Action: releaseAddress,
			},
		},
	}
}

func printLeases(p *printer, leases []*model.Lease) {
	if len(leases) == 0 {
		p.line("no leases on this node")
		return
	}
	p.row("ADDRESSES", "POD", "KIND", "INTERFACE", "CONTAINER", "AGE")
	for _, l := range leases {
		id := l.ContainerID
		if len(id) > 12 {
			id = id[:12]
		}
		p.row(addresses(l.Addresses), l.Pod, l.Kind, l.HostIf, id, time.Since(time.Unix(l.Created, 0)).Round(time.Second))
	}
}

func addresses(as []netip.Addr) string {
	out := make([]string, len(as))
	for i, a := range as {
		out[i] = a.String()
	}
	return strings.Join(out, ",")
}

func checkIPAM(c *cli.Context) error {
	var r appliance.LeakReport
	if err := control.NewClient(c.String("run-dir")).Get(c.Context, "/v1/leaks", &r); err != nil {
		return err
	}
	err := show(c, r, func(p *printer) {
		if r.Runtime != "" {
			p.line("%s the container runtime was not asked: %s", p.paint(yellow, "warning:"), r.Runtime)
		}
		for _, l := range r.Leaks {
			p.line("%s %s of %s: %s", p.paint(red, "leaked:"), addresses(l.Lease.Addresses), l.Lease.Pod, l.Why)
		}
		p.line("%d leases, %d leaked", r.Leases, len(r.Leaks))
	})
	if err == nil && len(r.Leaks) > 0 {
		return cli.Exit("weftd frees leaks by itself at the next check (ipam.reconcileInterval); weft ipam release ADDRESS does it now", 1)
	}
	return err
}

func releaseAddress(c *cli.Context) error {
	if c.NArg() != 1 {
		return cli.Exit("release needs one ADDRESS; try weft ipam list", 2)
	}
	a, err := netip.ParseAddr(c.Args().First())
	if err != nil {
		return cli.Exit(fmt.Sprintf("%q is not an IP address", c.Args().First()), 2)
	}
	var l model.Lease
	req := appliance.ReleaseRequest{Address: a, Force: c.Bool("force")}
	if err := control.NewClient(c.String("run-dir")).Post(c.Context, "/v1/release", req, &l); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "released %s of %s\n", addresses(l.Addresses), l.Pod)
	return nil
}
