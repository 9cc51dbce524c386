package appliance

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"weft.network/weft/appliance/kernel/conntrack"
	"weft.network/weft/appliance/model"
	"weft.network/weft/embedded/coredns"
	"weft.network/weft/packaging"
)

// Status is the answer to GET /v1/status: one screen about this node.
type Status struct {
	Node   NodeStatus   `json:"node"`
	Source SourceStatus `json:"source"`
	Store  StoreStatus  `json:"store"`
	Fabric FabricStatus `json:"fabric"`
	IPAM   IPAMStatus   `json:"ipam"`
	Pods   int          `json:"pods"`
	// BGP is absent while nothing of it is configured.
	BGP      *BGPStatus `json:"bgp,omitempty"`
	Warnings []string   `json:"warnings"`
	// Services is nil without that role.
	Services *ServicesStatus `json:"services,omitempty"`
	// DNS is nil without that role.
	DNS *coredns.Brief `json:"dns,omitempty"`
	// LoadBalancers is nil without a LoadBalancerPool.
	LoadBalancers *BalancerStatus `json:"loadBalancers,omitempty"`
}

// ServicesStatus counts what this node serves, and the connections that its kernel tracks, whoever made them.
type ServicesStatus struct {
	Served    int `json:"served"`
	Endpoints int `json:"endpoints"`
	// Tracked of at most Trackable connections; 0 of 0 where the kernel does not tell.
	Tracked   int `json:"tracked"`
	Trackable int `json:"trackable"`
}

// NodeStatus is the daemon itself.
type NodeStatus struct {
	Name    string    `json:"name"`
	Version string    `json:"version"`
	Ready   bool      `json:"ready"`
	Why     string    `json:"why,omitempty"`
	Since   time.Time `json:"since"`
	Roles   []string  `json:"roles"`
	PID     int       `json:"pid"`
}

// SourceStatus says where the picture of the cluster comes from.
type SourceStatus struct {
	Kind      string    `json:"kind"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"`
	Server    string    `json:"server,omitempty"`
	// Read is when the last look at the files began that found all of them good.
	Read     time.Time `json:"read,omitzero"`
	Error    string    `json:"error,omitempty"`
	Revision uint64    `json:"revision"`
	// Stored is true while the node runs from the picture in its own store.
	Stored bool `json:"stored"`
	Nodes  int  `json:"nodes"`
}

// StoreStatus is the file on disk.
type StoreStatus struct {
	Path   string `json:"path"`
	Bytes  int64  `json:"bytes"`
	Leases int    `json:"leases"`
	// Revision is that of the picture of the cluster that this run has written last; 0 before that.
	Revision  uint64 `json:"revision"`
	Recovered string `json:"recovered,omitempty"`
}

// FabricStatus is the way to the other nodes.
type FabricStatus struct {
	Mode     string         `json:"mode"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	MTU      int            `json:"mtu"`
	Applied  bool           `json:"applied"`
	Error    string         `json:"error,omitempty"`
	Rounds   uint64         `json:"rounds"`
	Repairs  uint64         `json:"repairs"`
	Peers    []PeerStatus   `json:"peers"`
}

// PeerStatus is one other node, as last measured.
type PeerStatus struct {
	Node     string         `json:"node"`
	Mode     string         `json:"mode"`
	Outer    netip.Addr     `json:"outer"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	RTT      time.Duration  `json:"rtt,omitempty"`
	MTU      int            `json:"mtu,omitempty"`
	LastSeen time.Time      `json:"lastSeen,omitzero"`
	Problem  string         `json:"problem,omitempty"`
}

// IPAMStatus counts this node's addresses.
type IPAMStatus struct {
	Total   int `json:"total"`
	Held    int `json:"held"`
	Cooling int `json:"cooling"`
}

// Status gathers what the parts know; it asks neither the kernel nor the network.
func (d *Daemon) Status() Status {
	loop := d.loop.Status()
	snap := d.snapshot()
	ready := d.notReady()
	s := Status{
		Node: NodeStatus{
			Name: d.cfg.NodeName, Version: d.version, Ready: ready == nil, Since: d.started, PID: os.Getpid(),
		},
		Source: d.sourceStatus(snap),
		Store:  StoreStatus{Path: d.store.Path(), Revision: d.kept.Load(), Recovered: d.recovered},
		Fabric: FabricStatus{
			Mode: string(d.loop.Settings().Mode), PodCIDRs: loop.State.PodRanges, MTU: loop.State.PodMTU, Applied: loop.Applied,
			Error: loop.Err, Rounds: loop.Rounds, Repairs: loop.Repairs, Peers: d.peerStatus(),
		},
		LoadBalancers: d.balancerStatus(), Warnings: d.warnings(),
	}
	if bgp := d.BGP(context.Background(), false); d.bgp != nil && (bgp.On || len(bgp.Peers)+len(bgp.Problems) > 0 || bgp.Error != "") {
		s.BGP = &bgp
		s.Warnings = append(s.Warnings, d.bgpWarnings(&bgp)...)
		sort.Strings(s.Warnings)
	}
	if d.loop.Services != nil {
		count := &ServicesStatus{Served: len(loop.Services.Frontends), Endpoints: countEndpoints(loop.Services.Frontends)}
		count.Tracked, count.Trackable, _ = conntrack.Usage()
		s.Services = count
	}
	if d.dns != nil {
		brief := d.dns.server.Brief()
		s.DNS = &brief
	}
	for _, r := range d.cfg.Roles {
		s.Node.Roles = append(s.Node.Roles, string(r))
	}
	if ready != nil {
		s.Node.Why = ready.Error()
	}
	if st, err := os.Stat(d.store.Path()); err == nil {
		s.Store.Bytes = st.Size()
	}
	for _, l := range d.attacher.Leases() {
		s.Store.Leases++
		if l.Kind == model.LeasePod {
			s.Pods++
		}
	}
	s.IPAM.Total, s.IPAM.Held, s.IPAM.Cooling = d.attacher.Usage()
	return s
}

// peerStatus joins what is compiled with what is measured.
func (d *Daemon) peerStatus() []PeerStatus {
	out := []PeerStatus{}
	measured := d.probeResults()
	for _, p := range d.loop.Status().State.Peers {
		ps := PeerStatus{Node: p.Node, Mode: string(p.Mode), Outer: p.Outer, PodCIDRs: p.PodCIDRs, Problem: p.Problem}
		for _, m := range measured[p.Node] {
			if ps.RTT == 0 || m.RTT > ps.RTT {
				ps.RTT = m.RTT
			}
			if m.MTU > 0 && (ps.MTU == 0 || m.MTU < ps.MTU) {
				ps.MTU = m.MTU
			}
			if m.LastSeen.After(ps.LastSeen) {
				ps.LastSeen = m.LastSeen
			}
			if ps.Problem == "" {
				ps.Problem = m.Finding
			}
		}
		out = append(out, ps)
	}
	return out
}

// warnings gathers everything that a person should know, each with what to do.
func (d *Daemon) warnings() []string {
	out := append([]string{}, d.loop.Status().State.Warnings...)
	out = append(out, d.loop.Status().Problems...)
	out = append(out, d.firewallWarnings()...)
	out = append(out, sourceWarnings(d.source.Status().Problems)...)
	for _, rs := range d.probeResults() {
		for _, r := range rs {
			if r.Finding != "" {
				out = append(out, r.Finding)
			}
		}
	}
	out = append(out, d.lbWarnings()...)
	out = append(out, d.policyWarnings()...)
	out = append(out, d.dnsWarnings()...)
	if d.recovered != "" {
		out = append(out, "the store was damaged; leases were rebuilt from the kernel: "+d.recovered)
	}
	if pods := d.strangers(); len(pods) > 0 {
		out = append(out, fmt.Sprintf("%d Pods hold addresses outside this node's Pod ranges %v, which changed under them; other nodes cannot reach them: recreate %s",
			len(pods), d.loop.Status().State.PodRanges, strings.Join(pods[:min(len(pods), 5)], ", ")))
	}
	if other := d.otherConflist(); other != "" {
		out = append(out, "the runtime reads "+other+" before weft's CNI configuration: remove the other network's file")
	}
	out = append(out, d.audit.found()...)
	if count, limit, err := conntrack.Usage(); err == nil {
		if w := conntrackWarning(count, limit); w != "" {
			out = append(out, w)
		}
	}
	sort.Strings(out)
	return out
}

// sourceWarnings are the first of what cannot be used among the cluster's objects; the log has all.
func sourceWarnings(problems []string) []string {
	const most = 5
	if more := len(problems) - most; more > 0 {
		return append(slices.Clone(problems[:most]), fmt.Sprintf("%d more problems of the cluster's objects: the log has them", more))
	}
	return problems
}

// strangers names the Pods whose leases lie outside the node's present ranges, with their addresses.
func (d *Daemon) strangers() (out []string) {
	ranges := d.loop.Status().State.PodRanges
	if len(ranges) == 0 {
		return nil
	}
	for _, l := range d.attacher.Leases() {
		if l.Kind == model.LeasePod && slices.ContainsFunc(l.Addresses, func(a addr) bool {
			return !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) })
		}) {
			out = append(out, fmt.Sprintf("%s %v", l.Pod, l.Addresses))
		}
	}
	slices.Sort(out)
	return out
}

// otherConflist finds a network configuration that sorts before ours: runtimes take the first.
func (d *Daemon) otherConflist() string {
	for _, pattern := range []string{"*.conf", "*.conflist", "*.json"} {
		files, err := filepath.Glob(filepath.Join(d.cfg.CNIConfDir, pattern))
		if err != nil {
			continue
		}
		for _, f := range files {
			if filepath.Base(f) < packaging.ConflistName {
				return f
			}
		}
	}
	return ""
}
