// Package probe sends UDP probes of an exact size that nothing may fragment, and answers those of other nodes.
package probe
