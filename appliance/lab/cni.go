package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

// Where a container runtime looks on a node.
const (
	confFolder   = "/etc/cni/net.d"
	pluginFolder = "/opt/cni/bin"
	cacheFolder  = "/var/lib/cni"
	netnsFolder  = "/run/netns"

	podInterface = "eth0"
)

// parallel is how many plugins run at once, so that fifty Pods do not need the memory of fifty.
const parallel = 16

// sandbox is a Pod's place to live, as the runtime knows it.
type sandbox struct {
	ContainerID string  `json:"containerID"`
	NetNS       string  `json:"netns"`
	Spec        PodSpec `json:"spec"`
}

func netnsPath(containerID string) string {
	return filepath.Join(netnsFolder, "cni-"+containerID[:min(12, len(containerID))])
}

// What can be asked for a sandbox.
const (
	verbAttach = "attach" // make the network namespace, ADD; on failure DEL and remove the namespace
	verbDetach = "detach" // DEL, remove the namespace
	verbForget = "forget" // DEL without a namespace
	verbCheck  = "check"
)

type cniCall struct {
	Verb string `json:"verb"`
	sandbox
	// Then is started in the sandbox after ADD.
	Then *program `json:"then,omitempty"`
}

type cniAnswer struct {
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// PID of what was started, inside the node.
	PID int       `json:"pid,omitempty"`
	Err *CNIError `json:"error,omitempty"`
	// Leftover is set when a failed ADD could not be taken back.
	Leftover bool `json:"leftover,omitempty"`
}

// serveCNI makes the calls that stand on standard input, all at once, and prints the answers in their order. It runs inside the
// node, so that the plugins see the node's file system and network.
func serveCNI(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	var calls []cniCall
	if err := json.NewDecoder(stdin).Decode(&calls); err != nil {
		return fmt.Errorf("decoding CNI calls: %w", err)
	}
	r, err := newRuntime()
	if err != nil {
		return err
	}
	answers := make([]cniAnswer, len(calls))
	places := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			answers[i] = r.do(ctx, calls[i])
		})
	}
	wg.Wait()
	return json.NewEncoder(stdout).Encode(answers)
}

// player is a container runtime as far as the network goes. It calls the loopback plugin first, as containerd does.
type player struct {
	cni      *libcni.CNIConfig
	networks []attachment
}

type attachment struct {
	list   *libcni.NetworkConfigList
	ifName string
}

func newRuntime() (*player, error) {
	loopback, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion": "1.0.0", "name": "cni-loopback", "plugins": [{"type": "loopback"}]}`))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of loopback: %w", err)
	}
	files, err := libcni.ConfFiles(confFolder, []string{".conflist"})
	if err != nil {
		return nil, fmt.Errorf("looking for a network configuration: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s holds no network configuration: the node's network is not ready", confFolder)
	}
	list, err := libcni.NetworkConfFromFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", files[0], err)
	}
	return &player{
		cni:      libcni.NewCNIConfigWithCacheDir([]string{pluginFolder}, cacheFolder, nil),
		networks: []attachment{{loopback, "lo"}, {list, podInterface}},
	}, nil
}

func (p *player) do(ctx context.Context, c cniCall) (a cniAnswer) {
	var err error
	switch c.Verb {
	case verbAttach:
		a.Addresses, err = p.attach(ctx, c.sandbox)
		if err == nil && c.Then != nil {
			a.PID, err = c.Then.spawn(ctx)
		}
		if err != nil {
			// The runtime takes a failed sandbox down at once, and tries again later if that fails too.
			a.Leftover = p.detach(ctx, c.sandbox) != nil
		}
	case verbDetach:
		err = p.detach(ctx, c.sandbox)
	case verbForget:
		err = p.del(ctx, c.sandbox)
	case verbCheck:
		err = p.check(ctx, c.sandbox)
	default:
		err = fmt.Errorf("unknown verb %q", c.Verb)
	}
	a.Err = asCNIError(err)
	return a
}

func asCNIError(err error) *CNIError {
	if err == nil {
		return nil
	}
	var e *types.Error
	if errors.As(err, &e) {
		return &CNIError{Code: e.Code, Msg: e.Msg, Details: e.Details}
	}
	return &CNIError{Code: types.ErrInternal, Msg: err.Error()}
}

// conf is what the runtime passes with each call.
func (sb *sandbox) conf(ifName string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: sb.ContainerID, NetNS: sb.NetNS, IfName: ifName, CacheDir: cacheFolder, CapabilityArgs: map[string]any{},
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", sb.Spec.Namespace},
			{"K8S_POD_NAME", sb.Spec.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", sb.ContainerID},
			{"K8S_POD_UID", sb.Spec.UID},
		},
	}
	if len(sb.Spec.Ports) > 0 {
		rt.CapabilityArgs["portMappings"] = portCapability(sb.Spec)
	}
	if !sb.Spec.Bandwidth.IsZero() {
		rt.CapabilityArgs["bandwidth"] = sb.Spec.Bandwidth
	}
	if len(sb.Spec.Addresses) > 0 {
		rt.CapabilityArgs["ips"] = sb.Spec.Addresses
	}
	if !sb.Spec.MAC.IsZero() {
		rt.CapabilityArgs["mac"] = sb.Spec.MAC
	}
	return rt
}

// portCapability writes the mappings as runtimes do: hostIP is a text, and empty when there is none.
func portCapability(spec PodSpec) []map[string]any {
	var out []map[string]any
	for _, m := range spec.Ports {
		ip := ""
		if m.HostIP.IsValid() {
			ip = m.HostIP.String()
		}
		out = append(out, map[string]any{"hostPort": m.HostPort, "containerPort": m.ContainerPort, "protocol": m.Protocol.String(), "hostIP": ip})
	}
	return out
}

func (p *player) attach(ctx context.Context, sb sandbox) ([]netip.Addr, error) {
	if err := newNetNS(sb.NetNS); err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, n := range p.networks {
		result, err := p.cni.AddNetworkList(ctx, n.list, sb.conf(n.ifName))
		if err != nil {
			return nil, err
		}
		if n.ifName != podInterface {
			continue
		}
		r, err := types100.NewResultFromResult(result)
		if err != nil {
			return nil, fmt.Errorf("reading the result of ADD: %w", err)
		}
		for _, ip := range r.IPs {
			if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
				out = append(out, a.Unmap())
			}
		}
	}
	return out, nil
}

func (p *player) detach(ctx context.Context, sb sandbox) error {
	if err := p.del(ctx, sb); err != nil {
		return err
	}
	return removeNetNS(sb.NetNS)
}

func (p *player) del(ctx context.Context, sb sandbox) error {
	for i := len(p.networks) - 1; i >= 0; i-- {
		if err := p.cni.DelNetworkList(ctx, p.networks[i].list, sb.conf(p.networks[i].ifName)); err != nil {
			return err
		}
	}
	return nil
}

func (p *player) check(ctx context.Context, sb sandbox) error {
	for _, n := range p.networks {
		if err := p.cni.CheckNetworkList(ctx, n.list, sb.conf(n.ifName)); err != nil {
			return err
		}
	}
	return nil
}

// newNetNS makes a network namespace that stays as long as its path is mounted.
func newNetNS(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("making the network namespace %s: %w", path, err)
	}
	_ = f.Close()
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return errors.Join(fmt.Errorf("making the network namespace %s: %w", path, err), os.Remove(path))
	}
	return nil
}

func removeNetNS(path string) error {
	if path == "" {
		return nil
	}
	err := unix.Unmount(path, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil // not mounted, or gone
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the network namespace %s: %w", path, err)
	}
	return nil
}
