// Package cluster watches the objects of a Kubernetes cluster and publishes them as Snapshots.
//
// There are two sources, which know the same kinds: Kubernetes, an API server, and Manifests, a directory of YAML and JSON
// files. Both convert each object at once to the few fields of package model (convert.go, service.go, slice.go) and keep only
// those (objects.go).
//
//	API server ── reflector per kind ──┐
//	                                   ├── convert ── objects ── publish(*model.Snapshot)
//	files ─────── parse ───────────────┘
//
// No other folder of weft imports k8s.io packages.
package cluster
