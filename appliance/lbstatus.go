package appliance

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/announcer"
	"weft.network/weft/appliance/compile/lb"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/control"
	"weft.network/weft/appliance/model"
)

// LoadBalancerStatus is one Service of type LoadBalancer.
type LoadBalancerStatus struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Class is spec.loadBalancerClass; Ours says whether weft looks after the Service.
	Class     string                `json:"class,omitempty"`
	Ours      bool                  `json:"ours"`
	Addresses []LoadBalancerAddress `json:"addresses"`
	Reason    string                `json:"reason,omitempty"`
	Message   string                `json:"message,omitempty"`
}

// LoadBalancerAddress is one address and who announces it.
type LoadBalancerAddress struct {
	Address netip.Addr `json:"address"`
	Pool    string     `json:"pool,omitempty"`
	// Node is set where the address is a node's own.
	Node string `json:"node,omitempty"`
	// May are the nodes that may announce it.
	May []string `json:"mayAnnounce,omitempty"`
	// L2 is what this node knows of the segments that it is on.
	L2 []announcer.Status `json:"l2,omitempty"`
	// BGP are the peers that this node tells about it.
	BGP []string `json:"bgp,omitempty"`
	// Why says why no node may announce it.
	Why string `json:"why,omitempty"`
}

// PoolReport is one LoadBalancerPool with what is in use of it.
type PoolReport struct {
	Name          string   `json:"name"`
	Addresses     []string `json:"addresses"`
	NodeAddresses bool     `json:"nodeAddresses,omitempty"`
	AutoAssign    bool     `json:"autoAssign"`
	Priority      int      `json:"priority"`
	Size          uint64   `json:"size"`
	Used          uint64   `json:"used"`
	Problem       string   `json:"problem,omitempty"`
}

// WhyReport explains what became of one Service.
type WhyReport struct {
	LoadBalancerStatus
	// Lines are the steps of the decision, for people.
	Lines []string                  `json:"lines"`
	Links []announcer.LinkStatus    `json:"links,omitempty"`
	Ranks map[netip.Addr][]NodeRank `json:"ranks,omitempty"`
}

// NodeRank is the place of a node in the order for an address.
type NodeRank struct {
	Node string `json:"node"`
	// Alive says whether the node is heard on a segment of this one; the node itself always is.
	Alive bool `json:"alive"`
}

// BalancerStatus counts what weft lb shows.
type BalancerStatus struct {
	Pools     int `json:"pools"`
	Services  int `json:"services"`
	Addresses int `json:"addresses"`
	// Held are those that this node answers for, Waiting the Services that have none.
	Held    int `json:"held"`
	Waiting int `json:"waiting"`
	// Allocator is true on the node that gives addresses out.
	Allocator bool `json:"allocator"`
}

func (d *Daemon) balancerStatus() *BalancerStatus {
	snap := d.snapshot()
	if !d.cfg.Has(config.RoleLB) || snap == nil || len(snap.Pools) == 0 {
		return nil
	}
	out := &BalancerStatus{Pools: len(snap.Pools)}
	_, out.Allocator = d.lbResult()
	for _, s := range d.LoadBalancers() {
		if !s.Ours {
			continue
		}
		out.Services++
		out.Addresses += len(s.Addresses)
		if len(s.Addresses) == 0 {
			out.Waiting++
		}
	}
	for _, st := range d.lb.announcer.Status() {
		if st.Self {
			out.Held++
		}
	}
	return out
}

// LoadBalancers lists every Service of type LoadBalancer, sorted by name.
func (d *Daemon) LoadBalancers() []LoadBalancerStatus {
	snap := d.snapshot()
	ans := map[netip.Addr]lb.Announcement{}
	for _, an := range d.announcements() {
		ans[an.Addr] = an
	}
	l2 := map[netip.Addr][]announcer.Status{}
	for _, st := range d.lb.announcer.Status() {
		l2[st.Addr] = append(l2[st.Addr], st)
	}
	owner := map[netip.Addr]string{}
	for _, n := range snap.SortedNodes() {
		for _, a := range n.Addresses {
			owner[a] = n.Name
		}
	}
	result, _ := d.lbResult()
	told := d.bgpRoutes().Told
	out := []LoadBalancerStatus{}
	for key, s := range snap.Services {
		if s.Type != "LoadBalancer" {
			continue
		}
		st := LoadBalancerStatus{
			Namespace: key.Namespace, Name: key.Name, Class: s.LoadBalancerClass, Ours: lb.Wants(s, !d.cfg.LoadBalancer.Default),
			Addresses: []LoadBalancerAddress{},
		}
		if s.Allocation != nil {
			st.Reason, st.Message = s.Allocation.Reason, s.Allocation.Message
		} else if a := result.Assignments[key]; a != nil {
			st.Reason, st.Message = a.Reason, a.Message
		}
		for _, ing := range s.Ingress {
			an := ans[ing.IP]
			st.Addresses = append(st.Addresses, LoadBalancerAddress{
				Address: ing.IP, Pool: an.Pool, Node: owner[ing.IP], May: an.Nodes, L2: l2[ing.IP], BGP: peersTold(told, ing.IP), Why: an.Why,
			})
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(x, y LoadBalancerStatus) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	return out
}

// peersTold returns the BGP peers that are told about an address, by itself or in a range.
func peersTold(told []BGPTold, addr netip.Addr) (out []string) {
	for _, t := range told {
		if t.Prefix.Contains(addr) {
			out = append(out, t.Peers...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Pools lists the LoadBalancerPools, sorted by name. Every node can count them: what is in use is in the Services' status.
func (d *Daemon) Pools() []PoolReport {
	out := []PoolReport{}
	snap := d.snapshot()
	if snap == nil {
		return out
	}
	for _, st := range lb.Allocate(d.lbInput(snap)).Pools {
		p := snap.Pools[st.Name]
		r := PoolReport{
			Name: p.Name, Addresses: []string{}, NodeAddresses: p.NodeAddresses, AutoAssign: !p.OnRequest, Priority: p.Priority,
			Size: st.Size, Used: st.Used, Problem: st.Problem,
		}
		for _, b := range p.Blocks {
			r.Addresses = append(r.Addresses, b.String())
		}
		out = append(out, r)
	}
	return out
}

// WhyLoadBalancer explains what became of one Service.
func (d *Daemon) WhyLoadBalancer(key model.ServiceKey) (WhyReport, error) {
	snap := d.snapshot()
	var s *model.Service
	if snap != nil {
		s = snap.Services[key]
	}
	if s == nil {
		return WhyReport{}, fmt.Errorf("there is no Service %s (weft lb list shows those of type LoadBalancer)", key)
	}
	out := WhyReport{Lines: lb.Explain(d.lbInput(snap), s), Links: d.lb.announcer.Links(), Ranks: map[netip.Addr][]NodeRank{}}
	for _, st := range d.LoadBalancers() {
		if st.Namespace == key.Namespace && st.Name == key.Name {
			out.LoadBalancerStatus = st
		}
	}
	alive := map[string]bool{d.cfg.NodeName: true}
	for _, l := range out.Links {
		for _, p := range l.Peers {
			alive[p.Node] = alive[p.Node] || p.Alive
		}
	}
	for _, a := range out.Addresses {
		for _, name := range lb.Ranking(a.Address, a.May) {
			out.Ranks[a.Address] = append(out.Ranks[a.Address], NodeRank{name, alive[name]})
		}
	}
	return out, nil
}

// lbWarnings are what a person should know about load balancers.
func (d *Daemon) lbWarnings() (out []string) {
	if !d.cfg.Has(config.RoleLB) {
		return nil
	}
	result, leading := d.lbResult()
	if leading {
		out = append(out, result.Problems()...)
	} else if snap := d.snapshot(); snap != nil {
		for _, p := range d.Pools() {
			if p.Problem != "" {
				out = append(out, "LoadBalancerPool "+p.Name+": "+p.Problem)
			}
		}
	}
	for _, st := range d.lb.announcer.Status() {
		if st.Culprit != "" {
			out = append(out, conflictText(st.Addr, st.Culprit, st.Link))
		}
	}
	for _, l := range d.lb.announcer.Links() {
		if l.Error != "" {
			out = append(out, "addresses of load balancers on "+l.Link+": "+l.Error)
		}
	}
	return append(out, d.unannounced()...)
}

// unannounced names the addresses that nobody may announce, and those that no link of this node suits although it is the only one.
func (d *Daemon) unannounced() (out []string) {
	for _, an := range d.announcements() {
		if len(an.Nodes) == 0 && an.Why != "" {
			names := make([]string, len(an.Services))
			for i, key := range an.Services {
				names[i] = key.String()
			}
			out = append(out, fmt.Sprintf("%s of Service %s is announced by nobody: %s", an.Addr, strings.Join(names, " and "), an.Why))
		}
	}
	return out
}

func (d *Daemon) serveWhy(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	report, err := d.WhyLoadBalancer(model.ServiceKey{Namespace: q.Get("namespace"), Name: q.Get("name")})
	if err != nil {
		control.WriteError(w, http.StatusNotFound, err)
		return
	}
	control.WriteJSON(w, report)
}
