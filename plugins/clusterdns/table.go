package clusterdns

import (
	"hash/maphash"
	"maps"
)

// shards is into how many maps a table is cut: a change copies one of them, not the whole.
const shards = 256

// table is a map that never changes once it is published: readers need no lock. A change makes a new table that shares all
// shards it did not touch.
type table[K comparable, V any] struct {
	seed  maphash.Seed
	shard *[shards]map[K]V
}

func newTable[K comparable, V any]() table[K, V] {
	return table[K, V]{seed: maphash.MakeSeed(), shard: &[shards]map[K]V{}}
}

func (t table[K, V]) get(key K) V {
	return t.shard[maphash.Comparable(t.seed, key)%shards][key]
}

// edit is a table under change.
type edit[K comparable, V any] struct {
	table[K, V]
	own [shards]bool
}

func (t table[K, V]) edit() *edit[K, V] {
	copied := *t.shard
	return &edit[K, V]{table: table[K, V]{t.seed, &copied}}
}

// set replaces the value of a key; with keep false the key is removed.
func (e *edit[K, V]) set(key K, value V, keep bool) {
	i := maphash.Comparable(e.seed, key) % shards
	if !e.own[i] {
		e.own[i] = true
		if e.shard[i] = maps.Clone(e.shard[i]); e.shard[i] == nil {
			e.shard[i] = map[K]V{}
		}
	}
	if keep {
		e.shard[i][key] = value
	} else {
		delete(e.shard[i], key)
	}
}
