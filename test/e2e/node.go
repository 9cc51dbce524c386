package e2e

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Node is a node of the cluster.
type Node struct {
	*machine
	processes []*process
	networked bool
}

// containerd: runc may not lower the OOM score without CAP_SYS_RESOURCE, hence restrict_oom_score_adj.
const containerdConfig = `version = 3
disabled_plugins = ["io.containerd.nri.v1.nri"]
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "` + PauseImage + `"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
`

// kubelet: cgroup v1 without its own hierarchy of cgroups; nothing is ever evicted or collected because of a full disk,
// for an image could not be pulled again.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
oomScoreAdj: 0
failSwapOn: false
makeIPTablesUtilChains: false
evictionHard: {imagefs.available: "0%", nodefs.available: "0%", memory.available: "0%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [` + clusterDNS + `]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: ` + pkiFolder + `/ca.crt}}
authorization: {mode: Webhook}
`

// AddNode boots one more node and waits until it is registered. It has no network yet.
func (c *Cluster) AddNode() (*Node, error) {
	c.added++
	name := fmt.Sprintf("node%d", c.added)
	base, err := c.newMachine(name)
	if err != nil {
		return nil, fmt.Errorf("booting %s: %w", name, err)
	}
	node := &Node{machine: base}
	if err := c.plug(base, 10+c.added); err != nil {
		return nil, fmt.Errorf("connecting %s: %w", name, err)
	}
	c.Nodes = append(c.Nodes, node)
	if err := c.writeNodeFiles(node); err != nil {
		return nil, fmt.Errorf("writing the files of %s: %w", name, err)
	}
	if len(c.Nodes) == 1 {
		if err := c.startControlPlane(node); err != nil {
			return nil, fmt.Errorf("starting the control plane: %w", err)
		}
	}
	if err := c.startKubelet(node); err != nil {
		return nil, fmt.Errorf("starting the kubelet of %s: %w", name, err)
	}
	return node, nil
}

func (c *Cluster) writeNodeFiles(node *Node) error {
	kubeconfig, err := c.authority.kubeconfig(c.server(), "system:node:"+node.name, "system:nodes")
	if err != nil {
		return err
	}
	files := map[string]string{
		pkiFolder + "/ca.crt":          c.authority.pem,
		"/etc/kubernetes/kubelet.conf": kubeconfig,
		"/var/lib/kubelet/config.yaml": kubeletConfig,
		"/etc/containerd/config.toml":  containerdConfig,
		"/etc/resolv.conf":             fmt.Sprintf("nameserver %s\n", addressIn(underlay4, 1)),
	}
	for path, content := range files {
		if err := node.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// startKubelet starts containerd and the kubelet, imports the images and waits until the node is registered.
func (c *Cluster) startKubelet(node *Node) error {
	containerd, err := node.Start("containerd", "containerd", "--config=/etc/containerd/config.toml")
	if err != nil {
		return err
	}
	err = wait("the import of the images", 30*time.Second, []*process{containerd}, func() error {
		_, err := node.Exec("ctr", "--namespace=k8s.io", "images", "import", c.images)
		return err
	})
	if err != nil {
		return err
	}
	kubelet, err := node.Start("kubelet", "kubelet",
		"--config=/var/lib/kubelet/config.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf", "--hostname-override="+node.name,
		// Each of the first three nodes is a zone: only so traffic can prefer one.
		fmt.Sprintf("--node-labels=topology.kubernetes.io/zone=zone-%d", slices.Index(c.Nodes, node)%3+1),
		fmt.Sprintf("--node-ip=%s,%s", node.address[0], node.address[1]))
	if err != nil {
		return err
	}
	node.processes = append(node.processes, containerd, kubelet)
	return wait(node.name+" to be registered", 30*time.Second, node.processes, func() error {
		_, err := c.Kubectl("get", "node", node.name)
		return err
	})
}

// RemoveNode takes the node out of the cluster and ends it.
func (c *Cluster) RemoveNode(node *Node) error {
	if _, err := c.Kubectl("delete", "node", node.name, "--timeout=20s"); err != nil {
		return err
	}
	c.Nodes = slices.DeleteFunc(c.Nodes, func(other *Node) bool { return other == node })
	// unshare takes the node's first process with it, and the kernel everything else.
	if err := node.first.command.Process.Kill(); err != nil {
		return fmt.Errorf("ending %s: %w", node.name, err)
	}
	<-node.first.ended
	return nil
}

// podCIDRs waits until the controllers have given the node its Pod prefixes and returns them, IPv4 first.
func (c *Cluster) podCIDRs(node *Node) (prefixes []string, err error) {
	err = wait("the Pod prefixes of "+node.name, 20*time.Second, c.Nodes[0].processes, func() error {
		output, err := c.Kubectl("get", "node", node.name, "--output=jsonpath={.spec.podCIDRs[*]}")
		if prefixes = strings.Fields(output); err == nil && len(prefixes) != 2 {
			err = fmt.Errorf("want an IPv4 and an IPv6 prefix, have %q", output)
		}
		return err
	})
	return prefixes, err
}
