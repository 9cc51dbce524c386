package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft.network/weft/appliance/model"
)

// PodSpec is a Pod to run.
type PodSpec struct {
	Name string `json:"name"`
	// Namespace is "default" if empty.
	Namespace string `json:"namespace"`
	// UID is made up if empty. The same UID is the same incarnation of a Pod, in whatever sandbox.
	UID         string              `json:"uid"`
	Labels      map[string]string   `json:"labels,omitempty"`
	Annotations map[string]string   `json:"annotations,omitempty"`
	Ports       []model.PortMapping `json:"ports,omitempty"`
	Bandwidth   model.Bandwidth     `json:"bandwidth,omitzero"`
	// Addresses are asked for by the CNI capability ips.
	Addresses []netip.Addr `json:"requestedAddresses,omitempty"`
	// MAC is asked for by the CNI capability mac.
	MAC model.MAC `json:"mac,omitzero"`
	// Pause runs no server in the Pod: it has a network and nothing else.
	Pause bool `json:"pause,omitempty"`
}

// FullName is namespace/name.
func (p *PodSpec) FullName() string { return p.Namespace + "/" + p.Name }

// CNIError is what a plugin answered (CNI specification 1.1.0, section 5, Error).
type CNIError struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// Error prints all three parts.
func (e *CNIError) Error() string {
	text := fmt.Sprintf("CNI error %d: %s", e.Code, e.Msg)
	if e.Details != "" {
		text += "; " + e.Details
	}
	return text
}

// RunResult is what became of one Pod: exactly one of the two is set.
type RunResult struct {
	Pod *Pod
	Err error
}

func randomID(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// complete fills in what a Pod that is created gets from the API server.
func (p *PodSpec) complete() {
	if p.Namespace == "" {
		p.Namespace = defaultNamespace
	}
	if p.UID == "" {
		id := randomID(16)
		p.UID = strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:]}, "-")
	}
}

// RunPod runs one Pod on a node. A refusal by the plugin is a *CNIError.
func (l *Lab) RunPod(ctx context.Context, node string, spec PodSpec) (*Pod, error) {
	results, err := l.RunPods(ctx, node, []PodSpec{spec})
	if err != nil {
		return nil, err
	}
	return results[0].Pod, results[0].Err
}

// RunPods creates Pods on a node all at once, as a runtime does after a Deployment was scaled up: their network, then their
// process. Every ADD is tried once; a Pod whose ADD fails is left as it was before, and may be given to RunPods again. Missing
// UIDs are filled in in specs.
func (l *Lab) RunPods(ctx context.Context, node string, specs []PodSpec) ([]RunResult, error) {
	n, s, err := l.node(node)
	if err != nil {
		return nil, err
	}
	calls := make([]cniCall, len(specs))
	for i := range specs {
		spec := &specs[i]
		spec.complete()
		if old, _ := s.pod(spec.FullName()); old != nil {
			return nil, fmt.Errorf("the Pod %s runs on %s already", spec.FullName(), old.Name)
		}
		id := randomID(32)
		calls[i] = cniCall{Verb: verbAttach, sandbox: sandbox{ContainerID: id, NetNS: netnsPath(id), Spec: *spec}}
		if !spec.Pause {
			server := l.serverProgram(s, spec.FullName(), node, calls[i].NetNS, "pod-"+spec.Namespace+"-"+spec.Name)
			calls[i].Then = &server
		}
	}
	if err := l.announce(ctx, n, specs); err != nil {
		return nil, err
	}
	answers, err := l.callCNI(ctx, n, s, calls)
	if err != nil {
		return nil, err
	}
	processes, err := n.processes()
	if err != nil {
		return nil, err
	}
	results := make([]RunResult, len(specs))
	err = l.updateNode(node, func(n *Node) {
		for i, a := range answers {
			if a.Err != nil {
				results[i].Err = a.Err
				if a.Leftover {
					n.Failed = append(n.Failed, calls[i].sandbox)
				}
				continue
			}
			results[i].Pod = &Pod{
				PodSpec: specs[i], Node: node, ContainerID: calls[i].ContainerID, Addresses: a.Addresses, Process: processes[a.PID],
			}
			n.Pods = append(n.Pods, results[i].Pod)
		}
	})
	if err != nil {
		return nil, err
	}
	for _, r := range results {
		if r.Pod == nil {
			continue
		}
		if err := l.writePod(&r.Pod.PodSpec, n, r.Pod.Addresses); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// announce writes the Pod objects. A kubelet and weftd hear of a Pod at the same moment, but weftd reads files a little later than
// they were written: where an annotation says something to weftd, that is waited for.
func (l *Lab) announce(ctx context.Context, n *Node, specs []PodSpec) error {
	for i := range specs {
		if err := l.writePod(&specs[i], n, nil); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(specs, func(p PodSpec) bool { return len(p.Annotations) > 0 }) {
		return nil
	}
	written := time.Now()
	// Whoever is late to look at the clock may have missed the look that saw them; the next one comes unasked, every ten seconds.
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return poll(ctx, "weftd on "+n.Name+" to hear of the Pods", func() error {
		now, err := n.daemonStatus(ctx)
		if err == nil && !now.Source.Read.After(written) {
			err = errors.New("it has not read their objects")
		}
		return err
	})
}

// DeletePod deletes a Pod by "name" or "namespace/name".
func (l *Lab) DeletePod(ctx context.Context, name string) error {
	errs, err := l.DeletePods(ctx, []string{name})
	if err != nil {
		return err
	}
	return errs[0]
}

// DeletePods deletes Pods all at once: their process, their network, their object. A Pod whose DEL fails keeps the rest and may be
// deleted again, as the kubelet would; the errors are in the order of the names.
func (l *Lab) DeletePods(ctx context.Context, names []string) ([]error, error) {
	s, err := l.read()
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(names))
	byNode := map[*Node][]int{}
	pods := make([]*Pod, len(names))
	for i, name := range names {
		n, p := s.pod(name)
		if p == nil {
			return nil, unknownPod(name)
		}
		if err := p.Process.kill(ctx); err != nil {
			return nil, err
		}
		pods[i] = p
		byNode[n] = append(byNode[n], i)
	}
	for n, indices := range byNode {
		calls := make([]cniCall, len(indices))
		for j, i := range indices {
			calls[j] = cniCall{Verb: verbDetach, sandbox: pods[i].sandbox()}
		}
		answers, err := l.callCNI(ctx, n, s, calls)
		if err != nil {
			return nil, err
		}
		for j, i := range indices {
			errs[i] = l.deleted(n.Name, pods[i], answers[j])
		}
	}
	return errs, nil
}

func (l *Lab) deleted(node string, p *Pod, a cniAnswer) error {
	if a.Err != nil {
		return a.Err
	}
	if err := l.removePodObject(&p.PodSpec); err != nil {
		return err
	}
	return l.updateNode(node, func(n *Node) {
		n.Pods = slices.DeleteFunc(n.Pods, func(other *Pod) bool { return other.ContainerID == p.ContainerID })
	})
}

// Sweep takes down what is left of sandboxes whose ADD and DEL failed, as a runtime keeps trying to.
func (l *Lab) Sweep(ctx context.Context, node string) error {
	n, s, err := l.node(node)
	if err != nil || len(n.Failed) == 0 {
		return err
	}
	calls := make([]cniCall, len(n.Failed))
	for i, sb := range n.Failed {
		calls[i] = cniCall{Verb: verbDetach, sandbox: sb}
	}
	answers, err := l.callCNI(ctx, n, s, calls)
	if err != nil {
		return err
	}
	var errs []error
	gone := map[string]bool{}
	for i, a := range answers {
		if a.Err != nil {
			errs = append(errs, a.Err)
		} else {
			gone[n.Failed[i].ContainerID] = true
		}
	}
	err = l.updateNode(node, func(n *Node) {
		n.Failed = slices.DeleteFunc(n.Failed, func(sb sandbox) bool { return gone[sb.ContainerID] })
	})
	return errors.Join(append(errs, err)...)
}

// CheckPod asks the plugins whether a Pod's network is as ADD left it (CNI verb CHECK).
func (l *Lab) CheckPod(ctx context.Context, name string) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	n, p := s.pod(name)
	if p == nil {
		return unknownPod(name)
	}
	answers, err := l.callCNI(ctx, n, s, []cniCall{{Verb: verbCheck, sandbox: p.sandbox()}})
	if err != nil || answers[0].Err == nil {
		return err
	}
	return answers[0].Err
}

// bringBack makes the Pods of a rebooted node anew; see Reboot for the order.
func (l *Lab) bringBack(ctx context.Context, node string, pods []*Pod) error {
	n, s, err := l.node(node)
	if err != nil {
		return err
	}
	del := func(first int) error {
		var calls []cniCall
		for i := first; i < len(pods); i += 2 {
			old := pods[i].sandbox()
			old.NetNS = "" // the namespace of before the reboot is gone, and the runtime knows
			calls = append(calls, cniCall{Verb: verbForget, sandbox: old})
		}
		answers, err := l.callCNI(ctx, n, s, calls)
		for _, a := range answers {
			if a.Err != nil {
				err = errors.Join(err, fmt.Errorf("taking down the sandbox of before the reboot: %w", a.Err))
			}
		}
		return err
	}
	if err := del(0); err != nil {
		return err
	}
	specs := make([]PodSpec, len(pods))
	for i, p := range pods {
		specs[i] = p.PodSpec
	}
	results, err := l.RunPods(ctx, node, specs)
	if err != nil {
		return err
	}
	for i, r := range results {
		if r.Err != nil {
			return fmt.Errorf("bringing back the Pod %s: %w", specs[i].FullName(), r.Err)
		}
	}
	return del(1)
}

// callCNI has CNI calls made inside the node, all at once, by a process that plays the container runtime.
func (l *Lab) callCNI(ctx context.Context, n *Node, s *state, calls []cniCall) ([]cniAnswer, error) {
	if len(calls) == 0 {
		return nil, nil
	}
	var answers []cniAnswer
	if err := l.inside(ctx, s, n.machine, cniVerb, calls, &answers); err != nil {
		return nil, fmt.Errorf("calling CNI plugins: %w", err)
	}
	return answers, nil
}

// ParsePort reads a port mapping as "8080:80", "8080:80/udp" or "127.0.0.1:8080:80/tcp" ("[::1]:8080:80").
func ParsePort(text string) (model.PortMapping, error) {
	bad := fmt.Errorf("port mapping %q is not of the form [ADDRESS:]HOSTPORT:CONTAINERPORT[/PROTOCOL]", text)
	ports, protocol, _ := strings.Cut(text, "/")
	out := model.PortMapping{}
	var err error
	if out.Protocol, err = model.ParseProtocol(protocol); err != nil {
		return out, fmt.Errorf("port mapping %q: %w", text, err)
	}
	at := strings.LastIndex(ports, ":")
	if at < 0 {
		return out, bad
	}
	inner, err := strconv.ParseUint(ports[at+1:], 10, 16)
	if err != nil {
		return out, bad
	}
	host := ports[:at]
	if at = strings.LastIndex(host, ":"); at >= 0 {
		if out.HostIP, err = netip.ParseAddr(strings.Trim(host[:at], "[]")); err != nil {
			return out, bad
		}
		host = host[at+1:]
	}
	outer, err := strconv.ParseUint(host, 10, 16)
	if err != nil {
		return out, bad
	}
	out.HostPort, out.ContainerPort = uint16(outer), uint16(inner)
	return out, nil
}
