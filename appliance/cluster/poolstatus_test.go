package cluster

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	ktesting "k8s.io/client-go/testing"
)

func apiPool(name string, addresses ...any) *unstructured.Unstructured {
	u := customExample("LoadBalancerPool")
	u.SetName(name)
	u.Object["spec"] = map[string]any{"addresses": addresses}
	return u
}

// TestWritePools: each pool shows its numbers and what is wrong with it, also one that cannot be read; what is the same is not written
// again, and the time of a condition is that of its last change.
func TestWritePools(t *testing.T) {
	kinds := map[schema.GroupVersionResource]string{customResource("loadbalancerpools"): "LoadBalancerPoolList"}
	client := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds,
		apiPool("edge", "192.0.2.0/30"), apiPool("late", "192.0.2.2"), apiPool("bad", "192.0.2.300"), apiPool("new", "203.0.113.0/30"))
	a := &Allocations{pools: poolClient(client)}
	ctx := t.Context()
	updates := func() (n int) {
		for _, act := range client.Actions() {
			if act.Matches("update", "loadbalancerpools") && act.GetSubresource() == "status" {
				n++
			}
		}
		return n
	}
	show := func(name string) string {
		u, err := a.pools.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var st poolStatus
		if raw, ok := u.Object["status"].(map[string]any); !ok {
			return "nothing"
		} else if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw, &st); err != nil {
			t.Fatal(err)
		}
		out := fmt.Sprintf("%d of %d", st.Used, st.Total)
		for _, c := range st.Conditions {
			out += fmt.Sprintf(" | %s %s %s: %s", c.Type, c.Status, c.Reason, c.Message)
		}
		return out
	}
	edge := PoolStatus{Name: "edge", Total: 4, Used: 1}
	late := PoolStatus{Name: "late", Total: 1, Refused: true, Problem: "its 192.0.2.2 overlaps 192.0.2.0-192.0.2.3 of pool edge"}
	for range 2 {
		if err := a.WritePools(ctx, []PoolStatus{edge, late}); err != nil {
			t.Fatal(err)
		}
	}
	if got := updates(); got != 3 {
		t.Errorf("%d updates for three pools", got)
	}
	for name, want := range map[string]string{
		"edge": "1 of 4 | Ready True Usable: addresses are given out | Exhausted False AddressesFree: there are addresses for more Services",
		"late": "0 of 0 | Ready False Refused: its 192.0.2.2 overlaps 192.0.2.0-192.0.2.3 of pool edge | Exhausted False NotCounted: the pool is not used",
		"bad":  `0 of 0 | Ready False InvalidSpec: spec.addresses[0]: "192.0.2.300" is not a range of addresses such as 192.0.2.0/28, 192.0.2.10-192.0.2.20 or 2001:db8::/120 | Exhausted False NotCounted: the pool is not used`,
		"new":  "nothing",
	} {
		if got := show(name); got != want {
			t.Errorf("pool %s shows\n%s, want\n%s", name, got, want)
		}
	}
	edge.Used, edge.Full, edge.Problem = 4, "IPv4", "192.0.2.1 is the address of node a and is not given out"
	if err := a.WritePools(ctx, []PoolStatus{edge, late}); err != nil || updates() != 4 {
		t.Errorf("%d updates, %v", updates(), err)
	}
	if got := show("edge"); !strings.Contains(got, "4 of 4 | Ready True PartlyUsable: 192.0.2.1 is") || !strings.Contains(got, "Exhausted True AllInUse: all IPv4 addresses are in use") {
		t.Errorf("pool edge shows %s", got)
	}

	client.PrependReactor("update", "loadbalancerpools", func(ktesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewConflict(customResource("loadbalancerpools").GroupResource(), "edge", errors.New("written by somebody else"))
	})
	edge.Used = 3
	if err := a.WritePools(ctx, []PoolStatus{edge, late}); !errors.Is(err, ErrServiceChanged) {
		t.Errorf("after a conflict: %v", err)
	}
}
