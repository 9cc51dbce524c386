package cluster

import (
	"context"
	"sync"
	"time"

	"weft.network/weft/appliance/model"
)

// Source publishes what is known of the cluster.
type Source interface {
	// Run watches until the context ends and calls publish, never twice at once, with each new Snapshot: first when all kinds
	// are known, then after each change. That the cluster cannot be reached is no error: it is in Status.
	Run(ctx context.Context, publish func(*model.Snapshot)) error
	// Status says how the source is doing. It may be called at any time.
	Status() Status
	// Recorder tells the users of the cluster what happened to their objects.
	Recorder() Recorder
}

// Recorder emits warnings that the cluster shows next to an object (Kubernetes Events of type Warning). A call returns at once;
// the newest warnings wait for a server, and the others are dropped. reason is one word in CamelCase, message a sentence.
type Recorder interface {
	WarnPod(pod model.PodRef, reason, message string)
	WarnNode(node, reason, message string)
	// Service notes what became of a Service: as a warning, or as something that is good to know.
	Service(key model.ServiceKey, uid string, warning bool, reason, message string)
}

// The values of Status.Kind.
const (
	KindKubernetes = "kubernetes"
	KindManifests  = "manifests"
)

// Status is the health of a source.
type Status struct {
	Kind string `json:"kind"`
	// Connected is true while what was published is known to be current.
	Connected bool `json:"connected"`
	// Since is when Connected changed last.
	Since time.Time `json:"since"`
	// LastError says why the source is not connected; empty while it is.
	LastError string `json:"lastError,omitempty"`
	// Server is the API server that answered last, as host:port, or the directory.
	Server string `json:"server,omitempty"`
	// Read is when the last look at the files began that found all of them good; zero for the API, which tells of its own accord.
	Read time.Time `json:"read,omitzero"`
	// Problems are fields of objects that cannot be used and are ignored, each with its object and field.
	Problems []string `json:"problems,omitempty"`
}

// Holder holds the newest Snapshot for many readers. The zero value holds none.
type Holder struct {
	mu      sync.Mutex
	newest  *model.Snapshot
	changed chan struct{}
}

// Set replaces the Snapshot and wakes all who wait for it.
func (h *Holder) Set(s *model.Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.newest = s
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// Get returns the newest Snapshot, or nil before the first.
func (h *Holder) Get() *model.Snapshot {
	s, _ := h.Watch()
	return s
}

// Watch returns the newest Snapshot, or nil before the first, and a channel that is closed when there is a newer one.
func (h *Holder) Watch() (*model.Snapshot, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changed == nil {
		h.changed = make(chan struct{})
	}
	return h.newest, h.changed
}

// status keeps the Status of a source that watches several kinds: it is connected when each kind was listed and none fails.
type status struct {
	mu      sync.Mutex
	value   Status
	unknown map[string]bool   // kinds that were never listed
	failing map[string]string // kinds whose last request failed, with the error
}

func newStatus(kind, server string, kinds ...string) *status {
	s := &status{
		value:   Status{Kind: kind, Server: server, Since: time.Now()},
		unknown: map[string]bool{},
		failing: map[string]string{},
	}
	for _, k := range kinds {
		s.unknown[k] = true
	}
	return s
}

// get returns a copy with the given problems.
func (s *status) get(problems []string) Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.value
	out.Problems = problems
	return out
}

// answered notes that a server has answered.
func (s *status) answered(server string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.value.Server = server
}

// read notes that what the files held at a time is published.
func (s *status) read(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.value.Read = at
}

// listed notes that everything of a kind is known.
func (s *status) listed(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unknown, kind)
	s.update()
}

// works notes that a request for a kind has succeeded.
func (s *status) works(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.failing, kind)
	s.update()
}

// fails notes that a request for a kind has failed.
func (s *status) fails(kind string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing[kind] = err.Error()
	s.value.LastError = err.Error()
	s.update()
}

func (s *status) update() {
	connected := len(s.unknown) == 0 && len(s.failing) == 0
	if connected != s.value.Connected {
		s.value.Connected, s.value.Since = connected, time.Now()
	}
	switch {
	case connected:
		s.value.LastError = ""
	case len(s.failing) == 1: // the last error may be of a kind that works again
		for _, text := range s.failing {
			s.value.LastError = text
		}
	}
}
