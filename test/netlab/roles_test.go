package netlab

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// tables are the names of weft's tables on a node.
func (s *story) tables(node string) string {
	s.t.Helper()
	var out []string
	for _, line := range strings.Split(s.out(node, "nft list tables"), "\n") {
		if _, name, ok := strings.Cut(line, " weft"); ok {
			out = append(out, "weft"+name)
		}
	}
	return strings.Join(out, " ")
}

// TestRolesOff: roles that are switched off leave nothing in force: no policy that nobody follows any more, no Service with yesterday's
// endpoints. What another weft on the node has made, with a store of its own, stays.
func TestRolesOff(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1})
	pods := s.labelled("node1", "web", "front", "other")
	const shop = "10.96.1.80"
	web, other := pods[0], pods[2]
	s.expose("shop", 80, "", web)
	s.policy("web", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: front}}}]}]}`)
	s.resolves(other.FullName(), lab.ClusterDNS, "A", "shop.default.svc.cluster.local", shop)
	s.isolated(web)
	s.no(s.talk(other, web, false))

	// A daemon that was killed must not forget what it had.
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGKILL))
	s.no(s.StartDaemon(s.ctx, "node1"))
	s.roles("node1", "fabric, services")
	s.eventually("nothing of policies and names is left", repairTime, func() error {
		if got := s.tables("node1"); got != "weft weft_services" {
			return fmt.Errorf("there are the tables %s", got)
		}
		if out := s.out("node1", "ip -o link"); strings.Contains(out, "weft.dns") {
			return fmt.Errorf("there is\n%s", out)
		}
		return s.talk(other, web, true)
	})
	s.roles("node1", "fabric")
	s.eventually("nothing of Services is left", repairTime, func() error {
		if got := s.tables("node1"); got != "weft" {
			return fmt.Errorf("there are the tables %s", got)
		}
		return nil
	})

	// Tables of a role that this store has not had since: somebody else's.
	s.out("node1", "nft add table inet weft_services")
	s.out("node1", "nft add table ip weft_policy")
	s.roles("node1", "fabric")

	if got := s.tables("node1"); got != "weft weft_services weft_policy" && got != "weft_policy weft weft_services" {
		t.Errorf("of another weft there are still the tables %s", got)
	}
	s.roles("node1", "fabric, services, policy, dns")
	s.isolated(web)
	s.no(s.talk(other, web, false))
	s.resolves(other.FullName(), lab.ClusterDNS, "A", "shop.default.svc.cluster.local", shop)
}
