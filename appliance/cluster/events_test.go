package cluster

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/client-go/tools/record"
)

// What went wrong before the first session, or between two, is told in the next one: the newest of it, once.
func TestEventsWaitForSession(t *testing.T) {
	e := newEvents("node1")
	for i := range mostWaiting + 5 {
		e.WarnNode("node1", "NetworkNotReady", fmt.Sprintf("reason %d", i))
	}
	e.WarnNode("", "NetworkNotReady", "about nobody")
	r := record.NewFakeRecorder(2 * mostWaiting)
	e.set(r)
	if len(r.Events) != mostWaiting {
		t.Fatalf("%d events were told, want the newest %d", len(r.Events), mostWaiting)
	}
	if first := <-r.Events; !strings.HasSuffix(first, "reason 5") {
		t.Errorf("the first is %q", first)
	}
	e.set(nil)
	again := record.NewFakeRecorder(2)
	e.set(again)
	e.WarnNode("node1", "NetworkNotReady", "now")
	if len(again.Events) != 1 {
		t.Errorf("%d events in the next session, want 1", len(again.Events))
	}
}
