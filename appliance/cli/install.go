package cli

import (
	"context"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/install"
	"weft.network/weft/packaging"
)

func installFlags() []cli.Flag {
	return []cli.Flag{
		outputFlag(),
		&cli.BoolFlag{Name: "dry-run", Usage: "show what would be done, and do nothing"},
		&cli.StringFlag{Name: "cni-bin-dir", Usage: "`DIR` where the runtime looks for CNI plugins", DefaultText: "found: k3s, kubeadm or /opt/cni/bin"},
		&cli.StringFlag{Name: "cni-conf-dir", Usage: "`DIR` where the runtime looks for network configurations", DefaultText: "found: k3s, kubeadm or /etc/cni/net.d"},
		&cli.StringFlag{Name: "root", Value: "/", Usage: "put `DIR` in front of every path, as for an image"},
		&cli.BoolFlag{Name: "no-start", Usage: "leave the service as it is"},
	}
}

func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "put weft on this node: binary, CNI plugins, service, settings (again: nothing to do)",
		Flags: append(installFlags(),
			&cli.StringFlag{Name: "kubeconfig", Usage: "`FILE` that names the API server, written to weft.yaml"},
			&cli.StringFlag{Name: "manifests", Usage: "`DIR` of the cluster's objects instead of an API server, written to weft.yaml"},
		),
		OnUsageError: usageError, Before: noArguments,
		Action: func(c *cli.Context) error { return carryOut(c, install.Install) },
	}
}

func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:  "uninstall",
		Usage: "take back what install did; the kernel keeps links, routes and rules until a reboot, unless --kernel",
		Flags: append(installFlags(),
			&cli.BoolFlag{Name: "kernel", Usage: "also remove links, routes and rules: Pods lose their network now"},
			&cli.BoolFlag{Name: "purge", Usage: "also remove weft.yaml and the store, and with it every lease"},
		),
		OnUsageError: usageError, Before: noArguments,
		Action: func(c *cli.Context) error { return carryOut(c, install.Uninstall) },
	}
}

// carryOut plans, shows the plan, and does it unless --dry-run.
func carryOut(c *cli.Context, planFor func(context.Context, install.Env, install.Options) (install.Plan, error)) error {
	env, err := install.System()
	if err != nil {
		return err
	}
	env.Root = c.String("root")
	// Read now: the file may be gone when the kernel's turn comes.
	cfg, err := config.Load(defaultConfig, false)
	if err != nil {
		cfg = config.Default()
	}
	env.CleanKernel = func(ctx context.Context) error { return appliance.CleanKernel(ctx, cfg, c.App.Version) }
	plan, err := planFor(c.Context, env, install.Options{
		CNIBinDir: c.String("cni-bin-dir"), CNIConfDir: c.String("cni-conf-dir"), Kubeconfig: c.String("kubeconfig"),
		Manifests: c.String("manifests"), NoStart: c.Bool("no-start"),
		Kernel: c.Bool("kernel"), Purge: c.Bool("purge"),
	})
	if err != nil {
		return err
	}
	if err := show(c, plan, func(p *printer) { p.line("%s", plan.String()) }); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return nil
	}
	return plan.Apply(c.Context, env, func(install.Step) {})
}

func configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "print weft.yaml with every key, its default and what it does, or check one with --check",
		Flags: []cli.Flag{&cli.StringFlag{Name: "check", Usage: "read `FILE` as weftd would, and say what is wrong with it"}, outputFlag()},

		OnUsageError: usageError, Before: noArguments,
		Action: func(c *cli.Context) error {
			if path := c.String("check"); path != "" {
				return checkConfig(c, path)
			}
			text, err := packaging.Config(nil)
			if err != nil {
				return err
			}
			values, err := config.Default().Values()
			if err != nil {
				return err
			}
			return show(c, values, func(p *printer) { _, _ = p.w.Write(text) })
		},
	}
}

// checkedConfig is the answer to weft config --check.
type checkedConfig struct {
	File  string `json:"file"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

func checkConfig(c *cli.Context, path string) error {
	_, err := config.Load(path, true)
	if err == nil {
		return show(c, checkedConfig{File: path, OK: true}, func(p *printer) { p.line("%s is fine", path) })
	}
	if c.String("output") == "json" {
		if err := show(c, checkedConfig{File: path, Error: err.Error()}, nil); err != nil {
			return err
		}
	}
	return err
}
