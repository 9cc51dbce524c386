package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"

	bolt "go.etcd.io/bbolt"

	"weft.network/weft/appliance/model"
)

// Op is one change of the store, made by the functions below and done by Write.
type Op struct {
	records []record
	err     error
}

// PutLease writes the lease under its key, in the place of an older one.
func PutLease(l *model.Lease) Op {
	key, err := attachmentKey(l.AttachmentKey)
	return op(bucketLeases, key, l, err)
}

// DeleteLease removes the lease of that key, if there is one, and remembers the given addresses as released.
func DeleteLease(k model.AttachmentKey, released map[netip.Addr]model.Release) Op {
	key, err := attachmentKey(k)
	out := Op{records: []record{{bucket: bucketLeases, key: key}}, err: err}
	for addr, r := range released {
		put := PutRelease(addr, r)
		out.records = append(out.records, put.records...)
		out.err = errors.Join(out.err, put.err)
	}
	return out
}

// PutRelease remembers who held the address and until when.
func PutRelease(addr netip.Addr, r model.Release) Op {
	key, err := addressKey(addr)
	return op(bucketReleased, key, r, err)
}

// DeleteRelease forgets the former holders of the addresses.
func DeleteRelease(addrs ...netip.Addr) Op {
	var out Op
	for _, addr := range addrs {
		key, err := addressKey(addr)
		out.records = append(out.records, record{bucket: bucketReleased, key: key})
		out.err = errors.Join(out.err, err)
	}
	return out
}

// PutHostPorts writes the port mappings of an attachment in the place of older ones.
func PutHostPorts(h *model.HostPorts) Op {
	key, err := attachmentKey(h.AttachmentKey)
	return op(bucketHostPorts, key, h, err)
}

// DeleteHostPorts removes the port mappings of an attachment, if there are any.
func DeleteHostPorts(k model.AttachmentKey) Op {
	key, err := attachmentKey(k)
	return Op{records: []record{{bucket: bucketHostPorts, key: key}}, err: err}
}

func op(bucket, key string, value any, err error) Op {
	if err != nil {
		return Op{err: err}
	}
	content, err := json.Marshal(value)
	if err != nil {
		return Op{err: fmt.Errorf("writing %s/%s: %w", bucket, key, err)}
	}
	return Op{records: []record{seal(bucket, key, content)}}
}

// Write does all of the ops, in their order, or none, and returns when they are on the disk. Calls that come while the disk
// is busy share the next transaction; an error of one of them does not touch the others. The context ends only the wait
// for the turn: once the write is taken on, Write waits for its result, so that the caller always knows.
func (s *Store) Write(ctx context.Context, ops ...Op) error {
	var records []record
	for _, o := range ops {
		if o.err != nil {
			return fmt.Errorf("writing %s: %w", s.path, o.err)
		}
		records = append(records, o.records...)
	}
	return s.submit(ctx, records)
}

// SaveSnapshot writes the Snapshot in the place of the one before. It costs in the order of the whole Snapshot: the caller
// decides how often.
func (s *Store) SaveSnapshot(ctx context.Context, snapshot *model.Snapshot) error {
	content, err := deflate(snapshot)
	if err != nil {
		return fmt.Errorf("writing %s: encoding the snapshot: %w", s.path, err)
	}
	return s.submit(ctx, []record{seal(bucketSnapshot, keyNewest, content)})
}

// UpdateIdentity reads the identity, lets change set what is new, and writes it if something is. Calls do not overlap.
func (s *Store) UpdateIdentity(ctx context.Context, change func(*Identity)) error {
	s.identity.Lock()
	defer s.identity.Unlock()
	identity, err := s.Identity()
	if err != nil {
		return err
	}
	before := op(bucketMeta, keyIdentity, identity, nil)
	change(&identity)
	after := op(bucketMeta, keyIdentity, identity, nil)
	if reflect.DeepEqual(before, after) {
		return nil
	}
	return s.Write(ctx, after)
}

// request is one call of Write that waits for the writer.
type request struct {
	records []record
	done    chan error
}

func (s *Store) submit(ctx context.Context, records []record) error {
	if len(records) == 0 {
		return nil
	}
	r := &request{records, make(chan error, 1)}
	select {
	case s.requests <- r:
		return <-r.done
	case <-ctx.Done():
		return fmt.Errorf("writing %s: %w", s.path, ctx.Err())
	case <-s.stop:
		return fmt.Errorf("writing %s: %w", s.path, ErrClosed)
	}
}

// write is the only writer: it takes all requests that wait, commits them in one transaction, and answers.
func (s *Store) write() {
	defer close(s.stopped)
	for {
		select {
		case <-s.stop:
			return
		case r := <-s.requests:
			s.commit(s.waiting(r))
		}
	}
}

// waiting returns the request and all others that wait at this moment.
func (s *Store) waiting(r *request) []*request {
	batch := []*request{r}
	for {
		select {
		case r := <-s.requests:
			batch = append(batch, r)
		default:
			return batch
		}
	}
}

// commit writes the batch in one transaction. If that fails, each request is tried alone: a large Snapshot that no longer
// fits on the disk must not take the small leases beside it along.
func (s *Store) commit(batch []*request) {
	err := s.apply(batch...)
	for _, r := range batch {
		if err != nil && len(batch) > 1 {
			r.done <- s.apply(r)
			continue
		}
		r.done <- err
	}
}

func (s *Store) apply(batch ...*request) error {
	if err := s.failed(); err != nil {
		return err
	}
	err := guard(func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			for _, r := range batch {
				if err := put(tx, r.records); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("writing %s: %w", s.path, explain(s.path, err))
	if errors.Is(err, ErrDamaged) {
		s.fail(err)
	}
	return err
}

// put writes and deletes records.
func put(tx *bolt.Tx, records []record) error {
	for _, r := range records {
		b := tx.Bucket([]byte(r.bucket))
		var err error
		if r.value == nil {
			err = b.Delete([]byte(r.key))
		} else {
			err = b.Put([]byte(r.key), r.value)
		}
		if err != nil {
			return fmt.Errorf("%s/%s: %w", r.bucket, r.key, err)
		}
	}
	return nil
}
