package install

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"weft.network/weft/appliance/config"
	"weft.network/weft/packaging"
)

// Uninstall returns what has to change for the node to be as it was before Install; no steps when nothing of weft is left.
// weft.yaml and the state stay unless opts.Purge is set, and so does what the kernel holds unless opts.Kernel is.
func Uninstall(ctx context.Context, env Env, opts Options) (Plan, error) {
	node := detect(env)
	p := &planner{Env: env, Plan: Plan{Verb: "uninstall", Platform: node.platform}}
	c, err := config.Load(env.path(configFile), false)
	if err != nil {
		// A file that the daemon refuses must not keep the rest on the node.
		c = config.Default()
		p.warn("using the default folders: %v", err)
	}
	// An option wins over the file, and without a file the folders are those that Install would choose.
	if err != nil || !env.exists(configFile) {
		c.CNIBinDir, c.CNIConfDir = firstOf(node.cniBinDir, c.CNIBinDir), firstOf(node.cniConfDir, c.CNIConfDir)
	}
	c.CNIBinDir, c.CNIConfDir = firstOf(opts.CNIBinDir, c.CNIBinDir), firstOf(opts.CNIConfDir, c.CNIConfDir)
	if n := attachments(env); n > 0 {
		p.warn("%d Pod interfaces of weft are still in use: drain the node first, or the runtime cannot take them down", n)
	}

	service := node.systemd && env.exists(unitFile)
	if env.listens(ctx, c.RunDir) && (!service || env.Systemctl(ctx, "is-active", "--quiet", unit) != nil) {
		return Plan{}, fmt.Errorf("a weftd that is not the service %s still runs and would put back what is removed: stop it first (its process, or delete the DaemonSet weft)", unit)
	}

	// First nobody may call weft, then nothing of it may be there. The kernel comes before the state, which says what it holds.
	if service {
		p.run("disable", "--now", unit)
	}
	if opts.Kernel {
		p.add(Step{Action: Clean, Detail: "links, routes and rules; Pods lose their network"})
	}
	p.remove(filepath.Join(c.CNIConfDir, packaging.ConflistName))
	for _, name := range Plugins {
		p.unlink(filepath.Join(c.CNIBinDir, name))
	}
	p.unlink(daemonLink)
	for _, path := range sortedKeys(networkdFiles) {
		p.remove(path)
	}
	if p.remove(nmFile) {
		p.reload(ctx, node, "NetworkManager.service")
	}
	if p.remove(unitFile) && node.systemd {
		p.run("daemon-reload")
	}
	rbac, crds := p.remove(rbacFile), p.remove(crdsFile)
	if node.rbacFile != "" && node.rbacFile != rbacFile {
		rbac = p.remove(node.rbacFile) || rbac
		crds = p.remove(node.crdsFile) || crds
	}
	p.remove(binary)
	p.remove(c.RunDir)
	if opts.Purge {
		p.remove(c.StateDir)
		p.remove(configFile)
		p.removeFolder(filepath.Dir(configFile))
	}
	if len(p.Steps) > 0 && !opts.Kernel {
		p.next("reboot before another network, kube-proxy or DNS server takes over: until then the kernel has weft's links, routes, Services, policies and DNS address; weft uninstall --kernel removes them at once")
	}
	if rbac {
		p.next("after the last node: kubectl -n kube-system delete clusterrolebinding/weft clusterrole/weft rolebinding/weft role/weft serviceaccount/weft")
	}
	if crds {
		p.next("and, with all settings of those kinds: kubectl delete crd bgppeers.weft.network loadbalancerpools.weft.network")
	}
	return p.Plan, p.err
}

// attachments counts the Pod interfaces that the runtime still believes to have from weft: libcni keeps one file for each,
// NETWORK-CONTAINER-INTERFACE.
func attachments(env Env) int {
	files, err := filepath.Glob(env.path("/var/lib/cni/results/weft-*"))
	if err != nil {
		return 0
	}
	n := 0
	for _, f := range files {
		if strings.Count(filepath.Base(f), "-") >= 2 {
			n++
		}
	}
	return n
}
