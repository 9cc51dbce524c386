package cluster

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.network/weft/appliance/model"
)

const poolEdge = `apiVersion: weft.network/v1alpha1
kind: LoadBalancerPool
metadata:
  name: edge
  creationTimestamp: "2026-01-02T03:04:05Z"
spec:
  addresses: [192.0.2.0/28, 192.0.2.100-192.0.2.110, 192.0.2.200, "2001:db8::/120"]
  autoAssign: false
  avoidBuggyIPs: true
  priority: 5
  serviceSelector: {matchLabels: {tier: vip}}
  nodeSelector: {matchExpressions: [{key: zone, operator: In, values: [b, a]}]}
  l2: {interfaces: [eth0, "bond*"]}
`

func TestPoolInFiles(t *testing.T) {
	objects, err := parseFile("f.yaml", []byte(poolEdge), readers(ManifestsOptions{Pools: true}))
	if err != nil || len(objects) != 1 {
		t.Fatal(objects, err)
	}
	a := netip.MustParseAddr
	want := &model.LoadBalancerPool{
		Name: "edge", Created: 1767323045, OnRequest: true, AvoidEdges: true, Priority: 5, Interfaces: []string{"eth0", "bond*"},
		Blocks: []model.AddressBlock{
			{First: a("192.0.2.0"), Last: a("192.0.2.15")},
			{First: a("192.0.2.100"), Last: a("192.0.2.110")},
			{First: a("192.0.2.200"), Last: a("192.0.2.200")},
			{First: a("2001:db8::"), Last: a("2001:db8::ff")},
		},
		Services: &model.Selector{{Key: "tier", Op: model.OpIn, Values: []string{"vip"}}},
		Nodes:    &model.Selector{{Key: "zone", Op: model.OpIn, Values: []string{"a", "b"}}},
	}
	if !reflect.DeepEqual(objects[0].value, want) {
		t.Errorf("got  %+v\nwant %+v", objects[0].value, want)
	}
	if objects, err := parseFile("f.yaml", []byte(poolEdge), readers(ManifestsOptions{})); err != nil || len(objects) > 0 {
		t.Errorf("a node without the role reads pools: %v %v", objects, err)
	}
}

// TestPoolsNeedNamespaces: a pool's namespaceSelector is about their labels, so a node without policies knows them, too.
func TestPoolsNeedNamespaces(t *testing.T) {
	ca := newAuthority(t)
	api := newAPIServer()
	api.put(pathNodes, "a", apiNode("a"))
	api.put(pathSpaces, "shop", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "x"}}})
	server := serve(t, api, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))
	k, err := NewKubernetes(KubernetesOptions{NodeName: "a", Pools: true, Kubeconfig: kubeconfig(t, "", "https://"+hostport(server), ca.pem)})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "all.yaml"), nodeA+"---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: x}}\n")
	m, err := NewManifests(ManifestsOptions{Dir: dir, NodeName: "a", Pools: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range []Source{k, m} {
		w := &watcher{t: t, source: source}
		w.run()
		if s := w.untilNodes("a"); s.Namespaces["shop"] == nil || s.Namespaces["shop"].Labels["team"] != "x" {
			t.Errorf("%T: namespaces %v", source, s.Namespaces)
		}
	}
	if slices.ContainsFunc(api.seen(), func(r string) bool {
		return strings.HasPrefix(r, pathPolicies) || strings.HasPrefix(r, pathPods) && !strings.Contains(r, "fieldSelector=spec.nodeName%3Da")
	}) {
		t.Errorf("what only policies need was read: %q", api.seen())
	}
}

// TestEveryPod: who asks for them knows the Pods of all nodes without policies.
func TestEveryPod(t *testing.T) {
	ca := newAuthority(t)
	api := newAPIServer()
	api.put(pathNodes, "a", apiNode("a"))
	server := serve(t, api, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))
	k, err := NewKubernetes(KubernetesOptions{NodeName: "a", EveryPod: true, Kubeconfig: kubeconfig(t, "", "https://"+hostport(server), ca.pem)})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "all.yaml"), nodeA+"---\n"+strings.Replace(podWeb, "nodeName: a", "nodeName: b", 1))
	m, err := NewManifests(ManifestsOptions{Dir: dir, NodeName: "a", EveryPod: true})
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, source: k}
	w.run()
	w.untilNodes("a")
	if slices.ContainsFunc(api.seen(), func(r string) bool {
		return strings.HasPrefix(r, pathPods) && strings.Contains(r, "fieldSelector") || strings.HasPrefix(r, pathSpaces)
	}) {
		t.Errorf("got %q", api.seen())
	}
	w = &watcher{t: t, source: m}
	w.run()
	if s := w.untilNodes("a"); len(s.Pods) != 1 {
		t.Errorf("Pods %v", s.Pods)
	}
}

// TestBadPool: every mistake names file, line, object, field and what to write.
func TestBadPool(t *testing.T) {
	with := func(old, now string) string { return strings.Replace(poolEdge, old, now, 1) }
	for _, tc := range []struct{ text, want string }{
		{with("192.0.2.0/28", "192.0.2.300/28"), `f.yaml:7: LoadBalancerPool "edge": spec.addresses[0]: "192.0.2.300/28" is not a range`},
		{with("192.0.2.0/28", "192.0.2.1/28"), `f.yaml:7: LoadBalancerPool "edge": spec.addresses[0]: 192.0.2.1/28 has host bits set: write 192.0.2.0/28, or a range such as 192.0.2.1-192.0.2.15`},
		{with("100-192.0.2.110", "110-192.0.2.100"), `f.yaml:7: LoadBalancerPool "edge": spec.addresses[1]: the range ends before it begins: write 192.0.2.100-192.0.2.110`},
		{with("100-192.0.2.110", "100-2001:db8::1"), `f.yaml:7: LoadBalancerPool "edge": spec.addresses[1]: 192.0.2.100 and 2001:db8::1 are of two families`},
		{with("192.0.2.200", "192.0.2.105"), `f.yaml:7: LoadBalancerPool "edge": spec.addresses[2]: 192.0.2.105 overlaps 192.0.2.100-192.0.2.110`},
		{with("192.0.2.200", "router"), `f.yaml:7: LoadBalancerPool "edge": spec.addresses[2]: "router" is not a range of addresses such as`},
		{with("192.0.2.200", "224.0.0.1"), `f.yaml:7: LoadBalancerPool "edge": spec.addresses[2]: 224.0.0.1 is a loopback, link-local, multicast`},
		{with("192.0.2.200", "127.0.0.0/30"), `f.yaml:7: LoadBalancerPool "edge": spec.addresses[2]: 127.0.0.0 is a loopback`},
		{with(`addresses: [192.0.2.0/28, 192.0.2.100-192.0.2.110, 192.0.2.200, "2001:db8::/120"]`, "addresses: []"), `f.yaml:7: LoadBalancerPool "edge": spec.addresses: no addresses`},
		{with("autoAssign: false", "nodeAddresses: true"), `f.yaml:8: LoadBalancerPool "edge": spec.nodeAddresses: give either`},
		{with("operator: In", "operator: Is"), `f.yaml:12: LoadBalancerPool "edge": spec.nodeSelector.matchExpressions[0].operator: "Is" is not`},
		{with(`"bond*"`, `"[x"`), `f.yaml:13: LoadBalancerPool "edge": spec.l2.interfaces[1]: "[x" is not the name`},
		{with("priority: 5", "prio: 5"), `f.yaml:10: LoadBalancerPool "edge": spec.prio: unknown field (kubectl explain loadbalancerpools.spec shows all)`},
		{with("priority: 5", "priority: high"), `f.yaml:10: LoadBalancerPool "edge": spec.priority: got a string, want a number`},
	} {
		_, err := parseFile("f.yaml", []byte(tc.text), readers(ManifestsOptions{Pools: true}))
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("got  %v\nwant %s", err, tc.want)
		}
	}
}
