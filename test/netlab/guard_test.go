package netlab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// behind runs a client until it is told to stop; then it says what the client printed.
func (s *story) behind(target string, out any, args ...string) (stop func()) {
	s.t.Helper()
	r, w := io.Pipe()
	var stdout, stderr bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		exit, err := s.Exec(s.ctx, target, append([]string{"weft", lab.PodCommand}, args...), lab.Stdio{In: r, Out: &stdout, Err: &stderr})
		if err == nil && exit != 0 {
			err = fmt.Errorf("exit code %d: %s", exit, stderr.String())
		}
		ended <- err
	}()
	return func() {
		s.t.Helper()
		s.no(w.Close())
		s.no(<-ended)
		text := stdout.String()
		if i := strings.IndexAny(text, "[{"); i > 0 {
			text = text[i:]
		}
		s.no(json.Unmarshal([]byte(text), out))
	}
}

// TestPolicyHoldsOverRestarts: while datagrams go at 1,000 a second, each in a flow of its own, weftd is killed and started again
// and again, policies that say nothing of them come and go, and the Pod's neighbours, too. Not one passes that must not, and
// not one is lost that may pass.
func TestPolicyHoldsOverRestarts(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	web := s.labelled("node1", "web")[0]
	good, bad := s.labelled("node2", "good")[0], s.labelled("node1", "bad")[0]
	s.policy("web", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: good}}}]}]}")
	s.isolated(web)
	s.no(s.talk(bad, web, false))
	s.eventually("who may reaches it", policyTime, func() error { return s.talk(good, web, true) })

	to := fmt.Sprintf("%s:%d", web.Address(4), lab.EchoPort)
	var allowed, kept, denied lab.Stream
	stops := []func(){
		s.behind(good.FullName(), &allowed, "stream", to), s.behind(good.FullName(), &kept, "stream", "--one", to),
		s.behind(bad.FullName(), &denied, "stream", "--denied", to),
	}
	for i := range 4 {
		s.no(s.KillDaemon(s.ctx, "node1", unix.SIGKILL))
		pause(s, 200*time.Millisecond)
		s.policy(fmt.Sprintf("more-%d", i), fmt.Sprintf("{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: x%d}}}]}]}", i))
		s.no(s.StartDaemon(s.ctx, "node1"))
		s.no(s.WaitReady(s.ctx, "node1"))
		extra := s.labelled("node1", fmt.Sprintf("x%d", i))[0]
		s.eventually("a new Pod is let in", policyTime, func() error { return s.talk(extra, web, true) })
		if i%2 == 1 {
			s.delete(extra.Name)
			s.policy(fmt.Sprintf("more-%d", i), "")
		}
	}
	for _, stop := range stops {
		stop()
	}
	t.Logf("allowed %+v, in one flow %+v, denied %+v", allowed, kept, denied)
	if denied.Answered != 0 || denied.Sent < 1000 {
		t.Errorf("of %d datagrams that are denied %d passed", denied.Sent, denied.Answered)
	}
	for _, a := range []lab.Stream{allowed, kept} {
		if a.Answered != a.Sent || a.Sent < 1000 {
			t.Errorf("of %d datagrams that are allowed %d were answered, %d in a row were not", a.Sent, a.Answered, a.Longest)
		}
	}
}

// TestFirstMicrosecond: in each of 200 Pods something sends from the moment in which the link exists, before ADD has returned.
// Where a policy forbids it, nothing leaves.
func TestFirstMicrosecond(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	server := s.run("node2", "server")[0]
	to := fmt.Sprintf("%s:%d", server.Address(4), lab.EchoPort)
	s.policy("locked", "{podSelector: {matchLabels: {kind: locked}}, policyTypes: [Egress]}")
	s.policy("web", "{podSelector: {matchLabels: {kind: guarded}}, policyTypes: [Ingress]}") // what the server sends back must not come in either
	s.eventually("weftd has read both policies", policyTime, func() error {
		if out := s.out("node1", "weft policy list"); !strings.Contains(out, "default/locked") || !strings.Contains(out, "default/web") {
			return errors.New(out)
		}
		return nil
	})
	rounds, each := 10, 20
	for _, kind := range []string{"free", "locked"} {
		var found []lab.Ambush
		done := t.TempDir()
		stop := s.behind("node1", &found, "ambush", "--done", done, to)
		pause(s, 300*time.Millisecond)
		n := rounds
		if kind == "free" {
			n = 1
		}
		for round := range n {
			var specs []lab.PodSpec
			var names []string
			for i := range each {
				name := fmt.Sprintf("%s-%d-%d", kind, round, i)
				names = append(names, name)
				specs = append(specs, lab.PodSpec{Name: name, Labels: map[string]string{"kind": kind}, Pause: true})
			}
			s.runSpecs("node1", specs...)
			s.eventually("the ambush has seen the Pods", policyTime, func() error {
				if seen, err := os.ReadDir(done); err != nil || len(seen) < (round+1)*each {
					return fmt.Errorf("%d of %d, %s", len(seen), (round+1)*each, fmt.Sprint(err))
				}
				return nil
			})
			s.delete(names...)
		}
		stop()
		sent, answered := 0, 0
		for _, a := range found {
			if a.Sent > 0 {
				sent++
			}
			if a.Answered > 0 {
				answered++
			}
		}
		t.Logf("%s: %d Pods, %d could send, %d were answered", kind, len(found), sent, answered)
		switch {
		case len(found) < n*each || sent < n*each*9/10:
			t.Errorf("%s: the ambush saw %d of %d Pods, and sent in %d", kind, len(found), n*each, sent)
		case kind == "free" && answered == 0:
			t.Error("no Pod without a policy was answered: the ambush proves nothing")
		case kind == "locked" && answered > 0:
			t.Errorf("%d Pods escaped their policy: %+v", answered, found[:min(5, len(found))])
		}
	}
}

// sends waits until each of the Pods has sent so many more packets.
func (s *story) sends(packets uint64, pods ...*lab.Pod) {
	s.t.Helper()
	count := func(p *lab.Pod) uint64 {
		var links []struct {
			Stats64 struct{ TX struct{ Packets uint64 } }
		}
		s.no(json.Unmarshal([]byte(s.out(p.FullName(), "ip -j -s link show eth0")), &links))
		return links[0].Stats64.TX.Packets
	}
	for _, p := range pods {
		want := count(p) + packets
		s.eventually(fmt.Sprintf("%s sends %d packets", p.Name, packets), policyTime, func() error {
			if n := count(p); n < want {
				return fmt.Errorf("it has sent %d, want %d", n, want)
			}
			return nil
		})
	}
}

// TestRunningFlow: a flow that is not allowed any more ends, although its connection is known to the kernel, and goes on when it is
// allowed again; one that stays allowed loses nothing meanwhile.
func TestRunningFlow(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	web := s.labelled("node1", "web")[0]
	cut, kept := s.labelled("node2", "cut")[0], s.labelled("node2", "kept")[0]
	to := fmt.Sprintf("%s:%d", web.Address(4), lab.EchoPort)
	allow := func(apps string) {
		s.policy("web", fmt.Sprintf("{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [%s]}]}}]}]}", apps))
	}
	allow("cut, kept")
	s.isolated(web)
	s.eventually("both are let in", policyTime, func() error { return errors.Join(s.talk(cut, web, true), s.talk(kept, web, true)) })
	var a, b lab.Stream
	stopCut, stopKept := s.behind(cut.FullName(), &a, "stream", "--one", to), s.behind(kept.FullName(), &b, "stream", "--one", to)
	s.sends(300, cut, kept)
	allow("kept")
	s.eventually("new flows are denied", policyTime, func() error { return s.talk(cut, web, false) })
	s.sends(1000, cut, kept)
	allow("cut, kept")
	s.eventually("new flows are allowed again", policyTime, func() error { return s.talk(cut, web, true) })
	s.sends(1000, cut, kept)
	stopCut()
	stopKept()
	t.Logf("cut %+v, kept %+v", a, b)
	if a.Longest < 100 || a.Last > 5 {
		t.Errorf("the flow was not cut, or did not go on: %+v", a)
	}
	if b.Answered != b.Sent {
		t.Errorf("the flow that was allowed all the time lost something: %+v", b)
	}
}

// TestPolicyWithoutAPI: a node that loses its power and comes back without an API server enforces what it knew; a Pod that is new
// then, and of which nobody has told the labels, is closed where a policy of its namespace isolates, until the API is back.
func TestPolicyWithoutAPI(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	s.labelled("node1", "web")
	client := s.labelled("node2", "client")[0]
	s.policy("web", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}")
	s.isolated(s.pods("node1")...)
	s.stored("node1")
	s.no(s.Reboot(s.ctx, "node1", lab.RebootOptions{WithoutAPI: true}))
	s.no(s.WaitReady(s.ctx, "node1"))
	web := s.pods("node1")[0]
	s.no(s.talk(client, web, false))
	if _, err := s.get("node1", web.Address(4), lab.HTTPPort); err != nil {
		t.Fatalf("the Pod is not there: %v", err)
	}
	late := s.labelled("node1", "late")[0]
	s.no(s.talk(client, late, false))
	if _, err := s.get("node1", late.Address(4), lab.HTTPPort); err != nil {
		t.Fatalf("the new Pod is not there: %v", err)
	}
	s.no(s.RestoreAPI("node1"))
	s.eventually("the new Pod, which no policy selects, is free", 10*time.Second, func() error { return s.talk(client, late, true) })
	s.no(s.talk(client, web, false))
}
