package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Network installs the Pod network on one node. The node is registered and its Pod prefixes may still be missing; when
// the function returns, the network starts up or is ready. It may touch the other nodes, as a new route needs it.
type Network func(c *Cluster, node *Node) error

const conflistFolder = "/etc/cni/net.d"

// networkFromEnvironment returns the network that WEFT_E2E_NETWORK names: weft (default) or bridge.
func networkFromEnvironment() (Network, error) {
	switch name := os.Getenv("WEFT_E2E_NETWORK"); name {
	case "", "weft":
		if os.Getenv("WEFT_BIN") == "" {
			return nil, errors.New("WEFT_BIN is not set: set it to the weft binary, or run test/e2e/run.sh")
		}
		return installWeft, nil
	case "bridge":
		return installBridge, nil
	default:
		return nil, fmt.Errorf("WEFT_E2E_NETWORK=%s: use weft or bridge", name)
	}
}

const (
	weftNamespace  = "kube-system"
	weftAccount    = "weft"
	weftKubeconfig = "/etc/weft/kubeconfig"
	weftBinary     = "/usr/local/bin/weft"
)

// installWeft installs weft as its user would: the binary, its permissions, `weft install`, then the daemon.
func installWeft(c *Cluster, node *Node) error {
	binary, err := os.ReadFile(os.Getenv("WEFT_BIN"))
	if err != nil {
		return err
	}
	if err := node.WriteFile(weftBinary, string(binary), 0o755); err != nil {
		return err
	}
	for _, file := range []string{"rbac.yaml", "crds.yaml"} {
		objects, err := os.ReadFile(filepath.Join("..", "..", "packaging", "kubernetes", file))
		if err != nil {
			return err
		}
		if err := c.Apply(string(objects)); err != nil {
			return err
		}
	}
	install := []string{weftBinary, "install", "--cni-bin-dir=/opt/cni/bin", "--cni-conf-dir=" + conflistFolder}
	if !slices.Contains(c.Nodes[:2], node) {
		if err := c.accountKubeconfig(node); err != nil {
			return err
		}
		install = append(install, "--kubeconfig="+weftKubeconfig)
	} // The first two have the kubelet's own credential, which install finds on a kubeadm node.
	if _, err = node.Exec(install...); err != nil {
		return err
	}
	daemon, err := node.Start("weftd", weftBinary, "weftd", "--node-name="+node.name)
	if err != nil {
		return err
	}
	node.processes = append(node.processes, daemon)
	return nil
}

// accountKubeconfig gives weft on the node the token of its own account, not the administrator's: a missing permission must show.
func (c *Cluster) accountKubeconfig(node *Node) error {
	token, err := c.Kubectl("--namespace="+weftNamespace, "create", "token", weftAccount, "--duration=24h")
	if err != nil {
		return err
	}
	kubeconfig := c.authority.kubeconfigFor(c.server(), fmt.Sprintf("token: %q", strings.TrimSpace(token)))
	return node.WriteFile(weftKubeconfig, kubeconfig, 0o600)
}

// installBridge sets up the reference bridge plugin and a static route to and from each other node: it proves the
// cluster itself while weft cannot yet.
func installBridge(c *Cluster, node *Node) error {
	for _, plugin := range []string{"bridge", "host-local", "loopback"} {
		program, err := os.ReadFile("/usr/lib/cni/" + plugin)
		if err != nil {
			return fmt.Errorf("the package containernetworking-plugins is not installed: %w", err)
		}
		if err := node.WriteFile("/opt/cni/bin/"+plugin, string(program), 0o755); err != nil {
			return err
		}
	}
	prefixes, err := c.podCIDRs(node)
	if err != nil {
		return err
	}
	for _, other := range c.Nodes {
		if other == node {
			continue
		}
		otherPrefixes, err := c.podCIDRs(other)
		if err != nil {
			return err
		}
		for family := range prefixes {
			if err := node.ip(fmt.Sprintf("route replace %s via %s", otherPrefixes[family], other.address[family])); err != nil {
				return err
			}
			if err := other.ip(fmt.Sprintf("route replace %s via %s", prefixes[family], node.address[family])); err != nil {
				return err
			}
		}
	}
	return node.WriteFile(conflistFolder+"/10-bridge.conflist", fmt.Sprintf(`{
  "cniVersion": "1.0.0", "name": "bridge",
  "plugins": [{
    "type": "bridge", "bridge": "cni0", "isGateway": true,
    "ipam": {
      "type": "host-local", "ranges": [[{"subnet": %q}], [{"subnet": %q}]],
      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    }
  }]
}`, prefixes[0], prefixes[1]), 0o600)
}

// waitConflist waits until the node has a CNI configuration, which says that its network is ready.
func (c *Cluster) waitConflist(node *Node) error {
	return wait("a conflist on "+node.name, 30*time.Second, nil, func() error {
		found, err := filepath.Glob(node.Path(conflistFolder + "/*.conflist"))
		if err == nil && len(found) == 0 {
			err = fmt.Errorf("%s holds none", conflistFolder)
		}
		return err
	})
}
