package store

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"weft.network/weft/appliance/model"
)

// A look into the store changes no byte of it, and makes nothing where there is none.
func TestOpenReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.db")
	if _, err := OpenReadOnly(path, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("looking made a file")
	}
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	snap := &model.Snapshot{Nodes: map[string]*model.Node{"a": {Name: "a"}}}
	if err := s.SaveSnapshot(t.Context(), snap); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReadOnly(path, 0); !errors.Is(err, ErrBusy) {
		t.Errorf("while somebody owns it: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenReadOnly(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Snapshot()
	if err != nil || got.Node("a") == nil || !got.Stored {
		t.Errorf("the Snapshot came back as %+v, %v", got, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("looking changed the file (%v)", err)
	}
	if err := os.WriteFile(path, []byte("no store"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReadOnly(path, 0); !errors.Is(err, ErrDamaged) {
		t.Errorf("of a file that is no store: %v", err)
	}
}
