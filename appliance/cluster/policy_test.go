package cluster

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weft.network/weft/appliance/model"
)

func apiPolicy(name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
	}
}

func is(key string, values ...string) model.Requirement {
	return model.Requirement{Key: key, Op: model.OpIn, Values: values}
}

func TestConvertPolicy(t *testing.T) {
	type spec = networkingv1.NetworkPolicySpec
	type peer = networkingv1.NetworkPolicyPeer
	type port = networkingv1.NetworkPolicyPort
	from := func(peers ...peer) spec {
		return spec{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: peers}}}
	}
	ports := func(ports ...port) spec {
		return spec{Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: ports}}}
	}
	block := func(cidr string, except ...string) spec {
		return from(peer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}})
	}
	labels := func(key, value string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
	rules := func(rules ...model.PolicyRule) func(*model.NetworkPolicy) {
		return func(p *model.NetworkPolicy) { p.Ingress = rules }
	}
	none := model.PolicyRule{AnyPort: true}
	tests := []struct {
		name string
		spec spec
		want func(*model.NetworkPolicy)
		bad  []string
	}{
		{"default deny", spec{}, func(*model.NetworkPolicy) {}, nil},
		{"allow all", spec{Ingress: []networkingv1.NetworkPolicyIngressRule{{}}}, rules(model.PolicyRule{AnyPeer: true, AnyPort: true}), nil},
		{"egress rules isolate too", spec{Egress: []networkingv1.NetworkPolicyEgressRule{{}}}, func(p *model.NetworkPolicy) {
			p.IsolatesEgress, p.Egress = true, []model.PolicyRule{{AnyPeer: true, AnyPort: true}}
		}, nil},
		{"types count alone", spec{PolicyTypes: []networkingv1.PolicyType{"Egress"}}, func(p *model.NetworkPolicy) {
			p.IsolatesIngress, p.IsolatesEgress = false, true
		}, nil},
		{"unknown type", spec{PolicyTypes: []networkingv1.PolicyType{"Ingress", "Forward"}}, func(*model.NetworkPolicy) {}, []string{`spec.policyTypes[1]: "Forward" is not`}},
		{"selectors in one order", spec{PodSelector: metav1.LabelSelector{
			MatchLabels:      map[string]string{"b": "2", "a": "1"},
			MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "NotIn", Values: []string{"y", "x", "y"}}, {Key: "c", Operator: "Exists"}},
		}}, func(p *model.NetworkPolicy) {
			p.Pods = model.Selector{is("a", "1"), {Key: "a", Op: model.OpNotIn, Values: []string{"x", "y"}}, is("b", "2"), {Key: "c", Op: model.OpExists}}
		}, nil},
		{
			"a bad selector of Pods isolates all, and lets nothing in",
			spec{
				PodSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}},
				Ingress:     []networkingv1.NetworkPolicyIngressRule{{}},
			},
			func(*model.NetworkPolicy) {},
			[]string{`spec.podSelector.matchExpressions[0].operator: "Like" is not`},
		},
		{
			"a bad selector of peers is no peer", from(peer{PodSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "In"}}}}),
			rules(none),
			[]string{`spec.ingress[0].from[0].podSelector.matchExpressions[0].values: In needs at least one value`},
		},
		{
			"values where none belong", from(peer{NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Exists", Values: []string{"x"}}}}}),
			rules(none),
			[]string{`values: Exists takes no values`},
		},
		{
			"peers", from(peer{PodSelector: labels("a", "1")}, peer{NamespaceSelector: labels("n", "1")}, peer{PodSelector: labels("a", "1"), NamespaceSelector: &metav1.LabelSelector{}}),
			rules(model.PolicyRule{AnyPort: true, Peers: []model.PolicyPeer{
				{Pods: &model.Selector{is("a", "1")}},
				{Namespaces: &model.Selector{is("n", "1")}},
				{Pods: &model.Selector{is("a", "1")}, Namespaces: &model.Selector{}},
			}}), nil,
		},
		{"an empty peer", from(peer{}), rules(none), []string{`spec.ingress[0].from[0]: an empty peer`}},
		{"a block beside a selector", from(peer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8"}, PodSelector: labels("a", "1")}), rules(none), []string{`make two peers of it`}},
		{"blocks", block("10.1.2.3/8", "10.2.0.0/16", "10.1.0.0/16", "10.2.0.0/16"), rules(model.PolicyRule{AnyPort: true, Peers: []model.PolicyPeer{
			{Block: prefixes("10.0.0.0/8")[0], Except: prefixes("10.1.0.0/16", "10.2.0.0/16")},
		}}), nil},
		{"block that is none", block("10.0.0.0"), rules(none), []string{`spec.ingress[0].from[0].ipBlock.cidr: "10.0.0.0" is not a range`}},
		{"IPv4 in IPv6 form", block("::ffff:10.0.0.0/104"), rules(none), []string{`an IPv4 range in IPv6 form`}},
		{"exception that cannot be read", block("10.0.0.0/8", "10.0.0"), rules(none), []string{`ipBlock.except[0]: "10.0.0" is not a range`}},
		{
			"exception outside", block("10.0.0.0/8", "11.0.0.0/16", "fd00::/64"), rules(model.PolicyRule{AnyPort: true, Peers: []model.PolicyPeer{{Block: prefixes("10.0.0.0/8")[0]}}}),
			[]string{`except[0]: 11.0.0.0/16 lies not in the range 10.0.0.0/8`, `except[1]: fd00::/64 lies not in`},
		},
		{"exception around its range", block("10.1.0.0/16", "10.0.0.0/8"), rules(model.PolicyRule{AnyPort: true, Peers: []model.PolicyPeer{
			{Block: prefixes("10.1.0.0/16")[0], Except: prefixes("10.0.0.0/8")},
		}}), []string{`except[0]: 10.0.0.0/8 lies not in the range 10.1.0.0/16`}},
		{
			"ports", ports(port{}, port{Protocol: ptr(corev1.ProtocolSCTP)}, port{Port: ptr(intstr.FromInt32(80))},
				port{Port: ptr(intstr.FromInt32(80)), EndPort: ptr(int32(90))}, port{Port: ptr(intstr.FromString("http")), Protocol: ptr(corev1.ProtocolUDP)}),
			rules(model.PolicyRule{AnyPeer: true, Ports: []model.PolicyPort{
				{Protocol: model.TCP, Last: 65535},
				{Protocol: model.SCTP, Last: 65535},
				{Protocol: model.TCP, First: 80, Last: 80},
				{Protocol: model.TCP, First: 80, Last: 90},
				{Protocol: model.UDP, Name: "http"},
			}}), nil,
		},
		{"ports that cannot be used allow nothing", ports(
			port{Port: ptr(intstr.FromInt32(80)), EndPort: ptr(int32(79))}, port{Port: ptr(intstr.FromString("http")), EndPort: ptr(int32(90))},
			port{EndPort: ptr(int32(90))}, port{Port: ptr(intstr.FromInt32(0))}, port{Port: ptr(intstr.FromInt32(80)), EndPort: ptr(int32(70000))},
			port{Protocol: ptr(corev1.Protocol("ICMP"))}, port{Port: ptr(intstr.FromString(""))},
		), rules(model.PolicyRule{AnyPeer: true}), []string{
			"spec.ingress[0].ports[0].endPort: 79 is below port 80", `ports[1].endPort: port "http" is a name`, "ports[2].endPort: it needs port",
			"ports[3].port: 0 is not a port", "ports[4].endPort: 70000 is not a port", "ports[5].protocol: protocol \"ICMP\"", "ports[6].port: an empty name",
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := apiPolicy("p")
			in.Spec = test.spec
			want := &model.NetworkPolicy{Namespace: "default", Name: "p", Pods: model.Selector{}, IsolatesIngress: true}
			test.want(want)
			before := in.DeepCopy()
			got, bad := convertPolicy(in)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			compareErrors(t, bad, test.bad)
			if !reflect.DeepEqual(before, in) {
				t.Error("the object of the API has changed")
			}
		})
	}
}

func TestAuditAnnotation(t *testing.T) {
	for text, want := range map[string]struct{ audit, bad bool }{"true": {true, false}, "false": {}, "yes": {false, true}} {
		in := apiPolicy("p")
		in.Annotations = map[string]string{AuditAnnotation: text}
		got, bad := convertPolicy(in)
		if got.AuditOnly != want.audit || (len(bad) > 0) != want.bad {
			t.Errorf("%q: got %v, %v", text, got.AuditOnly, bad)
		}
	}
}

func TestNamedPorts(t *testing.T) {
	p := apiPod("web")
	p.Spec.Containers = []corev1.Container{
		{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}, {ContainerPort: 81}, {Name: "dns", Protocol: "UDP", ContainerPort: 53}}},
		{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 82}, {Name: "bad", ContainerPort: 70000}}},
	}
	always := corev1.ContainerRestartPolicyAlways
	p.Spec.InitContainers = []corev1.Container{
		{Ports: []corev1.ContainerPort{{Name: "once", ContainerPort: 1}}},
		{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 2}, {Name: "odd", Protocol: "X", ContainerPort: 3}}},
	}
	got, bad := convertPod(p)
	want := []model.NamedPort{{Name: "http", Protocol: model.TCP, Port: 80}, {Name: "dns", Protocol: model.UDP, Port: 53}, {Name: "side", Protocol: model.TCP, Port: 2}}
	if !reflect.DeepEqual(got.Ports, want) {
		t.Errorf("got %+v", got.Ports)
	}
	compareErrors(t, bad, []string{"spec.containers[1].ports[1].containerPort: 70000", "spec.initContainers[1].ports[1].protocol: "})
}

func TestKubernetesFollowsPolicies(t *testing.T) {
	far := apiPod("far")
	far.Spec.NodeName = "b"
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "x"}}}
	w, client := withFake(t, apiNode("a"), apiPod("web"), far, namespace, apiPolicy("deny"))
	w.run()
	first := w.untilNodes("a")
	key := model.PolicyKey{Namespace: "default", Name: "deny"}
	if len(first.Pods) != 2 || !first.Policies[key].IsolatesIngress {
		t.Fatalf("got %+v", first)
	}
	labels := map[string]string{"team": "x", "kubernetes.io/metadata.name": "shop"}
	if !reflect.DeepEqual(first.Namespaces["shop"], &model.Namespace{Name: "shop", Labels: labels}) {
		t.Errorf("got %+v", first.Namespaces["shop"])
	}
	ctx := t.Context()
	edited := namespace.DeepCopy()
	edited.Labels["team"] = "y"
	if _, err := client.CoreV1().Namespaces().Update(ctx, edited, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	second := w.until("the label", func(s *model.Snapshot) bool { return s.Namespaces["shop"].Labels["team"] == "y" })
	if second.Policies[key] != first.Policies[key] || mapOf(second.Pods) != mapOf(first.Pods) {
		t.Error("what did not change was copied")
	}
	if err := client.NetworkingV1().NetworkPolicies("default").Delete(ctx, "deny", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.CoreV1().Namespaces().Delete(ctx, "shop", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until("nothing", func(s *model.Snapshot) bool { return len(s.Policies) == 0 && len(s.Namespaces) == 0 })
}

func TestManifestsHavePolicies(t *testing.T) {
	dir := t.TempDir()
	text := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\n" +
		"spec:\n  podSelector: {}\n  ingress:\n  - ports:\n    - port: 80\n      endPort: 90\n"
	writeFile(t, filepath.Join(dir, "a.yaml"), text+"---\n"+podWeb+"---\n"+strings.Replace(named(podWeb, "web", "far"), "nodeName: a", "nodeName: b", 1))
	source, err := NewManifests(ManifestsOptions{Dir: dir, NodeName: "a", Policies: true})
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, source: source}
	w.run()
	s := w.until("the policy", func(s *model.Snapshot) bool { return s != nil && len(s.Policies) == 1 })
	if len(s.Pods) != 2 || len(s.Namespaces) != 1 || s.Policies[model.PolicyKey{Namespace: "shop", Name: "deny"}].Ingress[0].Ports[0].Last != 90 {
		t.Errorf("got %+v", s)
	}
	writeFile(t, filepath.Join(dir, "b.yaml"), strings.Replace(named(text, "shop", "other"), "endPort: 90", "endPort: 70", 1))
	w.until("the error", func(*model.Snapshot) bool {
		return strings.HasSuffix(w.source.Status().LastError, `b.yaml:13: NetworkPolicy "shop/deny": spec.ingress[0].ports[0].endPort: 70 is below port 80; write the smaller one first`)
	})
}
