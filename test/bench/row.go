package main

import (
	"context"
	"fmt"
)

// Row is one comparison. To add one, add a file row_SUBJECT.go whose init calls register. What its Run makes through the Lab is
// removed when it returns.
type Row struct {
	// Name is what -run matches.
	Name string
	// About says in a sentence what is compared and how.
	About string
	// Run measures. An error means that something does not work; a budget that is missed is no error.
	Run func(ctx context.Context, lab *Lab) ([]Result, error)
	// order in the table.
	order int
}

var rows []Row

// register adds a row; order is its place in the table.
func register(order int, r Row) {
	r.order = order
	rows = append(rows, r)
}

// Result is one line of the table.
type Result struct {
	Row     string `json:"row"`
	Name    string `json:"name"`
	Unit    string `json:"unit"`
	Against string `json:"against,omitempty"`
	// Weft and Other are what was measured; Ratio is of each pair, Weft by Other, and Difference is Weft less Other.
	Weft       Summary  `json:"weft"`
	Other      *Summary `json:"other,omitempty"`
	Ratio      *Summary `json:"ratio,omitempty"`
	Difference *Summary `json:"difference,omitempty"`
	Samples    int      `json:"samples"`
	Budget     string   `json:"budget,omitempty"`
	// Met is nil without a budget.
	Met  *bool  `json:"met,omitempty"`
	Note string `json:"note,omitempty"`
}

// Budget judges a result by its medians.
type Budget struct {
	text string
	met  func(r *Result) bool
}

var noBudget = Budget{}

func ratioAtMost(most float64) Budget {
	return Budget{fmt.Sprintf("≤ %.2f×", most), func(r *Result) bool { return r.Ratio.Median <= most }}
}

func ratioAtLeast(least float64) Budget {
	return Budget{fmt.Sprintf("≥ %.2f×", least), func(r *Result) bool { return r.Ratio.Median >= least }}
}

func atMostMore(most float64, unit string) Budget {
	return Budget{fmt.Sprintf("≤ +%g %s", most, unit), func(r *Result) bool { return r.Difference.Median <= most }}
}

func atMost(most float64, unit string) Budget {
	return Budget{fmt.Sprintf("≤ %g %s", most, unit), func(r *Result) bool { return r.Weft.Median <= most }}
}

// compare makes a result of samples taken in pairs.
func compare(name, unit string, weft []float64, against string, other []float64, b Budget) Result {
	o := summarize(other)
	ratio := summarize(pairwise(weft, other, func(a, b float64) float64 { return a / b }))
	diff := summarize(pairwise(weft, other, func(a, b float64) float64 { return a - b }))
	r := Result{
		Name: name, Unit: unit, Against: against, Weft: summarize(weft), Other: &o, Ratio: &ratio, Difference: &diff, Samples: len(weft),
	}
	return r.judge(b)
}

// alone makes a result that is compared with nothing but a budget.
func alone(name, unit string, weft []float64, b Budget) Result {
	r := Result{Name: name, Unit: unit, Weft: summarize(weft), Samples: len(weft)}
	return r.judge(b)
}

func (r Result) judge(b Budget) Result {
	if b.met != nil {
		met := b.met(&r)
		r.Budget, r.Met = b.text, &met
	}
	return r
}

func (r Result) note(format string, args ...any) Result {
	r.Note = fmt.Sprintf(format, args...)
	return r
}
