package main

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, tc := range []struct {
		sorted []float64
		q      float64
		want   float64
	}{
		{[]float64{7}, 0.9, 7},
		{[]float64{1, 2}, 0.5, 1.5},
		{[]float64{1, 2, 3}, 0.5, 2},
		{[]float64{0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100}, 0.1, 10},
		{[]float64{0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100}, 0.9, 90},
	} {
		if got := quantile(tc.sorted, tc.q); got != tc.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", tc.sorted, tc.q, got, tc.want)
		}
	}
}

// TestInterleave wants every arm once in a round, each round begun by the next arm, and the first round left out.
func TestInterleave(t *testing.T) {
	var order []int
	turn := func(i int) arm {
		return func(context.Context) (float64, error) {
			order = append(order, i)
			return float64(len(order)), nil
		}
	}
	samples, err := interleave(t.Context(), 2, turn(0), turn(1))
	if err != nil {
		t.Fatal(err)
	}
	if want := []int{0, 1, 1, 0, 0, 1}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	for i, want := range [][]float64{{4, 5}, {3, 6}} {
		if !slices.Equal(samples[i], want) {
			t.Errorf("samples of arm %d are %v, want %v", i, samples[i], want)
		}
	}
	broken := func(context.Context) (float64, error) { return 0, errors.New("broken") }
	if _, err := interleave(t.Context(), 2, turn(0), broken); err == nil {
		t.Error("an arm that fails was not noticed")
	}
}

func TestBudgets(t *testing.T) {
	weft, other := []float64{3, 3, 3}, []float64{10, 10, 10}
	for _, tc := range []struct {
		b    Budget
		want bool
	}{
		{ratioAtMost(0.35), true},
		{ratioAtMost(0.25), false},
		{ratioAtLeast(0.25), true},
		{ratioAtLeast(0.97), false},
		{atMostMore(-6, "ms"), true},
		{atMostMore(-8, "ms"), false},
		{atMost(3, "ms"), true},
		{atMost(2, "ms"), false},
	} {
		if r := compare("", "ms", weft, "it", other, tc.b); *r.Met != tc.want {
			t.Errorf("budget %q is met: %v, want %v", r.Budget, *r.Met, tc.want)
		}
	}
	if r := compare("", "ms", weft, "it", other, noBudget); r.Met != nil {
		t.Error("a result without a budget was judged")
	}
}
