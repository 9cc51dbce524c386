package cluster

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"weft.network/weft/appliance/model"
)

// objects is all that a source knows. An object that did not change keeps its pointer from Snapshot to Snapshot, and a map
// without a change is shared between them.
type objects struct {
	mu       sync.Mutex
	nodes    collection[string, model.Node]
	pods     collection[model.PodKey, model.Pod]
	services collection[model.ServiceKey, model.Service]
	slices   collection[model.SliceKey, model.EndpointSlice]

	namespaces collection[string, model.Namespace]
	policies   collection[model.PolicyKey, model.NetworkPolicy]

	bgpPeers collection[string, model.BGPPeer]
	pools    collection[string, model.LoadBalancerPool]
	secrets  collection[model.SecretKey, model.Secret]

	configMaps collection[model.ConfigMapKey, model.ConfigMap]

	problems map[string][]string // by kind and name of the object
	revision uint64

	dirty   bool          // something changed since the last snapshot
	changed chan struct{} // has a value when it is worth a look
	refer   chan struct{} // the same for who follows references between objects
	report  func(problem string)
}

func newObjects(report func(string)) *objects {
	if report == nil {
		report = func(string) {}
	}
	return &objects{
		nodes:    collection[string, model.Node]{items: map[string]*model.Node{}},
		pods:     collection[model.PodKey, model.Pod]{items: map[model.PodKey]*model.Pod{}},
		services: collection[model.ServiceKey, model.Service]{items: map[model.ServiceKey]*model.Service{}},
		slices:   collection[model.SliceKey, model.EndpointSlice]{items: map[model.SliceKey]*model.EndpointSlice{}},

		namespaces: collection[string, model.Namespace]{items: map[string]*model.Namespace{}},
		policies:   collection[model.PolicyKey, model.NetworkPolicy]{items: map[model.PolicyKey]*model.NetworkPolicy{}},

		bgpPeers:   collection[string, model.BGPPeer]{items: map[string]*model.BGPPeer{}},
		pools:      collection[string, model.LoadBalancerPool]{items: map[string]*model.LoadBalancerPool{}},
		secrets:    collection[model.SecretKey, model.Secret]{items: map[model.SecretKey]*model.Secret{}},
		configMaps: collection[model.ConfigMapKey, model.ConfigMap]{items: map[model.ConfigMapKey]*model.ConfigMap{}},
		problems:   map[string][]string{},
		changed:    make(chan struct{}, 1),
		refer:      make(chan struct{}, 1),
		report:     report,
	}
}

// touch notes that something has changed. The caller holds the lock.
func (o *objects) touch() {
	o.dirty = true
	o.notify()
	select {
	case o.refer <- struct{}{}:
	default:
	}
}

// notify makes the publisher look whether a Snapshot is due.
func (o *objects) notify() {
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

// snapshot returns everything as the next Snapshot, or nil when nothing has changed since the last one.
func (o *objects) snapshot() *model.Snapshot {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.dirty && o.revision > 0 {
		return nil
	}
	o.dirty = false
	o.revision++
	return &model.Snapshot{
		Revision: o.revision, Nodes: o.nodes.share(), Pods: o.pods.share(), Services: o.services.share(), Slices: o.slices.share(),
		Namespaces: o.namespaces.share(), Policies: o.policies.share(),
		Pools: o.pools.share(), BGPPeers: o.bgpPeers.share(), Secrets: o.secrets.share(),
		ConfigMaps: o.configMaps.share(),
	}
}

// setProblems replaces the problems of one object and reports those that are new.
func (o *objects) setProblems(object string, problems []string) {
	for _, p := range problems {
		if !slices.Contains(o.problems[object], p) {
			o.report(p)
		}
	}
	if len(problems) == 0 {
		delete(o.problems, object)
		return
	}
	o.problems[object] = problems
}

// problem replaces the one problem of something that is no object; the empty text is none.
func (o *objects) problem(about, text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if text == "" {
		o.setProblems(about, nil)
		return
	}
	o.setProblems(about, []string{text})
}

// replaceProblems replaces the problems of all objects whose kind and name begin with prefix.
func (o *objects) replaceProblems(prefix string, all map[string][]string) {
	for object := range o.problems {
		if _, ok := all[object]; !ok && strings.HasPrefix(object, prefix) {
			delete(o.problems, object)
		}
	}
	for object, problems := range all {
		o.setProblems(object, problems)
	}
}

// optional takes the result of a request for an optional kind. Only the refusal of the server is worth a word: when it does
// not answer at all, the other kinds say so.
func (o *objects) optional(kind string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err == nil:
		o.setProblems(kind, nil)
	case apierrors.IsForbidden(err):
		o.setProblems(kind, []string{fmt.Sprintf("watching %s: %v (ignored)", kind, err)})
	}
}

// allProblems returns the problems of all objects, sorted.
func (o *objects) allProblems() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []string
	for _, problems := range o.problems {
		out = append(out, problems...)
	}
	slices.Sort(out)
	return out
}

// collection is a map that is copied before the first change after it was shared.
type collection[K comparable, T any] struct {
	items  map[K]*T
	shared bool
}

// share returns the map, which will not change any more.
func (c *collection[K, T]) share() map[K]*T {
	c.shared = true
	return c.items
}

func (c *collection[K, T]) own() {
	if c.shared {
		c.items, c.shared = maps.Clone(c.items), false
	}
}

// put adds or replaces one object and reports whether that changed anything. A nil object, one that weft has no use for, is
// the same as none.
func (c *collection[K, T]) put(key K, value *T) bool {
	if value == nil {
		return c.remove(key)
	}
	if old, ok := c.items[key]; ok && reflect.DeepEqual(old, value) {
		return false
	}
	c.own()
	c.items[key] = value
	return true
}

// remove removes one object and reports whether it was there.
func (c *collection[K, T]) remove(key K) bool {
	if _, ok := c.items[key]; !ok {
		return false
	}
	c.own()
	delete(c.items, key)
	return true
}

// replace makes the collection hold exactly the given objects and reports whether that changed anything.
func (c *collection[K, T]) replace(all map[K]*T) bool {
	changed := false
	for key := range c.items {
		if _, ok := all[key]; !ok {
			changed = c.remove(key)
		}
	}
	for key, value := range all {
		changed = c.put(key, value) || changed
	}
	return changed
}
