// Package model holds the nouns of the appliance and Snapshot, the immutable picture of the cluster.
//
// # Warning: immutable data
//
// Everything reachable from a Snapshot is shared by every reader and never changes after it was published. A source that
// learns something new makes a new object and a new Snapshot; unchanged objects keep their pointer, so that a compile step
// may remember its result per object and compare pointers.
package model
