// Package packaging holds the files that weft puts on a node or into a cluster.
package packaging

import (
	"bytes"
	_ "embed" // the files below
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Files as they are written to disk.
var (
	// Unit is the systemd unit weftd.service.
	//go:embed systemd/weftd.service
	Unit []byte
	// NetworkdNetwork, NetworkdLink and NetworkdConf keep systemd-networkd and udev away from weft's links and routes.
	//go:embed networkd/10-weft.network
	NetworkdNetwork []byte
	//go:embed networkd/10-weft.link
	NetworkdLink []byte
	//go:embed networkd/10-weft.conf
	NetworkdConf []byte
	// NetworkManagerConf keeps NetworkManager away from weft's links.
	//go:embed networkmanager/10-weft.conf
	NetworkManagerConf []byte
	// RBAC is the manifest with weft's permissions in the cluster.
	//go:embed kubernetes/rbac.yaml
	RBAC []byte
	// CRDs are the definitions of weft's own kinds.
	//go:embed kubernetes/crds.yaml
	CRDs []byte

	//go:embed weft.yaml
	config string
)

// ConflistName is the file name of the CNI network configuration; runtimes take the first name in order.
const ConflistName = "10-weft.conflist"

// Where the plugin looks for the daemon's socket and for the store when the network configuration does not say.
const (
	DefaultRunDir   = "/run/weft"
	DefaultStateDir = "/var/lib/weft"
)

// Config returns the commented weft.yaml with the given keys set. It refuses a key that is not at the top level of the file.
func Config(set map[string]string) ([]byte, error) {
	out := "\n" + config
	for _, key := range slices.Sorted(maps.Keys(set)) {
		before, after, found := strings.Cut(out, "\n#"+key+": ")
		if !found {
			return nil, fmt.Errorf("setting %s in weft.yaml: the file has no such key", key)
		}
		_, after, _ = strings.Cut(after, "\n")
		// A JSON string is a YAML string, whatever characters it has.
		value, err := json.Marshal(set[key])
		if err != nil {
			return nil, fmt.Errorf("setting %s in weft.yaml: %w", key, err)
		}
		out = before + "\n" + key + ": " + string(value) + "\n" + after
	}
	return []byte(out[1:]), nil
}

// conflist is a network configuration list of CNI specification 1.1.0, section 1.
type conflist struct {
	CNIVersion  string   `json:"cniVersion"`
	CNIVersions []string `json:"cniVersions"`
	Name        string   `json:"name"`
	Plugins     []plugin `json:"plugins"`
}

type plugin struct {
	Type         string          `json:"type"`
	RunDir       string          `json:"runDir,omitempty"`
	StateDir     string          `json:"stateDir,omitempty"`
	Capabilities map[string]bool `json:"capabilities"`
}

// Conflist returns the CNI network configuration of a node whose daemon has its socket in runDir and its store in stateDir:
// one plugin does it all.
//
// The list offers 1.1.0 and names 1.0.0 for runtimes that do not know "cniVersions" (containerd before 2.0): given 1.1.0
// alone, they fail every Pod with an unsupported result version.
func Conflist(runDir, stateDir string) ([]byte, error) {
	p := plugin{Type: "weft-cni", Capabilities: map[string]bool{
		"bandwidth": true, "dns": true, "ipRanges": true, "ips": true, "mac": true, "portMappings": true,
	}}
	if runDir != DefaultRunDir {
		p.RunDir = runDir
	}
	if stateDir != DefaultStateDir {
		p.StateDir = stateDir
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", "  ")
	err := enc.Encode(conflist{CNIVersion: "1.0.0", CNIVersions: []string{"1.0.0", "1.1.0"}, Name: "weft", Plugins: []plugin{p}})
	if err != nil {
		return nil, fmt.Errorf("writing the CNI network configuration: %w", err)
	}
	return out.Bytes(), nil
}
