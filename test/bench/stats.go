package main

import (
	"context"
	"math"
	"slices"
)

// Summary is a sample in three numbers.
type Summary struct {
	Median float64 `json:"median"`
	P10    float64 `json:"p10"`
	P90    float64 `json:"p90"`
}

func summarize(values []float64) Summary {
	sorted := slices.Sorted(slices.Values(values))
	return Summary{quantile(sorted, 0.5), quantile(sorted, 0.1), quantile(sorted, 0.9)}
}

// quantile interpolates between the two nearest values of a sorted sample.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// pairwise combines two samples that were taken in pairs.
func pairwise(a, b []float64, f func(a, b float64) float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = f(a[i], b[i])
	}
	return out
}

// arm is one side of a comparison: it does the thing once and returns how long it took, or how fast it was.
type arm func(ctx context.Context) (float64, error)

// interleave runs the arms in turn, so that whatever else the machine does falls on all of them alike, and each round in another
// order, since the one that comes first finds the caches cold. A round before the first is not counted. It returns one sample for
// each arm; equal positions belong together.
func interleave(ctx context.Context, rounds int, arms ...arm) ([][]float64, error) {
	samples := make([][]float64, len(arms))
	for round := -1; round < rounds; round++ {
		for turn := range arms {
			i := (turn + round + 1) % len(arms)
			v, err := arms[i](ctx)
			if err != nil {
				return nil, err
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if round >= 0 {
				samples[i] = append(samples[i], v)
			}
		}
	}
	return samples, nil
}
