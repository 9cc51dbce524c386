package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"weft.network/weft/appliance/ipam"
	"weft.network/weft/appliance/model"
)

// netConf is the network configuration on standard input: the specification's keys and those of the plugins in this binary.
type netConf struct {
	types.PluginConf
	// RunDir is where the daemon's socket is, when it is not the default.
	RunDir string `json:"runDir"`
	// StateDir is where the store is, when it is not the default.
	StateDir string   `json:"stateDir"`
	MTU      int      `json:"mtu"`
	IPAM     ipamConf `json:"ipam"`
	Args     struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
	RuntimeConfig struct {
		PortMappings []portMapping    `json:"portMappings"`
		Bandwidth    *model.Bandwidth `json:"bandwidth"`
		IPs          []string         `json:"ips"`
		MAC          string           `json:"mac"`
		DNS          *runtimeDNS      `json:"dns"`
		IPRanges     [][]rangeConf    `json:"ipRanges"`
	} `json:"runtimeConfig"`
	// The bandwidth plugin also takes its limits at the top level, portmap its switch for source NAT.
	model.Bandwidth
	SNAT *bool `json:"snat"`
	portmapOnly
	// Valid takes the place of the library's field, because only the raw text tells a list that is empty from one that is
	// missing. Specification 1.1.0 first had it under the other name.
	Valid    json.RawMessage `json:"cni.dev/valid-attachments"`
	OldValid json.RawMessage `json:"cni.dev/attachments"`

	prev *types100.Result
}

// portmapOnly are keys of the reference plugin portmap that change who may use a host port, or what he sees, and that this one
// does not know.
type portmapOnly struct {
	ConditionsV4 []string `json:"conditionsV4"`
	ConditionsV6 []string `json:"conditionsV6"`
	MasqAll      bool     `json:"masqAll"`
}

// unsupported names the first key that would silently be without effect.
func (p portmapOnly) unsupported() error {
	var key string
	var value any
	switch {
	case len(p.ConditionsV4) > 0:
		key, value = "conditionsV4", p.ConditionsV4
	case len(p.ConditionsV6) > 0:
		key, value = "conditionsV6", p.ConditionsV6
	case p.MasqAll:
		key, value = "masqAll", true
	default:
		return nil
	}
	return types.NewError(types.ErrUnsupportedField, fmt.Sprintf("the key %s (%v) of the network configuration is not supported: remove it, and limit who reaches "+
		"host ports with hostIP or a firewall", key, value), "")
}

type ipamConf struct {
	Type   string        `json:"type"`
	Ranges [][]rangeConf `json:"ranges"`
	// The older form: one range without a list.
	rangeConf
	Routes []*types.Route `json:"routes"`
	// ResolvConf is a file as in resolv.conf(5) whose content becomes the DNS settings of the result.
	ResolvConf string `json:"resolvConf"`
	// DataDir is where the reference plugin host-local kept what it gave.
	DataDir string `json:"dataDir"`
}

type rangeConf struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

// runtimeDNS is the capability "dns": its keys differ from the result's.
type runtimeDNS struct {
	Servers  []string `json:"servers"`
	Searches []string `json:"searches"`
	Options  []string `json:"options"`
}

type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

func badConf(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}

// parseConf reads and checks standard input. The version comes first: all else may mean something different in another one.
func parseConf(command string, stdin []byte) (*netConf, error) {
	if len(stdin) > MaxInput {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("the network configuration on standard input is larger than %d bytes", MaxInput), "")
	}
	if len(bytes.TrimSpace(stdin)) == 0 {
		return nil, types.NewError(types.ErrDecodingFailure, "standard input is empty: the runtime must send the network configuration as JSON", "")
	}
	c := &netConf{}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "the network configuration on standard input is not valid JSON for this plugin", err.Error())
	}
	if c.CNIVersion == "" {
		c.CNIVersion = "0.1.0" // what the specification says of its absence
	}
	if err := checkVersion(command, c.CNIVersion); err != nil {
		return nil, err
	}
	if c.Name == "" {
		return nil, badConf("the network configuration has no name")
	}
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		return nil, err
	}
	if c.MTU < 0 || c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535) {
		return nil, badConf("mtu %d must be 68 to 65535", c.MTU)
	}
	return c, c.parsePrevResult()
}

func (c *netConf) parsePrevResult() error {
	if c.RawPrevResult == nil {
		return nil
	}
	for key, value := range c.RawPrevResult {
		// The library follows every pointer of these lists when it converts them.
		if list, ok := value.([]any); ok && slices.Contains(list, nil) {
			return types.NewError(types.ErrDecodingFailure, fmt.Sprintf("prevResult cannot be read: the list %s has an element null", key), "")
		}
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult cannot be read", err.Error())
	}
	prev, err := types100.NewResultFromResult(c.PrevResult)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult cannot be converted to version "+types100.ImplementedSpecVersion, err.Error())
	}
	for i, ip := range prev.IPs {
		if ip.Address.IP == nil {
			return types.NewError(types.ErrDecodingFailure, fmt.Sprintf("prevResult cannot be read: ips[%d] has no address", i), "")
		}
	}
	for i, r := range prev.Routes {
		if r.Dst.IP == nil {
			return types.NewError(types.ErrDecodingFailure, fmt.Sprintf("prevResult cannot be read: routes[%d] has no dst", i), "")
		}
	}
	c.prev = prev
	return nil
}

// parseAddr reads one plain address: no zone, and IPv4 not written as IPv6.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	}
	return a.Unmap(), nil
}

// want gathers the addresses asked for: capability ips, args.cni.ips, and IP= in CNI_ARGS, in this order; the first form wins.
func (t *task) want() ([]netip.Addr, error) {
	forms := []struct {
		from string
		list []string
	}{
		{"runtimeConfig.ips", t.conf.RuntimeConfig.IPs},
		{"args.cni.ips", t.conf.Args.CNI.IPs},
		{"IP in CNI_ARGS", nonEmpty(strings.Split(t.arg("IP"), ","))},
	}
	for _, f := range forms {
		var out []netip.Addr
		for _, s := range f.list {
			s, _, _ = strings.Cut(s, "/")
			a, err := parseAddr(s)
			if err != nil {
				return nil, badConf("%s: %v", f.from, err)
			}
			out = append(out, a)
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	return nil, nil
}

func nonEmpty(in []string) (out []string) {
	for _, s := range in {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

// arg returns one value of CNI_ARGS (KEY=VALUE;KEY=VALUE), or nothing.
func (t *task) arg(name string) string {
	for _, pair := range strings.Split(t.env("CNI_ARGS"), ";") {
		if k, v, ok := strings.Cut(pair, "="); ok && k == name {
			return v
		}
	}
	return ""
}

// pod names the Kubernetes Pod, as kubelet's runtimes pass it in CNI_ARGS.
func (t *task) pod() model.PodRef {
	return model.PodRef{Namespace: t.arg("K8S_POD_NAMESPACE"), Name: t.arg("K8S_POD_NAME"), UID: t.arg("K8S_POD_UID")}
}

// mac is the capability mac, or MAC= in CNI_ARGS.
func (t *task) mac() (model.MAC, error) {
	s := t.conf.RuntimeConfig.MAC
	if s == "" {
		s = t.arg("MAC")
	}
	if s == "" {
		return model.MAC{}, nil
	}
	m, err := model.ParseMAC(s)
	if err != nil {
		return m, badConf("runtimeConfig.mac: %v", err)
	}
	return m, nil
}

// ports converts and checks the capability portMappings. Mappings without a host port ask for nothing.
func (c *netConf) ports() ([]model.PortMapping, error) {
	var out []model.PortMapping
	for i, p := range c.RuntimeConfig.PortMappings {
		if p.HostPort == 0 {
			continue
		}
		where := fmt.Sprintf("runtimeConfig.portMappings[%d]", i)
		proto, err := model.ParseProtocol(p.Protocol)
		if err != nil {
			return nil, badConf("%s: %v", where, err)
		}
		if p.HostPort < 1 || p.HostPort > 65535 {
			return nil, badConf("%s: hostPort %d must be 1 to 65535", where, p.HostPort)
		}
		if p.ContainerPort < 1 || p.ContainerPort > 65535 {
			return nil, badConf("%s: containerPort %d must be 1 to 65535", where, p.ContainerPort)
		}
		m := model.PortMapping{HostPort: uint16(p.HostPort), ContainerPort: uint16(p.ContainerPort), Protocol: proto}
		if p.HostIP != "" {
			ip, err := parseAddr(p.HostIP)
			if err != nil {
				return nil, badConf("%s: hostIP %v", where, err)
			}
			// 0.0.0.0 and :: mean every address of their family, which is what no address means.
			if !ip.IsUnspecified() {
				m.HostIP = ip
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// limits are the capability bandwidth, or the same keys at the top level.
func (c *netConf) limits() (model.Bandwidth, error) {
	b := c.Bandwidth
	if c.RuntimeConfig.Bandwidth != nil {
		b = *c.RuntimeConfig.Bandwidth
	}
	for _, d := range []struct {
		name        string
		rate, burst uint64
	}{{"ingress", b.IngressRate, b.IngressBurst}, {"egress", b.EgressRate, b.EgressBurst}} {
		if (d.rate == 0) != (d.burst == 0) {
			return b, badConf("bandwidth: %sRate %d and %sBurst %d: set both or none", d.name, d.rate, d.name, d.burst)
		}
		if d.burst/8 >= 1<<32 {
			return b, badConf("bandwidth: %sBurst %d is more than 4 GiB", d.name, d.burst)
		}
	}
	return b, nil
}

// ranges joins the capability ipRanges, the older form of one range, and ipam.ranges, in this order, as the reference plugin
// does: there is an address from each. nil means the node's own.
func (c *netConf) ranges() (out [][]ipam.Range, err error) {
	if out, err = addRanges(out, "runtimeConfig.ipRanges", c.RuntimeConfig.IPRanges); err != nil {
		return nil, err
	}
	if c.IPAM.Subnet != "" {
		if out, err = addRanges(out, "ipam.subnet", [][]rangeConf{{c.IPAM.rangeConf}}); err != nil {
			return nil, err
		}
	}
	return addRanges(out, "ipam.ranges", c.IPAM.Ranges)
}

func addRanges(out [][]ipam.Range, where string, sets [][]rangeConf) ([][]ipam.Range, error) {
	for i, set := range sets {
		var rs []ipam.Range
		for j, rc := range set {
			r, err := rc.parse()
			if err != nil {
				return nil, badConf("%s[%d][%d]: %v", where, i, j, err)
			}
			for _, other := range append(flatten(out), rs...) {
				if r.Prefix.Overlaps(other.Prefix) && (r.Contains(other.First) || other.Contains(r.First)) {
					return nil, badConf("%s[%d][%d]: %s overlaps another range: an address would be given twice", where, i, j, r.Prefix)
				}
			}
			if len(rs) > 0 && rs[0].First.Is4() != r.First.Is4() {
				return nil, badConf("%s[%d][%d]: %s is of another family than the ranges before it: one address comes from the whole list", where, i, j, r.Prefix)
			}
			rs = append(rs, r)
		}
		if len(rs) == 0 {
			return nil, badConf("%s[%d] is empty", where, i)
		}
		out = append(out, rs)
	}
	return out, nil
}

func flatten(sets [][]ipam.Range) (out []ipam.Range) {
	for _, s := range sets {
		out = append(out, s...)
	}
	return out
}

// parse checks one range; the gateway is the first address unless set, and is never given out.
func (rc rangeConf) parse() (ipam.Range, error) {
	p, err := netip.ParsePrefix(rc.Subnet)
	if err != nil || p.Addr().Is4In6() {
		return ipam.Range{}, fmt.Errorf("subnet %q is not a prefix like 10.0.0.0/24", rc.Subnet)
	}
	var ends [3]netip.Addr
	for i, f := range []struct{ name, text string }{{"rangeStart", rc.RangeStart}, {"rangeEnd", rc.RangeEnd}, {"gateway", rc.Gateway}} {
		if f.text == "" {
			continue
		}
		if ends[i], err = parseAddr(f.text); err != nil {
			return ipam.Range{}, fmt.Errorf("%s %w", f.name, err)
		}
	}
	r, err := ipam.NewRange(p, ends[0], ends[1])
	if err != nil {
		return r, err
	}
	gw := ends[2]
	if !gw.IsValid() {
		gw = ipam.NodeAddress(p)
	}
	r.Reserved = []netip.Addr{gw}
	return r, nil
}
