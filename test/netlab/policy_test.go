package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// policyTime is how long a change of a policy may take until it is in force here.
const policyTime = 5 * time.Second

// policy writes a NetworkPolicy in the namespace default, as the API server would hold it; an empty spec removes it.
func (s *story) policy(name, spec string) {
	s.t.Helper()
	if spec == "" {
		spec = "# gone\n"
	} else {
		spec = fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: default}\nspec: %s\n", name, spec)
	}
	s.write("policy-"+name+".yaml", spec)
}

// labelled starts Pods with a label app, which is their name.
func (s *story) labelled(node string, names ...string) []*lab.Pod {
	s.t.Helper()
	var specs []lab.PodSpec
	for _, n := range names {
		specs = append(specs, lab.PodSpec{Name: n, Labels: map[string]string{"app": n}})
	}
	return s.runSpecs(node, specs...)
}

// talk is one request by HTTP to each address of a Pod, which all must fare alike.
func (s *story) talk(from, to *lab.Pod, works bool) error {
	for _, a := range to.Addresses {
		limit := s.limit
		if !works {
			limit = 300 * time.Millisecond
		}
		_, err := s.Output(s.ctx, from.FullName(), "weft", lab.PodCommand, "get", "--timeout", limit.String(), fmt.Sprintf("http://%s/", netip.AddrPortFrom(a, lab.HTTPPort)))
		if (err == nil) != works {
			return fmt.Errorf("from %s to %s (%s): %s, want success %v", from.Name, to.Name, a, fmt.Sprint(err), works)
		}
	}
	return nil
}

// isolated waits until the kernel of their nodes isolates the ingress of Pods: that a request is not answered may have another reason.
func (s *story) isolated(pods ...*lab.Pod) {
	s.t.Helper()
	for _, p := range pods {
		s.eventually("a policy isolates "+p.Name, policyTime, func() error {
			for _, a := range p.Addresses {
				out, err := s.Output(s.ctx, p.Node, "nft", "list", "set", map[bool]string{true: "ip", false: "ip6"}[a.Is4()], "weft_policy", "in_isolated")
				if err != nil {
					return err
				}
				if !slices.Contains(strings.FieldsFunc(out, func(r rune) bool { return strings.ContainsRune(" ,\t\n", r) }), a.String()) {
					return fmt.Errorf("%s is not in %s", a, out)
				}
			}
			return nil
		})
	}
}

// TestDefaultDenyThenAllow is the hands-on story: everybody talks; a policy denies all; one more lets the front end in, by label,
// from both nodes; a running connection ends when it is not allowed any more; and the policies hold without the daemon.
func TestDefaultDenyThenAllow(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	here := s.labelled("node1", "web", "front", "other")
	there := s.labelled("node2", "front2", "db")
	web, front, other, front2, db := here[0], here[1], here[2], there[0], there[1]
	for _, p := range []*lab.Pod{front, other, front2, db} {
		s.no(s.talk(p, web, true))
	}

	s.policy("default-deny", "{podSelector: {}, policyTypes: [Ingress]}")
	s.isolated(web, db)
	s.eventually("everything is denied", policyTime, func() error {
		return errors.Join(s.talk(front, web, false), s.talk(front2, web, false), s.talk(web, db, false))
	})
	s.no(s.talk(web, web, true))
	if _, err := s.get("node1", web.Address(4), lab.HTTPPort); err != nil {
		t.Errorf("a node does not reach its own Pod: %v", err)
	}

	s.policy("allow-front", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [front, front2]}]}}], ports: [{port: 8080}]}]}`)
	s.eventually("the front ends reach the web", policyTime, func() error {
		return errors.Join(s.talk(front, web, true), s.talk(front2, web, true))
	})
	s.no(errors.Join(s.talk(other, web, false), s.talk(db, web, false)))
	if s.refused(func() error { _, err := s.udp(front.FullName(), web.Address(4), lab.EchoPort); return err }) == nil {
		t.Error("another port and protocol are open, too")
	}

	// A Pod that comes with the right label is let in.
	late := s.runSpecs("node2", lab.PodSpec{Name: "late", Labels: map[string]string{"app": "front"}})[0]
	s.eventually("a new front end reaches the web", policyTime, func() error { return s.talk(late, web, true) })

	// Policies are the kernel's: the daemon is not needed, and a restart changes nothing.
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGKILL))
	s.no(errors.Join(s.talk(front2, web, true), s.talk(other, web, false), s.talk(db, web, false)))
	s.no(s.StartDaemon(s.ctx, "node1"))
	s.no(s.WaitReady(s.ctx, "node1"))
	s.no(errors.Join(s.talk(front2, web, true), s.talk(other, web, false)))

	// Somebody flushes the ruleset.
	s.out("node1", "nft flush ruleset")
	took := s.eventually("the policies are back", repairTime, func() error {
		return errors.Join(s.talk(other, web, false), s.talk(front2, web, true))
	})
	t.Logf("after nft flush ruleset all is as before in %v", took)

	// What leaves: egress of the web to the database only.
	s.policy("web-egress", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}")
	s.policy("default-deny", "")
	s.policy("allow-front", "")
	s.eventually("the web reaches the database alone", policyTime, func() error {
		return errors.Join(s.talk(web, db, true), s.talk(web, front2, false), s.talk(web, other, false), s.talk(other, web, true))
	})
	s.policy("web-egress", "")
	s.eventually("without policies everybody talks", policyTime, func() error {
		return errors.Join(s.talk(web, front2, true), s.talk(web, other, true))
	})
	s.eventually("without policies their tables go", policyTime, func() error {
		if out := s.out("node1", "nft list tables"); strings.Contains(out, "weft_policy") {
			return errors.New(out)
		}
		return nil
	})
}

// TestPolicyAndDNS: the node's own DNS counts as Pods k8s-app=kube-dns in kube-system: a default-deny for egress stops queries, is
// pointed out, and the usual rule lets them through, with and without TCP, at every address.
func TestPolicyAndDNS(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1})
	web := s.labelled("node1", "web")[0]
	s.serve(web)
	asks := func(works bool) func() error {
		return func() error {
			for _, server := range []string{lab.ClusterDNS, localDNS, lab.ClusterDNS6} {
				for _, more := range [][]string{nil, {"--tcp"}} {
					if !works {
						more = append([]string{"--timeout", "500ms"}, more...)
					}
					a, err := s.lookup(web.FullName(), server, "A", "web.default.svc.cluster.local", more...)
					if (err == nil && len(a.Data) == 1) != works {
						return fmt.Errorf("%s %v: %v %s, want success %v", server, more, a, fmt.Sprint(err), works)
					}
				}
			}
			return nil
		}
	}
	s.eventually("the DNS answers", 10*time.Second, asks(true))
	s.policy("default-deny", "{podSelector: {}, policyTypes: [Egress]}")
	s.eventually("queries are denied", policyTime, asks(false))
	if _, err := s.lookup("node1", lab.ClusterDNS, "A", "web.default.svc.cluster.local"); err != nil {
		t.Errorf("the node itself gets no answer: %v", err)
	}
	for _, command := range []string{"weft status", "weft policy show web"} {
		s.eventually(command+" says that the policy blocks the DNS", policyTime, func() error {
			out, err := s.Output(s.ctx, "node1", strings.Fields(command)...)
			if !strings.Contains(out, "k8s-app=kube-dns in kube-system") {
				return fmt.Errorf("%s, %w", out, err)
			}
			return nil
		})
	}
	s.policy("dns", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: dns-tcp}]}]}`)
	s.eventually("the usual rule lets queries through", policyTime, asks(true))
	s.eventually("weft status says that no policy blocks the DNS", policyTime, func() error {
		if out := s.out("node1", "weft status"); strings.Contains(out, "k8s-app=kube-dns") {
			return errors.New(out)
		}
		return nil
	})
}
