// Package gobgp carries the BGP speaker: it owns one gobgp server and brings it to what compile/peering asks for.
package gobgp

import (
	_ "github.com/osrg/gobgp/v3/pkg/server"
)
