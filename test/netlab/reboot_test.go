package netlab

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"weft.network/weft/appliance/lab"
)

// TestReboot: a node comes back after a power cut, with the API server away or not, and its Pods have the same addresses as before.
func TestReboot(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    lab.RebootOptions
		mode string
	}{
		{"API away, vxlan", lab.RebootOptions{WithoutAPI: true}, "vxlan"},
		{"API away, auto", lab.RebootOptions{WithoutAPI: true}, "auto"},
		{"API there", lab.RebootOptions{}, "auto"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tell(t, lab.Options{Nodes: 2, Mode: tc.mode})
			far := s.run("node2", "far")[0]
			pods := s.run("node1", "c", "a", "e", "b", "d")
			// The order in which they got addresses must not be the order in which they come back.
			s.delete("a")
			pods = append(pods[:1], pods[2:]...)
			before := s.addresses(pods...)

			s.no(s.Reboot(s.ctx, "node1", tc.o))
			pods = s.pods("node1")
			if after := s.addresses(pods...); !maps.EqualFunc(before, after, slices.Equal) {
				t.Fatalf("before the reboot %v, after it %v", before, after)
			}
			s.clean("node1")
			s.reaches(far, pods...)
			for _, p := range pods {
				s.reaches(p, far)
			}
			st := s.status("node1")
			if st.Source.Connected == tc.o.WithoutAPI || st.Source.Stored != tc.o.WithoutAPI {
				t.Errorf("API away %v, but the source is %+v", tc.o.WithoutAPI, st.Source)
			}
			// A Pod that the node has never heard of can start, too (a static one, say).
			other := s.run("node1", "stranger")[0]
			s.addresses(append(pods, other)...)
			s.reaches(far, other)

			s.no(s.RestoreAPI("node1"))
			s.eventually("a node that listens to the API again", 5*time.Second, func() error {
				if st := s.status("node1"); !st.Source.Connected || st.Source.Stored {
					return errors.New("it still runs from its store")
				}
				return nil
			})
			s.clean("node1")
		})
	}
}

// TestRebootWithFullRange: when every address is taken, the dead sandboxes of before the reboot must make room, each for its Pod.
func TestRebootWithFullRange(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1, PodCIDRs: small("node1")})
	s.runSpecs("node1", pauses("p", 13)...)
	before := s.addresses(s.pods("node1")...)
	s.no(s.Reboot(s.ctx, "node1", lab.RebootOptions{WithoutAPI: true}))
	if after := s.addresses(s.pods("node1")...); !maps.EqualFunc(before, after, slices.Equal) {
		t.Fatalf("before the reboot %v, after it %v", before, after)
	}
	s.clean("node1")
}
