package lb

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft.network/weft/appliance/model"
)

func node(name string, labels ...string) *model.Node {
	n := &model.Node{Name: name, Labels: map[string]string{}}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		n.Labels[k] = v
	}
	return n
}

func TestAnnouncements(t *testing.T) {
	abc := nodes(node("a"), node("b"), node("c", "zone=x"))
	slice := &model.EndpointSlice{Namespace: "default", Name: "s", Service: "s", Endpoints: []model.Endpoint{
		{Ready: true, Node: "b"}, {Ready: false, Node: "a"}, {Ready: true},
	}}
	with := func(change func(*model.LoadBalancerPool)) map[string]*model.LoadBalancerPool {
		p := edge("192.0.2.0/28")
		change(p)
		return pools(p)
	}
	plain := with(func(*model.LoadBalancerPool) {})
	for _, tc := range []struct {
		name  string
		pools map[string]*model.LoadBalancerPool
		nodes map[string]*model.Node
		svc   []*model.Service
		want  string // nodes
		why   string
	}{
		{"every node", plain, abc, []*model.Service{svc("s", "has=192.0.2.1")}, "a b c", ""},
		{"a file's own status is not weft's", plain, abc, []*model.Service{svc("s", "status=192.0.2.1")}, "none", ""},
		{"the pool's nodes", with(func(p *model.LoadBalancerPool) { p.Nodes = is("zone", "x") }), abc, []*model.Service{svc("s", "has=192.0.2.1")}, "c", ""},
		{"of which there are none", with(func(p *model.LoadBalancerPool) { p.Nodes = is("zone", "y") }), abc, []*model.Service{svc("s", "has=192.0.2.1")}, "", "nodeSelector"},
		{"local endpoints", plain, abc, []*model.Service{svc("s", "has=192.0.2.1", "local")}, "b", ""},
		{"no local endpoints", plain, abc, []*model.Service{svc("other", "has=192.0.2.1", "local")}, "", "Local"},
		{"shared, one without endpoints", plain, abc, []*model.Service{svc("s", "has=192.0.2.1", "local"), svc("other", "has=192.0.2.1", "local", "port=81")}, "b", ""},
		{"shared, none with endpoints", plain, abc, []*model.Service{svc("o1", "has=192.0.2.1", "local"), svc("o2", "has=192.0.2.1", "local", "port=81")}, "", "Local"},
		{"shared, one of them local", plain, abc, []*model.Service{svc("s", "has=192.0.2.1", "local"), svc("t", "has=192.0.2.1", "port=81")}, "b", ""},
		{"drained", plain, nodes(node("a", DrainLabel+"=true"), node("b", DrainLabel+"=false"), node("c", DrainLabel)), []*model.Service{svc("s", "has=192.0.2.1")}, "b", ""},
		{"all drained", plain, nodes(node("a", DrainLabel)), []*model.Service{svc("s", "has=192.0.2.1")}, "", "drained"},
		{"excluded", plain, nodes(node("a", excludeLabel), node("b")), []*model.Service{svc("s", "has=192.0.2.1")}, "b", ""},
		{"all excluded", plain, nodes(node("a", excludeLabel)), []*model.Service{svc("s", "has=192.0.2.1")}, "a", "not honoured"},
		{"outside of every pool", plain, abc, []*model.Service{svc("s", "has=203.0.113.1")}, "a b c", ""},
		{"a node's own", plain, nodes(&model.Node{Name: "a", Addresses: []netip.Addr{ip("192.0.2.1")}}), []*model.Service{svc("s", "has=192.0.2.1")}, "none", ""},
	} {
		got := Announcements(&model.Snapshot{Nodes: tc.nodes, Pools: tc.pools, Services: services(tc.svc...), Slices: map[model.SliceKey]*model.EndpointSlice{slice.Key(): slice}})
		if tc.want == "none" {
			if len(got) != 0 {
				t.Errorf("%s: got %+v", tc.name, got)
			}
			continue
		}
		if len(got) != 1 || strings.Join(got[0].Nodes, " ") != tc.want || !strings.Contains(got[0].Why, tc.why) || (got[0].Why == "") != (tc.why == "") {
			t.Errorf("%s: got %+v, want %s", tc.name, got, tc.want)
		}
	}
	got := Announcements(&model.Snapshot{Nodes: abc, Pools: with(func(p *model.LoadBalancerPool) { p.NoL2, p.Interfaces = true, []string{"eth1"} }), Services: services(svc("s", "has=192.0.2.1"))})
	if len(got) != 1 || got[0].L2 || !slices.Equal(got[0].Interfaces, []string{"eth1"}) || got[0].Pool != "edge" {
		t.Errorf("the pool's settings: %+v", got)
	}
	if Announcements(nil) != nil {
		t.Error("a nil Snapshot has announcements")
	}
}
