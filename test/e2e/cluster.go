// Package e2e runs a real Kubernetes cluster on this machine, its nodes in namespaces, and tests weft in it.
package e2e

import (
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The address plan. The switch is number 1 of both underlay prefixes and every node's default gateway; node n is 10+n.
var (
	underlay4 = netip.MustParsePrefix("192.168.77.0/24")
	underlay6 = netip.MustParsePrefix("fd00:77::/64")
)

const (
	podRanges     = "10.244.0.0/16,fd00:10:244::/56"
	serviceRanges = "10.96.0.0/16,fd00:10:96::/112"
	clusterDNS    = "10.96.0.10"
)

//go:embed node.sh
var nodeScript []byte

//go:embed cleanup.sh
var cleanupScript []byte

// Cluster is a running cluster. Its first node carries the control plane too.
type Cluster struct {
	Nodes []*Node

	dir, logs, bin string // scratch, logs, built programs
	group          string // name of its cgroups
	lifeline       *os.File
	life           *os.File // write end of lifeline: the namespaces and the clean-up wait for its end
	cleanup        *process
	fabric         *machine // the switch
	authority      *authority
	images         string // archive that every node imports
	network        Network
	added          int // nodes ever added
}

// Start brings up a cluster with the given number of nodes and waits until all are registered; the nodes have no
// network yet. Close must be called in any case; when the process dies instead, the cluster still goes away by itself.
func Start(nodes int, network Network) (*Cluster, error) {
	c := &Cluster{network: network}
	if os.Geteuid() != 0 {
		return c, errors.New("starting a cluster needs root: run the tests as root")
	}
	if err := c.prepare(); err != nil {
		return c, fmt.Errorf("preparing the cluster: %w", err)
	}
	if err := c.startSwitch(); err != nil {
		return c, fmt.Errorf("starting the switch: %w", err)
	}
	for range nodes {
		if _, err := c.AddNode(); err != nil {
			return c, err
		}
	}
	return c, nil
}

// prepare makes the scratch folder, the process that will remove it, the lifeline, the authority and the images.
func (c *Cluster) prepare() (err error) {
	cache := os.Getenv("WEFT_CACHE")
	if cache == "" {
		cache = filepath.Join("..", "..", ".cache")
	}
	if cache, err = filepath.Abs(filepath.Join(cache, "e2e")); err != nil {
		return err
	}
	c.bin, c.logs = filepath.Join(cache, "bin"), filepath.Join(cache, "logs")
	if _, err := os.Stat(filepath.Join(c.bin, "pause")); err != nil {
		return fmt.Errorf("the cluster's programs are missing: run test/e2e/build.sh: %w", err)
	}
	for _, tool := range []string{"runc", "unshare", "nsenter", "ip", "hostname"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: install the Debian packages runc, util-linux, iproute2 and hostname", err)
		}
	}
	if err := os.RemoveAll(c.logs); err != nil { // those of the last run
		return err
	}
	// Not in $TMPDIR: it might lie in a folder of which every node gets its own version.
	if c.dir, err = os.MkdirTemp("/tmp", "weft-e2e-"); err != nil {
		return err
	}
	c.group = filepath.Base(c.dir)
	if c.lifeline, c.life, err = os.Pipe(); err != nil {
		return err
	}
	for name, script := range map[string][]byte{"node.sh": nodeScript, "cleanup.sh": cleanupScript} {
		if err := os.WriteFile(filepath.Join(c.dir, name), script, 0o600); err != nil {
			return err
		}
	}
	if err := c.startCleanup(); err != nil {
		return err
	}
	if c.authority, err = newAuthority(); err != nil {
		return err
	}
	return c.writeImages()
}

// startCleanup starts the process that removes what is left once the lifeline ends. It is in a session of its own, so
// that the interrupt key of a terminal does not reach it.
func (c *Cluster) startCleanup() (err error) {
	logs := &machine{name: "host", logs: c.logs}
	if err := os.MkdirAll(c.logs, 0o755); err != nil {
		return err
	}
	command := exec.Command("sh", filepath.Join(c.dir, "cleanup.sh"), c.dir, c.group)
	command.Stdin = c.lifeline
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.cleanup, err = logs.launch("cleanup", command)
	return err
}

func (c *Cluster) startSwitch() (err error) {
	if c.fabric, err = c.newMachine("switch"); err != nil {
		return err
	}
	return c.fabric.ip(
		"link add br0 type bridge",
		"link set br0 up",
		fmt.Sprintf("address add %s/%d dev br0", addressIn(underlay4, 1), underlay4.Bits()),
		fmt.Sprintf("address add %s/%d dev br0 nodad", addressIn(underlay6, 1), underlay6.Bits()),
	)
}

// Close ends the cluster and waits until nothing of it is left on the machine.
func (c *Cluster) Close() error {
	if c.life == nil {
		return nil
	}
	c.life.Close()
	if c.cleanup == nil {
		return os.RemoveAll(c.dir)
	}
	select {
	case <-c.cleanup.ended:
	case <-time.After(45 * time.Second):
	}
	report, err := os.ReadFile(c.cleanup.log)
	if _, gone := os.Stat(c.dir); err != nil || len(report) > 0 || gone == nil {
		return fmt.Errorf("cleaning up after the cluster: %s: %w", strings.TrimSpace(string(report)), err)
	}
	return nil
}

// server is the URL of the API server, on the first node.
func (c *Cluster) server() string { return fmt.Sprintf("https://%s:6443", c.Nodes[0].address[0]) }

// Kubectl runs kubectl as administrator and returns its output.
func (c *Cluster) Kubectl(arguments ...string) (string, error) {
	return c.kubectlInput("", arguments...)
}

// Apply gives objects, as YAML or JSON, to `kubectl apply`.
func (c *Cluster) Apply(objects string) error {
	_, err := c.kubectlInput(objects, "apply", "--filename=-")
	return err
}

func (c *Cluster) kubectlInput(input string, arguments ...string) (string, error) {
	argv := append([]string{"kubectl", "--kubeconfig=" + adminConfig}, arguments...)
	return c.Nodes[0].execInput(input, argv...)
}

// InstallNetwork installs the network on every node that has none and waits until the nodes are Ready.
func (c *Cluster) InstallNetwork() error {
	for _, node := range c.Nodes {
		if node.networked {
			continue
		}
		if err := c.network(c, node); err != nil {
			return fmt.Errorf("installing the network on %s: %w", node.name, err)
		}
		node.networked = true
	}
	return c.WaitNodesReady()
}

// WaitNodesReady waits until every node is Ready and Pods can be created.
func (c *Cluster) WaitNodesReady() error {
	for _, node := range c.Nodes {
		err := wait(node.name+" to be Ready", 30*time.Second, node.processes, func() error {
			_, err := c.Kubectl("wait", "node/"+node.name, "--for=condition=Ready", "--timeout=5s")
			return err
		})
		if err != nil {
			return err
		}
	}
	// Made by a controller some time after the start; without it no Pod is admitted.
	return wait("the default ServiceAccount", 20*time.Second, c.Nodes[0].processes, func() error {
		_, err := c.Kubectl("get", "serviceaccount", "default")
		return err
	})
}
