package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// OpenReadOnly opens the store for tools that only look, while nobody owns it: it makes no file, moves none aside and migrates
// nothing. The error is ErrBusy, ErrDamaged, or one of the file system; there is none to write to, so Write must not be called.
func OpenReadOnly(path string, timeout time.Duration) (*Store, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	var db *bolt.DB
	err := guard(func() (err error) {
		db, err = bolt.Open(path, fileMode, &bolt.Options{ReadOnly: true, Timeout: max(timeout, lockInterval)})
		return err
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("%w: %s", ErrBusy, path)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, ErrDamaged):
		return nil, fmt.Errorf("opening the store %s: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("%w: opening the store %s: %w", ErrDamaged, path, err)
	}
	s := &Store{path: path, db: db, stop: make(chan struct{}), stopped: make(chan struct{})}
	close(s.stopped) // nobody writes
	err = guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			for _, name := range []string{bucketMeta, bucketLeases, bucketHostPorts, bucketSnapshot} {
				if tx.Bucket([]byte(name)) == nil {
					return fmt.Errorf("%w: %s has no bucket %q", ErrDamaged, path, name)
				}
			}
			return nil
		})
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}
