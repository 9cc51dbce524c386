// Package store keeps on disk what cannot be read again: leases, the node's identity and the last known picture of the cluster.
//
// The file is one bbolt database with this tree:
//
//	weft.db
//	├── meta
//	│   ├── schema      -> version of this tree, a decimal number
//	│   ├── writer      -> version of the weft that wrote last, for messages
//	│   ├── rebuild     -> JSON: why the leases here are not to be trusted alone; absent once the daemon has rebuilt them
//	│   └── identity    -> JSON: node name, Pod ranges, API servers that answered last
//	├── leases
//	│   └── network NUL container NUL interface  -> JSON of model.Lease
//	├── released
//	│   └── address     -> JSON of model.Release: who had it, until when
//	├── hostports
//	│   └── network NUL container NUL interface  -> JSON of model.HostPorts
//	└── snapshot
//	    └── newest      -> JSON of model.Snapshot, compressed with DEFLATE (RFC 1951)
//
// Each value outside the keys schema and writer begins with the CRC-32C of its bucket, key and content in eight hexadecimal
// digits and a space: bbolt guards its two meta pages with a checksum, but not what it stores.
//
// # One owner
//
// A bbolt file has one process at a time. The daemon holds it while it runs; others ask the daemon, and open the file
// themselves, with a short timeout, only when Open does not say ErrBusy.
//
// # Damage
//
// bbolt maps the file and follows what it finds there: on a truncated file it faults, on some damage it loops or writes over
// live pages. Therefore Open reads the file with plain system calls first and checks all of its structure (verify.go). What
// does not pass is kept beside the store as weft.db.damaged-<unix time>, and a new file takes its place in one rename, with
// the intact records where the structure can still be followed. The new file carries the mark "rebuild" until the daemon has
// looked at the kernel and the runtime for leases that are missing, so that a crash in between does not forget it.
package store
