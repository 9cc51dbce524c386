package appliance

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/control"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/reconcile"
)

// newPolicies makes the part of the loop that enforces NetworkPolicies.
func (d *Daemon) newPolicies() *reconcile.Policies {
	var seed [4]byte
	_, _ = rand.Read(seed[:]) // never fails
	return &reconcile.Policies{
		Attached: d.attacher.Guarded, CutFlows: d.cfg.Policy.CutFlows,
		// A number that no flow of an earlier life of this node still carries: flows outlive the tables.
		Seed: binary.NativeEndian.Uint32(seed[:]),
	}
}

// Guard puts the policies of every attachment in force, also of those that are being made.
func (d *Daemon) Guard(ctx context.Context) error { return d.loop.SyncPolicies(ctx) }

// Freed sweeps what policies said of addresses that are free, a little later and for many at once.
func (d *Daemon) Freed() { d.loop.SweepPolicies() }

// judge answers questions from the policies as they are now.
func (d *Daemon) judge() *policy.Judge {
	return newJudge(d.snapshot(), d.loop.Status().Policies.Input, d.cfg.NodeName)
}

func newJudge(snap *model.Snapshot, in policy.Input, node string) *policy.Judge {
	if snap == nil {
		snap = &model.Snapshot{}
	}
	in.NodeName = node
	j := &policy.Judge{Snapshot: snap, Input: in}
	if n := snap.Node(node); n != nil {
		j.NodeAddresses = n.Addresses
	}
	return j
}

// NetworkPolicy is one policy in words.
type NetworkPolicy struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Isolates are the directions for which it counts.
	Isolates []string `json:"isolates"`
	// Pods is the selector, Here are the Pods of this node that it selects.
	Pods      string   `json:"pods"`
	Here      []string `json:"here"`
	AuditOnly bool     `json:"auditOnly,omitempty"`
	Ingress   []string `json:"ingress,omitempty"`
	Egress    []string `json:"egress,omitempty"`
	Problems  []string `json:"problems,omitempty"`
}

// PolicyReport is the answer to GET /v1/policies.
type PolicyReport struct {
	// Picture says from what it was made, when that was not a running weftd.
	Picture  string          `json:"picture,omitempty"`
	Policies []NetworkPolicy `json:"policies"`
	// Pods are those of this node that some policy isolates, Open the others.
	Pods []IsolatedPod `json:"pods"`
	Open []IsolatedPod `json:"open"`
	// Generation is the mark of flows that were judged; Inherited says that the cluster was not heard since the start.
	Generation string   `json:"generation,omitempty"`
	Inherited  bool     `json:"inherited,omitempty"`
	Warnings   []string `json:"warnings,omitempty"`
}

// IsolatedPod is a Pod of this node, and what may pass in each direction.
type IsolatedPod struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Addresses []netip.Addr      `json:"addresses"`
	Ingress   *IsolatedInWords  `json:"ingress,omitempty"`
	Egress    *IsolatedInWords  `json:"egress,omitempty"`
	Warnings  []string          `json:"warnings,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// IsolatedInWords is what may pass in one direction.
type IsolatedInWords struct {
	Policies  []string `json:"policies"`
	AuditOnly bool     `json:"auditOnly,omitempty"`
	// Allowed are the rules, each with its policy and number.
	Allowed []string `json:"allowed"`
}

func (d *Daemon) servePolicies(w http.ResponseWriter, _ *http.Request) {
	control.WriteJSON(w, d.PolicyReport())
}

// PolicyReport says what applies on this node.
func (d *Daemon) PolicyReport() PolicyReport { return policyReport(d.snapshot(), d.loop) }

// ReadPolicies asks the daemon of this node or, when it does not run, answers from its store. It changes nothing.
func ReadPolicies(ctx context.Context, cfg config.Config) (out PolicyReport, err error) {
	if err = control.NewClient(cfg.RunDir).Get(ctx, "/v1/policies", &out); !errors.Is(err, control.ErrNoDaemon) {
		return out, err
	}
	t, closing, err := traceStore(ctx, cfg)
	if err != nil {
		return out, err
	}
	defer closing()
	out = policyReport(t.snapshot, t.loop)
	out.Picture, out.Generation = t.picture, "" // that of the kernel is not known
	return out, nil
}

func policyReport(snap *model.Snapshot, loop *reconcile.Loop) PolicyReport {
	st := loop.Status().Policies
	out := PolicyReport{Policies: []NetworkPolicy{}, Pods: []IsolatedPod{}, Open: []IsolatedPod{}, Inherited: st.Inherited}
	if loop.Policies == nil {
		out.Warnings = append(out.Warnings, "role policy is off on this node: no NetworkPolicy is enforced by weft here")
		return out
	}
	if st.Filters == nil || snap == nil {
		return out
	}
	out.Generation = fmt.Sprintf("0x%08x", st.Generation)
	here := map[model.PolicyKey][]string{}
	pods := map[model.PodRef]*IsolatedPod{}
	for _, addr := range slices.SortedFunc(maps.Keys(st.Filters.Own), netip.Addr.Compare) {
		describe(snap, st.Filters.Own[addr], pods, here)
	}
	for _, ref := range st.Filters.WithoutDNS(policy.DNSServers(snap, st.Input)) {
		text := "its egress is isolated and no rule lets it reach the cluster DNS: allow UDP and TCP 53 to Pods k8s-app=kube-dns in kube-system"
		pods[ref].Warnings = append(pods[ref].Warnings, text)
	}
	for _, p := range pods {
		out.Pods = append(out.Pods, *p)
	}
	for _, at := range st.Input.Attached {
		if _, isolated := pods[at.Pod]; !isolated {
			out.Open = append(out.Open, IsolatedPod{Namespace: at.Pod.Namespace, Name: at.Pod.Name, Addresses: at.Addresses})
		}
	}
	for _, list := range [][]IsolatedPod{out.Pods, out.Open} {
		slices.SortFunc(list, func(a, b IsolatedPod) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	}
	problems := map[model.PolicyKey][]string{}
	for _, p := range st.Filters.Problems {
		if p.Policy.Name == "" {
			out.Warnings = append(out.Warnings, p.Text)
		}
		problems[p.Policy] = append(problems[p.Policy], p.Text)
	}
	for _, key := range slices.SortedFunc(maps.Keys(snap.Policies), model.PolicyKey.Compare) {
		np := policyInWords(snap.Policies[key], here[key])
		np.Problems = problems[key]
		out.Policies = append(out.Policies, np)
	}
	return out
}

// describe adds what one address may exchange; the addresses of a Pod differ in nothing that is said here.
func describe(snap *model.Snapshot, f *policy.Filter, pods map[model.PodRef]*IsolatedPod, here map[model.PolicyKey][]string) {
	p := pods[f.Pod]
	if p != nil {
		p.Addresses = append(p.Addresses, f.Addr)
		return
	}
	p = &IsolatedPod{Namespace: f.Pod.Namespace, Name: f.Pod.Name, Addresses: []netip.Addr{f.Addr}}
	pods[f.Pod] = p
	known := snap.Pod(f.Pod.Key())
	if known != nil {
		p.Labels = known.Labels
	} else {
		p.Warnings = append(p.Warnings, "the cluster has not told of its labels yet, so that nothing is allowed")
	}
	for d, allowed := range f.Directions {
		if allowed == nil {
			continue
		}
		words := &IsolatedInWords{AuditOnly: allowed.Audit, Allowed: []string{}}
		for _, key := range allowed.Policies {
			words.Policies = append(words.Policies, key.String())
			if known != nil && !slices.Contains(here[key], f.Pod.String()) {
				here[key] = append(here[key], f.Pod.String())
			}
			np := snap.Policies[key]
			if np == nil || known == nil {
				continue
			}
			for i, text := range rulesInWords(np, policy.Direction(d)) {
				words.Allowed = append(words.Allowed, fmt.Sprintf("%s (%s, rule %d)", text, key, i))
			}
		}
		if policy.Direction(d) == policy.Ingress {
			p.Ingress = words
		} else {
			p.Egress = words
		}
	}
}

func policyInWords(np *model.NetworkPolicy, here []string) NetworkPolicy {
	out := NetworkPolicy{
		Namespace: np.Namespace, Name: np.Name, Pods: np.Pods.String(), Here: here, AuditOnly: np.AuditOnly, Isolates: []string{},
		Ingress: rulesInWords(np, policy.Ingress), Egress: rulesInWords(np, policy.Egress),
	}
	if np.IsolatesIngress {
		out.Isolates = append(out.Isolates, policy.Ingress.String())
	}
	if np.IsolatesEgress {
		out.Isolates = append(out.Isolates, policy.Egress.String())
	}
	return out
}

// rulesInWords are the rules for a direction; none where the policy does not count for it.
func rulesInWords(np *model.NetworkPolicy, d policy.Direction) (out []string) {
	rules, counts := np.Ingress, np.IsolatesIngress
	if d == policy.Egress {
		rules, counts = np.Egress, np.IsolatesEgress
	}
	if counts {
		for i := range rules {
			out = append(out, policy.RuleText(np.Namespace, d, &rules[i]))
		}
	}
	return out
}

// policyWarnings are what the status screen says of policies.
func (d *Daemon) policyWarnings() (out []string) {
	st := d.loop.Status().Policies
	if st.Filters == nil {
		return nil
	}
	if pods := st.Filters.WithoutDNS(policy.DNSServers(d.snapshot(), st.Input)); len(pods) > 0 {
		out = append(out, fmt.Sprintf("policies keep %d Pods of this node from the cluster DNS, the first %s: allow UDP and TCP 53 to Pods k8s-app=kube-dns in kube-system (weft policy show %s)",
			len(pods), pods[0], pods[0]))
	}
	if st.Inherited {
		out = append(out, "policies are as the daemon before this one left them, until the cluster is heard")
	}
	return out
}
