package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"strings"
)

// defaultNamespace is that of Pods which name none.
const defaultNamespace = "default"

// object is what we write of a Kubernetes object: the few fields that matter to a network.
type object struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   metadata `json:"metadata"`
	Spec       any      `json:"spec,omitempty"`
	Status     any      `json:"status,omitempty"`
}

type metadata struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	UID         string            `json:"uid,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type nodeSpec struct {
	PodCIDR  string         `json:"podCIDR,omitempty"`
	PodCIDRs []netip.Prefix `json:"podCIDRs,omitempty"`
}

type nodeStatus struct {
	Addresses []nodeAddress `json:"addresses"`
}

type nodeAddress struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

type podObjectSpec struct {
	NodeName   string      `json:"nodeName"`
	Containers []container `json:"containers"`
}

type container struct {
	Name  string          `json:"name"`
	Image string          `json:"image"`
	Ports []containerPort `json:"ports,omitempty"`
}

type containerPort struct {
	ContainerPort uint16 `json:"containerPort"`
	HostPort      uint16 `json:"hostPort,omitempty"`
	HostIP        string `json:"hostIP,omitempty"`
	Protocol      string `json:"protocol,omitempty"`
}

type podStatus struct {
	Phase  string  `json:"phase"`
	HostIP string  `json:"hostIP,omitempty"`
	PodIP  string  `json:"podIP,omitempty"`
	PodIPs []podIP `json:"podIPs,omitempty"`
}

type podIP struct {
	IP netip.Addr `json:"ip"`
}

func (l *Lab) writeObject(path string, o object) error {
	o.APIVersion = "v1"
	data, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding %s %s: %w", o.Kind, o.Metadata.Name, err)
	}
	return writeFile(path, append(data, '\n'))
}

func (l *Lab) nodeFile(name string) string { return l.path(manifestsFolder, "node-"+name+".json") }

// writeNode writes the Node object.
func (l *Lab) writeNode(n *Node) error {
	o := object{Kind: "Node", Metadata: metadata{Name: n.Name, UID: "node-" + n.Name, Labels: map[string]string{"kubernetes.io/hostname": n.Name}}}
	maps.Copy(o.Metadata.Labels, n.Labels)
	spec := nodeSpec{PodCIDRs: n.PodCIDRs}
	if len(n.PodCIDRs) > 0 {
		spec.PodCIDR = n.PodCIDRs[0].String()
	}
	status := nodeStatus{Addresses: []nodeAddress{{"Hostname", n.Name}}}
	for _, a := range n.Addresses {
		status.Addresses = append(status.Addresses, nodeAddress{"InternalIP", a.String()})
	}
	o.Spec, o.Status = spec, status
	return l.writeObject(l.nodeFile(n.Name), o)
}

// SetPodCIDRs changes a node's ranges in its Node object, under whatever runs there.
func (l *Lab) SetPodCIDRs(name string, prefixes ...netip.Prefix) error {
	if err := l.updateNode(name, func(n *Node) { n.PodCIDRs = prefixes }); err != nil {
		return err
	}
	n, _, err := l.node(name)
	if err != nil {
		return err
	}
	return l.writeNode(n)
}

// SetLabels sets the labels of a Node object, besides its host name.
func (l *Lab) SetLabels(name string, labels map[string]string) error {
	if err := l.updateNode(name, func(n *Node) { n.Labels = labels }); err != nil {
		return err
	}
	n, _, err := l.node(name)
	if err != nil {
		return err
	}
	return l.writeNode(n)
}

func (l *Lab) podFile(p *PodSpec) string {
	return l.path(manifestsFolder, "pod-"+p.Namespace+"-"+p.Name+".json")
}

// writePod writes the Pod object: Pending without addresses, Running with them.
func (l *Lab) writePod(p *PodSpec, node *Node, addresses []netip.Addr) error {
	main := container{Name: "main", Image: "weft/lab-pod"}
	for _, m := range p.Ports {
		port := containerPort{ContainerPort: m.ContainerPort, HostPort: m.HostPort, Protocol: strings.ToUpper(m.Protocol.String())}
		if m.HostIP.IsValid() {
			port.HostIP = m.HostIP.String()
		}
		main.Ports = append(main.Ports, port)
	}
	status := podStatus{Phase: "Pending"}
	if len(node.Addresses) > 0 {
		status.HostIP = node.Addresses[0].String()
	}
	for _, a := range addresses {
		status.Phase, status.PodIPs = "Running", append(status.PodIPs, podIP{a})
		status.PodIP = status.PodIPs[0].IP.String()
	}
	return l.writeObject(l.podFile(p), object{
		Kind:     "Pod",
		Metadata: metadata{Name: p.Name, Namespace: p.Namespace, UID: p.UID, Labels: p.Labels, Annotations: p.Annotations},
		Spec:     podObjectSpec{NodeName: node.Name, Containers: []container{main}},
		Status:   status,
	})
}

func (l *Lab) removePodObject(p *PodSpec) error {
	if err := os.Remove(l.podFile(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the Pod object of %s: %w", p.FullName(), err)
	}
	return nil
}
