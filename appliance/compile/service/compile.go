package service

import (
	"cmp"
	"maps"
	"reflect"
	"slices"

	"weft.network/weft/appliance/model"
)

// Compiler remembers the last outcome, so that the cost of the next one follows what changed. Its zero value is ready.
// It is not for several goroutines at once.
type Compiler struct {
	in       Input
	services map[model.ServiceKey]*model.Service
	slices   map[model.SliceKey]*model.EndpointSlice
	// bySvc are the slices of each Service, sorted by name.
	bySvc   map[model.ServiceKey][]*model.EndpointSlice
	entries map[model.ServiceKey]*entry
	claims  claims
	// problems are those of each Service that has any.
	problems map[model.ServiceKey][]Problem
	result   Result
}

// Compile returns what this node serves. A nil Snapshot has no Services.
func (c *Compiler) Compile(snap *model.Snapshot, in Input) Result {
	if snap == nil {
		snap = &model.Snapshot{}
	}
	if c.entries == nil {
		c.start(len(snap.Services))
	}
	dirty := map[model.ServiceKey]bool{}
	var changed Changed
	changes(c.services, snap.Services, func(k model.ServiceKey, _, _ *model.Service) {
		dirty[k] = true
		changed.Services++
	})
	changes(c.slices, snap.Slices, func(_ model.SliceKey, old, now *model.EndpointSlice) {
		if changed.Slices++; now != nil && now.Triggered != 0 {
			changed.Triggered = append(changed.Triggered, now.Triggered)
		}
		for _, s := range []*model.EndpointSlice{old, now} {
			if s != nil {
				dirty[s.ServiceKey()] = true
			}
		}
		c.regroup(old, now)
	})
	c.services, c.slices = snap.Services, snap.Slices
	if !reflect.DeepEqual(c.in, in) {
		c.in = in
		for k := range c.services {
			dirty[k] = true
		}
	}
	c.update(dirty)
	c.result.Changed = changed
	return c.result
}

func (c *Compiler) start(size int) {
	c.bySvc, c.entries = make(map[model.ServiceKey][]*model.EndpointSlice, size), make(map[model.ServiceKey]*entry, size)
	c.claims, c.problems = claims{make(map[claim]*entry, size), map[claim][]*entry{}}, map[model.ServiceKey][]Problem{}
	c.result = Result{Frontends: make(map[model.ServiceKey]*Frontends, size), HealthChecks: map[model.ServiceKey]HealthCheck{}}
}

// changes calls f for each object that came, went (now is nil) or changed. A map that is shared by two Snapshots is equal.
func changes[K comparable, T any](old, now map[K]*T, f func(k K, old, now *T)) {
	if reflect.ValueOf(old).Pointer() == reflect.ValueOf(now).Pointer() {
		return
	}
	kept := 0
	for k, v := range now {
		was := old[k]
		if was != nil {
			kept++
		}
		if was != v {
			f(k, was, v)
		}
	}
	if kept == len(old) {
		return
	}
	for k, was := range old {
		if now[k] == nil {
			f(k, was, nil)
		}
	}
}

// regroup moves a slice to the Service that it belongs to now.
func (c *Compiler) regroup(old, now *model.EndpointSlice) {
	if old != nil {
		k := old.ServiceKey()
		rest := slices.DeleteFunc(c.bySvc[k], func(s *model.EndpointSlice) bool { return s == old })
		if c.bySvc[k] = rest; len(rest) == 0 {
			delete(c.bySvc, k)
		}
	}
	if now != nil {
		k := now.ServiceKey()
		at, _ := slices.BinarySearchFunc(c.bySvc[k], now.Name, func(s *model.EndpointSlice, name string) int { return cmp.Compare(s.Name, name) })
		c.bySvc[k] = slices.Insert(c.bySvc[k], at, now)
	}
}

// update makes the Services that changed anew, and those that shared an address with them.
func (c *Compiler) update(dirty map[model.ServiceKey]bool) {
	touched := make(map[*entry]bool, len(dirty))
	var gone []model.ServiceKey
	for k := range dirty {
		old, svc := c.entries[k], c.services[k]
		e := &entry{svc: svc}
		if old != nil {
			c.claims.remove(old, touched)
			delete(touched, old)
			e.full, e.final = old.full, old.final
		}
		if svc == nil {
			delete(c.entries, k)
			gone = append(gone, k)
			continue
		}
		b := builder{in: c.in, svc: svc, slices: c.bySvc[k]}
		full, check := b.build(e.full)
		if !reflect.DeepEqual(e.full, full) {
			e.full = full
		}
		e.check, e.problems = check, b.problems
		c.entries[k] = e
		c.claims.add(e, touched)
		touched[e] = true
	}
	if len(touched) == 0 && len(gone) == 0 {
		return
	}
	c.publish(touched, gone)
}

// publish puts what changed into a new result.
func (c *Compiler) publish(touched map[*entry]bool, gone []model.ServiceKey) {
	frontends := writable[model.ServiceKey, *Frontends]{m: c.result.Frontends}
	checks := writable[model.ServiceKey, HealthCheck]{m: c.result.HealthChecks}
	news := false
	note := func(k model.ServiceKey, problems []Problem) {
		news = news || !slices.Equal(c.problems[k], problems)
		if c.problems[k] = problems; len(problems) == 0 {
			delete(c.problems, k)
		}
	}
	for _, k := range gone {
		frontends.remove(k)
		checks.remove(k)
		note(k, nil)
	}
	for e := range touched {
		k := e.svc.Key()
		final, conflicts := c.claims.share(e)
		if final == e.full || !reflect.DeepEqual(final, e.final) {
			e.final = final
		}
		if e.final != nil {
			frontends.set(k, e.final)
		} else {
			frontends.remove(k)
		}
		if e.check != nil {
			checks.set(k, *e.check)
		} else {
			checks.remove(k)
		}
		note(k, slices.Concat(e.problems, conflicts))
	}
	c.result.Frontends, c.result.HealthChecks = frontends.m, checks.m
	if news {
		c.result.Problems = c.allProblems()
	}
}

// allProblems collects those of all Services.
func (c *Compiler) allProblems() (out []Problem) {
	for _, p := range c.problems {
		out = append(out, p...)
	}
	slices.SortStableFunc(out, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Service.Namespace, b.Service.Namespace), cmp.Compare(a.Service.Name, b.Service.Name))
	})
	return out
}

// writable is a map that is copied before its first change, since others may read it.
type writable[K, V comparable] struct {
	m     map[K]V
	owned bool
}

func (w *writable[K, V]) own() {
	if !w.owned {
		w.m, w.owned = maps.Clone(w.m), true
	}
}

func (w *writable[K, V]) set(k K, v V) {
	if old, ok := w.m[k]; !ok || old != v {
		w.own()
		w.m[k] = v
	}
}

func (w *writable[K, V]) remove(k K) {
	if _, ok := w.m[k]; ok {
		w.own()
		delete(w.m, k)
	}
}
