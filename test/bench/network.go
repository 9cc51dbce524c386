package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// referencePlugins is where Debian's containernetworking-plugins puts them.
const referencePlugins = "/usr/lib/cni"

// Network is a CNI network on one node as its runtime sees it: a list of plugins that libcni executes.
type Network struct {
	node *Netns
	list *libcni.NetworkConfigList
	cni  *libcni.CNIConfig
}

// Sandbox is the network namespace of a Pod, and what the last ADD made for it.
type Sandbox struct {
	*Netns
	name   string
	addr   netip.Addr
	hostIf string
	node   *Netns // of a path made by hand
}

func (l *Lab) network(node *Netns, list []byte, plugins string) (*Network, error) {
	parsed, err := libcni.NetworkConfFromBytes(list)
	if err != nil {
		return nil, fmt.Errorf("reading the CNI configuration: %w", err)
	}
	cache, err := l.Folder("cache")
	if err != nil {
		return nil, err
	}
	return &Network{node: node, list: parsed, cni: libcni.NewCNIConfigWithCacheDir([]string{plugins}, cache, nil)}, nil
}

// Reference returns a node with the plugins that most simple networks are made of, bridge and host-local.
func (l *Lab) Reference(ctx context.Context) (*Network, error) {
	node, err := l.Netns(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(referencePlugins + "/bridge"); err != nil {
		return nil, fmt.Errorf("looking for the reference plugins (make deps installs them): %w", err)
	}
	data, err := l.Folder("host-local")
	if err != nil {
		return nil, err
	}
	return l.network(node, fmt.Appendf(nil, `{"cniVersion": "1.0.0", "name": "reference", "plugins": [
		{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {"type": "host-local", "dataDir": %q,
			"ranges": [[{"subnet": "10.244.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`, data), referencePlugins)
}

// call describes the sandbox as a container runtime does for a Pod of Kubernetes.
func (s *Sandbox) call() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: s.name, NetNS: s.path(), IfName: "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", "bench"},
			{"K8S_POD_NAME", s.name},
			{"K8S_POD_INFRA_CONTAINER_ID", s.name},
			{"K8S_POD_UID", "uid-of-" + s.name},
		},
	}
}

// Add attaches the sandbox and returns how long that took.
func (n *Network) Add(ctx context.Context, s *Sandbox) (took time.Duration, err error) {
	var res *types100.Result
	err = n.node.do(func() error {
		start := time.Now()
		raw, err := n.cni.AddNetworkList(ctx, n.list, s.call())
		took = time.Since(start)
		if err != nil {
			return fmt.Errorf("ADD of %s by %s: %w", s.name, n.list.Name, err)
		}
		res, err = types100.NewResultFromResult(raw)
		return err
	})
	if err != nil {
		return 0, err
	}
	if len(res.IPs) == 0 {
		return 0, fmt.Errorf("ADD of %s by %s: the result has no address", s.name, n.list.Name)
	}
	s.addr, _ = netip.AddrFromSlice(res.IPs[0].Address.IP)
	s.addr = s.addr.Unmap()
	for _, i := range res.Interfaces {
		if i.Sandbox == "" {
			s.hostIf = i.Name // of the bridge, and then of the veth pair
		}
	}
	return took, nil
}

// Check reports whether the node reaches the sandbox.
func (n *Network) Check(s *Sandbox) error { return n.node.answers(s.addr) }

// Del takes the sandbox off the network and returns how long that took.
func (n *Network) Del(ctx context.Context, s *Sandbox) (took time.Duration, err error) {
	err = n.node.do(func() error {
		start := time.Now()
		err := n.cni.DelNetworkList(ctx, n.list, s.call())
		took = time.Since(start)
		if err != nil {
			return fmt.Errorf("DEL of %s by %s: %w", s.name, n.list.Name, err)
		}
		return nil
	})
	return took, err
}

// Gone waits until the links of sandboxes are gone: what one side leaves to the background must not run while the other side is
// measured.
func (n *Network) Gone(ctx context.Context, all ...*Sandbox) error {
	for _, s := range all {
		err := poll(ctx, time.Millisecond, 10*time.Second, "the link "+s.hostIf+" to go", func() bool { return !n.node.hasLink(s.hostIf) })
		if err != nil {
			return err
		}
	}
	return nil
}

// Burst attaches, or with del detaches, all sandboxes, so many at a time, and returns how long all of it took.
func (n *Network) Burst(ctx context.Context, all []*Sandbox, atOnce int, del bool) (time.Duration, error) {
	work := make(chan *Sandbox)
	errs := make(chan error, len(all))
	var wg sync.WaitGroup
	start := time.Now()
	for range atOnce {
		wg.Go(func() {
			for s := range work {
				var err error
				if del {
					_, err = n.Del(ctx, s)
				} else {
					_, err = n.Add(ctx, s)
				}
				errs <- err
			}
		})
	}
	for _, s := range all {
		work <- s
	}
	close(work)
	wg.Wait()
	took := time.Since(start)
	close(errs)
	var failed []error
	for err := range errs {
		failed = append(failed, err)
	}
	return took, errors.Join(failed...)
}
