package services

import (
	"fmt"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// The world: this node, another one in its zone, one in another zone, and what is outside.
//
//	here   zone a  192.168.9.1 fd00:9::1  Pods 10.42.1.0/24 fd00:42:0:1::/64
//	there  zone a  192.168.9.2 fd00:9::2  Pods 10.42.2.0/24 fd00:42:0:2::/64
//	far    zone b  192.168.9.3 fd00:9::3  Pods 10.42.3.0/24 fd00:42:0:3::/64
var (
	podRanges = prefixes("10.42.1.0/24", "fd00:42:0:1::/64")
	nodeAddrs = []netip.Addr{pair("192.168.9.1")[0], pair("192.168.9.1")[1]}
)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// both is an address of the world in both families.
type both [2]netip.Addr

// pair returns the IPv6 twin of an IPv4 address with it: 10.42.1.11 and fd00:42:0:1::11, 192.168.9.1 and fd00:9::1, and
// for any other a.b.c.d 2001:db8:a:b:c::d.
func pair(s string) both {
	a := netip.MustParseAddr(s)
	q := a.As4()
	six := fmt.Sprintf("2001:db8:%d:%d:%d::%d", q[0], q[1], q[2], q[3])
	switch {
	case q[0] == 10 && q[1] == 42:
		six = fmt.Sprintf("fd00:42:0:%d::%d", q[2], q[3])
	case q[0] == 192 && q[1] == 168:
		six = fmt.Sprintf("fd00:9::%d", q[3])
	}
	return both{a, netip.MustParseAddr(six)}
}

// place is an endpoint of a pattern.
type place struct {
	addr, node, zone            string
	ready, serving, terminating bool
	zones, nodes                []string
}

// The places by name. A trailing word changes the conditions.
var places = map[string]place{
	"local":   {addr: "10.42.1.11", node: "here", zone: "a"},
	"local2":  {addr: "10.42.1.12", node: "here", zone: "a"},
	"there":   {addr: "10.42.2.11", node: "there", zone: "a"},
	"far":     {addr: "10.42.3.11", node: "far", zone: "b"},
	"host":    {addr: "192.168.9.1", node: "here", zone: "a"},
	"hostfar": {addr: "192.168.9.3", node: "far", zone: "b"},
	"nowhere": {addr: "203.0.113.200"},
}

func ready(name string) place {
	p := places[name]
	p.ready, p.serving = true, true
	return p
}

func draining(name string) place {
	p := places[name]
	p.serving, p.terminating = true, true
	return p
}

func unready(name string) place { return places[name] }

func dead(name string) place {
	p := places[name]
	p.terminating = true
	return p
}

func (p place) hint(zones, nodes string) place {
	if zones != "" {
		p.zones = []string{zones}
	}
	if nodes != "" {
		p.nodes = []string{nodes}
	}
	return p
}

// pattern is where the endpoints of a Service are, and what depends on that.
type pattern struct {
	name         string
	places       []place
	distribution string
	notReady     bool
}

var patterns = []pattern{
	{name: "none"},
	{name: "local", places: []place{ready("local")}},
	{name: "remote", places: []place{ready("there"), ready("far")}},
	{name: "local and remote", places: []place{ready("local"), ready("there")}},
	{name: "two local", places: []place{ready("local"), ready("local2"), unready("there")}},
	{name: "local drains, remote is ready", places: []place{draining("local"), ready("there")}},
	{name: "all drain", places: []place{draining("local"), draining("far"), dead("there")}},
	{name: "remote drains", places: []place{draining("there"), unready("local")}},
	{name: "nobody is ready", places: []place{unready("local"), dead("there")}},
	{name: "published anyway", notReady: true, places: []place{unready("local"), dead("there")}},
	{name: "this node", places: []place{ready("host")}},
	{name: "this node and another", places: []place{ready("host"), ready("hostfar")}},
	{name: "outside the cluster", places: []place{ready("nowhere"), ready("local")}},
	{name: "hinted zone", places: []place{ready("there").hint("a", ""), ready("far").hint("b", "")}},
	{name: "hinted node", places: []place{ready("local").hint("a", "here"), ready("there").hint("a", "there"), ready("far").hint("b", "far")}},
	{name: "hinted for other nodes, then zone", places: []place{ready("there").hint("a", "there"), ready("far").hint("b", "far")}},
	{name: "a hint is missing", places: []place{ready("there").hint("a", ""), ready("far")}},
	{name: "hints for another zone", places: []place{ready("far").hint("b", ""), ready("hostfar").hint("b", "")}},
	{name: "the hinted one drains", places: []place{draining("there").hint("a", ""), ready("far").hint("b", "")}},
	{name: "hinted away from local", places: []place{ready("local").hint("b", ""), ready("there").hint("a", "")}},
	{name: "same zone without hints", distribution: "PreferSameZone", places: []place{ready("there"), ready("far")}},
	{name: "close without hints", distribution: "PreferClose", places: []place{ready("there"), ready("hostfar")}},
	{name: "same node without hints", distribution: "PreferSameNode", places: []place{ready("local"), ready("there"), ready("far")}},
	{name: "same node, but none here", distribution: "PreferSameNode", places: []place{ready("there"), ready("far")}},
}

var rangeChoices = [][]netip.Prefix{
	nil,
	prefixes("198.51.100.0/24", "2001:db8:198:51::/64"),
	prefixes("198.51.100.0/24", "192.168.9.0/24", "192.168.9.1/32", "10.42.0.0/16", "fd00::/16"),
	prefixes("198.51.100.9/32"), // IPv4 only: IPv6 is open
	prefixes("198.51.100.9/32", "0.0.0.0/0", "2001:db8:198:51::/64", "::/0"),
}

// generate returns a Snapshot with a Service for each combination of features, and their descriptions.
func generate() (*model.Snapshot, map[model.ServiceKey]string) {
	snap := &model.Snapshot{Services: map[model.ServiceKey]*model.Service{}, Slices: map[model.SliceKey]*model.EndpointSlice{}}
	what := map[model.ServiceKey]string{}
	n := 0
	add := func(p pattern, change func(*model.Service)) {
		s := plain(n, p)
		change(s)
		snap.Services[s.Key()] = s
		for _, e := range slicesOf(s, p) {
			snap.Slices[e.Key()] = e
		}
		what[s.Key()] = fmt.Sprintf("%s, %s, internalLocal %v, externalLocal %v, affinity %d, sources %v", s.Type, p.name, s.InternalLocal, s.ExternalLocal, s.AffinityTimeout, s.SourceRanges)
		n++
	}
	for _, p := range patterns {
		for bits := range 8 {
			internal, external, sticky := bits&1 != 0, bits&2 != 0, bits/4*10800
			if internal && sticky > 0 {
				continue // a table of hashes is many elements
			}
			policy := func(s *model.Service) {
				s.InternalLocal, s.ExternalLocal, s.AffinityTimeout = internal, external, sticky
			}
			if !external {
				add(p, policy)
			}
			add(p, func(s *model.Service) { policy(s); s.Type = "NodePort"; nodePorts(s, n) })
			add(p, func(s *model.Service) {
				policy(s)
				s.ExternalIPs = both.list(pair(fmt.Sprintf("100.65.%d.%d", n/200, n%200+1)))
			})
			for _, ranges := range rangeChoices {
				if ranges != nil && (internal || sticky > 0) {
					continue // does not add to what is found without
				}
				add(p, func(s *model.Service) {
					policy(s)
					s.Type, s.SourceRanges = "LoadBalancer", ranges
					nodePorts(s, n)
					for _, a := range pair(fmt.Sprintf("100.64.%d.%d", n/200, n%200+1)) {
						s.Ingress = append(s.Ingress, model.ServiceIngress{IP: a})
					}
				})
			}
		}
		add(p, func(s *model.Service) {
			s.Type = "LoadBalancer"
			for _, a := range pair(fmt.Sprintf("100.64.%d.%d", n/200, n%200+1)) {
				s.Ingress = append(s.Ingress, model.ServiceIngress{IP: a, Proxy: true})
			}
		})
		add(p, func(s *model.Service) { s.OtherProxy = "mesh" })
		add(p, func(s *model.Service) { s.Type, s.ExternalName = "ExternalName", "example.com" })
	}
	return snap, what
}

func (b both) list() []netip.Addr { return b[:] }

func plain(n int, p pattern) *model.Service {
	return &model.Service{
		Namespace: "matrix", Name: fmt.Sprintf("s%04d", n), Type: "ClusterIP", ClusterIPs: pair(fmt.Sprintf("10.96.%d.%d", n/200, n%200+1)).list(),
		Ports: []model.ServicePort{
			{Name: "t", Protocol: model.TCP, Port: 80}, {Name: "u", Protocol: model.UDP, Port: 80}, {Name: "s", Protocol: model.SCTP, Port: 65535},
		},
		TrafficDistribution: p.distribution, PublishNotReady: p.notReady,
	}
}

func nodePorts(s *model.Service, n int) {
	for i := range s.Ports {
		s.Ports[i].NodePort = uint16(30000 + n)
	}
}

// slicesOf returns the slices of a Service: one for each family, and a third with the first endpoint once more, which is what
// is seen while an endpoint moves.
func slicesOf(s *model.Service, p pattern) (out []*model.EndpointSlice) {
	ports := []model.EndpointPort{
		{Name: "t", Protocol: model.TCP, Port: 8080},
		{Name: "u", Protocol: model.UDP, Port: 5353},
		{Name: "s", Protocol: model.SCTP, Port: 9090},
		{Name: "other", Protocol: model.TCP, Port: 9999},
	}
	for i := range 2 {
		e := &model.EndpointSlice{Namespace: s.Namespace, Name: fmt.Sprintf("%s-%d", s.Name, i), Service: s.Name, IPv6: i == 1, Ports: ports}
		for _, at := range p.places {
			e.Endpoints = append(e.Endpoints, model.Endpoint{
				Addresses: []netip.Addr{pair(at.addr)[i]}, Ready: at.ready, Serving: at.serving, Terminating: at.terminating,
				Node: at.node, Zone: at.zone, ForZones: at.zones, ForNodes: at.nodes,
			})
		}
		out = append(out, e)
	}
	if len(p.places) > 0 {
		again := *out[0]
		again.Name, again.Endpoints = s.Name+"-again", slices.Clone(out[0].Endpoints[:1])
		out = append(out, &again)
	}
	return out
}
