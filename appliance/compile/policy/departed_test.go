package policy_test

import (
	"net/netip"
	"testing"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/model"
)

// TestTightenedAfterDeparture: whoever comes to an address that an allowed Pod had, and is not allowed, may find its flows.
func TestTightenedAfterDeparture(t *testing.T) {
	pod := func(name, node, addr, key, value string) *model.Pod {
		return &model.Pod{
			PodRef: model.PodRef{Namespace: "d", Name: name}, Node: node, Labels: map[string]string{key: value}, Addresses: []netip.Addr{netip.MustParseAddr(addr)},
		}
	}
	is := func(key, value string) model.Selector {
		return model.Selector{{Key: key, Op: model.OpIn, Values: []string{value}}}
	}
	hot := is("hot", "yes")
	np := &model.NetworkPolicy{
		Namespace: "d", Name: "p", IsolatesIngress: true, Pods: is("app", "web"),
		Ingress: []model.PolicyRule{{AnyPort: true, Peers: []model.PolicyPeer{{Pods: &hot}}}},
	}
	web := pod("web", "n", "10.0.0.1", "app", "web")
	snap := func(peers ...*model.Pod) *model.Snapshot {
		s := &model.Snapshot{Pods: map[model.PodKey]*model.Pod{web.Key(): web}, Policies: map[model.PolicyKey]*model.NetworkPolicy{np.Key(): np}}
		for _, p := range peers {
			s.Pods[p.Key()] = p
		}
		return s
	}
	peer := func(name, hot string) *model.Pod { return pod(name, "m", "10.0.1.1", "hot", hot) }
	for _, tc := range []struct {
		name string
		next *model.Pod
		want bool
	}{
		{"the same Pod with other labels", peer("peer", "no"), true},
		{"another Pod", peer("other", "no"), true},
		{"another Pod that is allowed too", peer("other", "yes"), false},
		{"another Pod elsewhere", pod("other", "m", "10.0.1.2", "hot", "no"), false},
	} {
		for _, between := range []bool{true, false} {
			var c policy.Compiler
			last := c.Compile(snap(peer("peer", "yes")), policy.Input{NodeName: "n"})
			if between {
				gone := c.Compile(snap(), policy.Input{NodeName: "n"})
				if policy.Tightened(last, gone) {
					t.Errorf("%s: a Pod that only goes takes nothing away", tc.name)
				}
				last = gone
			}
			if got := policy.Tightened(last, c.Compile(snap(tc.next), policy.Input{NodeName: "n"})); got != tc.want {
				t.Errorf("%s, a picture without any between them %v: tightened %v, want %v", tc.name, between, got, tc.want)
			}
		}
	}
}
