package service

import (
	"net/netip"
	"testing"

	"weft.network/weft/appliance/model"
)

// TestAlone: only at addresses that weft gave, and that no node has, other ports are refused.
func TestAlone(t *testing.T) {
	vip := netip.MustParseAddr("192.0.2.1")
	for _, tc := range []struct {
		name       string
		allocation *model.Allocation
		own        []netip.Addr
		want       bool
	}{
		{"somebody else's", nil, nil, false},
		{"weft's", &model.Allocation{OK: true, Reason: "Allocated"}, nil, true},
		{"a node's", &model.Allocation{OK: true, Reason: model.ReasonNode}, nil, false},
		{"not given", &model.Allocation{Reason: "PoolExhausted"}, nil, false},
		{"this node's after all", &model.Allocation{OK: true, Reason: "Allocated"}, []netip.Addr{vip}, false},
	} {
		svc := &model.Service{
			Namespace: "default", Name: "a", Type: "LoadBalancer", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
			Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}, Ingress: []model.ServiceIngress{{IP: vip}}, Allocation: tc.allocation,
		}
		var c Compiler
		r := c.Compile(&model.Snapshot{Services: map[model.ServiceKey]*model.Service{svc.Key(): svc}}, Input{NodeName: "n", NodeAddresses: tc.own})
		f := r.Frontends[svc.Key()].Ports[0].Frontends
		if len(f) != 2 || f[1].Kind != LoadBalancer || f[1].Alone != tc.want || f[0].Alone {
			t.Errorf("%s: %+v, want alone %v", tc.name, f, tc.want)
		}
	}
}
