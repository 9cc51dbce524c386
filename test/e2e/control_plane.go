package e2e

import (
	"fmt"
	"net"
	"strings"
	"time"
)

const (
	adminConfig = "/etc/kubernetes/admin.conf"
	pkiFolder   = "/etc/kubernetes/pki"
)

// startControlPlane runs etcd, the API server, the controllers and the scheduler on the node, in its namespaces: the API
// server must reach Pods.
func (c *Cluster) startControlPlane(node *Node) error {
	if err := c.writeControlPlaneFiles(node); err != nil {
		return fmt.Errorf("writing the control plane's files: %w", err)
	}
	for _, argv := range c.controlPlaneCommands(node) {
		started, err := node.Start(argv[0], argv...)
		if err != nil {
			return err
		}
		node.processes = append(node.processes, started)
	}
	return wait("the API server", time.Minute, node.processes, func() error {
		_, err := c.Kubectl("get", "--raw=/readyz")
		return err
	})
}

func (c *Cluster) writeControlPlaneFiles(node *Node) error {
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	addresses := []net.IP{
		net.ParseIP("127.0.0.1"), net.ParseIP("10.96.0.1"), net.ParseIP("fd00:10:96::1"),
		node.address[0].AsSlice(), node.address[1].AsSlice(),
	}
	certificate, key, err := c.authority.issue("kube-apiserver", "", names, addresses)
	if err != nil {
		return err
	}
	clientCertificate, clientKey, err := c.authority.issue("kube-apiserver-kubelet-client", "system:masters", nil, nil)
	if err != nil {
		return err
	}
	_, accountKey, err := newKey()
	if err != nil {
		return err
	}
	files := map[string]string{
		"ca.key": c.authority.keyPEM, "accounts.key": accountKey,
		"server.crt": certificate, "server.key": key,
		"client.crt": clientCertificate, "client.key": clientKey,
	}
	for name, content := range files {
		if err := node.WriteFile(pkiFolder+"/"+name, content, 0o600); err != nil {
			return err
		}
	}
	users := map[string][2]string{
		adminConfig: {"admin", "system:masters"},
		"/etc/kubernetes/controller-manager.conf": {"system:kube-controller-manager", ""},
		"/etc/kubernetes/scheduler.conf":          {"system:kube-scheduler", ""},
	}
	for path, user := range users {
		kubeconfig, err := c.authority.kubeconfig(c.server(), user[0], user[1])
		if err != nil {
			return err
		}
		if err := node.WriteFile(path, kubeconfig, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// controlPlaneCommands returns the command lines in the order of their start.
func (c *Cluster) controlPlaneCommands(node *Node) [][]string {
	lines := []string{
		`etcd --data-dir=/var/lib/etcd --unsafe-no-fsync --log-level=warn
			--listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380`,
		`kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address=` + node.address[0].String() + `
			--service-cluster-ip-range=` + serviceRanges + ` --allow-privileged=true
			--authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
			--client-ca-file=PKI/ca.crt --tls-cert-file=PKI/server.crt --tls-private-key-file=PKI/server.key
			--kubelet-client-certificate=PKI/client.crt --kubelet-client-key=PKI/client.key --kubelet-preferred-address-types=InternalIP
			--service-account-issuer=https://kubernetes.default.svc.cluster.local
			--service-account-key-file=PKI/accounts.key --service-account-signing-key-file=PKI/accounts.key`,
		`kube-controller-manager --kubeconfig=/etc/kubernetes/controller-manager.conf --leader-elect=false
			--use-service-account-credentials --service-account-private-key-file=PKI/accounts.key --root-ca-file=PKI/ca.crt
			--cluster-signing-cert-file=PKI/ca.crt --cluster-signing-key-file=PKI/ca.key
			--allocate-node-cidrs --cluster-cidr=` + podRanges + ` --service-cluster-ip-range=` + serviceRanges,
		`kube-scheduler --kubeconfig=/etc/kubernetes/scheduler.conf --leader-elect=false`,
	}
	var commands [][]string
	for _, line := range lines {
		commands = append(commands, strings.Fields(strings.ReplaceAll(line, "PKI", pkiFolder)))
	}
	return commands
}
