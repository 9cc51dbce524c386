package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/lab"
)

// TestPolicyDeletedDuringAdd: the policy that isolates a Pod goes at some moment of the Pod's ADD. Whichever comes first, the Pod is
// there in the end, everybody reaches it, and nothing that isolates is left.
func TestPolicyDeletedDuringAdd(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1})
	client := s.run("node1", "client")[0]
	for i := range 12 {
		const file = "policy-brief.yaml"
		s.policy("brief", "{podSelector: {matchLabels: {app: brief}}, policyTypes: [Ingress, Egress]}")
		pause(s, 100*time.Millisecond) // files are read 50 ms after they were written
		gone := make(chan error, 1)
		go func() {
			pause(s, time.Duration(i)*10*time.Millisecond)
			gone <- os.Remove(filepath.Join(s.Dir, "manifests", file))
		}()
		brief := s.labelled("node1", "brief")[0]
		s.no(<-gone)
		s.eventually(fmt.Sprintf("round %d: the Pod is reached and reaches others", i), policyTime, func() error {
			return errors.Join(s.talk(client, brief, true), s.talk(brief, client, true))
		})
		s.delete("brief")
	}
	s.eventually("no Pod is isolated any more", policyTime, func() error {
		if out := s.out("node1", "nft list ruleset"); strings.Contains(out, "weft_policy") && strings.Contains(out, "default/brief") {
			return fmt.Errorf("still there: %s", out)
		}
		return nil
	})
}
