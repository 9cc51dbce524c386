package nft

import (
	"strings"
	"testing"
)

// Docker, ufw and firewalld are the usual ones: a Pod's packets are gone although weft accepted them.
func TestOtherFirewalls(t *testing.T) {
	ns, b := open(t)
	found := func(want ...string) {
		t.Helper()
		got, err := b.OtherFirewalls()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Join(got, ";") != strings.Join(want, ";") {
			t.Errorf("found %q, want %q", got, want)
		}
	}
	found()
	for _, rule := range []string{
		"add table ip filter",
		"add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
		"add chain ip filter INPUT { type filter hook input priority 0; policy drop; }",
		"add chain ip filter DOCKER",
		"add table ip6 filter",
		"add chain ip6 filter FORWARD { type filter hook forward priority 0; policy accept; }",
		"add table inet firewalld",
		"add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }",
		"add table inet weft",
		"add chain inet weft forward { type filter hook forward priority 0; policy drop; }",
		"add table bridge filter",
		"add chain bridge filter FORWARD { type filter hook forward priority 0; policy drop; }",
	} {
		ns.Run("nft", rule)
	}
	found("table inet firewalld, chain filter_FORWARD", "table ip filter, chain FORWARD")
}
