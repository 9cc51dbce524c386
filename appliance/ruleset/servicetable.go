package ruleset

import (
	"hash/fnv"
	"net/netip"
	"slices"
)

// The sizes of tables of hashes: primes, so that every step visits every place.
var tableSizes = []int{61, 251, 1021, 4093, 16381, 65521}

// tableSize returns how many places a table for n endpoints has: at least eight for each, which keeps the shares within an
// eighth of each other; of very many endpoints fewer, to bound the memory.
func tableSize(n int) int {
	for _, size := range tableSizes {
		if size >= 8*n || size >= 16381 && size >= 2*n {
			return size
		}
	}
	return tableSizes[len(tableSizes)-1]
}

// spread fills a table so that each endpoint has nearly the same number of places, and that few places change hands when an
// endpoint comes or goes. Each endpoint has its own order of places, and they take turns (Eisenbud et al., Maglev, 2016).
// The outcome depends on the endpoints only, not on their order: every node sends a client to the same one.
func spread(es []netip.AddrPort, size int) []netip.AddrPort {
	es = slices.SortedFunc(slices.Values(es), netip.AddrPort.Compare)
	if len(es) > size {
		es = es[:size]
	}
	type walk struct{ at, step int }
	walks := make([]walk, len(es))
	for i, e := range es {
		h := fnv.New64a()
		b, _ := e.MarshalBinary() // cannot fail: it never does
		h.Write(b)
		sum := mix(h.Sum64())
		walks[i] = walk{int(sum % uint64(size)), 1 + int(sum>>32)%(size-1)}
	}
	out := make([]netip.AddrPort, size)
	for left := size; ; {
		for i := range walks {
			w := &walks[i]
			for out[w.at].IsValid() {
				w.at = (w.at + w.step) % size
			}
			out[w.at] = es[i]
			if left--; left == 0 {
				return out
			}
		}
	}
}

// mix spreads the bits of a hash of few bytes (the finalizer of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
