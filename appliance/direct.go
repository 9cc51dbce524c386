package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/kernel/iface"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
	"weft.network/weft/plugins/cni"
)

// directWait is how long a plugin without a daemon waits for the store: a daemon that is starting has it, and will answer a retry.
const directWait = time.Second

// Plugin is the CNI plugin when no daemon answers: it takes down what must be taken down with the store opened directly, gives
// addresses from ranges in the configuration, and says "try again later" to everything else. stdin is what was read already.
func Plugin(ctx context.Context, plugin string, stdin []byte, out io.Writer) int {
	call := cni.Call{Plugin: plugin, Env: map[string]string{}, Stdin: stdin, NSFD: -1}
	for _, kv := range os.Environ() {
		if k, v, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(k, "CNI_") {
			call.Env[k] = v
		}
	}
	if path := call.Env["CNI_NETNS"]; path != "" {
		if f, err := iface.OpenNS(path); err == nil {
			defer func() { _ = f.Close() }()
			call.NSFD = int(f.Fd())
		}
	}
	d := &direct{cfg: directConfig(stdin)}
	defer d.close()
	reply := cni.Serve(ctx, call, d)
	_, _ = out.Write(reply.Stdout)
	return reply.Exit
}

// directConfig takes the directories from the network configuration.
func directConfig(stdin []byte) config.Config {
	cfg := config.Default()
	var dirs struct{ RunDir, StateDir string }
	if json.Unmarshal(stdin, &dirs) == nil {
		if dirs.RunDir != "" {
			cfg.RunDir = dirs.RunDir
		}
		if dirs.StateDir != "" {
			cfg.StateDir = dirs.StateDir
		}
	}
	return cfg
}

// direct opens store and kernel only when a verb needs them: VERSION and bad input need neither.
type direct struct {
	cfg      config.Config
	kernel   *kernel
	attacher *attach.Attacher
	cleanup  []func() error
}

func (d *direct) close() {
	for i := len(d.cleanup) - 1; i >= 0; i-- {
		_ = d.cleanup[i]()
	}
}

// away is the answer to what only the daemon can do.
func (d *direct) away() error {
	return fmt.Errorf("weft is %w: weftd does not answer on %s: start it, or see its log (journalctl -u weftd)",
		attach.ErrNotReady, filepath.Join(d.cfg.RunDir, "weft.sock"))
}

func (d *direct) openKernel() (*kernel, error) {
	if d.kernel == nil {
		k, err := openKernel(zap.NewNop())
		if err != nil {
			return nil, err
		}
		k.flows.closing = true // there is nothing to gather: this process ends with its call
		d.kernel = k
		d.cleanup = append(d.cleanup, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), directWait)
			defer cancel()
			return errors.Join(k.Flush(ctx), k.close())
		})
	}
	return d.kernel, nil
}

// open builds the attacher over the store itself.
func (d *direct) open() (*attach.Attacher, error) {
	if d.attacher != nil {
		return d.attacher, nil
	}
	s, err := openStore(d.cfg.StateDir, "", directWait)
	if err != nil {
		return nil, fmt.Errorf("weft is %w: %w", attach.ErrNotReady, err)
	}
	d.cleanup = append(d.cleanup, s.Close)
	k, err := d.openKernel()
	if err != nil {
		return nil, err
	}
	state, err := readState(s)
	if err != nil {
		return nil, err
	}
	if s.NeedsRebuild() {
		// Not written: the daemon rebuilds all, and until then every call does this much.
		lost, err := lostResults(state, []string{weftIPAM, hostLocal}, k.OpenNS)
		if err != nil {
			return nil, err
		}
		state.Leases = append(state.Leases, lost...)
	}
	d.attacher = attach.New(attach.Options{
		Kernel: k, Store: s, Node: directNode{d}, Log: zap.NewNop(), Now: unixNow, CoolOff: int64(d.cfg.IPAM.CoolOff / time.Second),
	}, state)
	return d.attacher, nil
}

// directNode answers the attacher's questions without a daemon.
type directNode struct{ d *direct }

func (n directNode) Facts() attach.Facts                        { return attach.Facts{NotReady: n.d.away()} }
func (directNode) Pod(context.Context, model.PodRef) *model.Pod { return nil }
func (directNode) Exhausted(model.PodRef, error)                {}

// Guard has nothing to do: without a daemon nothing is attached to weft's own network.
func (directNode) Guard(context.Context) error { return nil }

// Freed leaves what policies said of the address: the daemon sweeps it when it starts, and before the address is given again.
func (directNode) Freed() {}

// CheckGuards compares the host ports, also those of others. What the rest of the table should be only the daemon knows. It may have
// left out a family without host ports, which SyncPorts does not.
func (n directNode) CheckGuards() error {
	ports := n.d.attacher.HostPorts()
	if len(ports) == 0 {
		return nil
	}
	differ := 0
	for _, both := range []bool{true, false} {
		var err error
		if differ, err = n.d.kernel.Differs([]ruleset.Table{ruleset.HostPortTable(ports, both)}); err != nil {
			return fmt.Errorf("reading the packet filter: %w", err)
		}
		if differ == 0 {
			return nil
		}
	}
	return fmt.Errorf("the host ports in table inet weft in the kernel differ from what they should be in %d objects", differ)
}

// SyncPorts programs the host ports and leaves the rest of the table as the daemon left it.
func (n directNode) SyncPorts(ctx context.Context, ports []*model.HostPorts) error {
	table := ruleset.HostPortTable(ports, true)
	_, err := n.d.kernel.Apply(ctx, []ruleset.Table{table})
	return err
}

// Ready is always an error: only a daemon makes a node ready.
func (d *direct) Ready(context.Context) error { return d.away() }

// Add serves IPAM from the ranges in the configuration; a Pod needs the daemon.
func (d *direct) Add(ctx context.Context, req attach.Request) (attach.Result, error) {
	if req.Kind == model.LeasePod || len(req.Ranges) == 0 {
		return attach.Result{}, d.away()
	}
	a, err := d.open()
	if err != nil {
		return attach.Result{}, err
	}
	return a.Add(ctx, req)
}

// Del takes down everything there is.
func (d *direct) Del(ctx context.Context, key model.AttachmentKey, kind model.LeaseKind) error {
	a, err := d.open()
	if err != nil {
		return err
	}
	return a.Del(ctx, key, kind)
}

// Check compares with the store and the kernel.
func (d *direct) Check(ctx context.Context, req attach.Request) (attach.Result, error) {
	a, err := d.open()
	if err != nil {
		return attach.Result{}, err
	}
	return a.Check(ctx, req)
}

// Collect takes down what the runtime does not name.
func (d *direct) Collect(ctx context.Context, network string, kind model.LeaseKind, valid []model.AttachmentKey) error {
	a, err := d.open()
	if err != nil {
		return err
	}
	return a.Collect(ctx, network, kind, valid)
}

// SetPorts opens host ports.
func (d *direct) SetPorts(ctx context.Context, hp *model.HostPorts) error {
	a, err := d.open()
	if err != nil {
		return err
	}
	return a.SetPorts(ctx, hp)
}

// ClearPorts closes them.
func (d *direct) ClearPorts(ctx context.Context, key model.AttachmentKey) error {
	a, err := d.open()
	if err != nil {
		return err
	}
	return a.ClearPorts(ctx, key)
}

// CheckPorts compares with the store.
func (d *direct) CheckPorts(ctx context.Context, hp *model.HostPorts) error {
	a, err := d.open()
	if err != nil {
		return err
	}
	return a.CheckPorts(ctx, hp)
}

// SetBandwidth, ClearBandwidth, CheckBandwidth and Loopback need the kernel alone.
func (d *direct) SetBandwidth(ctx context.Context, hostIf string, b model.Bandwidth) error {
	k, err := d.openKernel()
	if err != nil {
		return err
	}
	return k.SetBandwidth(ctx, hostIf, b)
}

// ClearBandwidth takes the limits back.
func (d *direct) ClearBandwidth(ctx context.Context, hostIf string) error {
	k, err := d.openKernel()
	if err != nil {
		return err
	}
	return k.ClearBandwidth(ctx, hostIf)
}

// ClearPodBandwidth takes the limits of the host end of a Pod's interface back.
func (d *direct) ClearPodBandwidth(ctx context.Context, nsFD int, ifName string) error {
	k, err := d.openKernel()
	if err != nil {
		return err
	}
	return k.ClearPodBandwidth(ctx, nsFD, ifName)
}

// CheckBandwidth compares the limits in the kernel.
func (d *direct) CheckBandwidth(ctx context.Context, hostIf string, b model.Bandwidth) error {
	k, err := d.openKernel()
	if err != nil {
		return err
	}
	return k.CheckBandwidth(ctx, hostIf, b)
}

// Loopback sets the namespace's lo up, or compares.
func (d *direct) Loopback(ctx context.Context, nsFD int, check bool) error {
	if nsFD < 0 {
		return fmt.Errorf("opening CNI_NETNS: %w", attach.ErrNetNSGone)
	}
	k, err := d.openKernel()
	if err != nil {
		return err
	}
	return k.Loopback(ctx, nsFD, check)
}
