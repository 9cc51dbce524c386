package cluster

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
)

// PoolStatus is what the status of a LoadBalancerPool should say.
type PoolStatus struct {
	Name        string
	Total, Used uint64
	// Full names the families of which every address is in use.
	Full string
	// Problem says why the pool, or a part of it, is not used; Refused that it is all of it.
	Problem string
	Refused bool
}

// The conditions of a LoadBalancerPool, and their reasons.
const (
	poolReady     = "Ready"
	poolExhausted = "Exhausted"

	reasonUsable     = "Usable"
	reasonPartly     = "PartlyUsable"
	reasonRefused    = "Refused"
	reasonInvalid    = "InvalidSpec"
	reasonAllUsed    = "AllInUse"
	reasonFree       = "AddressesFree"
	reasonNotCounted = "NotCounted"
)

// poolStatus is the status as it is in the object.
type poolStatus struct {
	Total      int64              `json:"total"`
	Used       int64              `json:"used"`
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// poolClient returns a client for LoadBalancerPools.
func poolClient(c dynamic.Interface) dynamic.ResourceInterface {
	return c.Resource(customResource(poolKind.plural))
}

// WritePools makes each LoadBalancerPool show what is in use of it and what is wrong with it. One that cannot be used as it is
// written is in no Snapshot and in none of the given statuses, so all of them are read. It writes only what differs.
func (a *Allocations) WritePools(ctx context.Context, all []PoolStatus) error {
	if a.pools == nil {
		return nil
	}
	byName := map[string]*PoolStatus{}
	for i := range all {
		byName[all[i].Name] = &all[i]
	}
	list, err := a.pools.List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil // the kind is gone, and the pools with it
	}
	if err != nil {
		return fmt.Errorf("listing LoadBalancerPools: %w", err)
	}
	var errs []error
	for i := range list.Items {
		u := &list.Items[i]
		if !setPoolStatus(u, byName[u.GetName()]) {
			continue
		}
		switch _, err := a.pools.UpdateStatus(ctx, u, metav1.UpdateOptions{}); {
		case apierrors.IsConflict(err): // the next round sees what it has become
			errs = append(errs, ErrServiceChanged)
		case apierrors.IsNotFound(err): // deleted, or a definition without status: then nobody can read it either
		case err != nil:
			errs = append(errs, fmt.Errorf("writing the status of LoadBalancerPool %s: %w", u.GetName(), err))
		}
	}
	return errors.Join(errs...)
}

// setPoolStatus puts counts and conditions into a pool and reports whether that changed anything. want is nil for a pool that the
// allocator does not know.
func setPoolStatus(u *unstructured.Unstructured, want *PoolStatus) bool {
	var st poolStatus
	if old, ok := u.Object["status"].(map[string]any); ok {
		_ = runtime.DefaultUnstructuredConverter.FromUnstructured(old, &st) // what cannot be read is replaced
	}
	before := poolStatus{st.Total, st.Used, append([]metav1.Condition(nil), st.Conditions...)}
	set := func(kind string, ok bool, reason, message string) {
		c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: u.GetGeneration()}
		if ok {
			c.Status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&st.Conditions, c)
	}
	problem := poolProblem(u)
	switch {
	case problem != "":
		st.Total, st.Used = 0, 0
		set(poolReady, false, reasonInvalid, problem)
		set(poolExhausted, false, reasonNotCounted, "the pool is not used")
	case want == nil:
		return false // so new that the allocator does not know it
	default:
		st.Total, st.Used = int64(want.Total), int64(want.Used)
		switch {
		case want.Refused:
			st.Total = 0
			set(poolReady, false, reasonRefused, want.Problem)
		case want.Problem != "":
			set(poolReady, true, reasonPartly, want.Problem)
		default:
			set(poolReady, true, reasonUsable, "addresses are given out")
		}
		switch {
		case want.Refused:
			set(poolExhausted, false, reasonNotCounted, "the pool is not used")
		case want.Full != "":
			set(poolExhausted, true, reasonAllUsed, fmt.Sprintf("all %s addresses are in use: add a range, or release a Service", want.Full))
		default:
			set(poolExhausted, false, reasonFree, "there are addresses for more Services")
		}
	}
	if reflect.DeepEqual(st, before) {
		return false
	}
	out, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&st)
	if err != nil {
		return false // it is made of numbers and texts
	}
	u.Object["status"] = out
	return true
}

// poolProblem says why a pool cannot be used as it is written, or nothing.
func poolProblem(u *unstructured.Unstructured) string {
	raw, err := u.MarshalJSON()
	if err != nil {
		return err.Error()
	}
	_, value, bad, err := poolKind.read(raw)
	switch {
	case err != nil:
		return decodeError(err).Error()
	case value != nil:
		return ""
	}
	parts := make([]string, len(bad))
	for i := range bad {
		parts[i] = bad[i].Error()
	}
	return strings.Join(parts, "; ")
}
