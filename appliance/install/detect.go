package install

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"weft.network/weft/packaging"
)

// node is what was found out about the machine; an empty field means that weft's default is right.
type node struct {
	platform   string
	systemd    bool
	cniBinDir  string
	cniConfDir string
	kubeconfig string
	rbacFile   string // empty when another node applies it
	crdsFile   string // the same
	warnings   []string
}

// Places of k3s.
const (
	k3sData   = "/var/lib/rancher/k3s"
	k3sConfig = "/etc/rancher/k3s"
)

// detect looks for k3s, then for kubeadm; anything else is a bare node.
func detect(env Env) node {
	n := node{platform: "bare node", rbacFile: rbacFile, crdsFile: crdsFile, systemd: env.exists("/run/systemd/system")}
	switch {
	case env.exists(k3sData) || env.exists(k3sConfig) || env.exists("/usr/local/bin/k3s"):
		n.k3s(env)
	case env.exists("/etc/kubernetes/kubelet.conf") || env.exists("/usr/bin/kubeadm"):
		n.platform = "kubeadm node"
		n.kubeconfig = "/etc/kubernetes/kubelet.conf"
		fallthrough
	default:
		n.cniBinDir, n.cniConfDir = runtimeFolders(env, "/etc/containerd/config.toml")
	}
	return n
}

// k3s fills in what is particular there. With flannel switched off, as weft needs it, k3s leaves containerd at its usual CNI
// folders; its own ones, below /var/lib/rancher/k3s, are only in use together with flannel.
func (n *node) k3s(env Env) {
	n.platform, n.rbacFile = "k3s agent", ""
	n.crdsFile = ""
	n.kubeconfig = k3sData + "/agent/kubelet.kubeconfig"
	bin, conf := runtimeFolders(env, k3sData+"/agent/etc/containerd/config.toml")
	withFlannel := strings.HasPrefix(conf, k3sData)
	if !withFlannel {
		n.cniBinDir, n.cniConfDir = bin, conf
	}
	if !env.exists(k3sData + "/server") {
		if withFlannel {
			n.warnings = append(n.warnings, "k3s still runs flannel on this node: start its servers with --flannel-backend=none --disable-network-policy, then restart this agent")
		}
		return
	}
	n.platform = "k3s server"
	n.rbacFile = k3sData + "/server/manifests/weft-rbac.yaml"
	n.crdsFile = k3sData + "/server/manifests/weft-crds.yaml"
	settings := k3sSettings(env)
	var missing []string
	for _, s := range k3sWithout {
		if !s.found.MatchString(settings) {
			missing = append(missing, s.line)
		}
	}
	if missing != nil {
		n.warnings = append(n.warnings, fmt.Sprintf("k3s still runs a network of its own: write the lines %s into %s/config.yaml (or give the flags of that name) and restart k3s", strings.Join(missing, ", "), k3sConfig))
	}
}

// k3sWithout are the settings of a k3s server without a network of its own, each as a line of YAML or a flag.
var k3sWithout = []struct {
	line  string
	found *regexp.Regexp
}{
	{`"flannel-backend: none"`, regexp.MustCompile(`flannel-backend["']?(:\s*|=|\s+)["']?none\b`)},
	{`"disable-network-policy: true"`, regexp.MustCompile(`disable-network-policy["']?(:\s*["']?true|=true|\s|$)`)},
	{`"disable-kube-proxy: true"`, regexp.MustCompile(`disable-kube-proxy["']?(:\s*["']?true|=true|\s|$)`)},
}

// k3sSettings returns the text of the files that can hold flags of the k3s server.
func k3sSettings(env Env) string {
	files := []string{env.path(k3sConfig + "/config.yaml"), env.path("/etc/systemd/system/k3s.service"), env.path("/etc/systemd/system/k3s.service.env"), env.path("/etc/init.d/k3s")}
	more, err := filepath.Glob(env.path(k3sConfig + "/config.yaml.d/*.yaml"))
	if err == nil {
		files = append(files, more...)
	}
	var all strings.Builder
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil {
			for line := range strings.Lines(string(text)) {
				if !strings.HasPrefix(strings.TrimSpace(line), "#") {
					all.WriteString(line)
				}
			}
		}
	}
	return all.String()
}

// The keys of containerd's configuration: version 2 has bin_dir, version 3 a list bin_dirs.
var (
	binDirLine  = regexp.MustCompile(`(?m)^\s*bin_dirs?\s*=\s*\[?\s*["']([^"']+)["']`)
	confDirLine = regexp.MustCompile(`(?m)^\s*conf_dir\s*=\s*["']([^"']+)["']`)
)

// runtimeFolders returns the CNI folders that a configuration of containerd names, empty when it leaves them at the default.
// Debian's package, for one, reads plugins from /usr/lib/cni.
func runtimeFolders(env Env, file string) (bin, conf string) {
	text, err := os.ReadFile(env.path(file))
	if err != nil {
		return "", ""
	}
	if m := binDirLine.FindSubmatch(text); m != nil {
		bin = filepath.Clean(string(m[1]))
	}
	if m := confDirLine.FindSubmatch(text); m != nil {
		conf = filepath.Clean(string(m[1]))
	}
	return bin, conf
}

// foreignLinks are the interfaces by which other network plugins are recognised.
var foreignLinks = []struct{ pattern, owner string }{
	{"flannel*", "flannel"},
	{"cali*", "Calico"},
	{"vxlan.calico", "Calico"},
	{"cilium_*", "Cilium"},
	{"kube-bridge", "kube-router"},
	{"weave", "Weave Net"},
	{"antrea-gw0", "Antrea"},
}

// leftovers warns of what would stand in weft's way: other network plugins, and programs that seize new interfaces.
func leftovers(env Env, confDir string) []string {
	var warnings []string
	files, err := os.ReadDir(env.path(confDir))
	if err == nil {
		for _, f := range files {
			if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(f.Name())) || f.Name() == packaging.ConflistName {
				continue
			}
			when := "is used whenever weft is not ready"
			if f.Name() < packaging.ConflistName {
				when = "comes before weft's, so Pods do not get weft's network"
			}
			warnings = append(warnings, fmt.Sprintf("%s belongs to another network plugin and %s: move it away", filepath.Join(confDir, f.Name()), when))
		}
	}
	owners := map[string][]string{}
	for _, l := range foreignLinks {
		found, err := filepath.Glob(env.path("/sys/class/net/" + l.pattern))
		for _, f := range found {
			if err == nil {
				owners[l.owner] = append(owners[l.owner], filepath.Base(f))
			}
		}
	}
	for _, owner := range sortedKeys(owners) {
		warnings = append(warnings, fmt.Sprintf("%s has left interfaces here (%s): remove it from the cluster and restart the node", owner, strings.Join(owners[owner], " ")))
	}
	if text, err := os.ReadFile(env.path("/etc/dhcpcd.conf")); err == nil && !regexp.MustCompile(`(?m)^\s*denyinterfaces\b.*weft\*`).Match(text) {
		warnings = append(warnings, "dhcpcd takes every new interface: add the line \"denyinterfaces weft*\" to /etc/dhcpcd.conf")
	}
	return warnings
}
