package appliance

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/store"
)

// TestLastPictureIsKept: what came right before an orderly stop is what the next start begins with.
func TestLastPictureIsKept(t *testing.T) {
	s, err := store.Open(filepath.Join(t.TempDir(), StoreName), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	stopped, stop := context.WithCancel(t.Context())
	stop()
	d := &Daemon{store: s, log: zap.NewNop(), save: make(chan *model.Snapshot, 1)}
	for revision := uint64(1); revision <= 20; revision++ { // which of two things that are ready comes first is chance
		d.save <- &model.Snapshot{Revision: revision, Nodes: map[string]*model.Node{"a": {Name: "a"}}}
		d.saveSnapshots(stopped)
		kept, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if kept == nil || kept.Revision != revision {
			t.Fatalf("kept %+v, want revision %d", kept, revision)
		}
		if told := d.kept.Load(); told != revision {
			t.Fatalf("told revision %d, kept %d", told, revision)
		}
	}
}

// TestOverlay: the node's own settings win, and make no Node of one whose Pod ranges nobody knows.
func TestOverlay(t *testing.T) {
	addr, r := netip.MustParseAddr("192.0.2.1"), netip.MustParsePrefix("10.1.0.0/24")
	known := &model.Snapshot{Nodes: map[string]*model.Node{"a": {Name: "a", PodCIDRs: []netip.Prefix{r}}}}
	for _, tc := range []struct {
		name  string
		snap  *model.Snapshot
		addrs []netip.Addr
		cidrs []netip.Prefix
		want  string
	}{
		{"nothing of its own", known, nil, nil, "[] [10.1.0.0/24]"},
		{"an address", known, []netip.Addr{addr}, nil, "[192.0.2.1] [10.1.0.0/24]"},
		{"an address, and the Node is gone", &model.Snapshot{}, []netip.Addr{addr}, nil, "none"},
		{"a range, and no Node", &model.Snapshot{}, []netip.Addr{addr}, []netip.Prefix{r}, "[192.0.2.1] [10.1.0.0/24]"},
	} {
		d := &Daemon{cfg: config.Config{NodeName: "a", NodeAddresses: tc.addrs, PodCIDRs: tc.cidrs}}
		got := "none"
		if n := d.overlay(tc.snap).Node("a"); n != nil {
			got = fmt.Sprint(n.Addresses, n.PodCIDRs)
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}
