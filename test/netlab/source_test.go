package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// TestBadManifest: a file with a mistake is named with its line, what was good before stays, and a daemon that starts while the
// file is bad works from its store.
func TestBadManifest(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	a, b := s.run("node1", "a")[0], s.run("node2", "b")[0]
	before := s.kernel("node1")
	bad := filepath.Join(s.Dir, "manifests", "bad.yaml")
	s.no(os.WriteFile(bad, []byte("apiVersion: v1\nkind: Node\nmetadata: {name: node3\nspec: {}\n"), 0o644))
	named := func() error {
		if said := s.status("node1").Source.Error; !strings.Contains(said, "bad.yaml") || !strings.Contains(said, "line") && !strings.Contains(said, "bad.yaml:") {
			return fmt.Errorf("the source's error is %q", said)
		}
		return nil
	}
	s.eventually("an error that names the file", convergeTime, named)
	t.Log(s.status("node1").Source.Error)
	c := s.run("node1", "c")[0]
	s.reaches(c, a, b)
	s.delete("c")

	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGKILL))
	s.no(s.StartDaemon(s.ctx, "node1"))
	s.no(s.WaitReady(s.ctx, "node1"))
	s.eventually("an error that names the file, after a start", convergeTime, named)
	s.quiet("node1")
	if now := s.kernel("node1"); now != before {
		t.Errorf("the kernel differs:\n%s", difference(before, now))
	}
	s.reaches(b, a)

	s.no(os.Remove(bad))
	s.eventually("a source without errors", convergeTime, func() error {
		if st := s.status("node1").Source; st.Error != "" || !st.Connected || st.Stored {
			return errors.New("the source is " + fmt.Sprint(st))
		}
		return nil
	})
}
