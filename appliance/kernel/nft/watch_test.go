package nft

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	. "weft.network/weft/appliance/ruleset"
)

func nextEvent(t *testing.T, events <-chan Event) Event {
	t.Helper()
	select {
	case e, ok := <-events:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return e
	case <-time.After(5 * time.Second):
		t.Fatal("no event")
	}
	return Event{}
}

func TestWatch(t *testing.T) {
	ns, b := open(t)
	ctx, cancel := context.WithCancel(context.Background())
	events, err := b.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	table := fabric(webPorts())
	apply(t, b, table)
	svcs, eps := manyServices(2000, 2)
	many := services(maps.Clone(svcs), eps)
	many.Name = "many"
	apply(t, b, table, many)
	ns.Run("nft", "add table inet other; add set inet other weft { type ipv4_addr; }; add table ip weft")
	for _, c := range []struct {
		script  string
		deleted bool
	}{
		{"flush ruleset", true},
		{"add element inet weft tunnel_peers4 { 6.6.6.6 }", false},
		{"flush chain inet weft guard", false},
		{"delete table inet weft", true},
		{"flush set inet weft pod_ranges4", false},
		{"add chain inet weft mine", false},
	} {
		good := ns.Run("nft", "list", "table", "inet", "weft")
		start := time.Now()
		ns.Run("nft", c.script)
		// Our own changes and those of other tables came before: they must not show up as events.
		e := nextEvent(t, events)
		if !slices.Contains(e.Tables, "inet weft") || e.Deleted != c.deleted || e.Process != "nft" || e.PID == 0 || e.Lost {
			t.Errorf("%s: event %+v", c.script, e)
		}
		stats := apply(t, b, table, many)
		// The promise is a second; with the race detector on a busy machine it may take several.
		if took := time.Since(start); took > 10*time.Second || stats.Messages == 0 || stats.Retry != nil {
			t.Errorf("%s: repaired after %v, %+v", c.script, took, stats)
		}
		if got := ns.Run("nft", "list", "table", "inet", "weft"); !sameLines(got, good) {
			t.Errorf("%s: repaired to\n%s\nwant\n%s", c.script, got, good)
		}
	}
	if !strings.HasPrefix(Event{Tables: []string{"inet weft"}, Deleted: true, PID: 7, Process: "nft"}.String(), "nft (pid 7) deleted [inet weft]") {
		t.Error("the event's text")
	}
	cancel()
	for e := range events { // ends only if the channel is closed
		t.Errorf("event %+v for our own changes", e)
	}
}

func TestWatchPartial(t *testing.T) {
	ns, b := open(t)
	events, err := b.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	table := fabric()
	table.Partial = true
	apply(t, b, table)
	ns.Run("nft", "add chain inet weft theirs; add rule inet weft theirs accept; add set inet weft theirs { type mark; }; add element inet weft theirs { 1 }")
	ns.Run("nft", "delete element inet weft pod_ranges4 { 10.42.1.0/24 }")
	nextEvent(t, events)
	if stats := apply(t, b, table); stats.ElementsAdded != 1 || stats.ElementsDeleted != 0 {
		t.Errorf("%+v", stats)
	}
	select {
	case e := <-events:
		t.Errorf("a second event: %+v", e)
	default:
	}
}

func TestProbe(t *testing.T) {
	ns, b := open(t)
	problems, err := b.Probe()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
	problems, err = b.probe(append(features(), feature{"miracles", "CONFIG_MIRACLE", chainTable(nil, Jump("nowhere"))}))
	if err != nil || len(problems) != 1 || !strings.Contains(problems[0].String(), "does not take nftables miracles, which need CONFIG_MIRACLE: add rule probe jump nowhere: ") {
		t.Errorf("problems %v, error %v", problems, err)
	}
	if out := ns.Run("nft", "list", "ruleset"); out != "" {
		t.Errorf("the probe left\n%s", out)
	}
}
