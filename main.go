// Command weft is the whole network of a Kubernetes node: CNI plugin, daemon and command line in one binary.
//
// gobgp listens through net; on a multipath TCP socket neither TCP-MD5 (RFC 2385) nor TTL security (RFC 5082) can be set.
//
//go:debug multipathtcp=0
package main

import (
	"os"

	"a.weft/early" // first: it answers CNI calls before the rest of the binary is initialised

	"weft.network/weft/appliance/cli"
)

func main() {
	os.Exit(cli.Main(os.Args, early.Input, early.Read))
}
