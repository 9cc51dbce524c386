package cli

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// flagsFirst moves flags in front of other arguments, so that `weft lab run web --node node2` means what it says: the library
// takes everything after the first argument that is no flag as it is. Commands in asIs, and what follows "--", are left alone.
func flagsFirst(app *cli.App, args []string, asIs ...string) []string {
	commands, i := app.Commands, 1
	var cmd *cli.Command
	for i < len(args) {
		next := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[i]) })
		if next < 0 {
			break
		}
		cmd, commands, i = commands[next], commands[next].Subcommands, i+1
	}
	if cmd == nil || cmd.SkipFlagParsing || len(cmd.Subcommands) > 0 || slices.Contains(asIs, cmd.Name) {
		return args
	}
	var flags, rest []string
	for ; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			rest = append(rest, args[i:]...)
			break
		}
		if len(a) < 2 || a[0] != '-' {
			rest = append(rest, a)
			continue
		}
		flags = append(flags, a)
		if !strings.Contains(a, "=") && takesValue(cmd, strings.TrimLeft(a, "-")) && i+1 < len(args) {
			i++
			flags = append(flags, args[i])
		}
	}
	used := len(args) - len(flags) - len(rest)
	return slices.Concat(args[:used], flags, rest)
}

// takesValue reports whether the flag of that name is followed by its value.
func takesValue(cmd *cli.Command, name string) bool {
	for _, f := range cmd.Flags {
		if slices.Contains(f.Names(), name) {
			_, isBool := f.(*cli.BoolFlag)
			return !isBool
		}
	}
	return false
}
