// Package install puts weft onto a node and takes it away again.
package install

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/control"
	"weft.network/weft/packaging"
)

// Where things go, whatever the platform.
const (
	binary     = "/usr/local/bin/weft"
	daemonLink = "/usr/local/bin/weftd"
	configFile = "/etc/weft/weft.yaml"
	rbacFile   = "/etc/weft/rbac.yaml"
	crdsFile   = "/etc/weft/crds.yaml"
	unitFile   = "/etc/systemd/system/weftd.service"
	nmFile     = "/etc/NetworkManager/conf.d/10-weft.conf"
	unit       = "weftd.service"
	// saved is appended to the name of a foreign file that stood where a link of ours had to go.
	saved = ".weft-saved"
)

// networkdFiles are the drop-ins for systemd-networkd and udev.
var networkdFiles = map[string][]byte{
	"/etc/systemd/network/10-weft.link":         packaging.NetworkdLink,
	"/etc/systemd/network/10-weft.network":      packaging.NetworkdNetwork,
	"/etc/systemd/networkd.conf.d/10-weft.conf": packaging.NetworkdConf,
}

// Plugins are the names under which container runtimes call weft; each becomes a link in the folder of CNI binaries.
var Plugins = []string{"weft-cni", "weft-ipam", "loopback", "portmap", "bandwidth", "host-local"}

// Env is the machine as this package sees it.
type Env struct {
	// Root is put in front of every path: "/" on a node, a folder in a test or an image build.
	Root string
	// Binary is the weft that will be copied, as a path of the running system.
	Binary string
	// Systemctl runs systemctl(1). It is the one program that weft ever starts: systemd has no file to write that says
	// "start this now", its bus would be one more library, and nothing of the data path goes this way.
	Systemctl func(ctx context.Context, args ...string) error
	// CleanKernel takes everything of weft out of the running kernel.
	CleanKernel func(ctx context.Context) error
}

// System returns the Env of the node this process runs on.
func System() (Env, error) {
	self, err := os.Executable()
	if err != nil {
		return Env{}, fmt.Errorf("finding the running weft: %w", err)
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return Env{}, fmt.Errorf("finding the running weft: %w", err)
	}
	return Env{Root: "/", Binary: self, Systemctl: systemctl}, nil
}

func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Options are the administrator's wishes; the zero value takes what is found on the node.
type Options struct {
	// CNIBinDir and CNIConfDir are the folders that the container runtime reads.
	CNIBinDir, CNIConfDir string
	// Kubeconfig and Manifests say where the cluster is described, as the keys of weft.yaml do.
	Kubeconfig, Manifests string
	// NoStart leaves the daemon as it is: neither started nor restarted.
	NoStart bool
	// Kernel lets Uninstall also take links, routes and rules out of the kernel.
	Kernel bool
	// Purge lets Uninstall also remove weft.yaml and the state, and with it every lease.
	Purge bool
}

// Install returns what has to change for weft to be installed on the node and running; no steps when it already is.
func Install(ctx context.Context, env Env, opts Options) (Plan, error) {
	node := detect(env)
	p := &planner{Env: env, Plan: Plan{Verb: "install", Platform: node.platform, Warnings: node.warnings}}
	c, err := p.configure(node, opts)
	if err != nil {
		return Plan{}, err
	}
	p.Warnings = append(p.Warnings, leftovers(env, c.CNIConfDir)...)
	if err := p.copyBinary(); err != nil {
		return Plan{}, err
	}
	p.link(daemonLink)
	for _, name := range Plugins {
		p.link(filepath.Join(c.CNIBinDir, name))
	}
	p.permissions(node, c)
	p.services(ctx, node, c, opts)
	return p.Plan, p.err
}

// planner gathers steps; err is the first failure to look at the node.
type planner struct {
	Env
	Plan
	err error
}

// configure decides the settings: weft.yaml when there is one, else the options, else what was found on the node.
func (p *planner) configure(node node, opts Options) (config.Config, error) {
	if !p.exists(configFile) {
		set := map[string]string{}
		c := config.Default()
		for _, s := range settings(&c, node, opts) {
			if v := firstOf(s.option, s.found); v != "" && v != *s.value {
				*s.value, set[s.key] = v, v
			}
		}
		text, err := packaging.Config(set)
		if err != nil {
			return config.Config{}, err
		}
		if c, err = config.Parse(text); err != nil {
			return config.Config{}, fmt.Errorf("the new %s: %w", configFile, err)
		}
		p.write(configFile, text, setKeys(set))
		return c, nil
	}
	c, err := config.Load(p.path(configFile), true)
	if err != nil {
		return config.Config{}, err
	}
	d := config.Default()
	defaults := settings(&d, node, opts)
	for i, s := range settings(&c, node, opts) {
		switch unset := *s.value == *defaults[i].value; {
		case s.option != "" && s.option != *s.value:
			return config.Config{}, fmt.Errorf("%s is to be %q but %s says %q: change the file, weft install never does", s.key, s.option, configFile, *s.value)
		case unset && s.found != "" && s.found != *s.value:
			p.warn("%s is not set in %s; this node needs the line %s: %s", s.key, configFile, s.key, s.found)
		}
	}
	return c, nil
}

// setting is one key of weft.yaml that depends on the platform.
type setting struct {
	key           string
	value         *string // in the configuration
	option, found string
}

func settings(c *config.Config, node node, opts Options) []setting {
	kubeconfig := node.kubeconfig
	if firstOf(opts.Manifests, c.Manifests) != "" {
		kubeconfig = "" // no API server is wanted, whatever credentials lie about
	}
	return []setting{
		{"cniBinDir", &c.CNIBinDir, opts.CNIBinDir, node.cniBinDir},
		{"cniConfDir", &c.CNIConfDir, opts.CNIConfDir, node.cniConfDir},
		{"kubeconfig", &c.Kubeconfig, opts.Kubeconfig, kubeconfig},
		{"manifests", &c.Manifests, opts.Manifests, ""},
	}
}

func setKeys(set map[string]string) string {
	if len(set) == 0 {
		return "all defaults"
	}
	var keys []string
	for key, value := range set {
		keys = append(keys, key+": "+value)
	}
	slices.Sort(keys)
	return strings.Join(keys, ", ")
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// permissions puts the RBAC manifest and weft's own kinds where they are applied by themselves, or where the administrator can
// apply them.
func (p *planner) permissions(node node, c config.Config) {
	if c.Manifests != "" || node.rbacFile == "" {
		return
	}
	if node.rbacFile != rbacFile {
		p.write(node.rbacFile, packaging.RBAC, "k3s applies it")
		p.write(node.crdsFile, packaging.CRDs, "k3s applies it")
		return
	}
	rbac, crds := p.write(rbacFile, packaging.RBAC, ""), p.write(crdsFile, packaging.CRDs, "")
	if rbac || crds {
		p.next("once for the cluster: kubectl apply -f %s -f %s", rbacFile, crdsFile)
	}
}

// services writes the files of the service managers and gets the daemon running.
func (p *planner) services(ctx context.Context, node node, c config.Config, opts Options) {
	nm := p.exists("/etc/NetworkManager") && p.write(nmFile, packaging.NetworkManagerConf, "")
	networkd := false
	if node.systemd {
		for _, path := range sortedKeys(networkdFiles) {
			networkd = p.write(path, networkdFiles[path], "") || networkd
		}
		p.daemon(ctx, c, opts)
	} else {
		p.next("start the daemon, now and at every boot: %s --config %s", daemonLink, configFile)
	}
	// Last, because weft does not depend on them: both read the files at their next start at the latest. networkd is never
	// restarted, as that is what drops foreign routes.
	if networkd {
		p.reload(ctx, node, "systemd-networkd.service")
	}
	if nm {
		p.reload(ctx, node, "NetworkManager.service")
	}
}

// reload has a service read its files again if it runs: systemd refuses to reload one that does not.
func (p *planner) reload(ctx context.Context, node node, service string) {
	if node.systemd && p.Systemctl(ctx, "is-active", "--quiet", service) == nil {
		p.run("reload", service)
	}
}

// daemon writes the unit and has systemd run it, anew when it is older than what it runs from.
func (p *planner) daemon(ctx context.Context, c config.Config, opts Options) {
	newUnit := p.write(unitFile, packaging.Unit, "")
	socket := filepath.Join(c.RunDir, control.SocketName) // made when the daemon starts
	if newUnit || p.newer(unitFile, socket) {
		p.run("daemon-reload")
	}
	stale := slices.ContainsFunc([]string{binary, configFile, unitFile}, func(path string) bool {
		return p.newer(path, socket) || slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Path == path })
	})
	if p.Systemctl(ctx, "is-enabled", "--quiet", unit) != nil {
		p.run("enable", unit)
	}
	active := p.Systemctl(ctx, "is-active", "--quiet", unit) == nil
	switch {
	case opts.NoStart:
	case c.Kubeconfig == "" && c.Manifests == "":
		p.next("say where the cluster is described: set kubeconfig or manifests in %s, then: systemctl start %s", configFile, unit)
	case active && stale:
		p.run("restart", unit)
	case !active:
		p.run("start", unit)
	}
}
