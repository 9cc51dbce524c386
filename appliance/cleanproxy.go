package appliance

import (
	"context"
	"errors"
	"fmt"

	"weft.network/weft/appliance/kernel/iface"
	"weft.network/weft/appliance/kernel/nft"
)

// ProxyLeftovers is what a kube-proxy that does not run any more has in the kernel.
type ProxyLeftovers struct {
	// Removed were taken away, or would be.
	Removed []string `json:"removed"`
	// Left cannot be taken away by netlink: what to run is in Commands.
	Left     []string `json:"left,omitempty"`
	Commands []string `json:"commands,omitempty"`
	DryRun   bool     `json:"dryRun,omitempty"`
}

// CleanKubeProxy takes away what kube-proxy left behind, in the network namespace of this process. It refuses while one runs.
func CleanKubeProxy(ctx context.Context, dryRun bool) (ProxyLeftovers, error) {
	out := ProxyLeftovers{Removed: []string{}, DryRun: dryRun}
	if who := findOtherProxy("/proc"); who != "" {
		return out, fmt.Errorf("%s runs on this node and would put its rules back: stop it first (kubectl -n kube-system delete daemonset kube-proxy; in k3s disable-kube-proxy: true)", who)
	}
	rules, err := nft.Open(nft.Options{})
	if err != nil {
		return out, fmt.Errorf("opening the kernel's packet filter: %w", err)
	}
	defer rules.Close()
	links, err := iface.Open(iface.Options{ReadOnly: true})
	if err != nil {
		return out, fmt.Errorf("opening the kernel's links and routes: %w", err)
	}
	defer func() { _ = links.Close() }()
	return out, findLeftovers(ctx, &out, rules, links, !dryRun)
}

func findLeftovers(ctx context.Context, out *ProxyLeftovers, rules *nft.Backend, links *iface.Backend, remove bool) error {
	tables, err := rules.KubeProxyLeftovers(remove)
	ipvs, err2 := links.KubeProxyIPVS(ctx, remove)
	legacy, err3 := nft.LegacyKubeProxy()
	out.Removed = append(append(out.Removed, tables...), ipvs...)
	out.Left = append(out.Left, legacy...)
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, l := range legacy {
			if len(l) > len(name) && l[:len(name)+1] == name+" " {
				out.Commands = append(out.Commands, fmt.Sprintf("%[1]s-legacy-save | grep -vE '%[2]s' | %[1]s-legacy-restore", name, nft.ProxyChainPattern()))
				break
			}
		}
	}
	return errors.Join(err, err2, err3)
}

// leftoverWarning names what a kube-proxy that does not run has in the kernel; empty if nothing. While one runs, all of it is in use.
func (d *Daemon) leftoverWarning(ctx context.Context) (string, error) {
	if findOtherProxy("/proc") != "" {
		return "", nil
	}
	var found ProxyLeftovers
	if err := findLeftovers(ctx, &found, d.kernel.rules, d.kernel.Backend, false); err != nil {
		return "", err
	}
	all := append(found.Removed, found.Left...)
	if len(all) == 0 {
		return "", nil
	}
	return fmt.Sprintf("a kube-proxy that does not run any more has left %v in the kernel, which may send connections to endpoints that are gone: weft service cleanup-kube-proxy", all), nil
}
