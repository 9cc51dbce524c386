package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Report is the table with what is needed to judge it.
type Report struct {
	Date    string   `json:"date"`
	Weft    string   `json:"weft"`
	Machine string   `json:"machine"`
	Quick   bool     `json:"quick"`
	Results []Result `json:"results"`

	about []string
}

func newReport(ctx context.Context, o options) *Report {
	version, err := exec.CommandContext(ctx, o.weft, "--version").Output()
	if err != nil {
		version = []byte("unknown version")
	}
	return &Report{
		Date: time.Now().UTC().Format("2006-01-02 15:04 MST"), Weft: strings.TrimSpace(string(version)), Machine: machine(), Quick: o.quick,
		Results: []Result{},
	}
}

// machine names what the numbers depend on, and how busy it was when the run began.
func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	cpu := "unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	load, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(load), " ")
	return fmt.Sprintf("%d × %s, Linux %s, %s, load %s at the start", runtime.NumCPU(), cpu, unix.ByteSliceToString(u.Release[:]), runtime.Version(), first)
}

func (r *Report) add(row Row, results []Result) {
	for i := range results {
		results[i].Row = row.Name
	}
	r.Results = append(r.Results, results...)
	r.about = append(r.about, fmt.Sprintf("- %s: %s.", row.Name, row.About))
}

// write prints the table and keeps it in two forms.
func (r *Report) write(dir string) error {
	text := r.markdown()
	if _, err := os.Stdout.WriteString(text); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the results as JSON: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the folder for the results: %w", err)
	}
	for name, content := range map[string][]byte{"bench.md": []byte(text), "bench.json": append(data, '\n')} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return fmt.Errorf("writing the results: %w", err)
		}
	}
	return nil
}

func (r *Report) markdown() string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s, %s\n%s\n\n", r.Weft, r.Date, r.Machine)
	if r.Quick {
		fmt.Fprint(&out, "**A quick run: it shows that everything works; the numbers mean nothing.**\n\n")
	}
	table := [][]string{{"row", "what", "weft", "against", "its value", "weft / it (p10–p90)", "budget", "", "note"}}
	for _, res := range r.Results {
		table = append(table, res.cells())
	}
	writeTable(&out, table)
	met, missed := r.budgets()
	fmt.Fprintf(&out, "\nBudgets: %d met, %d missed.\n", met, missed)
	fmt.Fprint(&out, "\nValues are medians; a ratio is the median of the ratios of pairs that were measured one after the other.\n\n")
	fmt.Fprintln(&out, strings.Join(r.about, "\n"))
	return out.String()
}

func (r *Report) budgets() (met, missed int) {
	for _, res := range r.Results {
		switch {
		case res.Met == nil:
		case *res.Met:
			met++
		default:
			missed++
		}
	}
	return met, missed
}

// cells prints a result as a line of the table.
func (r *Result) cells() []string {
	c := []string{r.Row, r.Name, number(r.Weft.Median) + " " + r.Unit, r.Against, "", "", r.Budget, "", r.Note}
	if r.Other != nil {
		c[4] = number(r.Other.Median) + " " + r.Unit
		c[5] = fmt.Sprintf("%s× (%s–%s)", number(r.Ratio.Median), number(r.Ratio.P10), number(r.Ratio.P90))
		if strings.Contains(r.Budget, "+") {
			c[5] = fmt.Sprintf("%+.1f %s (%+.1f–%+.1f)", r.Difference.Median, r.Unit, r.Difference.P10, r.Difference.P90)
		}
	}
	if r.Met != nil {
		c[7] = "MISSED"
		if *r.Met {
			c[7] = "ok"
		}
	}
	return c
}

// number prints three digits.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 2:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// writeTable prints a Markdown table whose columns line up.
func writeTable(out *bytes.Buffer, table [][]string) {
	width := make([]int, len(table[0]))
	for _, line := range table {
		for i, cell := range line {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for n, line := range table {
		for i, cell := range line {
			fmt.Fprintf(out, "| %s%s ", cell, strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)))
		}
		fmt.Fprintln(out, "|")
		if n > 0 {
			continue
		}
		for _, w := range width {
			fmt.Fprintf(out, "|%s", strings.Repeat("-", w+2))
		}
		fmt.Fprintln(out, "|")
	}
}
