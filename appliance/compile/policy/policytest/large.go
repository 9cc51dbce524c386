package policytest

import (
	"fmt"
	"net/netip"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/model"
)

// Large makes a large cluster: apps of ten Pods each, and policies of three rules, of which each lets the Pods of five apps reach
// two ports; every fifth has a range of addresses with exceptions, too. Node "a" has the first Pods of the apps.
func Large(policies, pods, own int) (*model.Snapshot, policy.Input) {
	snap := &model.Snapshot{
		Pods: map[model.PodKey]*model.Pod{}, Policies: map[model.PolicyKey]*model.NetworkPolicy{},
		Namespaces: map[string]*model.Namespace{"prod": {Name: "prod", Labels: map[string]string{"kubernetes.io/metadata.name": "prod"}}},
		Nodes:      map[string]*model.Node{"a": {Name: "a"}},
	}
	in := policy.Input{NodeName: "a"}
	apps := max(1, pods/10)
	for i := range pods {
		p := LargePod(i, apps)
		if i < own {
			p.Node = "a"
			in.Attached = append(in.Attached, policy.Attached{Pod: p.PodRef, Addresses: p.Addresses})
		}
		snap.Pods[p.Key()] = p
	}
	for i := range policies {
		np := &model.NetworkPolicy{
			Namespace: "prod", Name: fmt.Sprintf("allow-%04d", i), Pods: app(i % apps), IsolatesIngress: true, IsolatesEgress: i%2 == 0,
		}
		for r := range 3 {
			rule := model.PolicyRule{Ports: []model.PolicyPort{
				{Protocol: model.TCP, First: uint16(8000 + i%50), Last: uint16(8000 + i%50)}, {Protocol: model.TCP, First: uint16(9000 + r), Last: uint16(9000 + r)},
			}}
			var names []string
			for k := range 5 {
				names = append(names, fmt.Sprintf("app-%04d", (i*7+r*5+k*11)%apps))
			}
			s := model.Selector{{Key: "app", Op: model.OpIn, Values: names}}
			s.Sort()
			rule.Peers = append(rule.Peers, model.PolicyPeer{Pods: &s})
			if i%5 == 0 && r == 2 {
				rule.Peers = append(rule.Peers, model.PolicyPeer{
					Block:  netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(i >> 8), byte(i), 0}), 24),
					Except: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(i >> 8), byte(i), 16}), 28), netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(i >> 8), byte(i), 64}), 26)},
				})
			}
			np.Ingress = append(np.Ingress, rule)
			if np.IsolatesEgress {
				np.Egress = append(np.Egress, rule)
			}
		}
		snap.Policies[np.Key()] = np
	}
	return snap, in
}

func app(i int) model.Selector {
	return model.Selector{{Key: "app", Op: model.OpIn, Values: []string{fmt.Sprintf("app-%04d", i)}}}
}

// LargePod is Pod number i of that cluster.
func LargePod(i, apps int) *model.Pod {
	return &model.Pod{
		PodRef: model.PodRef{Namespace: "prod", Name: fmt.Sprintf("pod-%05d", i), UID: fmt.Sprintf("uid-%05d", i)}, Node: "b",
		Labels:    map[string]string{"app": fmt.Sprintf("app-%04d", i%apps), "pod-template-hash": fmt.Sprintf("%08x", i%apps)},
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(64 + i>>16), byte(i >> 8), byte(i)})},
	}
}
