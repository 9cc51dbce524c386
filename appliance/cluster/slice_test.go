package cluster

import (
	"encoding/json"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.network/weft/appliance/model"
)

func TestConvertSlice(t *testing.T) {
	tests := []struct {
		name string
		edit func(*discoveryv1.EndpointSlice)
		want func(*model.EndpointSlice) // nil: ignored
		bad  []string
	}{
		{"empty", func(*discoveryv1.EndpointSlice) {}, func(*model.EndpointSlice) {}, nil},
		{"of no Service", func(s *discoveryv1.EndpointSlice) { s.Labels = nil }, nil, nil},
		{"names", func(s *discoveryv1.EndpointSlice) { s.AddressType = "FQDN" }, nil, nil},
		{"unknown family", func(s *discoveryv1.EndpointSlice) { s.AddressType = "IPv5" }, nil, []string{`addressType: "IPv5" is not IPv4 or IPv6`}},
		{"defaults", func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.1.0.2"}}}
			s.Ports = []discoveryv1.EndpointPort{{}}
		}, func(s *model.EndpointSlice) {
			s.Endpoints = []model.Endpoint{{Addresses: addrs("10.1.0.2"), Ready: true, Serving: true}}
			s.Ports = []model.EndpointPort{{Protocol: model.TCP}}
		}, nil},
		{"everything", func(s *discoveryv1.EndpointSlice) {
			s.AddressType = "IPv6"
			s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: "2023-11-14T22:13:20.000000007Z"}
			s.Ports = []discoveryv1.EndpointPort{{Name: ptr("dns"), Protocol: ptr(corev1.ProtocolUDP), Port: ptr(int32(53))}}
			s.Endpoints = []discoveryv1.Endpoint{{
				Addresses:  []string{"fd00::2", "fd00::3"},
				Conditions: discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(false), Terminating: ptr(true)},
				Hostname:   ptr("web-0"), NodeName: ptr("a"), Zone: ptr("z1"),
				Hints:     &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "z1"}, {Name: "z2"}}, ForNodes: []discoveryv1.ForNode{{Name: "a"}}},
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "web-0", UID: "7"},
			}}
		}, func(s *model.EndpointSlice) {
			s.IPv6, s.Triggered = true, 1_700_000_000_000_000_007
			s.Ports = []model.EndpointPort{{Name: "dns", Protocol: model.UDP, Port: 53}}
			s.Endpoints = []model.Endpoint{{
				Addresses: addrs("fd00::2", "fd00::3"), Terminating: true, Hostname: "web-0", Node: "a", Zone: "z1",
				ForZones: []string{"z1", "z2"}, ForNodes: []string{"a"}, Pod: model.PodRef{Namespace: "shop", Name: "web-0", UID: "7"},
			}}
		}, nil},
		{"targets", func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = []discoveryv1.Endpoint{
				{Addresses: []string{"10.1.0.2"}, TargetRef: &corev1.ObjectReference{Kind: "Node", Name: "a"}},
				{Addresses: []string{"10.1.0.3"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "x"}},
			}
		}, func(s *model.EndpointSlice) {
			s.Endpoints = []model.Endpoint{
				{Addresses: addrs("10.1.0.2"), Ready: true, Serving: true},
				{Addresses: addrs("10.1.0.3"), Ready: true, Serving: true, Pod: model.PodRef{Namespace: "shop", Name: "x"}},
			}
		}, nil},
		{"bad ones", func(s *discoveryv1.EndpointSlice) {
			s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: "yesterday"}
			s.Ports = []discoveryv1.EndpointPort{
				{Name: ptr("a"), Port: ptr(int32(0))}, {Name: ptr("b"), Protocol: ptr(corev1.Protocol("ICMP"))}, {Name: ptr("c"), Port: ptr(int32(65535))},
			}
			s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"x", "10.1.0.2"}}, {Addresses: []string{"fd00::1"}}, {Addresses: []string{"127.0.0.1"}}, {}}
		}, func(s *model.EndpointSlice) {
			s.Ports = []model.EndpointPort{{Name: "c", Protocol: model.TCP, Port: 65535}}
			s.Endpoints = []model.Endpoint{{Addresses: addrs("10.1.0.2"), Ready: true, Serving: true}}
		}, []string{
			"ports[0].port: 0 is not a port", `ports[1].protocol: protocol "ICMP" is not`,
			`metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]: "yesterday" is not a time`, `endpoints[0].addresses[0]: "x" is not`,
			"endpoints[1].addresses[0]: fd00::1 does not belong into a slice with addressType IPv4", "endpoints[2].addresses[0]: 127.0.0.1 is a loopback",
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := &discoveryv1.EndpointSlice{
				ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
				AddressType: "IPv4",
			}
			test.edit(in)
			before := in.DeepCopy()
			var want *model.EndpointSlice
			if test.want != nil {
				want = &model.EndpointSlice{Namespace: "shop", Name: "web-1", Service: "web"}
				test.want(want)
			}
			got, bad := convertSlice(in)
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

func FuzzConvertSlice(f *testing.F) {
	for _, seed := range []string{
		`{"metadata":{"labels":{"kubernetes.io/service-name":"a"}},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"]}],"ports":[{"port":80}]}`,
		`{"metadata":{"labels":{"kubernetes.io/service-name":"a"}},"addressType":"IPv6","endpoints":[{"addresses":["::ffff:1.2.3.4"],"hints":{}}],"ports":[{}]}`,
		`{"addressType":"FQDN"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var in discoveryv1.EndpointSlice
		if json.Unmarshal(text, &in) != nil {
			return
		}
		out, _ := convertSlice(&in)
		if out == nil {
			return
		}
		if out.Service == "" {
			t.Error("a slice without a Service")
		}
		for _, e := range out.Endpoints {
			usable(t, e.Addresses...)
			if len(e.Addresses) == 0 || e.Addresses[0].Is6() != out.IPv6 {
				t.Errorf("endpoint %+v", e)
			}
		}
		for _, p := range out.Ports {
			if p.Protocol == 0 {
				t.Errorf("half a port: %+v", p)
			}
		}
	})
}
