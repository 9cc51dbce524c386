package store

import (
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"weft.network/weft/appliance/model"
)

// schemaVersion is the version of the tree in the package comment. A change of it needs a line in migrations.
const schemaVersion = 1

// migrations[n] turns a tree of version n into one of version n+1, within one transaction.
var migrations = map[int]func(*bolt.Tx) error{}

// The buckets and the keys in meta.
const (
	bucketMeta      = "meta"
	bucketLeases    = "leases"
	bucketReleased  = "released"
	bucketHostPorts = "hostports"
	bucketSnapshot  = "snapshot"

	keySchema   = "schema"
	keyWriter   = "writer"
	keyRebuild  = "rebuild"
	keyIdentity = "identity"
	keyNewest   = "newest"
)

var buckets = []string{bucketMeta, bucketLeases, bucketReleased, bucketHostPorts, bucketSnapshot}

// record is one key with its value; a nil value means that the key is deleted.
type record struct {
	bucket, key string
	value       []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumLength is the length of the checksum and the space in front of the content.
const sumLength = 9

func checksum(bucket, key string, content []byte) string {
	sum := crc32.Update(0, castagnoli, []byte(bucket+"\x00"+key+"\x00"))
	return fmt.Sprintf("%08x ", crc32.Update(sum, castagnoli, content))
}

// seal puts the checksum before the content.
func seal(bucket, key string, content []byte) record {
	return record{bucket, key, append([]byte(checksum(bucket, key, content)), content...)}
}

// unseal returns the content of a value that seal made. The result shares the memory of the value.
func unseal(bucket, key string, value []byte) ([]byte, error) {
	if len(value) < sumLength || string(value[:sumLength]) != checksum(bucket, key, value[sumLength:]) {
		return nil, fmt.Errorf("record %s/%q does not match its checksum", bucket, strings.ReplaceAll(key, "\x00", "/"))
	}
	return value[sumLength:], nil
}

// plain says which values carry no checksum, so that every later weft can read them, whatever becomes of the rest.
func plain(bucket, key string) bool {
	return bucket == bucketMeta && (key == keySchema || key == keyWriter)
}

func attachmentKey(k model.AttachmentKey) (string, error) {
	for _, part := range []string{k.Network, k.ContainerID, k.IfName} {
		if part == "" || strings.ContainsRune(part, 0) {
			return "", fmt.Errorf("attachment %q: network, container and interface must not be empty or contain a NUL byte", k)
		}
	}
	key := k.Network + "\x00" + k.ContainerID + "\x00" + k.IfName
	if len(key) > bolt.MaxKeySize {
		return "", fmt.Errorf("attachment %.64q...: its names have %d bytes; the store takes %d", k, len(key), bolt.MaxKeySize)
	}
	return key, nil
}

func addressKey(a netip.Addr) (string, error) {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
		return "", fmt.Errorf("address %q: not a plain IPv4 or IPv6 address", a)
	}
	return a.String(), nil
}

// readSchema returns the version of the tree and of the weft that wrote it. ok is false when there is no such record, or one
// that no weft wrote.
func readSchema(tx *bolt.Tx) (version int, writer string, ok bool) {
	b := tx.Bucket([]byte(bucketMeta))
	if b == nil {
		return 0, "", false
	}
	version, err := strconv.Atoi(string(b.Get([]byte(keySchema))))
	return version, string(b.Get([]byte(keyWriter))), err == nil && version > 0
}

// newerError says that a later weft wrote the file.
func newerError(path string, version int, writer, self string) error {
	return fmt.Errorf("%w: %s has schema %d, written by weft %s; this is weft %s, which knows schemas up to %d: "+
		"run weft %s or newer, or move the file away to begin with an empty store",
		ErrNewer, path, version, writer, self, schemaVersion, writer)
}

// migrate brings the tree to schemaVersion in one transaction and keeps a copy of the old file beside it, for the way back.
func migrate(db *bolt.DB, self string, known map[int]func(*bolt.Tx) error, target int) error {
	var version int
	var writer string
	err := db.View(func(tx *bolt.Tx) error {
		version, writer, _ = readSchema(tx)
		if version == target {
			return nil
		}
		return copyFile(tx, fmt.Sprintf("%s.schema-%d", db.Path(), version))
	})
	if err != nil {
		return fmt.Errorf("keeping a copy of %s before its migration: %w", db.Path(), err)
	}
	if version == target && writer == self {
		return nil
	}
	return db.Update(func(tx *bolt.Tx) error {
		for ; version < target; version++ {
			step, ok := known[version]
			if !ok {
				return fmt.Errorf("%s has schema %d, and this weft has no migration from it", db.Path(), version)
			}
			if err := step(tx); err != nil {
				return fmt.Errorf("migrating %s from schema %d to %d: %w", db.Path(), version, version+1, err)
			}
		}
		return putSchema(tx, target, self)
	})
}

func putSchema(tx *bolt.Tx, version int, self string) error {
	b := tx.Bucket([]byte(bucketMeta))
	return errors.Join(
		b.Put([]byte(keySchema), []byte(strconv.Itoa(version))),
		b.Put([]byte(keyWriter), []byte(self)))
}

// copyFile writes what the transaction sees to a file of that name, whole or not at all. It is not bbolt's CopyFile, which
// would open the copy through the hook that attempt gave for the store itself.
func copyFile(tx *bolt.Tx, path string) (err error) {
	tmp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	if _, err := tx.WriteTo(tmp); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// mark is the content of meta/rebuild.
type mark struct {
	// Aside is where the damaged file is; empty when the store is simply new.
	Aside string `json:"aside,omitempty"`
	// Reason says what was wrong.
	Reason string `json:"reason,omitempty"`
	// Kept is the number of records that were carried over.
	Kept int `json:"kept,omitempty"`
	// At is when, in seconds since 1970.
	At int64 `json:"at"`
}

func (m mark) String() string {
	if m.Aside == "" {
		return ""
	}
	return fmt.Sprintf("%s: moved aside on %s (%d intact records were kept): %s",
		m.Aside, time.Unix(m.At, 0).UTC().Format(time.RFC3339), m.Kept, m.Reason)
}
