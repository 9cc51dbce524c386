package netlab

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// TestUninstallKernel: afterwards the kernel shows nothing of weft; while a daemon runs, it refuses and changes nothing.
func TestUninstallKernel(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2, Subnets: 2})
	s.serve(s.run("node1", "a")...)
	s.eventually("the Service is programmed", 5*time.Second, func() error {
		_, err := s.Output(s.ctx, "node1", "nft", "list", "table", "inet", "weft_services")
		return err
	})
	traces := func() string {
		return s.out("node1", "ip -br link") + s.out("node1", "ip route") + s.out("node1", "ip -6 route") + s.out("node1", "nft list ruleset")
	}
	uninstall := []string{"weft", "uninstall", "--kernel", "--root", t.TempDir()}
	if out, err := s.Output(s.ctx, "node1", uninstall...); err == nil {
		t.Errorf("beside a daemon: no error, %s", out)
	}
	if before := traces(); !strings.Contains(before, "weftp") || !strings.Contains(before, "table inet weft") {
		t.Fatalf("beside a daemon it removed something:\n%s", before)
	}
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGTERM))
	if _, err := s.Output(s.ctx, "node1", uninstall...); err != nil {
		t.Fatal(err)
	}
	for _, mark := range []string{"weft", "proto 87"} {
		if after := traces(); strings.Contains(after, mark) {
			t.Errorf("%q is left:\n%s", mark, after)
		}
	}
	s.out("node1", "rm /var/lib/weft/weft.db")
	if _, err := s.Output(s.ctx, "node1", uninstall...); err != nil {
		t.Fatal(err)
	}
	if out := s.out("node1", "ls /var/lib/weft"); strings.Contains(out, "weft.db") {
		t.Errorf("cleaning made a new store: %s", out)
	}
}
