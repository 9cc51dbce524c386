package cluster

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.network/weft/appliance/model"
)

func ptr[T any](v T) *T { return &v }

// serviceCase turns one change of a Service of the API into one of the model.
type serviceCase struct {
	name string
	edit func(*corev1.Service)
	want func(*model.Service)
	bad  []string
}

func runServiceCases(t *testing.T, tests []serviceCase) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "1"},
				Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"}},
			}
			want := &model.Service{Namespace: "shop", Name: "web", UID: "1", Type: "ClusterIP", ClusterIPs: addrs("10.96.0.10")}
			test.edit(in)
			test.want(want)
			before := in.DeepCopy()
			got, bad := convertService(in)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			compareErrors(t, bad, test.bad)
			for key := range got.Labels {
				got.Labels[key] = "changed"
			}
			if !reflect.DeepEqual(before, in) {
				t.Error("the object of the API has changed")
			}
		})
	}
}

func TestConvertService(t *testing.T) {
	runServiceCases(t, []serviceCase{
		{"nothing but an address", func(*corev1.Service) {}, func(*model.Service) {}, nil},
		{"what is kept of the metadata", func(s *corev1.Service) {
			s.CreationTimestamp = metav1.Unix(1_700_000_000, 5)
			s.Labels = map[string]string{"app": "web"}
			s.Annotations = map[string]string{
				"weft.network/pool": "a", "other": "x",
				"service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8", // without meaning for this type
			}
		}, func(s *model.Service) {
			s.Created, s.Labels = 1_700_000_000, map[string]string{"app": "web"}
			s.Annotations = map[string]string{"weft.network/pool": "a", "service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8"}
		}, nil},
		{"somebody else's", func(s *corev1.Service) { s.Labels = map[string]string{otherProxyLabel: "mesh"} }, func(s *model.Service) {
			s.Labels, s.OtherProxy = map[string]string{otherProxyLabel: "mesh"}, "mesh"
		}, nil},
		{"somebody's without a name", func(s *corev1.Service) { s.Labels = map[string]string{otherProxyLabel: ""} }, func(s *model.Service) {
			s.Labels, s.OtherProxy = map[string]string{otherProxyLabel: ""}, "unnamed"
		}, nil},

		{"both families", func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"fd00::a", "10.96.0.10"} }, func(s *model.Service) {
			s.ClusterIPs = addrs("fd00::a", "10.96.0.10")
		}, nil},
		{"old field alone", func(s *corev1.Service) { s.Spec.ClusterIPs = nil }, func(*model.Service) {}, nil},
		{
			"old field alone, bad", func(s *corev1.Service) { s.Spec.ClusterIPs, s.Spec.ClusterIP = nil, "x" }, func(s *model.Service) { s.ClusterIPs = nil },
			[]string{`spec.clusterIP: "x" is not an IPv4 or IPv6 address`},
		},
		{"none yet", func(s *corev1.Service) { s.Spec.ClusterIPs, s.Spec.ClusterIP = nil, "" }, func(s *model.Service) { s.ClusterIPs = nil }, nil},
		{"empty one", func(s *corev1.Service) { s.Spec.ClusterIPs = []string{""} }, func(s *model.Service) { s.ClusterIPs = nil }, nil},
		{"headless", func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"None"} }, func(s *model.Service) { s.ClusterIPs, s.Headless = nil, true }, nil},
		{"headless by the old field", func(s *corev1.Service) { s.Spec.ClusterIPs, s.Spec.ClusterIP = nil, "None" }, func(s *model.Service) {
			s.ClusterIPs, s.Headless = nil, true
		}, nil},
		{"bad addresses", func(s *corev1.Service) {
			s.Spec.ClusterIPs = []string{"010.96.0.1", "10.96.0.10", "10.96.0.11", "224.0.0.1"}
		}, func(*model.Service) {}, []string{
			"spec.clusterIPs[0]: ", "spec.clusterIPs[2]: 10.96.0.11 is the second address of its family after 10.96.0.10", "spec.clusterIPs[3]: 224.0.0.1 is a loopback",
		}},
		{"ExternalName", func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalName = "ExternalName", "db.example.com." }, func(s *model.Service) {
			s.Type, s.ExternalName, s.ClusterIPs = "ExternalName", "db.example.com.", nil
		}, nil},
		{"bad ExternalName", func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalName = "ExternalName", "a b" }, func(s *model.Service) {
			s.Type, s.ClusterIPs = "ExternalName", nil
		}, []string{`spec.externalName: "a b" is not`}},
		{"unknown type", func(s *corev1.Service) { s.Spec.Type = "Ingress" }, func(*model.Service) {}, []string{`spec.type: "Ingress" is not`}},
		{"externalIPs", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.1", "::1", "2001:db8::1", "192.0.2.1"} }, func(s *model.Service) {
			s.ExternalIPs = addrs("192.0.2.1", "2001:db8::1")
		}, []string{"spec.externalIPs[1]: ::1 is a loopback"}},
		{"not ready ones too", func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }, func(s *model.Service) { s.PublishNotReady = true }, nil},
	})
}

func TestConvertServicePorts(t *testing.T) {
	list := []corev1.ServicePort{
		{Name: "http", Port: 80, NodePort: 30080, AppProtocol: ptr("kubernetes.io/h2c")},
		{Name: "dns", Protocol: "UDP", Port: 53},
		{Name: "sctp", Protocol: "SCTP", Port: 80},
	}
	want := []model.ServicePort{
		{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080, AppProtocol: "kubernetes.io/h2c"},
		{Name: "dns", Protocol: model.UDP, Port: 53},
		{Name: "sctp", Protocol: model.SCTP, Port: 80},
	}
	runServiceCases(t, []serviceCase{
		{"NodePort", func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports = "NodePort", list }, func(s *model.Service) { s.Type, s.Ports = "NodePort", want }, nil},
		{"LoadBalancer", func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports = "LoadBalancer", list }, func(s *model.Service) {
			s.Type, s.Ports = "LoadBalancer", want
		}, nil},
		{"a node port has no meaning here", func(s *corev1.Service) { s.Spec.Ports = list }, func(s *model.Service) {
			s.Ports = slices.Clone(want)
			s.Ports[0].NodePort = 0
		}, nil},
		{"bad ones", func(s *corev1.Service) {
			s.Spec.Type = "NodePort"
			s.Spec.Ports = []corev1.ServicePort{
				{Name: "a"},
				{Name: "b", Port: 65536},
				{Name: "c", Port: 1, Protocol: "ICMP"},
				{Name: "d", Port: 2, NodePort: -1},
				{Name: "e", Port: 2},
				{Name: "d", Port: 3},
				{Name: "f", Port: 65535, NodePort: 30000},
				{Name: "g", Port: 4, NodePort: 30000},
				{Name: "h", Port: 4, NodePort: 30000, Protocol: "UDP"},
			}
		}, func(s *model.Service) {
			s.Type = "NodePort"
			s.Ports = []model.ServicePort{
				{Name: "d", Protocol: model.TCP, Port: 2},
				{Name: "f", Protocol: model.TCP, Port: 65535, NodePort: 30000},
				{Name: "g", Protocol: model.TCP, Port: 4},
				{Name: "h", Protocol: model.UDP, Port: 4, NodePort: 30000},
			}
		}, []string{
			"spec.ports[0].port: 0 is not a port", "spec.ports[1].port: 65536 is not", `spec.ports[2].protocol: protocol "ICMP" is not`,
			"spec.ports[3].nodePort: -1 is not", "spec.ports[4].port: tcp port 2 is there already", `spec.ports[5].name: another port is named "d" too`,
			"spec.ports[7].nodePort: another port has tcp node port 30000 already",
		}},
	})
}

func TestConvertServicePolicies(t *testing.T) {
	timeout := func(seconds int32) *corev1.SessionAffinityConfig {
		return &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	runServiceCases(t, []serviceCase{
		{"Cluster", func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy, s.Spec.InternalTrafficPolicy = "Cluster", ptr(corev1.ServiceInternalTrafficPolicyCluster)
			s.Spec.SessionAffinity, s.Spec.TrafficDistribution = "None", ptr("")
		}, func(*model.Service) {}, nil},
		{"Local", func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy, s.Spec.InternalTrafficPolicy = "Local", ptr(corev1.ServiceInternalTrafficPolicyLocal)
		}, func(s *model.Service) { s.ExternalLocal, s.InternalLocal = true, true }, nil},
		{"near", func(s *corev1.Service) { s.Spec.TrafficDistribution = ptr("PreferClose") }, func(s *model.Service) { s.TrafficDistribution = "PreferClose" }, nil},
		{"zone", func(s *corev1.Service) { s.Spec.TrafficDistribution = ptr("PreferSameZone") }, func(s *model.Service) { s.TrafficDistribution = "PreferSameZone" }, nil},
		{"node", func(s *corev1.Service) { s.Spec.TrafficDistribution = ptr("PreferSameNode") }, func(s *model.Service) { s.TrafficDistribution = "PreferSameNode" }, nil},
		{"affinity", func(s *corev1.Service) { s.Spec.SessionAffinity = "ClientIP" }, func(s *model.Service) { s.AffinityTimeout = 10800 }, nil},
		{"affinity without a time", func(s *corev1.Service) {
			s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = "ClientIP", &corev1.SessionAffinityConfig{}
		}, func(s *model.Service) { s.AffinityTimeout = 10800 }, nil},
		{"affinity with a time", func(s *corev1.Service) {
			s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = "ClientIP", timeout(86400)
		}, func(s *model.Service) {
			s.AffinityTimeout = 86400
		}, nil},
		{"affinity with a bad time", func(s *corev1.Service) {
			s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = "ClientIP", timeout(86401)
		}, func(s *model.Service) {
			s.AffinityTimeout = 10800
		}, []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not a number of seconds from 1 to 86400"}},
		{"a time without affinity", func(s *corev1.Service) { s.Spec.SessionAffinityConfig = timeout(0) }, func(*model.Service) {}, nil},
		{"bad ones", func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy, s.Spec.InternalTrafficPolicy = "local", ptr(corev1.ServiceInternalTrafficPolicy("Node"))
			s.Spec.SessionAffinity, s.Spec.TrafficDistribution = "Cookie", ptr("Random")
		}, func(*model.Service) {}, []string{
			`spec.externalTrafficPolicy: "local" is not`, `spec.internalTrafficPolicy: "Node" is not`, `spec.trafficDistribution: "Random" is not`,
			`spec.sessionAffinity: "Cookie" is not`,
		}},
	})
}

func TestConvertLoadBalancer(t *testing.T) {
	ofType := func(edit func(*corev1.Service)) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.Type = "LoadBalancer"; edit(s) }
	}
	want := func(edit func(*model.Service)) func(*model.Service) {
		return func(s *model.Service) { s.Type = "LoadBalancer"; edit(s) }
	}
	ranges := func(texts ...string) func(*model.Service) {
		return want(func(s *model.Service) { s.SourceRanges = prefixes(texts...) })
	}
	annotation := func(text string) func(*corev1.Service) {
		return ofType(func(s *corev1.Service) {
			s.Annotations = map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: text}
		})
	}
	annotated := func(text string, edit func(*model.Service)) func(*model.Service) {
		return func(s *model.Service) {
			edit(s)
			s.Annotations = map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: text}
		}
	}
	everything := func(s *corev1.Service) {
		s.Spec.LoadBalancerClass, s.Spec.LoadBalancerIP = ptr("weft.network/bgp"), "192.0.2.7"
		s.Spec.HealthCheckNodePort = 31000
		s.Spec.LoadBalancerSourceRanges = []string{"10.0.0.1/8", " 2001:db8::/32 "}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
			{IP: "192.0.2.7", IPMode: ptr(corev1.LoadBalancerIPModeVIP)}, {Hostname: "lb.example.com"}, {IP: "2001:db8::7", IPMode: ptr(corev1.LoadBalancerIPModeProxy)},
		}
	}
	kept := want(func(s *model.Service) {
		s.LoadBalancerClass, s.LoadBalancerIP, s.SourceRanges = "weft.network/bgp", "192.0.2.7", prefixes("10.0.0.0/8", "2001:db8::/32")
		s.Ingress = []model.ServiceIngress{{IP: netip.MustParseAddr("192.0.2.7")}, {IP: netip.MustParseAddr("2001:db8::7"), Proxy: true}}
		s.IngressName = "lb.example.com"
	})
	runServiceCases(t, []serviceCase{
		{"everything", ofType(everything), kept, nil},
		{"everything, Local", ofType(func(s *corev1.Service) { everything(s); s.Spec.ExternalTrafficPolicy = "Local" }), func(s *model.Service) {
			kept(s)
			s.ExternalLocal, s.HealthCheckNodePort = true, 31000
		}, nil},
		{"of another type", everything, func(*model.Service) {}, nil},
		{"annotation", annotation(" 10.0.0.0/8, 192.0.2.0/24 "), annotated(" 10.0.0.0/8, 192.0.2.0/24 ", ranges("10.0.0.0/8", "192.0.2.0/24")), nil},
		{"empty annotation", annotation(" "), annotated(" ", ranges()), nil},
		{"the field counts more", func(s *corev1.Service) {
			annotation("x")(s)
			s.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/8"}
		}, annotated("x", ranges("10.0.0.0/8")), nil},
		{
			"a bad range does not open the door", ofType(func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/33"} }), ranges("0.0.0.0/32", "::/128"),
			[]string{`spec.loadBalancerSourceRanges[0]: "10.0.0.0/33" is not a range`},
		},
		{"nor beside a good one", ofType(func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/8", "::ffff:10.0.0.0/104"}
		}), ranges("10.0.0.0/8", "::/128"), []string{"spec.loadBalancerSourceRanges[1]: an IPv4 range in IPv6 form"}},
		{"nor in the annotation", annotation("10.0.0.0/8,,"), annotated("10.0.0.0/8,,", ranges("10.0.0.0/8", "::/128")), []string{
			`metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: "" is not a range`, `""`,
		}},
		{"other bad ones", ofType(func(s *corev1.Service) {
			s.Spec.LoadBalancerIP, s.Spec.HealthCheckNodePort, s.Spec.ExternalTrafficPolicy = "any", 70000, "Local"
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "0.0.0.0"}, {IP: "192.0.2.7", IPMode: ptr(corev1.LoadBalancerIPMode("DSR"))}}
		}), want(func(s *model.Service) {
			s.ExternalLocal, s.Ingress = true, []model.ServiceIngress{{IP: netip.MustParseAddr("192.0.2.7")}}
			s.LoadBalancerIP = "any" // kept for the allocator, which tells the user of the Service
		}), []string{
			`spec.loadBalancerIP: "any" is not`, "spec.healthCheckNodePort: 70000 is not", "status.loadBalancer.ingress[0].ip: 0.0.0.0 is",
			`status.loadBalancer.ingress[1].ipMode: "DSR" is not VIP or Proxy`,
		}},
	})
}

// usable fails for an address that nobody could reach.
func usable(t *testing.T, list ...netip.Addr) {
	t.Helper()
	for _, a := range list {
		if !a.IsValid() || a.Zone() != "" || checkUnicast(a) != nil {
			t.Errorf("%v is not an address that others can reach", a)
		}
	}
}

func FuzzConvertService(f *testing.F) {
	f.Add([]byte(`{"spec":{"type":"LoadBalancer","clusterIPs":["10.96.0.1","fd00::1"],"ports":[{"port":80,"nodePort":30000}]}}`))
	f.Add([]byte(`{"spec":{"clusterIP":"None","externalIPs":["::ffff:1.2.3.4"],"sessionAffinity":"ClientIP"}}`))
	f.Add([]byte(`{"spec":{"type":"LoadBalancer","loadBalancerSourceRanges":["x"]},"status":{"loadBalancer":{"ingress":[{"ip":"::"}]}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var in corev1.Service
		if json.Unmarshal(text, &in) != nil {
			return
		}
		out, bad := convertService(&in)
		usable(t, out.ClusterIPs...)
		usable(t, out.ExternalIPs...)
		for _, i := range out.Ingress {
			usable(t, i.IP)
		}
		if len(out.ClusterIPs) > 2 || len(out.ClusterIPs) > 0 && (out.Headless || out.Type == "ExternalName") {
			t.Errorf("virtual addresses %v of %+v", out.ClusterIPs, in.Spec)
		}
		for _, p := range out.Ports {
			if p.Port == 0 || p.Protocol == 0 {
				t.Errorf("half a port: %+v", p)
			}
		}
		for _, p := range out.SourceRanges {
			if !p.IsValid() || p != p.Masked() {
				t.Errorf("range %v", p)
			}
		}
		if len(in.Spec.LoadBalancerSourceRanges) > 0 && out.Type == "LoadBalancer" && len(out.SourceRanges) == 0 {
			t.Error("open to everybody in spite of the ranges")
		}
		stored, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		var back model.Service
		if err := json.Unmarshal(stored, &back); err != nil {
			t.Errorf("the store cannot read %s: %v (problems %v)", stored, err, bad)
		}
	})
}
