// Package config reads weft.yaml, the per-node settings, strictly: an unknown key is an error that names its line.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// Role is one part of the daemon that can be switched on by itself.
type Role string

// The roles of weftd.
const (
	RoleFabric   Role = "fabric"   // Pod networking: CNI, addresses, routes, tunnel
	RoleServices Role = "services" // virtual addresses of Services, in the place of kube-proxy
	RolePolicy   Role = "policy"   // NetworkPolicies of this node's Pods
	RoleDNS      Role = "dns"      // the cluster's DNS, for this node and its Pods
	RoleBGP      Role = "bgp"      // tells routers about Pods and Services; idle until a peer is configured
	RoleLB       Role = "lb"       // addresses of load balancers: giving them out, and answering for them on the node's segments
)

// Roles lists every role this build knows, in the order in which they start.
var Roles = []Role{RoleFabric, RoleServices, RolePolicy, RoleDNS, RoleLB, RoleBGP}

// Modes are the values of fabric.mode.
var Modes = []string{"auto", "native", "vxlan"}

// Config is everything that may be set on one node.
type Config struct {
	NodeName      string         `yaml:"nodeName"`
	NodeAddresses []netip.Addr   `yaml:"nodeAddresses"`
	PodCIDRs      []netip.Prefix `yaml:"podCIDRs"`
	ServiceCIDRs  []netip.Prefix `yaml:"serviceCIDRs"`
	Listen        string         `yaml:"listen"`
	Pprof         bool           `yaml:"pprof"`
	Roles         []Role         `yaml:"roles"`
	Kubeconfig    string         `yaml:"kubeconfig"`
	APIServers    []string       `yaml:"apiServers"`
	Manifests     string         `yaml:"manifests"`
	RuntimeSocket string         `yaml:"runtimeSocket"`
	Fabric        Fabric         `yaml:"fabric"`
	Masquerade    Masquerade     `yaml:"masquerade"`
	IPAM          IPAM           `yaml:"ipam"`
	Services      Services       `yaml:"services"`
	Policy        Policy         `yaml:"policy"`
	DNS           DNS            `yaml:"dns"`
	BGP           BGP            `yaml:"bgp"`
	LoadBalancer  LoadBalancer   `yaml:"loadBalancer"`
	Log           Log            `yaml:"log"`

	StateDir   string `yaml:"stateDir"`
	RunDir     string `yaml:"runDir"`
	CNIConfDir string `yaml:"cniConfDir"`
	CNIBinDir  string `yaml:"cniBinDir"`
}

// Fabric is how packets reach the Pods of other nodes.
type Fabric struct {
	Mode  string `yaml:"mode"`
	MTU   int    `yaml:"mtu"`
	VXLAN VXLAN  `yaml:"vxlan"`
	Probe Probe  `yaml:"probe"`
}

// VXLAN numbers the tunnel; all nodes must agree.
type VXLAN struct {
	VNI  uint32 `yaml:"vni"`
	Port uint16 `yaml:"port"`
}

// Probe is the continuous check of each peer: round trip, path MTU, checksums.
type Probe struct {
	Interval time.Duration `yaml:"interval"`
	Port     uint16        `yaml:"port"`
}

// Masquerade is the source NAT of traffic that leaves the cluster.
type Masquerade struct {
	Enabled bool           `yaml:"enabled"`
	Exclude []netip.Prefix `yaml:"exclude"`
}

// IPAM is the pace of address management.
type IPAM struct {
	CoolOff           time.Duration `yaml:"coolOff"`
	ReconcileInterval time.Duration `yaml:"reconcileInterval"`
}

// Services is how this node serves them.
type Services struct {
	// NodePortAddresses are ranges of the node's addresses at which node ports answer, or "primary" for the node's first address
	// of each family; empty means all of them. Loopback is never among them.
	NodePortAddresses []string `yaml:"nodePortAddresses"`
}

// Primary in services.nodePortAddresses stands for the node's first address of each family.
const Primary = "primary"

// Policy is how NetworkPolicies are enforced.
type Policy struct {
	CutFlows bool `yaml:"cutFlows"`
}

// LoadBalancer is about Services of type LoadBalancer.
type LoadBalancer struct {
	// Default takes Services without a loadBalancerClass.
	Default bool `yaml:"default"`
	// Segment is a word that keeps clusters apart which share a network segment.
	Segment string `yaml:"segment"`
}

// Log is what is written where.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// Default returns the settings of an empty file.
func Default() Config {
	return Config{
		Listen: "127.0.0.1:9465",
		Roles:  slices.Clone(Roles),
		Fabric: Fabric{
			Mode: "auto", VXLAN: VXLAN{VNI: 22342, Port: 4789},
			Probe: Probe{Interval: 10 * time.Second, Port: 9466},
		},
		Masquerade:   Masquerade{Enabled: true},
		IPAM:         IPAM{CoolOff: 30 * time.Second, ReconcileInterval: time.Minute},
		Policy:       Policy{CutFlows: true},
		DNS:          defaultDNS(),
		LoadBalancer: LoadBalancer{Default: true},
		BGP:          defaultBGP(),
		Log:          Log{Level: "info", Format: "auto"},
		StateDir:     "/var/lib/weft", RunDir: "/run/weft",
		CNIConfDir: "/etc/cni/net.d", CNIBinDir: "/opt/cni/bin",
	}
}

// Values returns the settings by their names in weft.yaml.
func (c Config) Values() (map[string]any, error) {
	text, err := yaml.Marshal(c)
	if err != nil {
		return nil, err
	}
	values := map[string]any{}
	return values, yaml.Unmarshal(text, &values)
}

// Load reads the file over the defaults. A missing file is an error only when required is true.
func Load(path string, required bool) (Config, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !required {
		return Default(), nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("reading the configuration: %w", err)
	}
	c, err := Parse(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Parse reads YAML text over the defaults and checks every value.
func Parse(data []byte) (Config, error) {
	c := Default()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, explain(err, data)
	}
	for {
		var rest yaml.Node
		err := dec.Decode(&rest)
		switch empty := len(rest.Content) == 0 || rest.Content[0].Tag == "!!null"; {
		case errors.Is(err, io.EOF):
			return c, c.Validate()
		case err != nil:
			return Config{}, explain(err, data)
		case !empty:
			return Config{}, fmt.Errorf("line %d: a second YAML document, which nobody reads: put all keys into one, without a line ---", rest.Line)
		}
	}
}

// Validate checks every value by itself and against the others, and returns all that is wrong at once.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key string, value any, fix string) {
		errs = append(errs, fmt.Errorf("%s: %v: %s", key, value, fix))
	}
	if !slices.Contains(Modes, c.Fabric.Mode) {
		bad("fabric.mode", c.Fabric.Mode, "must be auto, native or vxlan")
	}
	if m := c.Fabric.MTU; m != 0 && (m < 1280 || m > 65535) {
		bad("fabric.mtu", m, "must be 0 (take it from the underlay) or 1280 to 65535 (IPv6 needs 1280)")
	}
	if v := c.Fabric.VXLAN.VNI; v == 0 || v >= 1<<24 {
		bad("fabric.vxlan.vni", v, "must be 1 to 16777215")
	}
	if c.Fabric.VXLAN.Port == 0 {
		bad("fabric.vxlan.port", 0, "must be 1 to 65535")
	}
	if c.Fabric.Probe.Interval < time.Second {
		bad("fabric.probe.interval", c.Fabric.Probe.Interval, "must be at least 1s")
	}
	if c.IPAM.CoolOff < 0 {
		bad("ipam.coolOff", c.IPAM.CoolOff, "must not be negative")
	}
	if c.IPAM.ReconcileInterval < time.Second {
		bad("ipam.reconcileInterval", c.IPAM.ReconcileInterval, "must be at least 1s")
	}
	if len(c.Roles) == 0 {
		bad("roles", "[]", fmt.Sprintf("name at least one of %v", Roles))
	}
	for _, r := range c.Roles {
		if !slices.Contains(Roles, r) {
			bad("roles", r, fmt.Sprintf("this build knows %v", Roles))
		}
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		bad("log.level", c.Log.Level, "must be debug, info, warn or error")
	}
	if !slices.Contains([]string{"auto", "json", "console"}, c.Log.Format) {
		bad("log.format", c.Log.Format, "must be auto, json or console")
	}
	for i, text := range c.Services.NodePortAddresses {
		p, err := netip.ParsePrefix(text)
		switch key := fmt.Sprintf("services.nodePortAddresses[%d]", i); {
		case text == Primary:
		case err != nil:
			bad(key, text, "must be a range such as 192.168.1.0/24, or primary")
		case p != p.Masked():
			bad(key, text, "has host bits set: write "+p.Masked().String())
		case p.Addr().IsLoopback():
			bad(key, text, "node ports never answer on loopback: leave it out")
		}
	}
	errs = append(errs, c.validateAddresses()...)
	errs = append(errs, c.validatePrefixes()...)
	errs = append(errs, c.DNS.validate()...)
	errs = append(errs, c.BGP.validate()...)
	return errors.Join(errs...)
}

func (c *Config) validateAddresses() []error {
	var errs []error
	if c.Listen != "" {
		_, port, err := net.SplitHostPort(c.Listen)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("listen: %s: must be an address and a port, such as 127.0.0.1:9465", c.Listen))
		}
	}
	for i, a := range c.NodeAddresses {
		if slices.ContainsFunc(c.NodeAddresses[:i], func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			errs = append(errs, fmt.Errorf("nodeAddresses[%d]: %s: a second one of its family: name at most one IPv4 and one IPv6 address", i, a))
		}
	}
	return errs
}

func (c *Config) validatePrefixes() []error {
	var errs []error
	named := map[string][]netip.Prefix{"podCIDRs": c.PodCIDRs, "serviceCIDRs": c.ServiceCIDRs, "masquerade.exclude": c.Masquerade.Exclude}
	for _, key := range []string{"podCIDRs", "serviceCIDRs", "masquerade.exclude"} {
		for i, p := range named[key] {
			if p != p.Masked() {
				errs = append(errs, fmt.Errorf("%s[%d]: %s has host bits set: write %s", key, i, p, p.Masked()))
			}
		}
	}
	for _, pod := range c.PodCIDRs {
		for _, svc := range c.ServiceCIDRs {
			if pod.Overlaps(svc) {
				errs = append(errs, fmt.Errorf("podCIDRs: %s overlaps serviceCIDRs %s: give Pods and Services ranges of their own", pod, svc))
			}
		}
	}
	return errs
}

// Has reports whether the role is switched on.
func (c *Config) Has(r Role) bool { return slices.Contains(c.Roles, r) }
