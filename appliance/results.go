package appliance

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/model"
)

// cniResults is where libcni, which every container runtime uses, keeps the result of each ADD until the DEL.
const cniResults = "/var/lib/cni/results"

// cniResult is one file of libcni's.
type cniResult struct {
	ContainerID string      `json:"containerId"`
	Config      []byte      `json:"config"`
	IfName      string      `json:"ifName"`
	Network     string      `json:"networkName"`
	NetNS       string      `json:"netns"`
	Args        [][2]string `json:"cniArgs"`
	Result      struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	} `json:"result"`
}

// cniPlugin is, in a network configuration, what tells who gives the addresses. flannel writes the configuration of another plugin,
// with host-local unless its own says otherwise.
type cniPlugin struct {
	Type string `json:"type"`
	IPAM struct {
		Type string `json:"type"`
	} `json:"ipam"`
	Delegate struct {
		IPAM struct {
			Type string `json:"type"`
		} `json:"ipam"`
	} `json:"delegate"`
}

func (p cniPlugin) ipam() string {
	switch {
	case p.Type != "flannel":
		return p.IPAM.Type
	case p.Delegate.IPAM.Type != "":
		return p.Delegate.IPAM.Type
	}
	return hostLocal
}

// The plugins that give addresses without an interface.
const (
	hostLocal = "host-local"
	weftIPAM  = "weft-ipam"
)

// ipamPlugins returns those of them that are weft on this node. Beside another network the reference plugin may be there: its leases
// are none of weft's, which would not hear when they end.
func ipamPlugins(binDir string) []string {
	plugin, err := os.Stat(filepath.Join(binDir, hostLocal))
	self, errSelf := os.Stat("/proc/self/exe")
	if err != nil || errSelf != nil || !os.SameFile(plugin, self) {
		return []string{weftIPAM}
	}
	return []string{weftIPAM, hostLocal}
}

// lostResults returns what resultLeases finds and the store does not have.
func lostResults(state attach.State, plugins []string, openNS func(path string) (int, func(), error)) ([]*model.Lease, error) {
	found, err := resultLeases(cniResults, plugins, openNS)
	return slices.DeleteFunc(found, func(l *model.Lease) bool {
		return slices.ContainsFunc(state.Leases, func(o *model.Lease) bool { return o.AttachmentKey == l.AttachmentKey })
	}), err
}

// resultLeases returns the leases of interfaces that other plugins made with addresses of weft, which nothing in the kernel tells,
// from the results that the runtimes keep, for these IPAM plugins. A container whose network namespace is gone needs its addresses no more.
func resultLeases(dir string, plugins []string, openNS func(path string) (int, func(), error)) ([]*model.Lease, error) {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the results of container runtimes: %w", err)
	}
	var out []*model.Lease
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			continue // just detached, or no file
		}
		l := leaseOfResult(text, plugins)
		if l == nil {
			continue
		}
		if l.NetNS != "" {
			_, done, err := openNS(l.NetNS)
			if errors.Is(err, attach.ErrNetNSGone) {
				continue
			}
			if err == nil {
				done()
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// resultNetNS returns the network namespace of an attachment as its runtime keeps it; empty when there is no such result.
func resultNetNS(dir string, key model.AttachmentKey) string {
	text, err := os.ReadFile(filepath.Join(dir, key.Network+"-"+key.ContainerID+"-"+key.IfName))
	var r cniResult
	if err != nil || json.Unmarshal(text, &r) != nil {
		return ""
	}
	return r.NetNS
}

// leaseOfResult reads one file; nil when it is none, or of addresses that another plugin gave.
func leaseOfResult(text []byte, plugins []string) *model.Lease {
	var r cniResult
	if json.Unmarshal(text, &r) != nil || r.Network == "" || r.ContainerID == "" || r.IfName == "" {
		return nil
	}
	var conf struct {
		cniPlugin
		Plugins []cniPlugin `json:"plugins"`
	}
	ours := func(p cniPlugin) bool { return slices.Contains(plugins, p.ipam()) }
	if json.Unmarshal(r.Config, &conf) != nil || !slices.ContainsFunc(append(conf.Plugins, conf.cniPlugin), ours) {
		return nil
	}
	l := &model.Lease{
		AttachmentKey: model.AttachmentKey{Network: r.Network, ContainerID: r.ContainerID, IfName: r.IfName},
		Kind:          model.LeaseIPAM, NetNS: r.NetNS, Created: unixNow(),
	}
	for _, ip := range r.Result.IPs {
		if p, err := netip.ParsePrefix(ip.Address); err == nil {
			l.Addresses = append(l.Addresses, p.Addr().Unmap())
		}
	}
	for _, kv := range r.Args {
		switch kv[0] {
		case "K8S_POD_NAMESPACE":
			l.Pod.Namespace = kv[1]
		case "K8S_POD_NAME":
			l.Pod.Name = kv[1]
		case "K8S_POD_UID":
			l.Pod.UID = kv[1]
		}
	}
	if len(l.Addresses) == 0 {
		return nil
	}
	return l
}
