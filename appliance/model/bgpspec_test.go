package model

import (
	"net/netip"
	"strings"
	"testing"
)

func TestResolveBGPPeer(t *testing.T) {
	no := false
	good := func(edit func(*BGPPeerSpec)) BGPPeerSpec {
		s := BGPPeerSpec{PeerAddress: "192.0.2.1", PeerASN: 64600}
		edit(&s)
		return s
	}
	for _, tc := range []struct {
		name string
		spec BGPPeerSpec
		want string // fields of the errors
	}{
		{"least", good(func(*BGPPeerSpec) {}), ""},
		{"empty", BGPPeerSpec{}, "peerAddress peerASN"},
		{"link-local", good(func(s *BGPPeerSpec) { s.PeerAddress = "fe80::1" }), "peerAddress"},
		{"zone", good(func(s *BGPPeerSpec) { s.PeerAddress = "fe80::1%eth0" }), "peerAddress"},
		{"families of the addresses", good(func(s *BGPPeerSpec) { s.SourceAddress = "2001:db8::1" }), "sourceAddress"},
		{"hold", good(func(s *BGPPeerSpec) { s.HoldSeconds = 2 }), "holdSeconds"},
		{"keepalive", good(func(s *BGPPeerSpec) { s.HoldSeconds, s.KeepaliveSeconds = 9, 9 }), "keepaliveSeconds"},
		{"restart", good(func(s *BGPPeerSpec) { s.GracefulRestart = &GracefulRestartSpec{RestartSeconds: 4096} }), "gracefulRestart.restartSeconds"},
		{"ttl", good(func(s *BGPPeerSpec) { s.MultihopTTL, s.TTLSecurityHops = 2, 2 }), "ttlSecurityHops"},
		{"families", good(func(s *BGPPeerSpec) { s.Families = []string{"ipv4", "evpn"} }), "families[1]"},
		{"communities", good(func(s *BGPPeerSpec) {
			s.Advertise.Communities = []string{"1:2", "70000:1", "x"}
			s.Advertise.LargeCommunities = []string{"4294967295:0:1", "1:2"}
		}), "advertise.communities[1] advertise.communities[2] advertise.largeCommunities[1]"},
		{"rules", good(func(s *BGPPeerSpec) {
			s.Import = []PrefixRuleSpec{{Prefix: "10.0.0.0/8", GE: 7}, {Prefix: "x"}, {Prefix: "::/0", LE: 129}, {Prefix: "10.0.0.0/8", LE: 32}, {Prefix: "10.0.0.0/8", Action: "deny"}}
		}), "import[0] import[1].prefix import[2] import[4].action"},
		{"no restart", good(func(s *BGPPeerSpec) { s.GracefulRestart = &GracefulRestartSpec{Enabled: &no} }), ""},
	} {
		p, errs := tc.spec.Resolve("p")
		var fields []string
		for _, e := range errs {
			fields = append(fields, e.Field)
		}
		if got := strings.Join(fields, " "); got != tc.want {
			t.Errorf("%s: errors are %v", tc.name, errs)
		}
		if tc.name == "no restart" && p.RestartSeconds != 0 {
			t.Errorf("graceful restart cannot be switched off")
		}
	}
}

func TestPrefixRule(t *testing.T) {
	p, errs := (&BGPPeerSpec{PeerAddress: "::1", PeerASN: 1, Import: []PrefixRuleSpec{
		{Prefix: "10.0.0.0/8"}, {Prefix: "10.0.0.0/8", LE: 24}, {Prefix: "10.0.0.0/8", GE: 30},
	}}).Resolve("p")
	if errs != nil {
		t.Fatal(errs)
	}
	for prefix, want := range map[string][3]bool{
		"10.0.0.0/8": {true, true, false}, "10.1.0.0/16": {false, true, false}, "10.1.0.0/25": {false, false, false},
		"10.1.0.1/32": {false, false, true}, "11.0.0.0/8": {false, false, false}, "::/8": {false, false, false},
	} {
		for i, rule := range p.Import {
			if got := rule.Matches(netip.MustParsePrefix(prefix)); got != want[i] {
				t.Errorf("rule %d and %s: %v", i, prefix, got)
			}
		}
	}
}
