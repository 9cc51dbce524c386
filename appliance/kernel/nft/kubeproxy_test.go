package nft

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// What kube-proxy left in nftables and iptables-nft goes, and nothing of others does.
func TestKubeProxyLeftovers(t *testing.T) {
	ns, b := open(t)
	if found, err := b.KubeProxyLeftovers(true); err != nil || len(found) != 0 {
		t.Fatalf("of nothing: %v, %v", found, err)
	}
	ns.Run("sh", "-ec", `
		nft add table ip kube-proxy
		nft add chain ip kube-proxy nat-prerouting '{ type nat hook prerouting priority dstnat; }'
		nft add chain ip kube-proxy services
		nft add rule ip kube-proxy nat-prerouting jump services
		nft add table ip6 kube-proxy
		nft add chain ip6 kube-proxy services
		nft add table inet other
		nft add chain inet other KUBE-SERVICES-of-mine
		for t in iptables-nft ip6tables-nft; do
			$t -t nat -N KUBE-SERVICES
			$t -t nat -N KUBE-SVC-ABC
			$t -t nat -N KUBE-SEP-DEF
			$t -t nat -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
			$t -t nat -A OUTPUT -j KUBE-SERVICES
			$t -t nat -A KUBE-SERVICES -p tcp --dport 80 -j KUBE-SVC-ABC
			$t -t nat -A KUBE-SVC-ABC -j KUBE-SEP-DEF
			$t -t nat -A KUBE-SEP-DEF -j RETURN
			$t -t nat -N MINE
			$t -t nat -A PREROUTING -j MINE
			$t -t mangle -N KUBE-IPTABLES-HINT
			$t -t mangle -N KUBE-KUBELET-CANARY
			$t -t filter -N KUBE-ROUTER-INPUT
			$t -t filter -A INPUT -j KUBE-ROUTER-INPUT
			$t -t filter -N KUBE-FIREWALL
			$t -t filter -A INPUT -j KUBE-FIREWALL
			$t -t filter -A KUBE-FIREWALL -j DROP
			$t -t filter -N KUBE-FORWARD
			$t -t filter -A FORWARD -j KUBE-FORWARD
		done`)
	want := []string{
		"1 chains of kube-proxy in table ip filter", "table ip kube-proxy", "3 chains of kube-proxy in table ip nat",
		"1 chains of kube-proxy in table ip6 filter", "table ip6 kube-proxy", "3 chains of kube-proxy in table ip6 nat",
	}
	before := ns.Run("nft", "list", "ruleset")
	for _, remove := range []bool{false, true} {
		found, err := b.KubeProxyLeftovers(remove)
		if err != nil || !slices.Equal(found, want) {
			t.Fatalf("remove %v: %q, %v, want %q", remove, found, err, want)
		}
		if after := ns.Run("nft", "list", "ruleset"); (after == before) == remove {
			t.Errorf("remove %v: the rules changed: %v\n%s", remove, after != before, after)
		}
	}
	left := ns.Run("nft", "list", "ruleset")
	for _, gone := range []string{"kube-proxy", "KUBE-SVC", "KUBE-SEP", "KUBE-FORWARD", "jump KUBE-SERVICES"} {
		if strings.Contains(left, gone) {
			t.Errorf("%s is still there:\n%s", gone, left)
		}
	}
	for _, stays := range []string{"jump MINE", "KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "jump KUBE-ROUTER-INPUT", "jump KUBE-FIREWALL", "KUBE-SERVICES-of-mine"} {
		if !strings.Contains(left, stays) {
			t.Errorf("%s is gone:\n%s", stays, left)
		}
	}
	if found, err := b.KubeProxyLeftovers(true); err != nil || len(found) != 0 {
		t.Errorf("the second time: %v, %v", found, err)
	}
}

// The older iptables are read where they are in use, and only then.
func TestLegacyKubeProxy(t *testing.T) {
	ns, _ := open(t)
	look := func() (found []string) {
		t.Helper()
		err := ns.Do(func() (err error) {
			found, err = LegacyKubeProxy()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := look(); len(found) != 0 {
		t.Errorf("in a new namespace: %v", found)
	}
	if err := exec.Command("iptables-legacy", "--version").Run(); err != nil {
		t.Fatal("iptables-legacy is not installed: it comes with Debian's iptables")
	}
	ns.Run("sh", "-ec", "iptables-legacy -t nat -N KUBE-ROUTER-X; iptables-legacy -t filter -L -n")
	if found := look(); len(found) != 0 {
		t.Errorf("with chains of others: %v", found)
	}
	ns.Run("sh", "-ec", "iptables-legacy -t nat -N KUBE-SVC-ABC; iptables-legacy -t nat -N KUBE-SERVICES; iptables-legacy -t nat -A OUTPUT -j KUBE-SERVICES; "+
		"iptables-legacy -t nat -N KUBE-SERVICES-of-mine; ip6tables-legacy -t filter -N KUBE-FORWARD")
	if found, want := look(), []string{"ip6tables (legacy) table filter", "iptables (legacy) table nat"}; !slices.Equal(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
	save := ns.Run("sh", "-ec", "iptables-legacy-save -t nat")
	clean := ns.Run("sh", "-ec", "iptables-legacy-save -t nat | grep -vE '"+ProxyChainPattern()+"'")
	for _, stays := range []string{":KUBE-ROUTER-X", ":KUBE-SERVICES-of-mine"} {
		if !strings.Contains(save, stays) || !strings.Contains(clean, stays) {
			t.Errorf("without %s:\n%s", stays, clean)
		}
	}
	if strings.Contains(clean, "KUBE-SVC") || strings.Contains(clean, "KUBE-SERVICES -") || strings.Contains(clean, "-j KUBE-SERVICES") {
		t.Errorf("not clean:\n%s", clean)
	}
}
