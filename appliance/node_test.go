package appliance

import (
	"context"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

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
	}
}
