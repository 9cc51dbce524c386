// Command bench measures weft beside what a user would take instead, on the same machine in the same run, and prints one table.
//
// Everything runs in network namespaces of its own; the machine's network is not touched. Times never make it fail: it ends
// with an error only when something does not work. Each file row_*.go has the rows of one subject.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

type options struct {
	weft, bin, out string
	run            *regexp.Regexp
	quick          bool
	rounds         int
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == peerCommand {
		os.Exit(peerMain(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := bench(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags() (o options, err error) {
	weft := flag.String("weft", "bin/weft", "the `FILE` under test")
	bin := flag.String("bin", ".cache/bench/bin", "`DIR` with the programs launch and empty")
	out := flag.String("out", ".cache/bench", "`DIR` for the table as bench.md and bench.json")
	run := flag.String("run", "", "only the rows whose name matches the regular `EXPRESSION`")
	list := flag.Bool("list", false, "name the rows and end")
	flag.BoolVar(&o.quick, "quick", false, "few rounds and small loads: shows that everything works, measures nothing")
	flag.IntVar(&o.rounds, "rounds", 0, "how often to measure, instead of what each row proposes")
	flag.Parse()
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.order, b.order) })
	if *list {
		for _, r := range rows {
			fmt.Fprintf(os.Stdout, "%-12s %s\n", r.Name, r.About)
		}
		os.Exit(0)
	}
	if o.run, err = regexp.Compile(*run); err != nil {
		return o, fmt.Errorf("-run: %w", err)
	}
	for path, to := range map[string]*string{*weft: &o.weft, *bin: &o.bin, *out: &o.out} {
		if *to, err = filepath.Abs(path); err != nil {
			return o, err
		}
	}
	return o, nil
}

func bench(ctx context.Context) (err error) {
	o, err := parseFlags()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("it needs root to make network namespaces: sudo make bench")
	}
	if _, err := os.Stat(o.weft); err != nil {
		return fmt.Errorf("looking for the binary under test (make build): %w", err)
	}
	lab, err := newLab(o.weft, o.bin, o.quick, o.rounds)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.close()) }()

	report := newReport(ctx, o)
	var failed []error
	for _, r := range rows {
		if !o.run.MatchString(r.Name) {
			continue
		}
		start := time.Now()
		fmt.Fprintf(os.Stderr, "%-12s ", r.Name)
		results, err := r.Run(ctx, lab)
		lab.tidy()
		if ctx.Err() != nil {
			fmt.Fprintln(os.Stderr)
			return errors.New("interrupted; everything it made is removed")
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", r.Name, err))
			fmt.Fprintln(os.Stderr, "FAILED:", err)
			continue
		}
		fmt.Fprintf(os.Stderr, "%s\n", time.Since(start).Round(time.Second/10))
		report.add(r, results)
		if err := settle(ctx); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(append(failed, report.write(o.out))...)
}
