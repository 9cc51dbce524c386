package ruleset

import (
	"testing"

	"weft.network/weft/appliance/model"
)

func TestDNSGolden(t *testing.T) {
	table := DNS(addrs("10.96.0.10", "169.254.20.10", "fd00:96::a"))
	golden(t, "dns.nft", table.String())
	if none := DNS(nil); !none.Empty() {
		t.Errorf("without addresses there is %s", none.String())
	}
}

// TestDNSUntracked sends packets through the table.
func TestDNSUntracked(t *testing.T) {
	table := DNS(addrs("10.96.0.10", "fd00:96::a"))
	tr := NewTracer([]Table{table}, nodeFacts())
	for _, c := range []struct {
		what string
		hook Hook
		in   Packet
		want bool
	}{
		{"query", Prerouting, pkt(model.UDP, "weftpweb>", "10.42.1.5:4000", "10.96.0.10:53"), true},
		{"query, TCP", Prerouting, pkt(model.TCP, "weftpweb>", "10.42.1.5:4000", "10.96.0.10:53"), true},
		{"query, IPv6", Prerouting, pkt(model.UDP, "weftpweb>", "[fd00:42:0:1::5]:4000", "[fd00:96::a]:53"), true},
		{"answer", Output, pkt(model.UDP, ">weftpweb", "10.96.0.10:53", "10.42.1.5:4000"), true},
		{"the node's own query", Output, pkt(model.UDP, ">lo", "192.168.9.1:4000", "10.96.0.10:53"), true},
		{"metrics at the same address", Prerouting, pkt(model.TCP, "weftpweb>", "10.42.1.5:4000", "10.96.0.10:9153"), true},
		{"something else at the same address", Prerouting, pkt(model.TCP, "weftpweb>", "10.42.1.5:4000", "10.96.0.10:8080"), false},
		{"another server", Prerouting, pkt(model.UDP, "weftpweb>", "10.42.1.5:4000", "10.96.0.11:53"), false},
		{"the node's upstream", Output, pkt(model.UDP, ">eth0", "192.168.9.1:4000", "192.0.2.1:53"), false},
	} {
		out := tr.Trace(c.hook, c.in)
		if got := out.Packet.CtState == StateUntracked; got != c.want {
			t.Errorf("%s: untracked %v, want %v", c.what, got, c.want)
		}
	}
}
