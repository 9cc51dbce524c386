package cluster

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"weft.network/weft/appliance/model"
)

func apiBalancer() *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "uid-web"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.10"},
	}
}

func wanted(ok bool, reason string, addrs ...string) LoadBalancerStatus {
	st := LoadBalancerStatus{
		Service: model.ServiceKey{Namespace: "shop", Name: "web"}, UID: "uid-web", Allocation: &model.Allocation{OK: ok, Reason: reason, Message: "why"},
	}
	for _, a := range addrs {
		st.Addresses = append(st.Addresses, netip.MustParseAddr(a))
	}
	return st
}

// TestWriteLoadBalancer: what is written is what a source reads again; the same again writes nothing; nil takes all of it back.
func TestWriteLoadBalancer(t *testing.T) {
	client := fake.NewClientset(apiBalancer())
	a := &Allocations{client: client}
	ctx := t.Context()
	updates := func() (n int) {
		for _, act := range client.Actions() {
			if act.Matches("update", "services") && act.GetSubresource() == "status" {
				n++
			}
		}
		return n
	}
	read := func() *model.Service {
		s, err := client.CoreV1().Services("shop").Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		out, bad := convertService(s)
		if len(bad) > 0 {
			t.Errorf("a source finds %v", bad)
		}
		return out
	}
	for i, want := range []LoadBalancerStatus{
		wanted(true, "Allocated", "192.0.2.1", "2001:db8::1"), wanted(false, "PoolExhausted"), wanted(true, "Allocated", "192.0.2.2"),
	} {
		for range 2 {
			if _, err := a.Write(ctx, want); err != nil {
				t.Fatal(err)
			}
		}
		if got := updates(); got != i+1 {
			t.Errorf("%d updates after %d changes", got, i+1)
		}
		got := read()
		if *got.Allocation != *want.Allocation || len(got.Ingress) != len(want.Addresses) {
			t.Errorf("got %+v and %+v, want %+v", got.Allocation, got.Ingress, want)
		}
		for j := range want.Addresses {
			if got.Ingress[j].IP != want.Addresses[j] || got.Ingress[j].Proxy {
				t.Errorf("got %+v, want %v", got.Ingress, want.Addresses)
			}
		}
	}
	given, err := a.Given(ctx)
	if err != nil || len(given) != 1 || given[0].UID != "uid-web" || len(given[0].Addresses) != 1 || given[0].Addresses[0].String() != "192.0.2.2" {
		t.Errorf("given %+v, %v", given, err)
	}
	back := wanted(false, "")
	back.Allocation = nil
	if _, err := a.Write(ctx, back); err != nil {
		t.Fatal(err)
	}
	if got := read(); got.Allocation != nil || len(got.Ingress) > 0 {
		t.Errorf("left behind %+v %+v", got.Allocation, got.Ingress)
	}
	if given, err := a.Given(ctx); err != nil || len(given) > 0 {
		t.Errorf("given %+v, %v", given, err)
	}
}

// TestWriteStale: a Service that is gone, another one, of another type or written by somebody else meanwhile is left alone.
func TestWriteStale(t *testing.T) {
	ctx := t.Context()
	for name, change := range map[string]func(*corev1.Service){
		"gone":         func(s *corev1.Service) { s.Name = "other" },
		"another":      func(s *corev1.Service) { s.UID = "uid-new" },
		"another type": func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP },
	} {
		s := apiBalancer()
		change(s)
		if _, err := (&Allocations{client: fake.NewClientset(s)}).Write(ctx, wanted(true, "Allocated", "192.0.2.1")); !errors.Is(err, ErrServiceChanged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	client := fake.NewClientset(apiBalancer())
	client.PrependReactor("update", "services", func(ktesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "services"}, "web", errors.New("written by somebody else"))
	})
	if _, err := (&Allocations{client: client}).Write(ctx, wanted(true, "Allocated", "192.0.2.1")); !errors.Is(err, ErrServiceChanged) {
		t.Errorf("conflict: %v", err)
	}
}

// TestLead: nobody is elected before there is a pool; then this node is, and stops when the source does. A refusal is told.
func TestLead(t *testing.T) {
	lock := func() *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: allocatorNamespace, Name: AllocatorLock}}
	}
	w, client := withFake(t, apiNode("a"), lock())
	holder := func() string {
		t.Helper()
		record, _, err := (&configMapLock{client: client.CoreV1().ConfigMaps(allocatorNamespace), name: AllocatorLock}).Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return record.HolderIdentity
	}
	k := w.source.(*Kubernetes)
	led := make(chan context.Context, 1)
	k.options.Allocate = func(ctx context.Context, a *Allocations) {
		led <- ctx
		<-ctx.Done()
	}
	stop := w.run()
	w.untilNodes("a")
	select {
	case <-led:
		t.Fatal("elected without a pool")
	case <-time.After(2 * leadLook):
	}
	k.objects.mu.Lock()
	k.objects.pools.put("edge", &model.LoadBalancerPool{Name: "edge"})
	k.objects.mu.Unlock()
	var ctx context.Context
	select {
	case ctx = <-led:
	case <-time.After(20 * time.Second):
		t.Fatal("nobody was elected")
	}
	if got := holder(); got != "a" {
		t.Errorf("held by %q", got)
	}
	stop()
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on after the source has stopped")
	}
	if got := holder(); got != "" {
		t.Errorf("%q does not let go", got)
	}

	w, _ = withFake(t, apiNode("a"), apiBalancer()) // without the ConfigMap, as before the manifest was applied
	k = w.source.(*Kubernetes)
	k.options.Allocate = func(context.Context, *Allocations) { t.Error("elected without the right to be") }
	w.run()
	w.untilNodes("a")
	k.objects.mu.Lock()
	k.objects.pools.put("edge", &model.LoadBalancerPool{Name: "edge"})
	k.objects.mu.Unlock()
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(strings.Join(k.Status().Problems, "\n"), "apply weft's RBAC manifest") {
		if time.Now().After(deadline) {
			t.Fatalf("problems %v", k.Status().Problems)
		}
		<-time.After(20 * time.Millisecond)
	}
}
