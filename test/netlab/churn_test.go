package netlab

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/lab"
)

// The load of TestPolicyChurn.
const (
	churnPods   = 100 // whose label changes
	churnOthers = 5000
	churnRate   = 500
	churnTime   = 4 * time.Second
)

// churnPod is a Pod of another machine that may reach the Pod web while it is hot.
func churnPod(i int, hot bool) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: churn-%d, namespace: default, labels: {hot: %q}}\nspec: {nodeName: elsewhere}\n"+
		"status: {phase: Running, podIP: 10.251.0.%d, podIPs: [{ip: 10.251.0.%d}]}\n", i, map[bool]string{true: "yes", false: "no"}[hot], i+1, i+1)
}

// residentMemory is weftd's, in bytes.
func (s *story) residentMemory(node string) float64 {
	s.t.Helper()
	_, rest, _ := strings.Cut(s.out(node, "weft "+lab.PodCommand+" get http://127.0.0.1:9465/metrics"), "\nprocess_resident_memory_bytes ")
	text, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseFloat(text, 64)
	s.no(err)
	return n
}

// TestPolicyChurn: in a cluster of 5,000 Pods labels change 500 times a second, each change deciding whether some Pod may reach web,
// while datagrams go at 1,000 a second. No allowed one is lost and no denied one passes; in the end the kernel holds what the last
// changes say, and the daemon is no larger for it.
func TestPolicyChurn(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	web := s.labelled("node1", "web")[0]
	good, bad := s.labelled("node2", "good")[0], s.labelled("node1", "bad")[0]
	var others strings.Builder
	for i := range churnOthers {
		fmt.Fprintf(&others, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: other-%d, namespace: default, labels: {app: app-%d}}\nspec: {nodeName: elsewhere}\n"+
			"status: {phase: Running, podIP: 10.252.%d.%d, podIPs: [{ip: 10.252.%[3]d.%[4]d}]}\n", i, i%100, i>>8, i&255)
	}
	s.write("others.yaml", others.String())
	state := [churnPods]bool{}
	for i := range churnPods {
		s.write(fmt.Sprintf("churn-%d.yaml", i), churnPod(i, false))
	}
	s.policy("web", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: good}}}]}, "+
		"{from: [{podSelector: {matchLabels: {hot: 'yes'}}}]}]}")
	s.isolated(web)
	s.no(s.talk(bad, web, false))
	s.eventually("who may reaches it", time.Minute, func() error { return s.talk(good, web, true) })

	to := fmt.Sprintf("%s:%d", web.Address(4), lab.EchoPort)
	var allowed, kept, denied lab.Stream
	stops := []func(){
		s.behind(good.FullName(), &allowed, "stream", to), s.behind(good.FullName(), &kept, "stream", "--one", to),
		s.behind(bad.FullName(), &denied, "stream", "--denied", to),
	}
	changes := 0
	churn := func() {
		start, count := time.Now(), 0
		for ; count < int(churnRate*churnTime.Seconds()); count++ {
			if early := time.Duration(count)*time.Second/churnRate - time.Since(start); early > 0 {
				pause(s, early)
			}
			i := changes * 37 % churnPods
			state[i] = !state[i]
			s.write(fmt.Sprintf("churn-%d.yaml", i), churnPod(i, state[i]))
			if changes++; changes%7 == 0 { // so that not all end alike
				changes++
			}
		}
		t.Logf("%d changes in %v, %.0f a second", count, time.Since(start), float64(count)/time.Since(start).Seconds())
	}
	t.Cleanup(func() {
		// Does the daemon not know, has the kernel something else, or does nobody let the daemon run (the second number: nanoseconds of waiting)?
		for _, command := range []string{
			"weft policy show default/web", "weft trace default/churn-2 default/web:8081", "nft list map ip weft_policy peers",
			"for p in $(pgrep -f weftd); do grep . /proc/$p/task/*/schedstat; done",
		} {
			if t.Failed() {
				out, err := s.Output(context.Background(), "node1", "sh", "-c", command)
				t.Log(command, err, out)
			}
		}
	})
	settled := func() {
		s.eventually("the kernel holds what the last changes say", 8*time.Second, func() error { return s.mayReach(web, state[:]) })
	}
	churn()
	settled()
	before := s.residentMemory("node1")
	churn()
	settled()
	for _, stop := range stops {
		stop()
	}
	after := s.residentMemory("node1")
	t.Logf("allowed %+v, in one flow %+v, denied %+v; memory %.0f and then %.0f MB", allowed, kept, denied, before/1e6, after/1e6)
	if denied.Answered != 0 || denied.Sent < 1000 {
		t.Errorf("of %d datagrams that are denied %d passed", denied.Sent, denied.Answered)
	}
	for _, a := range []lab.Stream{allowed, kept} {
		if a.Answered != a.Sent || a.Sent < 1000 {
			t.Errorf("of %d datagrams that are allowed %d were answered, %d in a row were not", a.Sent, a.Answered, a.Longest)
		}
	}
	if after > 1.5*before {
		t.Errorf("weftd had %.0f MB and has %.0f after as many changes again", before/1e6, after/1e6)
	}
}

var peerElement = regexp.MustCompile(`(10\.251\.0\.\d+) comment "[^"]*" : (0\.\d+\.\d+\.\d+)`)

// mayReach compares who may reach web by the kernel's own sets with who should.
func (s *story) mayReach(web *lab.Pod, want []bool) error {
	s.t.Helper()
	ids := map[string]string{}
	for _, m := range peerElement.FindAllStringSubmatch(s.out("node1", "nft list map ip weft_policy peers"), -1) {
		ids[m[1]] = m[2]
	}
	passes := s.out("node1", "nft list set ip weft_policy in_any") // own address and identity
	for i, hot := range want {
		id := ids[fmt.Sprintf("10.251.0.%d", i+1)]
		if got := id != "" && strings.Contains(passes, web.Address(4).String()+" . "+id+" "); got != hot {
			return fmt.Errorf("Pod churn-%d with the identity %q may reach web: %v, want %v", i, id, got, hot)
		}
	}
	return nil
}
