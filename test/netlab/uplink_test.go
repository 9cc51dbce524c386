package netlab

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// TestLateUplink: a link that comes after weftd has switched forwarding on keeps its router advertisements, also after a restart.
func TestLateUplink(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1})
	late := func(name, metric string) {
		t.Helper()
		s.out("node1", "ip link add "+name+" type veth peer name "+name+"p")
		s.out("node1", "ip link set "+name+" up")
		s.out("node1", "ip link set "+name+"p up")
		s.out("node1", "ip -6 route add default via fe80::9 dev "+name+" proto ra metric "+metric)
		s.eventually(name+" keeps router advertisements", 10*time.Second, func() error {
			if v := strings.TrimSpace(s.out("node1", "cat /proc/sys/net/ipv6/conf/"+name+"/accept_ra")); v != "2" {
				return fmt.Errorf("accept_ra is %s", v)
			}
			return nil
		})
	}
	late("late0", "2000")
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGTERM))
	s.no(s.StartDaemon(s.ctx, "node1"))
	s.no(s.WaitReady(s.ctx, "node1"))
	late("late1", "2001")
}
