package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/podnet"
	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/ruleset"
)

// CleanKernel removes everything weft has in this node's kernel: tables, tunnel, routes, and the links of all Pods, which lose
// their network. It refuses while a daemon owns the store; a store that is not there is not made for that.
func CleanKernel(ctx context.Context, cfg config.Config, version string) (err error) {
	if _, missing := os.Stat(filepath.Join(cfg.StateDir, StoreName)); !errors.Is(missing, fs.ErrNotExist) {
		s, busy := openStore(cfg.StateDir, version, time.Second)
		if busy != nil {
			return busy
		}
		defer func() { err = errors.Join(err, s.Close()) }()
	}
	k, err := openKernel(zap.NewNop())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	none := []ruleset.Table{{Family: ruleset.INet, Name: ruleset.TableName}, {Family: ruleset.INet, Name: ruleset.ServiceTable}, ruleset.DNS(nil)}
	for _, t := range ruleset.PolicyShape() {
		none = append(none, ruleset.Table{Family: t.Family, Name: t.Name})
	}
	if _, err := k.Apply(ctx, none); err != nil {
		return fmt.Errorf("removing the packet filter: %w", err)
	}
	if _, err := k.ApplyHost(ctx, route.HostNet{}); err != nil {
		return fmt.Errorf("removing links and routes: %w", err)
	}
	if _, err := k.ApplyDNS(ctx, nil); err != nil {
		return fmt.Errorf("removing the addresses of the DNS server: %w", err)
	}
	links, err := k.ListPods(ctx)
	if err != nil {
		return fmt.Errorf("listing the links of Pods: %w", err)
	}
	for _, l := range links {
		if err := k.DelPod(ctx, podnet.Attachment{HostIf: l.HostIf, Addresses: l.Addresses}); err != nil {
			return fmt.Errorf("removing the link %s: %w", l.HostIf, err)
		}
	}
	if _, err := k.SweepBandwidth(ctx); err != nil {
		return err
	}
	return k.Flush(ctx)
}
