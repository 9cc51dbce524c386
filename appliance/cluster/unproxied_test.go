package cluster

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Both labels tell service proxies to keep out, on a Service and on a slice, whatever their value.
func TestLabelsThatKeepProxiesOut(t *testing.T) {
	for label, proxy := range map[string]string{"": "", corev1.IsHeadlessService: "headless", otherProxyLabel: "unnamed"} {
		meta := metav1.ObjectMeta{Name: "web", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}
		if label != "" {
			meta.Labels[label] = ""
		}
		svc, _ := convertService(&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}})
		slice, _ := convertSlice(&discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4})
		if svc.OtherProxy != proxy || slice.Unproxied != (label != "") {
			t.Errorf("label %q: Service %q, slice %t", label, svc.OtherProxy, slice.Unproxied)
		}
	}
}
