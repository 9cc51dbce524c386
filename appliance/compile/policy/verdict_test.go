package policy_test

import (
	"net/netip"
	"testing"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/model"
)

// Between addresses that are no Pod's, policies have no say, also where one of them is the node's own.
func TestVerdictWithoutPods(t *testing.T) {
	node, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	j := &policy.Judge{Snapshot: &model.Snapshot{}, Everywhere: true, NodeAddresses: []netip.Addr{node}}
	for _, p := range []policy.Packet{{Src: node, Dst: other, Proto: model.TCP, Port: 80}, {Src: other, Dst: node, Proto: model.TCP, Port: 80}} {
		if v := j.Verdict(p); !v.Allowed || v.Words() != "" {
			t.Errorf("%s to %s: %+v, %q", p.Src, p.Dst, v, v.Words())
		}
	}
}
