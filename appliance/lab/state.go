package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What lies in the lab's folder, besides a folder per machine and one for logs.
const (
	stateFile       = "lab.json"
	lockFile        = "lab.lock"
	manifestsFolder = "manifests"
)

// state is lab.json: all that a later command needs to find and change the lab.
type state struct {
	Name     string   `json:"name"`
	Mode     string   `json:"mode"`
	Families Families `json:"families"`
	Subnets  int      `json:"subnets"`
	Taught   bool     `json:"taught,omitempty"`
	MTU      int      `json:"mtu"`
	Settings string   `json:"settings,omitempty"`
	WeftBin  string   `json:"weftBin"`
	Bare     bool     `json:"bare,omitempty"`
	Attached bool     `json:"attached,omitempty"`
	// Count is the number of the newest node; numbers are not used again.
	Count   int     `json:"count"`
	Router  machine `json:"router"`
	Outside machine `json:"outside"`
	Nodes   []*Node `json:"nodes"`
}

// machine is one set of namespaces, held by its first process.
type machine struct {
	Name   string  `json:"name"`
	Holder Process `json:"holder"`
	// resolvConf lies over that of the machine for what is started there; empty leaves it alone.
	resolvConf string
}

// Node is one node of the lab.
type Node struct {
	machine
	Number int `json:"number"`
	// Subnet counts from 1; Host is the last part of the node's addresses.
	Subnet    int            `json:"subnet"`
	Host      int            `json:"host"`
	Addresses []netip.Addr   `json:"addresses"`
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`
	// Labels of the Node object, besides its host name.
	Labels map[string]string `json:"labels,omitempty"`
	Daemon Process           `json:"daemon"`
	Pods   []*Pod            `json:"pods"`
	// Failed are sandboxes whose ADD failed and whose DEL failed too: the runtime tries again, see Sweep.
	Failed []sandbox `json:"failed,omitempty"`
}

// Pod is a Pod that has a sandbox.
type Pod struct {
	PodSpec
	Node        string       `json:"node"`
	ContainerID string       `json:"containerID"`
	Addresses   []netip.Addr `json:"addresses"`
	Process     Process      `json:"process,omitzero"`
}

// Address returns the Pod's address of a family (4 or 6), or the zero value.
func (p *Pod) Address(family int) netip.Addr {
	for _, a := range p.Addresses {
		if a.Is4() == (family == 4) {
			return a
		}
	}
	return netip.Addr{}
}

func (p *Pod) sandbox() sandbox {
	return sandbox{ContainerID: p.ContainerID, NetNS: netnsPath(p.ContainerID), Spec: p.PodSpec}
}

func (s *state) node(name string) *Node {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// pod finds a Pod by "name" (namespace default) or "namespace/name".
func (s *state) pod(name string) (*Node, *Pod) {
	if !strings.Contains(name, "/") {
		name = defaultNamespace + "/" + name
	}
	for _, n := range s.Nodes {
		for _, p := range n.Pods {
			if p.FullName() == name {
				return n, p
			}
		}
	}
	return nil, nil
}

// save writes the file in one step, so that a reader never sees half of it.
func (s *state) save(path string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the lab's state: %w", err)
	}
	return writeFile(path, append(data, '\n'))
}

func writeFile(path string, data []byte) error {
	// A name that starts with a dot is none of the daemons' business when they watch the folder.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(tmp.Name()))
	}
	return nil
}

func (l *Lab) read() (*state, error) {
	data, err := os.ReadFile(l.path(stateFile))
	if err != nil {
		return nil, fmt.Errorf("reading the lab's state (is the lab up?): %w", err)
	}
	s := &state{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("decoding the lab's state: %w", err)
	}
	return s, nil
}

// update changes the state while no other command does.
func (l *Lab) update(change func(*state) error) error {
	lock, err := os.OpenFile(l.path(lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("opening the lab's lock: %w", err)
	}
	defer func() { _ = lock.Close() }() // which unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking the lab's state: %w", err)
	}
	s, err := l.read()
	if err != nil {
		return err
	}
	if err := change(s); err != nil {
		return err
	}
	return s.save(l.path(stateFile))
}

// updateNode changes one node's part of the state.
func (l *Lab) updateNode(name string, change func(*Node)) error {
	return l.update(func(s *state) error {
		n := s.node(name)
		if n == nil {
			return unknownNode(name)
		}
		change(n)
		return nil
	})
}

// node returns one node and the rest of the state.
func (l *Lab) node(name string) (*Node, *state, error) {
	s, err := l.read()
	if err != nil {
		return nil, nil, err
	}
	if n := s.node(name); n != nil {
		return n, s, nil
	}
	return nil, nil, unknownNode(name)
}

func unknownNode(name string) error {
	return fmt.Errorf("the lab has no node %q (weft lab status lists them)", name)
}

func unknownPod(name string) error {
	return fmt.Errorf("the lab has no Pod %q (weft lab status lists them)", name)
}
