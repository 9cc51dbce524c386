package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// configMapLock keeps the record of an election in a ConfigMap that weft's manifest makes. A Lease would be the usual place, but a
// daemon that speaks with its kubelet's credential may write no Lease but that of its own node (admission plugin NodeRestriction).
type configMapLock struct {
	client   typedcorev1.ConfigMapInterface
	name     string
	identity string

	seen *corev1.ConfigMap // as it was read or written last
}

var _ resourcelock.Interface = (*configMapLock)(nil)

// lockRecord is the key under which the record is kept, as JSON.
const lockRecord = "holder"

// Get implements resourcelock.Interface. A ConfigMap without a record is one that nobody has held yet.
func (l *configMapLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	found, err := l.client.Get(ctx, l.name, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	l.seen = found
	text := []byte(found.Data[lockRecord])
	record := &resourcelock.LeaderElectionRecord{}
	if len(text) == 0 {
		return record, text, nil
	}
	if err := json.Unmarshal(text, record); err != nil {
		return nil, nil, fmt.Errorf("%s, key %s: %w", l.Describe(), lockRecord, err)
	}
	return record, text, nil
}

// Create implements resourcelock.Interface. weft has no right to make ConfigMaps.
func (l *configMapLock) Create(context.Context, resourcelock.LeaderElectionRecord) error {
	return fmt.Errorf("%s is not there: apply weft's RBAC manifest again", l.Describe())
}

// Update implements resourcelock.Interface. Of two who write at once the server takes one.
func (l *configMapLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if l.seen == nil {
		return errors.New("the record was not read yet")
	}
	text, err := json.Marshal(record)
	if err != nil {
		return err
	}
	next := l.seen.DeepCopy()
	if next.Data == nil {
		next.Data = map[string]string{}
	}
	next.Data[lockRecord] = string(text)
	written, err := l.client.Update(ctx, next, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	l.seen = written
	return nil
}

// RecordEvent implements resourcelock.Interface; the log says who gives out addresses.
func (l *configMapLock) RecordEvent(string) {}

// Identity implements resourcelock.Interface.
func (l *configMapLock) Identity() string { return l.identity }

// Describe implements resourcelock.Interface.
func (l *configMapLock) Describe() string { return "ConfigMap " + allocatorNamespace + "/" + l.name }
