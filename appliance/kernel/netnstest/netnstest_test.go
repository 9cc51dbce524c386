package netnstest

import (
	"os"
	"strings"
	"sync"
	"testing"
)

// TestIsolation makes namespaces at the same time and sees that none of them, nor the test's own thread, has another's link.
func TestIsolation(t *testing.T) {
	if os.Geteuid() == 0 {
		before, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if after, _ := os.Readlink("/proc/thread-self/ns/net"); after != before {
				t.Errorf("the test is in %s now, and was in %s", after, before)
			}
		}()
	}
	a, b := New(t), New(t)
	Veth(a, "ina", b, "inb")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for ns, own := range map[*NS][2]string{a: {"ina", "inb"}, b: {"inb", "ina"}} {
				out, err := ns.Try("ip", "-o", "link")
				if err != nil || !strings.Contains(out, own[0]+"@") || strings.Contains(out, " "+own[1]+"@") {
					t.Errorf("links %q, error %v", out, err)
				}
			}
		})
	}
	wg.Wait()
}
