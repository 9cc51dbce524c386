package netlab

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/lab"
)

// drops returns what a node recorded until now.
func (s *story) drops(node string) (out []appliance.Drop) {
	s.t.Helper()
	for dec := json.NewDecoder(strings.NewReader(s.out(node, "weft observe --drops --once -o json"))); dec.More(); {
		var d appliance.Drop
		s.no(dec.Decode(&d))
		out = append(out, d)
	}
	return out
}

// TestWhyPolicy: who asks why a connection fails gets the Pods, the policy and the reason: as a record, a metric, in words and from
// the trace, also without the daemon; and a policy that only audits drops nothing and records the same.
func TestWhyPolicy(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	here, there := s.labelled("node1", "web", "other"), s.labelled("node2", "far")
	web, other, far := here[0], here[1], there[0]
	audit := `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guard, namespace: default, annotations: {weft.network/audit-only: "%v"}}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: far}}}], ports: [{port: 8080}]}]}
`
	s.write("guard.yaml", fmt.Sprintf(audit, true))
	recorded := func(auditOnly bool) func() error {
		return func() error {
			err := s.talk(other, web, auditOnly)
			if err != nil {
				return err
			}
			for _, d := range s.drops("node1") {
				if d.Audit == auditOnly && d.Direction == "ingress" && d.Client == other.FullName() && d.Server == web.FullName() && d.Port == lab.HTTPPort &&
					slices.Equal(d.Policies, []string{"default/guard"}) && strings.Contains(d.Why, "isolated for ingress by default/guard") {
					return nil
				}
			}
			return fmt.Errorf("no record of %s to %s in %+v", other.Name, web.Name, s.drops("node1"))
		}
	}
	s.eventually("what the policy would drop is recorded", policyTime, recorded(true))
	s.write("guard.yaml", fmt.Sprintf(audit, false))
	s.eventually("what the policy drops is recorded", policyTime, recorded(false))
	s.no(s.talk(far, web, true))
	metrics := s.out("node1", "curl -s http://127.0.0.1:9465/metrics")
	if want := `weft_policy_drops_total{audit="false",direction="ingress",policy="default/guard"}`; !strings.Contains(metrics, want) {
		t.Errorf("no metric %s in %s", want, metrics)
	}

	for command, want := range map[string][]string{
		"weft policy list":            {"default/guard", "ingress+egress", "app=web"},
		"weft policy show web":        {"only this, by default/guard", "from Pods app=far in namespace default, TCP 8080 (default/guard, rule 0)", "nothing"},
		"weft policy show other":      {"from everybody: no policy isolates its ingress", "to everybody: no policy isolates its egress"},
		"weft policy show guard":      {"isolates ingress and egress of Pods app=web", "Pods of this node: default/web"},
		"weft observe --drops --once": {"dropped ingress: default/other -> default/web tcp/8080"},
	} {
		out := s.out("node1", command)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s does not say %q:\n%s", command, w, out)
			}
		}
	}

	ask := func(when string) {
		t.Helper()
		to := fmt.Sprintf("default/web:%d", lab.HTTPPort)
		for _, tc := range []struct {
			node, from string
			works      bool
			why        string
		}{
			{"node1", "default/other", false, "isolated for ingress by default/guard"},
			{"node1", "default/far", true, "rule 0 for ingress of policy default/guard allows it"},
			{"node2", "default/far", true, "rule 0 for ingress of policy default/guard allows it"},
		} {
			if when != "" && tc.node != "node1" {
				continue
			}
			a := s.trace(tc.node, tc.from, to)
			for _, p := range a.Paths {
				if p.Works != tc.works || !strings.Contains(p.Policy, tc.why) || !a.Agrees {
					t.Errorf("%s: on %s from %s: works %v, %q, policy %q, differences %q", when, tc.node, tc.from, p.Works, p.Verdict, p.Policy, a.Differences)
				}
			}
		}
		if a := s.trace("node1", "default/web", fmt.Sprintf("default/other:%d", lab.HTTPPort)); a.Paths[0].Works || !strings.Contains(a.Paths[0].Policy, "isolated for egress") {
			t.Errorf("%s: %+v", when, a.Paths[0])
		}
	}
	s.eventually("node2 has read the policy, too", policyTime, func() error {
		a, err := s.tryTrace("node2", "default/far", fmt.Sprintf("default/web:%d", lab.HTTPPort))
		if err == nil && !strings.Contains(a.Paths[0].Policy, "default/guard") {
			err = fmt.Errorf("policy %q", a.Paths[0].Policy)
		}
		return err
	})
	ask("")
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGTERM))
	ask("without the daemon")
	for command, want := range map[string]string{
		"weft policy list": "default/guard", "weft policy show web": "from Pods app=far in namespace default, TCP 8080 (default/guard, rule 0)",
		"weft policy show guard": "Pods of this node: default/web",
	} {
		if out := s.out("node1", command); !strings.Contains(out, want) || !strings.Contains(out, "this is from the store, since weftd does not run") {
			t.Errorf("%s without the daemon: %s", command, out)
		}
	}

	// Somebody opens the kernel by hand while nobody watches: the trace says so.
	s.out("node1", "nft delete element ip weft_policy in_isolated { "+web.Address(4).String()+" }")
	a := s.trace("node1", "default/other", fmt.Sprintf("default/web:%d", lab.HTTPPort))
	if a.Agrees || !slices.ContainsFunc(a.Differences, func(d string) bool { return strings.Contains(d, "in the kernel the connection") }) {
		t.Errorf("the kernel is open, and the trace says %+v", a.Differences)
	}
	s.no(s.StartDaemon(s.ctx, "node1"))
	s.no(s.WaitReady(s.ctx, "node1"))
	s.eventually("the daemon closes it again", repairTime, func() error { return s.talk(other, web, false) })
}
