package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
)

const (
	fileMode = 0o600
	dirMode  = 0o700
	// pageSize is fixed, so that a disk can move to a machine whose kernel has other pages.
	pageSize = 4096
	// lockInterval is the time between two attempts at a lock that another process holds.
	lockInterval = 10 * time.Millisecond
	// keepDamaged is how many damaged files are left beside the store: a dying disk must not fill itself with them.
	keepDamaged = 3
	// openAttempts bounds the loop of a disk that damages each new file at once.
	openAttempts = 3
)

// errReplaced says that the file at the path is a new one and has to be opened.
var errReplaced = errors.New("the store was replaced")

// damage is what was found wrong, and what can be carried over.
type damage struct {
	reason string
	kept   []record
	db     *bolt.DB // nil when bbolt could not open the file
}

// attempt opens the file once. It returns errReplaced after it put a new file in the place of a damaged one.
func attempt(path string, o Options, deadline time.Time) (*bolt.DB, error) {
	file, err := lock(path, o.Version, deadline)
	if err != nil {
		return nil, err
	}
	db, found, err := inspect(file, path, o)
	if err != nil {
		return nil, errors.Join(err, closeQuietly(file))
	}
	if found == nil {
		removeAll(path+".new-*", 0)
		return db, nil
	}
	// The lock is held until the new file is in place: it is the file, not its name, that is locked.
	defer func() {
		if found.db != nil {
			_ = found.db.Close() // nothing was written through it
		}
		_ = closeQuietly(file)
	}()
	if err := replace(path, o.Version, *found); err != nil {
		return nil, fmt.Errorf("%s is damaged (%s), and no new store could be made: %w", path, found.reason, explain(path, err))
	}
	return nil, errReplaced
}

// lock opens the file, making it when there is none, and takes the lock that bbolt would take.
func lock(path, version string, deadline time.Time) (*os.File, error) {
	retry := time.NewTicker(lockInterval)
	defer retry.Stop()
	for {
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			if err := create(path, version); err != nil {
				return nil, fmt.Errorf("making the store %s: %w", path, explain(path, err))
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("opening the store: %w", err)
		}
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && sameFile(file, path) {
			return file, nil
		}
		_ = file.Close()
		switch {
		case err == nil: // the owner before us has put another file in its place
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return nil, fmt.Errorf("locking the store %s: %w", path, err)
		case !time.Now().Before(deadline):
			return nil, fmt.Errorf("%w: %s", ErrBusy, path)
		default:
			<-retry.C
		}
	}
}

func sameFile(file *os.File, path string) bool {
	a, err1 := file.Stat()
	b, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// closeQuietly closes a file that bbolt may have closed already.
func closeQuietly(file *os.File) error {
	if err := file.Close(); !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}

// inspect checks the locked file and opens it. It returns the database, or the damage, or an error that is no damage.
func inspect(file *os.File, path string, o Options) (*bolt.DB, *damage, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("opening the store: %w", err)
	}
	structure := verify(file, info.Size())
	if structure != nil && !errors.Is(structure, errOldMeta) {
		return nil, &damage{reason: structure.Error()}, nil
	}
	if err := file.Chmod(fileMode); err != nil {
		return nil, nil, fmt.Errorf("opening the store: %w", err)
	}
	var db *bolt.DB
	err = guard(func() (err error) {
		db, err = openBolt(path, func(string, int, os.FileMode) (*os.File, error) { return file, nil })
		return err
	})
	switch {
	case errors.Is(err, ErrDamaged):
		return nil, &damage{reason: err.Error()}, nil
	case err != nil: // the structure is sound, so this is a matter of memory or of descriptors
		return nil, nil, fmt.Errorf("opening the store %s: %w", path, explain(path, err))
	}
	kept, err := contents(db, o.Version)
	if err == nil {
		err = structure
	}
	switch {
	case err == nil:
		return db, nil, nil
	case errors.Is(err, ErrNewer):
		return nil, nil, errors.Join(err, db.Close())
	case errors.Is(err, ErrDamaged):
		return nil, &damage{reason: err.Error()}, nil // bbolt has panicked: closing it might wait for ever
	}
	return nil, &damage{reason: err.Error(), kept: kept, db: db}, nil
}

// contents returns the intact records of the file and what is wrong with the others, or ErrNewer.
func contents(db *bolt.DB, self string) (kept []record, err error) {
	err = guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			version, writer, ok := readSchema(tx)
			if !ok {
				return errors.New("there is no schema record: weft did not write this file")
			}
			if version > schemaVersion {
				return newerError(db.Path(), version, writer, self)
			}
			kept, err = intact(tx)
			return err
		})
	})
	return kept, err
}

// intact returns all records that match their checksum, and an error about the others.
func intact(tx *bolt.Tx) (kept []record, err error) {
	for _, name := range buckets {
		b := tx.Bucket([]byte(name))
		if b == nil {
			err = errors.Join(err, fmt.Errorf("bucket %s is missing", name))
			continue
		}
		cursor := b.Cursor()
		for k, v := cursor.First(); k != nil; k, v = cursor.Next() {
			key := string(k)
			if plain(name, key) || name == bucketMeta && key == keyRebuild {
				continue
			}
			if problem := sound(name, key, v); problem != nil {
				err = errors.Join(err, problem)
				continue
			}
			kept = append(kept, record{name, key, slices.Clone(v)})
		}
	}
	return kept, err
}

func openBolt(path string, open func(string, int, os.FileMode) (*os.File, error)) (*bolt.DB, error) {
	return bolt.Open(path, fileMode, &bolt.Options{
		Timeout: lockInterval, OpenFile: open, PageSize: pageSize, FreelistType: bolt.FreelistMapType, NoStatistics: true,
	})
}

// guard runs what touches the memory map of the file and turns a panic or a fault there into ErrDamaged.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return f()
}

// create makes a new store unless another process was faster. The file appears at its path complete.
func create(path, version string) error {
	tmp, err := build(path, version, nil, mark{Reason: "the store is new", At: time.Now().Unix()})
	if err != nil {
		return err
	}
	err = os.Link(tmp, path)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		err = nil // made, or our file tidied away, by another process: the caller looks again
	}
	return errors.Join(err, os.RemoveAll(tmp), syncDir(path))
}

// replace puts a new store in the place of the damaged one, which is kept under another name.
func replace(path, version string, found damage) error {
	now := time.Now().Unix()
	aside := fmt.Sprintf("%s.damaged-%d", path, now)
	for n := 2; ; n++ {
		// A second name for the same file, so that at no time there is none at the path.
		err := os.Link(path, aside)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		aside = fmt.Sprintf("%s.damaged-%d-%d", path, now, n)
	}
	tmp, err := build(path, version, found.kept, mark{Aside: aside, Reason: found.reason, Kept: len(found.kept), At: now})
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(aside))
	}
	removeAll(path+".damaged-*", keepDamaged)
	return syncDir(path)
}

// build writes a complete new store beside the path and returns its name.
func build(path, version string, kept []record, m mark) (name string, err error) {
	content, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	if err := file.Close(); err != nil {
		return "", err
	}
	db, err := openBolt(file.Name(), nil)
	if err != nil {
		return "", err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, b := range buckets {
			if _, err := tx.CreateBucketIfNotExists([]byte(b)); err != nil {
				return err
			}
		}
		if err := putSchema(tx, schemaVersion, version); err != nil {
			return err
		}
		return put(tx, append(kept, seal(bucketMeta, keyRebuild, content)))
	})
	return file.Name(), errors.Join(err, db.Close())
}

func syncDir(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// removeAll removes the files of that pattern except for the newest few. Whatever cannot be removed stays: it is only litter.
func removeAll(pattern string, keep int) {
	names, err := filepath.Glob(pattern)
	if err != nil {
		return
	}
	slices.SortFunc(names, func(a, b string) int { return modified(b).Compare(modified(a)) })
	for _, name := range names[min(keep, len(names)):] {
		_ = os.Remove(name)
	}
}

func modified(name string) time.Time {
	info, err := os.Lstat(name)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// explain adds the fix to errors that the administrator can repair.
func explain(path string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("the file system of %s is full; free some space there: %w", filepath.Dir(path), err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("the file system of %s is read-only; mount it writable, or give another --state-dir: %w", filepath.Dir(path), err)
	}
	return err
}
