package store

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"weft.network/weft/appliance/model"
)

// Identity is what the node knows of itself and of its cluster without being told again.
type Identity struct {
	NodeName string         `json:"nodeName,omitempty"`
	PodCIDRs []netip.Prefix `json:"podCIDRs,omitempty"`
	// APIServers are the addresses of API servers that were learned last, as host:port.
	APIServers []string `json:"apiServers,omitempty"`
	// Learned are the routes of BGP neighbours that were installed last; a restart keeps them until the neighbours are heard.
	Learned []model.LearnedRoute `json:"learned,omitempty"`
	// Roles are those whose tables and links the kernel may hold.
	Roles []string `json:"roles,omitempty"`
	// Drained is true after weft bgp drain.
	Drained bool `json:"drained,omitempty"`
}

// Leases returns all leases in the order of their keys.
func (s *Store) Leases() ([]*model.Lease, error) {
	var out []*model.Lease
	err := s.each(bucketLeases, func(key string, content []byte) error {
		l, err := decodeLease(key, content)
		out = append(out, l)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Released returns who held the released addresses, and until when.
func (s *Store) Released() (map[netip.Addr]model.Release, error) {
	out := map[netip.Addr]model.Release{}
	err := s.each(bucketReleased, func(key string, content []byte) error {
		addr, r, err := decodeRelease(key, content)
		out[addr] = r
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// HostPorts returns all port mappings in the order of their keys.
func (s *Store) HostPorts() ([]*model.HostPorts, error) {
	var out []*model.HostPorts
	err := s.each(bucketHostPorts, func(key string, content []byte) error {
		h, err := decodeHostPorts(key, content)
		out = append(out, h)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Snapshot returns the last Snapshot that was saved, marked as stored, or nil when there is none.
func (s *Store) Snapshot() (*model.Snapshot, error) {
	content, err := s.get(bucketSnapshot, keyNewest)
	if err != nil || content == nil {
		return nil, err
	}
	snapshot := &model.Snapshot{}
	if err := inflate(content, snapshot); err != nil {
		return nil, fmt.Errorf("reading the snapshot in %s: %w", s.path, err)
	}
	snapshot.Stored = true
	return snapshot, nil
}

// Identity returns what UpdateIdentity wrote last, or the zero value.
func (s *Store) Identity() (Identity, error) {
	var identity Identity
	content, err := s.get(bucketMeta, keyIdentity)
	if err != nil || content == nil {
		return identity, err
	}
	if err := json.Unmarshal(content, &identity); err != nil {
		return Identity{}, fmt.Errorf("reading the identity in %s: %w", s.path, err)
	}
	return identity, nil
}

// each calls f with the content of each record in the bucket, in the order of the keys. The content is only valid within f.
func (s *Store) each(bucket string, f func(key string, content []byte) error) error {
	return s.view(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte(bucket)).ForEach(func(k, v []byte) error {
			content, err := unseal(bucket, string(k), v)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrDamaged, err)
			}
			return f(string(k), content)
		})
	})
}

// get returns the content of one record, or nil.
func (s *Store) get(bucket, key string) (content []byte, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		v := tx.Bucket([]byte(bucket)).Get([]byte(key))
		if v == nil {
			return nil
		}
		if content, err = unseal(bucket, key, v); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		content = slices.Clone(content)
		return nil
	})
	return content, err
}

// view runs f in a read transaction.
func (s *Store) view(f func(*bolt.Tx) error) error {
	if err := s.failed(); err != nil {
		return err
	}
	err := guard(func() error { return s.db.View(f) })
	switch {
	case err == nil:
		return nil
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		err = ErrClosed
	case errors.Is(err, ErrDamaged):
		s.fail(fmt.Errorf("reading %s: %w", s.path, err))
	}
	return fmt.Errorf("reading %s: %w", s.path, err)
}

// sound checks one record: its checksum, and that its content can be read.
func sound(bucket, key string, value []byte) error {
	content, err := unseal(bucket, key, value)
	if err != nil {
		return err
	}
	switch bucket {
	case bucketLeases:
		_, err = decodeLease(key, content)
	case bucketReleased:
		_, _, err = decodeRelease(key, content)
	case bucketHostPorts:
		_, err = decodeHostPorts(key, content)
	case bucketMeta:
		err = json.Unmarshal(content, &Identity{})
	}
	return err
}

func decodeLease(key string, content []byte) (*model.Lease, error) {
	l := &model.Lease{}
	if err := json.Unmarshal(content, l); err != nil {
		return nil, fmt.Errorf("lease %q: %w", key, err)
	}
	return l, sameKey("lease", key, l.AttachmentKey)
}

func decodeHostPorts(key string, content []byte) (*model.HostPorts, error) {
	h := &model.HostPorts{}
	if err := json.Unmarshal(content, h); err != nil {
		return nil, fmt.Errorf("host ports %q: %w", key, err)
	}
	return h, sameKey("host ports", key, h.AttachmentKey)
}

func sameKey(what, key string, k model.AttachmentKey) error {
	if want, err := attachmentKey(k); err != nil || want != key {
		return fmt.Errorf("%s %q: the record is about %s", what, key, k)
	}
	return nil
}

func decodeRelease(key string, content []byte) (netip.Addr, model.Release, error) {
	var r model.Release
	addr, err := netip.ParseAddr(key)
	if err == nil {
		err = json.Unmarshal(content, &r)
	}
	if err != nil {
		return addr, r, fmt.Errorf("released address %q: %w", key, err)
	}
	return addr, r, nil
}

// deflate encodes a Snapshot for the disk. The fastest level: it is written often and read once per start.
func deflate(snapshot *model.Snapshot) ([]byte, error) {
	var buf bytes.Buffer
	w, err := flate.NewWriter(&buf, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	if err := json.NewEncoder(w).Encode(snapshot); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func inflate(content []byte, snapshot *model.Snapshot) error {
	b, err := io.ReadAll(flate.NewReader(bytes.NewReader(content)))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, snapshot)
}
