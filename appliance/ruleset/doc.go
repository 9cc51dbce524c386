// Package ruleset holds nftables tables as plain data, printed exactly as nft(8) lists them, the tables that weft wants, and a tracer that sends a pretend packet through them.
//
// # Warning: immutable data
//
// A Chain, Set or Block never changes after it was handed over. Whoever wants another one makes another one and keeps the
// pointers of the parts that stay: the kernel backend compares pointers first, so that ten thousand owners of which one
// changed cost ten thousand comparisons and one block.
package ruleset
