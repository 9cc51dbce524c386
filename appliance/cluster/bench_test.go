package cluster

import (
	"fmt"
	"net/netip"
	goruntime "runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"weft.network/weft/appliance/model"
)

const (
	manyServices  = 10_000
	manyEndpoints = 3 // of each Service
)

// largeService has what the API server gives, with much that is not kept.
func largeService(i int) *corev1.Service {
	ip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()
	name := fmt.Sprintf("service-%05d", i)
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprintf("team-%d", i%50), Name: name, UID: types.UID(fmt.Sprintf("5a0e3b7c-0000-4000-8000-%012d", i)),
			Labels:            map[string]string{"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "shop"},
			Annotations:       map[string]string{"kubectl.kubernetes.io/last-applied-configuration": fmt.Sprintf("%0600d", i)},
			CreationTimestamp: metav1.Unix(1_700_000_000+int64(i), 0),
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

func largeSlice(i int) *discoveryv1.EndpointSlice {
	name, http, port, yes, no, zone := fmt.Sprintf("service-%05d", i), "http", int32(8080), true, false, "zone-1"
	namespace := fmt.Sprintf("team-%d", i%50)
	out := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name + "-x7k2p", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &http, Port: &port}},
	}
	for n := range manyEndpoints {
		node := fmt.Sprintf("node-%03d", (i+n)%200)
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{netip.AddrFrom4([4]byte{10, byte(100 + n), byte(i >> 8), byte(i)}).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			NodeName:   &node, Zone: &zone,
			TargetRef: &corev1.ObjectReference{
				Kind: "Pod", Namespace: namespace, Name: fmt.Sprintf("%s-6d4cf56db6-%05d", name, n),
				UID: types.UID(fmt.Sprintf("5a0e3b7c-0000-4000-9000-%06d%06d", i, n)),
			},
		})
	}
	return out
}

// largeList returns what a list of the API server holds, decoded from protobuf, so that no two objects share a string.
func largeList(b *testing.B) (services []corev1.Service, endpoints []discoveryv1.EndpointSlice) {
	b.Helper()
	services, endpoints = make([]corev1.Service, manyServices), make([]discoveryv1.EndpointSlice, manyServices)
	for i := range manyServices {
		text, err := largeService(i).Marshal()
		if err == nil {
			err = services[i].Unmarshal(text)
		}
		if err == nil {
			text, err = largeSlice(i).Marshal()
		}
		if err == nil {
			err = endpoints[i].Unmarshal(text)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	return services, endpoints
}

// feeds are the stores of the two reflectors.
func feeds(k *Kubernetes) (services, endpoints interface {
	Add(any) error
	Replace([]any, string) error
},
) {
	list := k.serviceKinds(fake.NewClientset())
	return list[0].into, list[1].into
}

func pointers[T any](list []T) []any {
	out := make([]any, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	return out
}

func heap() float64 {
	goruntime.GC()
	goruntime.GC()
	var m goruntime.MemStats
	goruntime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// BenchmarkServices has 10,000 Services with a slice of three endpoints each.
func BenchmarkServices(b *testing.B) {
	newSource := func() *Kubernetes {
		k, err := NewKubernetes(KubernetesOptions{NodeName: "a", Services: true})
		if err != nil {
			b.Fatal(err)
		}
		return k
	}
	fill := func(k *Kubernetes, services []corev1.Service, slices []discoveryv1.EndpointSlice) *model.Snapshot {
		s, e := feeds(k)
		if err := s.Replace(pointers(services), ""); err != nil {
			b.Fatal(err)
		}
		if err := e.Replace(pointers(slices), ""); err != nil {
			b.Fatal(err)
		}
		return k.objects.snapshot()
	}
	services, slices := largeList(b)
	b.Run("list to Snapshot", func(b *testing.B) {
		for b.Loop() {
			fill(newSource(), services, slices)
		}
	})
	k := newSource()
	first := fill(k, services, slices)
	b.Run("the same list again", func(b *testing.B) {
		for b.Loop() {
			if fill(k, services, slices) != nil {
				b.Fatal("a Snapshot without a change")
			}
		}
	})
	b.Run("one slice changes", func(b *testing.B) {
		_, e := feeds(k)
		n := 0
		for b.Loop() {
			n++
			port := int32(1 + n%60000)
			slices[n%manyServices].Ports[0].Port = &port
			if err := e.Add(&slices[n%manyServices]); err != nil {
				b.Fatal(err)
			}
			if k.objects.snapshot() == nil {
				b.Fatal("no Snapshot")
			}
		}
	})
	goruntime.KeepAlive(first)
	b.Run("heap", func(b *testing.B) {
		var used float64
		for b.Loop() {
			before := heap()
			services, slices := largeList(b)
			snap := fill(newSource(), services, slices)
			used = heap() - before
			goruntime.KeepAlive(snap)
		}
		b.ReportMetric(used, "MiB")
	})
}
