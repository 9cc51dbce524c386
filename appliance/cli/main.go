// Package cli is the command line: one file for each command, flags and then one call.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance"
	"weft.network/weft/plugins/cni"
)

// version is set by the linker.
var version = "dev"

// roleNames are the names that run one role alone, for a cluster that keeps another network.
var roleNames = map[string]string{"weft-proxy": "services", "weft-dns": "dns", "weft-bgp": "bgp"}

// Main picks the mode by the name under which the binary was called, and returns the exit code: 0, 1 for a failure, 2 for a
// command line that cannot be understood. stdin is what the early forwarder has read of standard input, if it read any.
func Main(args []string, stdin []byte, stdinRead bool) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	name := filepath.Base(args[0])
	if name == "weft" && len(args) > 1 && (slices.Contains(cni.Plugins(), args[1]) || roleNames[args[1]] != "") {
		args = args[1:] // weft NAME is the same as a program of that name
		name = args[0]
	}
	switch {
	case slices.Contains(cni.Plugins(), name), name == "weft" && len(args) == 1 && os.Getenv("CNI_COMMAND") != "":
		return plugin(ctx, name, stdin, stdinRead)
	case name == "weftd":
		args = append([]string{"weft", "weftd"}, args[1:]...)
	case roleNames[name] != "":
		args = append([]string{"weft", "weftd", "--roles", roleNames[name]}, args[1:]...)
	}
	app := newApp(os.Stdout)
	return run(ctx, app, flagsFirst(app, args, "exec"), os.Stderr)
}

// run executes the command line and prints what went wrong, once.
func run(ctx context.Context, app *cli.App, args []string, stderr io.Writer) int {
	err := app.RunContext(ctx, args)
	if err == nil {
		return 0
	}
	var exit cli.ExitCoder
	if errors.As(err, &exit) {
		if msg := exit.Error(); msg != "" {
			fmt.Fprintln(stderr, "weft:", msg)
		}
		return exit.ExitCode()
	}
	fmt.Fprintln(stderr, "weft:", err)
	return 1
}

// plugin is the CNI plugin without a daemon.
func plugin(ctx context.Context, name string, stdin []byte, stdinRead bool) int {
	if os.Getenv("CNI_COMMAND") == "" {
		fmt.Fprintf(os.Stderr, "%s is a CNI plugin of weft: a container runtime calls it with CNI_COMMAND set. Try: weft --help\n", name)
		return 2
	}
	if !stdinRead {
		stdin, _ = io.ReadAll(io.LimitReader(os.Stdin, cni.MaxInput+1))
	}
	return appliance.Plugin(ctx, name, stdin, os.Stdout)
}

func newApp(out io.Writer) *cli.App {
	app := &cli.App{
		Name:    "weft",
		Usage:   "the whole network of a small Kubernetes cluster, in one binary",
		Version: version,
		Description: "Run weftd on every node (weft install sets it up), then look around:\n\n" +
			"   weft status                 one screen about this node\n" +
			"   weft ipam list              which Pod has which address\n" +
			"   weft policy list            which NetworkPolicies are in force for which Pods\n" +
			"   weft trace SRC DST:PORT     what becomes of a connection\n" +
			"   weft lab up                 a cluster of namespaces on this machine, to try things\n\n" +
			"Called as weft-cni, weft-ipam, loopback, portmap, bandwidth or host-local (or with CNI_COMMAND set), it is a CNI\n" +
			"plugin; called as weftd it is the daemon.",
		Writer:               out,
		EnableBashCompletion: true,
		Suggest:              true,
		HideHelpCommand:      true,
		Commands: append([]*cli.Command{
			statusCommand(), ipamCommand(), serviceCommand(), dnsCommand(), lbCommand(), bgpCommand(), policyCommand(), observeCommand(), traceCommand(), daemonCommand(),
			installCommand(), uninstallCommand(), configCommand(),
			labCommand(), completionCommand(),
		}, labProcesses()...),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return cli.Exit(fmt.Sprintf("there is no command %q; try weft --help", c.Args().First()), 2)
			}
			return cli.ShowAppHelp(c)
		},
		ExitErrHandler: func(*cli.Context, error) {}, // run prints and decides
	}
	for _, command := range app.Commands {
		if len(command.Subcommands) > 0 && command.Action == nil {
			command.Action = group
		}
	}
	return app
}

// group is what a command does that has only subcommands, when none of them was named.
func group(c *cli.Context) error {
	if c.Args().Present() {
		return cli.Exit(fmt.Sprintf("there is no command %q; try %s --help", c.Args().First(), c.Command.HelpName), 2)
	}
	return cli.ShowSubcommandHelp(c)
}

// usageError makes a wrong flag one line and exit code 2.
func usageError(c *cli.Context, err error, _ bool) error {
	name := c.Command.HelpName
	if name == "" {
		name = "weft"
	}
	return cli.Exit(fmt.Sprintf("%v; try %s --help", err, name), 2)
}

// noArguments refuses arguments where a command takes none.
func noArguments(c *cli.Context) error {
	if c.Args().Present() {
		return cli.Exit(fmt.Sprintf("unexpected argument %q; try %s --help", c.Args().First(), c.Command.HelpName), 2)
	}
	return nil
}
