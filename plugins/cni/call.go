// Package cni speaks the Container Network Interface: it reads one call of a runtime, has it done, and prints the result or error of the specification.
package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/ipam"
	"weft.network/weft/appliance/model"
)

// MaxInput is the largest configuration accepted on standard input, in bytes.
const MaxInput = 1 << 20

// Codes of our own (the specification leaves 100 and above to plugins).
const (
	CodeExhausted   uint = 101 // no address left
	CodeUnavailable uint = 102 // a requested address is taken, reserved or out of range
)

// supported are the result versions spoken, oldest first.
var supported = version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

// Call is one run of a plugin as the runtime made it.
type Call struct {
	// Plugin is the base name by which the binary was called.
	Plugin string
	// Env are the CNI_* variables by name.
	Env   map[string]string
	Stdin []byte
	// NSFD is an open descriptor of CNI_NETNS, or -1.
	NSFD int
}

// Reply is what the process prints and its exit code.
type Reply struct {
	Exit   int
	Stdout []byte
}

// ParseBody reads what the early forwarder sends: NAME=VALUE pairs each ended by a zero byte, an empty one, then standard input.
func ParseBody(body []byte) (Call, error) {
	c := Call{Env: map[string]string{}, NSFD: -1}
	for {
		pair, rest, ok := bytes.Cut(body, []byte{0})
		if !ok {
			return Call{}, errors.New("the environment of the call has no end")
		}
		body = rest
		if len(pair) == 0 {
			c.Stdin = body
			return c, nil
		}
		name, value, _ := strings.Cut(string(pair), "=")
		if name == "PLUGIN" {
			c.Plugin = value
		} else {
			c.Env[name] = value
		}
	}
}

// Attacher does the work. The daemon's keeps state and kernel; without a daemon a smaller one takes things down.
type Attacher interface {
	// Ready says why Pods cannot be attached now, or nil.
	Ready(ctx context.Context) error
	Add(ctx context.Context, req attach.Request) (attach.Result, error)
	Del(ctx context.Context, key model.AttachmentKey, kind model.LeaseKind) error
	// Check returns the lease after comparing the kernel with it.
	Check(ctx context.Context, req attach.Request) (attach.Result, error)
	// Collect takes down every attachment of the network and kind that is not in valid.
	Collect(ctx context.Context, network string, kind model.LeaseKind, valid []model.AttachmentKey) error
	SetPorts(ctx context.Context, ports *model.HostPorts) error
	ClearPorts(ctx context.Context, key model.AttachmentKey) error
	CheckPorts(ctx context.Context, ports *model.HostPorts) error
	SetBandwidth(ctx context.Context, hostIf string, b model.Bandwidth) error
	ClearBandwidth(ctx context.Context, hostIf string) error
	// ClearPodBandwidth is ClearBandwidth for the host end of an interface in a namespace.
	ClearPodBandwidth(ctx context.Context, nsFD int, ifName string) error
	CheckBandwidth(ctx context.Context, hostIf string, b model.Bandwidth) error
	// Loopback sets the lo of the namespace up and reports its addresses, or, with check, only compares.
	Loopback(ctx context.Context, nsFD int, check bool) error
}

// verbs of one plugin type. A nil verb answers with nothing, successfully.
type verbs struct {
	add    func(context.Context, *task) (*types100.Result, error)
	del    func(context.Context, *task) error
	check  func(context.Context, *task) error
	gc     func(context.Context, *task) error
	status func(context.Context, *task) error
}

var plugins = map[string]verbs{
	"weft-cni":   {podAdd, podDel, podCheck, podGC, podStatus},
	"weft":       {podAdd, podDel, podCheck, podGC, podStatus},
	"weft-ipam":  {ipamAdd, ipamDel, ipamCheck, ipamGC, ipamStatus},
	"host-local": {ipamAdd, ipamDel, ipamCheck, ipamGC, nil},
	"loopback":   {loopbackAdd, nil, loopbackCheck, nil, nil},
	"portmap":    {portmapAdd, portmapDel, portmapCheck, nil, nil},
	"bandwidth":  {bandwidthAdd, bandwidthDel, bandwidthCheck, nil, nil},
}

// Plugins lists the names by which this binary may be called as a CNI plugin, besides weft itself.
func Plugins() []string {
	var names []string
	for name := range plugins {
		if name != "weft" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// task is a call whose configuration has been read.
type task struct {
	call Call
	conf *netConf
	a    Attacher
}

func (t *task) env(name string) string { return t.call.Env[name] }

func (t *task) key() model.AttachmentKey {
	return model.AttachmentKey{Network: t.conf.Name, ContainerID: t.env("CNI_CONTAINERID"), IfName: t.env("CNI_IFNAME")}
}

// Serve answers one call. It never panics on bad input and always gives a reply the runtime understands.
func Serve(ctx context.Context, call Call, a Attacher) Reply {
	out, confVersion, err := serve(ctx, call, a)
	if err != nil {
		return failure(err, confVersion)
	}
	return Reply{Stdout: out}
}

func serve(ctx context.Context, call Call, a Attacher) (out []byte, confVersion string, err error) {
	v, ok := plugins[call.Plugin]
	if !ok {
		return nil, "", types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("this binary is called %q, which is no plugin of weft", call.Plugin),
			"plugin types are "+strings.Join(Plugins(), ", "))
	}
	command := call.Env["CNI_COMMAND"]
	if command == "VERSION" {
		var b bytes.Buffer
		err := supported.Encode(&b)
		return b.Bytes(), "", err
	}
	if err := checkEnv(command, call.Env); err != nil {
		return nil, "", err
	}
	conf, err := parseConf(command, call.Stdin)
	if err != nil {
		return nil, "", err
	}
	t := &task{call: call, conf: conf, a: a}
	out, err = t.run(ctx, v, command)
	return out, conf.CNIVersion, err
}

func (t *task) run(ctx context.Context, v verbs, command string) ([]byte, error) {
	steps := map[string]func(context.Context, *task) error{"DEL": v.del, "CHECK": v.check, "GC": v.gc, "STATUS": v.status}
	if command == "ADD" {
		if err := t.otherNetNS(); err != nil {
			return nil, err
		}
		res, err := v.add(ctx, t)
		if err != nil {
			return nil, err
		}
		return encode(res, t.conf.CNIVersion)
	}
	if f := steps[command]; f != nil {
		return nil, f(ctx, t)
	}
	return nil, nil
}

// otherNetNS refuses to wire the node's own network namespace: the Pod's default route would become the node's.
// CNI_NETNS_OVERRIDE switches the check off, as in the CNI library.
func (t *task) otherNetNS() error {
	override := t.env("CNI_NETNS_OVERRIDE")
	if t.call.NSFD < 0 || override == "1" || strings.EqualFold(override, "true") {
		return nil
	}
	var pod, own syscall.Stat_t
	if syscall.Fstat(t.call.NSFD, &pod) != nil || syscall.Stat("/proc/thread-self/ns/net", &own) != nil {
		return nil // cannot be told; whoever uses the descriptor says what is wrong with it
	}
	if pod.Dev == own.Dev && pod.Ino == own.Ino {
		return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS %s is the network namespace of the node itself", t.env("CNI_NETNS")), "")
	}
	return nil
}

// encode converts a result to the version of the configuration.
func encode(res *types100.Result, v string) ([]byte, error) {
	conv, err := res.GetAsVersion(v)
	if err != nil {
		return nil, types.NewError(types.ErrIncompatibleCNIVersion, "converting the result to version "+v, err.Error())
	}
	var b bytes.Buffer
	if err := conv.PrintTo(&b); err != nil {
		return nil, types.NewError(types.ErrIOFailure, "printing the result", err.Error())
	}
	return b.Bytes(), nil
}

// required lists the variables each command needs (CNI specification 1.1.0, section 2).
var required = map[string][]string{
	"ADD":    {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
	"CHECK":  {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
	"DEL":    {"CNI_CONTAINERID", "CNI_IFNAME"},
	"GC":     {},
	"STATUS": {},
}

func checkEnv(command string, env map[string]string) error {
	names, ok := required[command]
	if !ok {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_COMMAND %q is unknown", command),
			"it must be ADD, DEL, CHECK, GC, STATUS or VERSION")
	}
	var missing []string
	for _, n := range names {
		if env[n] == "" {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("%s needs the environment variables %s", command, strings.Join(missing, ", ")), "")
	}
	if id := env["CNI_CONTAINERID"]; id != "" {
		if err := utils.ValidateContainerID(id); err != nil {
			return err
		}
	}
	if name := env["CNI_IFNAME"]; name != "" {
		if err := utils.ValidateInterfaceName(name); err != nil {
			return err
		}
	}
	return nil
}

// since tells from which version on a command exists.
var since = map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

func checkVersion(command, v string) error {
	if !slices.Contains(supported.SupportedVersions(), v) {
		return types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("cniVersion %q of the network configuration is not supported", v),
			"supported are "+strings.Join(supported.SupportedVersions(), ", "))
	}
	if min := since[command]; min != "" {
		if ok, err := version.GreaterThanOrEqualTo(v, min); err != nil || !ok {
			return types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("cniVersion %q does not know %s", v, command), "it came with "+min)
		}
	}
	return nil
}

// failure prints an error as the specification wants it (section 5, Error).
func failure(err error, v string) Reply {
	var e *types.Error
	if !errors.As(err, &e) {
		e = types.NewError(codeOf(err), err.Error(), "")
	}
	if v == "" {
		v = version.Current()
	}
	out, _ := json.Marshal(struct {
		CNIVersion string `json:"cniVersion"`
		Code       uint   `json:"code"`
		Msg        string `json:"msg"`
		Details    string `json:"details,omitempty"`
	}{v, e.Code, e.Msg, e.Details})
	return Reply{Exit: 1, Stdout: append(out, '\n')}
}

func codeOf(err error) uint {
	var full *ipam.ExhaustedError
	var taken *ipam.UnavailableError
	switch {
	case errors.As(err, &full):
		return CodeExhausted
	case errors.As(err, &taken):
		return CodeUnavailable
	case errors.Is(err, attach.ErrNotReady), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return types.ErrTryAgainLater
	case errors.Is(err, attach.ErrUnknown):
		return types.ErrUnknownContainer
	case errors.Is(err, attach.ErrNetNSGone):
		return types.ErrInvalidNetNS
	case errors.Is(err, attach.ErrRefused):
		return types.ErrInvalidNetworkConfig
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EIO):
		return types.ErrIOFailure
	}
	return types.ErrInternal
}
