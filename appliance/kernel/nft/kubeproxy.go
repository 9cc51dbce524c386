package nft

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/ruleset"
)

// kubeProxyName is the name of the tables of kube-proxy's nftables mode.
const kubeProxyName = "kube-proxy"

// proxyChains are the chains of kube-proxy's iptables mode, as they are seen through nftables where iptables-nft made them: whole
// names, and with a dash at the end the beginnings of names. The kubelet has KUBE-FIREWALL (which guards 127.0.0.0/8, CVE-2020-8558),
// KUBE-IPTABLES-HINT and KUBE-KUBELET-CANARY, kube-router KUBE-ROUTER-*, KUBE-POD-FW-* and KUBE-NWPLCY-*; those stay.
var proxyChains = []string{
	"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-NODE-PORT", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-MARK-DROP",
	"KUBE-FORWARD", "KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-LOAD-BALANCER", "KUBE-IPVS-FILTER",
	"KUBE-IPVS-OUT-FILTER", "KUBE-PROXY-CANARY", "KUBE-SVC-", "KUBE-SEP-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-XLB-", "KUBE-FW-",
}

func isProxyChain(name string) bool {
	return slices.ContainsFunc(proxyChains, func(c string) bool {
		return c == name || strings.HasSuffix(c, "-") && strings.HasPrefix(name, c)
	})
}

// ProxyChainPattern is an extended regular expression for the lines of iptables-save that are about kube-proxy's chains.
func ProxyChainPattern() string {
	var whole, beginnings []string
	for _, c := range proxyChains {
		name := strings.TrimPrefix(c, "KUBE-")
		if strings.HasSuffix(c, "-") {
			beginnings = append(beginnings, name)
		} else {
			whole = append(whole, name)
		}
	}
	return "KUBE-((" + strings.Join(whole, "|") + ")( |$)|" + strings.Join(beginnings, "|") + ")"
}

// KubeProxyLeftovers names what kube-proxy has in nftables: its tables, and those chains of iptables-nft that are its own. With
// remove it takes them away, with the rules of other chains that lead there, in one transaction.
func (b *Backend) KubeProxyLeftovers(remove bool) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	conn, err := dial(b.netns, 4<<20)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r := reader{conn: conn}
	var out []string
	var work batch
	for _, family := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
		msgs, err := r.get(unix.NFT_MSG_GETCHAIN, netlink.Dump, familyNumbers[family], &batch{})
		if err != nil {
			return nil, fmt.Errorf("listing the chains of other programs: %w", err)
		}
		chains := map[string][]string{} // by table
		for _, m := range msgs {
			if table, c := decodeChain(m); table == kubeProxyName || isProxyChain(c.Name) {
				chains[table] = append(chains[table], c.Name)
			}
		}
		for _, table := range sortedNames(chains) {
			t := &ruleset.Table{Family: family, Name: table}
			if table == kubeProxyName {
				out = append(out, "table "+t.ID())
				work.deleteTable(t)
				continue
			}
			out = append(out, fmt.Sprintf("%d chains of kube-proxy in table %s", len(chains[table]), t.ID()))
			if err := r.removeChains(&work, t, chains[table]); err != nil {
				return nil, err
			}
		}
	}
	if !remove || work.len() == 0 {
		return out, nil
	}
	return out, b.send.send(&work, false)
}

// removeChains appends what removes chains: first the rules of others that lead there, then their own, which name each other.
func (r *reader) removeChains(work *batch, t *ruleset.Table, chains []string) error {
	var ask batch
	ask.attrString(unix.NFTA_RULE_TABLE, t.Name)
	msgs, err := r.get(unix.NFT_MSG_GETRULE, netlink.Dump, familyNumbers[t.Family], &ask)
	if err != nil {
		return fmt.Errorf("listing the rules of table %s: %w", t.ID(), err)
	}
	for _, m := range msgs {
		var table, chain string
		var handle uint64
		leads := false
		attributes(m.Data[4:], func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_RULE_TABLE:
				table = cString(v)
			case unix.NFTA_RULE_CHAIN:
				chain = cString(v)
			case nftaRuleHandle:
				handle = binary.BigEndian.Uint64(v)
			case nftaRuleExpressions:
				leads = slices.ContainsFunc(leadsTo(v), isProxyChain)
			}
		})
		if table == t.Name && leads && !isProxyChain(chain) {
			work.deleteRule(t, chain, handle)
		}
	}
	for _, c := range chains {
		work.flushChain(t, c)
	}
	for _, c := range chains {
		work.deleteChain(t, c)
	}
	return nil
}

// Attributes of a rule and of the expression immediate (linux/netfilter/nf_tables.h).
const (
	nftaRuleHandle    = 3
	nftaExprName      = 1
	nftaExprData      = 2
	nftaImmediateData = 2
)

// leadsTo returns the chains to which the expressions of a rule jump or go.
func leadsTo(expressions []byte) (out []string) {
	attributes(expressions, func(_ uint16, v []byte) {
		var name string
		attributes(v, func(kind uint16, v []byte) {
			switch kind {
			case nftaExprName:
				name = cString(v)
			case nftaExprData:
				if name != "immediate" {
					return
				}
				attributes(v, func(kind uint16, v []byte) {
					if kind != nftaImmediateData {
						return
					}
					attributes(v, func(kind uint16, v []byte) {
						if kind == nftaDataVerdict {
							out = append(out, decodeVerdict(v).Chain)
						}
					})
				})
			}
		})
	})
	return out
}

// deleteRule deletes one rule.
func (b *batch) deleteRule(t *ruleset.Table, chain string, handle uint64) {
	b.begin(unix.NFT_MSG_DELRULE, 0, familyNumbers[t.Family], "delete a rule of chain "+chain)
	b.attrString(unix.NFTA_RULE_TABLE, t.Name)
	b.attrString(unix.NFTA_RULE_CHAIN, chain)
	b.attr(nftaRuleHandle, binary.BigEndian.AppendUint64(nil, handle))
	b.end()
}
