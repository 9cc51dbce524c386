package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"weft.network/weft/appliance/model"
)

// dnsSource is a source that has heard everything of a cluster with these Services.
func dnsSource(t *testing.T, services ...*model.Service) *Kubernetes {
	t.Helper()
	k, err := NewKubernetes(KubernetesOptions{NodeName: "a", Services: true, DNS: &DNSOptions{Create: true, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}})
	if err != nil {
		t.Fatal(err)
	}
	for name := range k.synced {
		k.synced[name] = true
	}
	for _, s := range services {
		k.objects.services.put(s.Key(), s)
	}
	return k
}

// TestDNSServiceIsMade lets the source make the Service where there is none.
func TestDNSServiceIsMade(t *testing.T) {
	k := dnsSource(t)
	client := fake.NewClientset()
	ctx, cancel := context.WithCancel(t.Context())
	made := make(chan *corev1.Service, 1)
	client.PrependReactor("create", "services", func(a clienttesting.Action) (bool, runtime.Object, error) {
		made <- a.(clienttesting.CreateAction).GetObject().(*corev1.Service)
		cancel()
		return false, nil, nil
	})
	k.ensureDNSService(ctx, client)
	s := <-made
	if s.Namespace != "kube-system" || s.Name != "kube-dns" || s.Labels["k8s-app"] != "kube-dns" || s.Spec.ClusterIP != "10.96.0.10" || len(s.Spec.Selector) != 0 {
		t.Errorf("made %+v", s)
	}
	var ports []string
	for _, p := range s.Spec.Ports {
		ports = append(ports, fmt.Sprintf("%s %d/%s", p.Name, p.Port, p.Protocol))
	}
	if got := strings.Join(ports, ", "); got != "dns 53/UDP, dns-tcp 53/TCP, metrics 9153/TCP" {
		t.Errorf("ports %s", got)
	}
}

// TestDNSServiceAddress takes the tenth address of the range when nothing else is known.
func TestDNSServiceAddress(t *testing.T) {
	for first, want := range map[string]string{"10.43.0.1": "10.43.0.10", "fd00:96::1": "fd00:96::a"} {
		k := dnsSource(t, &model.Service{Namespace: "default", Name: "kubernetes", ClusterIPs: []netip.Addr{netip.MustParseAddr(first)}})
		k.options.DNS.Addresses = nil
		if got := k.dnsAddresses(); len(got) != 1 || got[0].String() != want {
			t.Errorf("beside %s: %v, want %s", first, got, want)
		}
	}
}

// TestDNSServiceIsAdopted leaves a Service alone that somebody else has made, under its name or with its label.
func TestDNSServiceIsAdopted(t *testing.T) {
	for _, s := range []*model.Service{
		{Namespace: "kube-system", Name: "kube-dns"},
		{Namespace: "kube-system", Name: "rke2-coredns", Labels: map[string]string{"k8s-app": "kube-dns"}},
	} {
		if k := dnsSource(t, s); !k.hasDNSService() {
			t.Errorf("%s is not seen", s.Key())
		}
	}
	if k := dnsSource(t, &model.Service{Namespace: "default", Name: "kube-dns"}); k.hasDNSService() {
		t.Error("a Service of another namespace is taken for it")
	}
}

// TestDNSServiceRefused says what to do when the server says no.
func TestDNSServiceRefused(t *testing.T) {
	k := dnsSource(t)
	client := fake.NewClientset()
	ctx, cancel := context.WithCancel(t.Context())
	client.PrependReactor("create", "services", func(clienttesting.Action) (bool, runtime.Object, error) {
		go func() { // once the problem is noted
			for len(k.objects.allProblems()) == 0 && ctx.Err() == nil {
				pause(ctx, dnsLook/100)
			}
			cancel()
		}()
		return true, nil, apierrors.NewForbidden(corev1.Resource("services"), "kube-dns", nil)
	})
	k.ensureDNSService(ctx, client)
	problems := strings.Join(k.objects.allProblems(), "\n")
	if !strings.Contains(problems, "kube-dns") || !strings.Contains(problems, "RBAC") {
		t.Errorf("problems %q", problems)
	}
}

// TestConvertConfigMap takes the one ConfigMap that is read.
func TestConvertConfigMap(t *testing.T) {
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns-custom"}, Data: map[string]string{"a.server": "x"}}
	got, bad := convertConfigMap(c)
	if len(bad) > 0 || got == nil || got.Data["a.server"] != "x" {
		t.Errorf("%+v %v", got, bad)
	}
	c.Name = "coredns"
	if got, _ := convertConfigMap(c); got != nil {
		t.Errorf("another ConfigMap is taken: %+v", got)
	}
}
