package e2e

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// Pod is a Pod that runs.
type Pod struct {
	Name      string
	Addresses []netip.Addr // IPv4, IPv6
}

// RunPod creates a Pod of one container on a node and waits until it is Running.
func (c *Cluster) RunPod(name string, node *Node, image string, arguments ...string) (Pod, error) {
	err := c.Apply(string(encodeJSON(map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"nodeSelector":                  map[string]string{"kubernetes.io/hostname": node.name},
			"terminationGracePeriodSeconds": 0,
			"containers":                    []any{map[string]any{"name": "main", "image": image, "args": arguments}},
		},
	})))
	if err != nil {
		return Pod{}, err
	}
	if _, err := c.Kubectl("wait", "pod/"+name, "--for=jsonpath={.status.phase}=Running", "--timeout=30s"); err != nil {
		events, _ := c.Kubectl("describe", "pod", name)
		return Pod{}, fmt.Errorf("waiting for Pod %s: %w\n%s", name, err, events)
	}
	output, err := c.Kubectl("get", "pod", name, "--output=jsonpath={.status.podIPs[*].ip}")
	if err != nil {
		return Pod{}, err
	}
	pod := Pod{Name: name}
	for _, text := range strings.Fields(output) {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return Pod{}, fmt.Errorf("reading the addresses of Pod %s: %w", name, err)
		}
		pod.Addresses = append(pod.Addresses, address)
	}
	if len(pod.Addresses) != 2 {
		return Pod{}, fmt.Errorf("Pod %s has the addresses %v: want IPv4 and IPv6", name, pod.Addresses)
	}
	return pod, nil
}

// DeletePod deletes a Pod and waits until it is gone.
func (c *Cluster) DeletePod(name string) error {
	_, err := c.Kubectl("delete", "pod", name, "--timeout=30s")
	return err
}

// ExecPod runs a program in a Pod and returns its output.
func (c *Cluster) ExecPod(name string, argv ...string) (string, error) {
	return c.Kubectl(append([]string{"exec", name, "--"}, argv...)...)
}

// ClientAddress lets one `agnhost netexec` Pod ask another, at the given address, from which address the request came.
func (c *Cluster) ClientAddress(from Pod, to netip.Addr) (netip.Addr, error) {
	query := url.Values{"host": {to.String()}, "port": {"8080"}, "request": {"clientip"}, "tries": {"1"}}
	output, err := c.Kubectl("get", "--raw", fmt.Sprintf("/api/v1/namespaces/default/pods/%s:8080/proxy/dial?%s", from.Name, query.Encode()))
	if err != nil {
		return netip.Addr{}, err
	}
	// {"responses":["10.244.1.2:41234"]}
	_, answer, _ := strings.Cut(output, `["`)
	answer, _, _ = strings.Cut(answer, `"`)
	client, err := netip.ParseAddrPort(answer)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("Pod %s asked %s for its address and got %q: %w", from.Name, to, strings.TrimSpace(output), err)
	}
	return client.Addr(), nil
}
