package cluster

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"weft.network/weft/appliance/model"
)

type noDynamic struct{ dynamic.Interface }

func (noDynamic) Resource(schema.GroupVersionResource) dynamic.NamespaceableResourceInterface {
	return nil
}

// TestKindIsAbsent: a cluster without weft's definitions has no such objects, and that is known at once. A kind that had objects
// and is "not found" for a moment, or while nothing else is found either, keeps them: its peers and addresses are in use.
func TestKindIsAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		<-time.After(time.Hour) // the clock of the test begins far from zero
		stored := &model.Snapshot{Pools: map[string]*model.LoadBalancerPool{"lan": {Name: "lan"}}}
		k, err := NewKubernetes(KubernetesOptions{NodeName: "a", Pools: true, Stored: stored})
		if err != nil {
			t.Fatal(err)
		}
		pools := k.customKinds(noDynamic{})[0]
		gone := func() {
			t.Helper()
			if err := pools.absent(true); err != nil {
				t.Fatal(err)
			}
		}
		if gone(); !k.synced[pools.name] || len(k.objects.pools.items) != 1 {
			t.Fatal("the first answer took the stored pool away, or is none")
		}
		pool := customExample("LoadBalancerPool")
		pool.SetName("lan")
		pool.Object["spec"] = map[string]any{"addresses": []any{"192.0.2.0/28"}}
		if err := pools.into.Replace([]any{pool}, ""); err != nil {
			t.Fatal(err)
		}
		has := func() bool { return len(k.objects.pools.items) == 1 }
		if !has() {
			t.Fatal("no pool", k.Status().Problems)
		}
		<-time.After(time.Hour)
		if gone(); !has() {
			t.Error("one answer took the pool away")
		}
		<-time.After(absentBelieved)
		if gone(); !has() {
			t.Error("the pool is gone while the cluster is not heard at all")
		}
		for _, kind := range []string{kindNodes, kindPods, kindNamespaces} {
			k.listed(kind)
		}
		if gone(); has() {
			t.Error("somebody deleted the definition, and its objects stay")
		}
	})
}

// TestUnknownKindOfWeft: other people's kinds are skipped, a slip in one of weft's own is not, and a role that is off is no slip.
func TestUnknownKindOfWeft(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"apiVersion: weft.network/v1alpha1\nkind: BGPPear\n", "f.yaml:2: kind: BGPPear: unknown kind; weft knows BGPPeer, LoadBalancerPool"},
		{"kind: BGPPeer\napiVersion: weft.network/v1\n", "f.yaml:2: apiVersion: weft.network/v1: unknown version; write weft.network/v1alpha1"},
		{"apiVersion: weft.network/v1alpha1\nkind: LoadBalancerPool\n", ""},
		{"apiVersion: example.com/v1\nkind: BGPPear\n", ""},
		{"apiVersion: apps/v1\nkind: Deployment\n", ""},
	} {
		objects, err := parseFile("f.yaml", []byte(tc.text), readers(ManifestsOptions{}))
		if tc.want == "" && (err != nil || len(objects) > 0) {
			t.Errorf("%q: %v, %v; want nothing", tc.text, objects, err)
		}
		if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%q: %v; want %q", tc.text, err, tc.want)
		}
	}
}
