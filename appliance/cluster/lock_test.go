package cluster

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

func TestConfigMapLock(t *testing.T) {
	ctx := t.Context()
	maps := fake.NewClientset().CoreV1().ConfigMaps(allocatorNamespace)
	a := &configMapLock{client: maps, name: AllocatorLock, identity: "a"}
	if _, _, err := a.Get(ctx); !apierrors.IsNotFound(err) {
		t.Fatalf("without the ConfigMap: %v", err)
	}
	if err := a.Create(ctx, resourcelock.LeaderElectionRecord{}); err == nil || !strings.Contains(err.Error(), "RBAC manifest") {
		t.Errorf("making it: %v", err)
	}
	made := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: AllocatorLock, Annotations: map[string]string{"kept": "yes"}}}
	if _, err := maps.Create(ctx, made, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if r, _, err := a.Get(ctx); err != nil || r.HolderIdentity != "" {
		t.Fatalf("held by %+v, %v before anybody did", r, err)
	}
	if err := a.Update(ctx, resourcelock.LeaderElectionRecord{HolderIdentity: "a", LeaseDurationSeconds: 20}); err != nil {
		t.Fatal(err)
	}
	b := &configMapLock{client: maps, name: AllocatorLock, identity: "b"}
	if err := b.Update(ctx, resourcelock.LeaderElectionRecord{HolderIdentity: "b"}); err == nil {
		t.Error("b took it without looking")
	}
	if r, _, err := b.Get(ctx); err != nil || r.HolderIdentity != "a" || r.LeaseDurationSeconds != 20 {
		t.Errorf("b reads %+v, %v", r, err)
	}
	if b.seen.Annotations["kept"] != "yes" {
		t.Error("what others wrote is gone")
	}
	b.seen.Data[lockRecord] = "{"
	if _, err := maps.Update(ctx, b.seen, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Get(ctx); err == nil || !strings.Contains(err.Error(), "weft-load-balancer") {
		t.Errorf("a damaged record: %v", err)
	}
}
