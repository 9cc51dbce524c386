package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

// outputFlag is -o on every command that shows something.
func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "text", Usage: "`FORMAT`: text or json"}
}

// runDirFlag says where the daemon's socket is.
func runDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "run-dir", Value: "/run/weft", Usage: "`DIR` of the daemon's control socket", EnvVars: []string{"WEFT_RUN_DIR"}}
}

// show prints v as JSON, or calls text.
func show(c *cli.Context, v any, text func(*printer)) error {
	switch f := c.String("output"); f {
	case "json":
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "text":
		p := newPrinter(c.App.Writer)
		text(p)
		return p.w.Flush()
	default:
		return cli.Exit(fmt.Sprintf("--output %q: must be text or json", f), 2)
	}
}

// printer writes aligned columns, in colour on a terminal.
type printer struct {
	w     *tabwriter.Writer
	color bool
}

func newPrinter(out io.Writer) *printer {
	f, ok := out.(*os.File)
	return &printer{w: tabwriter.NewWriter(out, 0, 4, 2, ' ', 0), color: ok && isTerminal(f) && os.Getenv("NO_COLOR") == ""}
}

// isTerminal asks for the one property that pipes and files lack.
func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// The colours. Each pair of escape sequences has the same length, so that columns stay aligned where all cells are coloured.
const (
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	bold   = "\x1b[1m"
	plain  = "\x1b[0m"
)

func (p *printer) paint(color, s string) string {
	if !p.color {
		return s
	}
	return color + s + plain
}

// row prints one line of tab-separated cells.
func (p *printer) row(cells ...any) {
	parts := make([]string, len(cells))
	for i, c := range cells {
		if parts[i] = fmt.Sprint(c); parts[i] == "" {
			parts[i] = "-"
		}
	}
	fmt.Fprintln(p.w, strings.Join(parts, "\t"))
}

// line prints text outside of any table.
func (p *printer) line(format string, args ...any) {
	_ = p.w.Flush()
	fmt.Fprintf(p.w, format+"\n", args...)
}
