package nft

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/ruleset"
)

// OtherFirewalls names what other programs have in the way of forwarded packets, and so of Pods: chains at the hook forward
// that drop what none of their rules accepts, and the table of firewalld, which refuses what is in no zone. A packet that one
// table drops is gone, whatever weft's says. weft's own tables do not count. The names are sorted.
func (b *Backend) OtherFirewalls() ([]string, error) {
	conn, err := dial(b.netns, 1<<20)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r := reader{conn: conn}
	msgs, err := r.get(unix.NFT_MSG_GETCHAIN, netlink.Dump, unix.NFPROTO_UNSPEC, &batch{})
	if err != nil {
		return nil, fmt.Errorf("listing the chains of other programs: %w", err)
	}
	var out []string
	for _, m := range msgs {
		table, c := decodeChain(m)
		if c.Base == nil || c.Base.Hook != ruleset.Forward || strings.HasPrefix(table, "weft") {
			continue
		}
		family := otherFamilies[m.Data[0]]
		if family != "" && (c.Base.Drop || table == "firewalld") {
			out = append(out, fmt.Sprintf("table %s %s, chain %s", family, table, c.Name))
		}
	}
	slices.SortFunc(out, strings.Compare)
	return out, nil
}

// otherFamilies are those whose hook forward sees what Pods send.
var otherFamilies = map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}
