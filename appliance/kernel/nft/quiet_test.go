package nft

import (
	"context"
	"testing"
)

// TestQuietly: during a large change nobody listens, and what others did meanwhile is noticed all the same.
func TestQuietly(t *testing.T) {
	ns, b := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	events, err := b.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	svcs, eps := manyServices(2000, 2)
	table := services(svcs, eps)
	apply(t, b, table)
	for _, tc := range []struct {
		name     string
		elements int
		script   string
		missed   bool
		event    bool
	}{
		{"a small change", quietFrom - 1, "delete table inet " + table.Name, false, true},
		{"a large one alone", quietFrom, "", false, false},
		{"a large one with another table's", quietFrom, "add table inet other", true, false},
		{"a large one with ours", quietFrom, "delete table inet " + table.Name, true, false},
		{"a small one afterwards", 1, "delete table inet " + table.Name, false, true},
	} {
		var stats Stats
		missed, err := b.quietly(tc.elements, &stats, func() error {
			if tc.script != "" {
				ns.Run("nft", tc.script)
			}
			return nil
		})
		if err != nil || missed != tc.missed {
			t.Errorf("%s: missed %v, error %v", tc.name, missed, err)
		}
		if tc.event {
			nextEvent(t, events)
		}
		b.Invalidate()
		if stats := apply(t, b, table); stats.Retry != nil {
			t.Errorf("%s: %+v", tc.name, stats)
		}
	}
	b.Invalidate()
	if stats := apply(t, b, table); stats.Messages != 0 {
		t.Errorf("the table is not whole: %+v", stats)
	}
	cancel()
	for e := range events {
		t.Errorf("event %+v", e)
	}
}
