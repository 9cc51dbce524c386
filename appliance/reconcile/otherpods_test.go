package reconcile

import (
	"fmt"
	"net/netip"
	"testing"

	"weft.network/weft/appliance/model"
)

// TestPodsOfOtherNetworks: beside another network the Pods of this node are known one by one, since no range need have them.
func TestPodsOfOtherNetworks(t *testing.T) {
	pod := func(name, node string, hostNetwork bool, addrs ...string) *model.Pod {
		p := &model.Pod{PodRef: model.PodRef{Namespace: "shop", Name: name}, Node: node, HostNetwork: hostNetwork}
		for _, a := range addrs {
			p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
		}
		return p
	}
	snap := &model.Snapshot{Pods: map[model.PodKey]*model.Pod{}}
	for _, p := range []*model.Pod{
		pod("in", "here", false, "10.1.0.7"), pod("out", "here", false, "192.168.64.3", "fd00:64::3"), pod("far", "there", false, "192.168.65.3"),
		pod("host", "here", true, "192.0.2.1"), pod("same", "here", false, "192.168.64.3"),
	} {
		snap.Pods[p.Key()] = p
	}
	ranges := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
	self := &model.Node{Name: "here"}
	for other, want := range map[bool]string{false: "[10.1.0.0/24]", true: "[10.1.0.0/24 192.168.64.3/32 fd00:64::3/128]"} {
		s := &Services{OtherNetwork: other}
		for range 2 {
			if got := fmt.Sprint(s.podRanges(snap, self, ranges)); got != want {
				t.Errorf("another network %v: %s, want %s", other, got, want)
			}
		}
		less := &model.Snapshot{Pods: map[model.PodKey]*model.Pod{}}
		if got := fmt.Sprint(s.podRanges(less, self, ranges)); got != "[10.1.0.0/24]" {
			t.Errorf("another network %v: without Pods %s", other, got)
		}
	}
}
