package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Errors of Open.
var (
	// ErrBusy says that another process holds the store: ask that process.
	ErrBusy = errors.New("the store is in use by another process")
	// ErrNewer says that a later weft wrote the store. Nothing was changed.
	ErrNewer = errors.New("the store is of a newer weft")
)

// Errors of an open Store.
var (
	// ErrDamaged says that the file was damaged while it was open. The Store takes no more writes; the next Open moves it aside.
	ErrDamaged = errors.New("the store is damaged")
	// ErrClosed says that Close was called.
	ErrClosed = errors.New("the store is closed")
)

// Options say how to open a store.
type Options struct {
	// Timeout is how long to wait for another process to give the store up; 0 tries once.
	Timeout time.Duration
	// Version is the version of this weft. It is written down for the message of ErrNewer.
	Version string
}

// Store is an open store file. Its methods may be called from any goroutine.
type Store struct {
	path     string
	db       *bolt.DB
	requests chan *request
	stop     chan struct{}
	stopped  chan struct{}
	closing  sync.Once
	closed   error
	identity sync.Mutex // one UpdateIdentity at a time

	mu     sync.Mutex
	broken error
	mark   *mark
}

// Open opens the store at path, makes it if there is none, and moves it aside if it is damaged; see Recovered. The directory
// is made with mode 0700, the file with 0600. The error is ErrBusy, ErrNewer, or one of the file system.
func Open(path string, o Options) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return nil, fmt.Errorf("making the directory of the store: %w", err)
	}
	deadline := time.Now().Add(o.Timeout)
	for range openAttempts {
		db, err := attempt(path, o, deadline)
		if errors.Is(err, errReplaced) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return start(path, db, o)
	}
	return nil, fmt.Errorf("%w: %s: a new file was made %d times and was damaged again at once: check the disk", ErrDamaged, path, openAttempts)
}

func start(path string, db *bolt.DB, o Options) (*Store, error) {
	s := &Store{path: path, db: db, requests: make(chan *request), stop: make(chan struct{}), stopped: make(chan struct{})}
	err := guard(func() error { return migrate(db, o.Version, migrations, schemaVersion) })
	if err == nil {
		err = s.readMark()
	}
	if err != nil {
		return nil, errors.Join(explain(path, err), db.Close())
	}
	go s.write()
	return s, nil
}

func (s *Store) readMark() error {
	content, err := s.get(bucketMeta, keyRebuild)
	if err != nil || content == nil {
		return err
	}
	s.mark = &mark{}
	return json.Unmarshal(content, s.mark)
}

// Recovered says that a damaged store was moved aside: where it is now, when it happened and what was wrong. It is empty
// otherwise, and again after Rebuilt.
func (s *Store) Recovered() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mark == nil {
		return ""
	}
	return s.mark.String()
}

// NeedsRebuild reports whether leases may be missing because the store is new or took the place of a damaged one. It stays
// true, also for later processes, until Rebuilt.
func (s *Store) NeedsRebuild() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mark != nil
}

// Rebuilt notes that every lease that the kernel and the runtime know of is in the store again.
func (s *Store) Rebuilt(ctx context.Context) error {
	if err := s.submit(ctx, []record{{bucket: bucketMeta, key: keyRebuild}}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mark = nil
	return nil
}

// Path returns the path that Open was given.
func (s *Store) Path() string { return s.path }

// Close finishes the writes that were taken on, gives the lock up and closes the file. It may be called more than once.
func (s *Store) Close() error {
	s.closing.Do(func() {
		close(s.stop)
		<-s.stopped
		if s.failed() != nil {
			return // bbolt may hold its own locks for ever after a fault; the kernel gives the file up when the process ends
		}
		s.closed = s.db.Close()
	})
	return s.closed
}

// failed returns the error that has broken the store, if any.
func (s *Store) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

func (s *Store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		s.broken = err
	}
}
