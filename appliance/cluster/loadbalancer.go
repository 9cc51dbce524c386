package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"

	"weft.network/weft/appliance/model"
)

// The ConfigMap whose holder gives addresses to Services, and its pace: after the death of the holder new Services wait so long at most.
// What has an address does not notice.
const (
	AllocatorLock      = "weft-load-balancer"
	allocatorNamespace = metav1.NamespaceSystem
	leaseDuration      = 20 * time.Second
	leaseRenew         = 14 * time.Second
	leaseRetry         = 4 * time.Second
)

// LoadBalancerStatus is what the status of a Service should say about its load-balancer addresses.
type LoadBalancerStatus struct {
	Service   model.ServiceKey
	UID       string
	Addresses []netip.Addr
	// Allocation is nil for a Service that weft no longer looks after: what it wrote is removed.
	Allocation *model.Allocation
}

// ErrServiceChanged says that the Service is not the one any more that a status was made for.
var ErrServiceChanged = errors.New("the Service has changed meanwhile")

// Allocations is the view of the one node that gives addresses to Services.
type Allocations struct {
	client kubernetes.Interface
	pools  dynamic.ResourceInterface
}

// Given reads from the API server itself, not from a watch that may lag, which addresses weft has given. Who has just become the
// allocator must know what the one before it wrote last.
func (a *Allocations) Given(ctx context.Context) ([]LoadBalancerStatus, error) {
	var out []LoadBalancerStatus
	options := metav1.ListOptions{Limit: 500}
	for {
		list, err := a.client.CoreV1().Services(metav1.NamespaceAll).List(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("listing Services: %w", err)
		}
		for i := range list.Items {
			s, _ := convertService(&list.Items[i]) // what is wrong with it, the watch has told
			if s.Type != string(corev1.ServiceTypeLoadBalancer) || s.Allocation == nil {
				continue
			}
			st := LoadBalancerStatus{Service: s.Key(), UID: s.UID, Allocation: s.Allocation}
			for _, ing := range s.Ingress {
				if !ing.Proxy {
					st.Addresses = append(st.Addresses, ing.IP)
				}
			}
			out = append(out, st)
		}
		if options.Continue = list.Continue; options.Continue == "" {
			return out, nil
		}
	}
}

// Write changes the status of one Service, if it says anything else. A Service that changed while it was looked at gives
// ErrServiceChanged; with the newer picture the outcome may be another.
func (a *Allocations) Write(ctx context.Context, want LoadBalancerStatus) (changed bool, err error) {
	services := a.client.CoreV1().Services(want.Service.Namespace)
	s, err := services.Get(ctx, want.Service.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && string(s.UID) != want.UID {
		return false, ErrServiceChanged
	}
	if err != nil {
		return false, fmt.Errorf("reading Service %s: %w", want.Service, err)
	}
	if want.Allocation != nil && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return false, ErrServiceChanged
	}
	if !setLoadBalancer(s, want) {
		return false, nil
	}
	_, err = services.UpdateStatus(ctx, s, metav1.UpdateOptions{})
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return false, ErrServiceChanged
	case err != nil:
		return false, fmt.Errorf("writing the status of Service %s: %w", want.Service, err)
	}
	return true, nil
}

// setLoadBalancer puts the addresses and the condition into a Service and reports whether that changed anything.
func setLoadBalancer(s *corev1.Service, want LoadBalancerStatus) bool {
	var ingress []corev1.LoadBalancerIngress
	for _, addr := range want.Addresses {
		mode := corev1.LoadBalancerIPModeVIP
		ingress = append(ingress, corev1.LoadBalancerIngress{IP: addr.String(), IPMode: &mode})
	}
	same := slices.EqualFunc(s.Status.LoadBalancer.Ingress, ingress, func(x, y corev1.LoadBalancerIngress) bool {
		return x.IP == y.IP && x.Hostname == "" && (x.IPMode == nil || *x.IPMode == *y.IPMode)
	})
	if !same {
		s.Status.LoadBalancer.Ingress = ingress
	}
	if want.Allocation == nil {
		return meta.RemoveStatusCondition(&s.Status.Conditions, allocationType) || !same
	}
	c := metav1.Condition{
		Type: allocationType, Status: metav1.ConditionFalse, Reason: want.Allocation.Reason, Message: want.Allocation.Message,
		ObservedGeneration: s.Generation,
	}
	if want.Allocation.OK {
		c.Status = metav1.ConditionTrue
	}
	if old := meta.FindStatusCondition(s.Status.Conditions, allocationType); old != nil {
		c.ObservedGeneration = old.ObservedGeneration // a new number alone is not worth a write
		if same && old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
			return false
		}
		c.ObservedGeneration = s.Generation
	}
	meta.SetStatusCondition(&s.Status.Conditions, c)
	return true
}

// How often it is looked whether there is anything to allocate, and how long a refusal of the server is believed.
const (
	leadLook    = time.Second
	leadRefused = 30 * time.Second
)

// lead takes part in the election of the allocator until ctx ends, once there is something to allocate. While this node is it,
// KubernetesOptions.Allocate runs.
func (k *Kubernetes) lead(ctx context.Context, client kubernetes.Interface, own dynamic.Interface) {
	for ctx.Err() == nil {
		if !k.hasPools() || !k.allListed() { // who does not know the cluster must not keep others from giving addresses
			pause(ctx, leadLook)
			continue
		}
		lock := &configMapLock{client: client.CoreV1().ConfigMaps(allocatorNamespace), name: AllocatorLock, identity: k.options.NodeName}
		if _, _, err := lock.Get(ctx); apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
			k.objects.problem(AllocatorLock, fmt.Sprintf("addresses of load balancers are not given out by this node: %v: apply weft's RBAC manifest again", err))
			pause(ctx, leadRefused)
			continue
		}
		k.objects.problem(AllocatorLock, "")
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock:          lock, // the node's name alone is the identity: a daemon that is restarted goes on at once
			LeaseDuration: leaseDuration, RenewDeadline: leaseRenew, RetryPeriod: leaseRetry, ReleaseOnCancel: true, Name: AllocatorLock,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) { k.options.Allocate(ctx, &Allocations{client, poolClient(own)}) },
				OnStoppedLeading: func() {},
			},
		})
		if err != nil { // the numbers above do not fit together
			k.objects.problem(AllocatorLock, err.Error())
			return
		}
		elector.Run(ctx)
	}
}

// hasPools reports whether there are addresses to give, some were given, or somebody must be told that a pool cannot be used.
func (k *Kubernetes) hasPools() bool {
	k.objects.mu.Lock()
	defer k.objects.mu.Unlock()
	if len(k.objects.pools.items) > 0 {
		return true
	}
	for object := range k.objects.problems {
		if strings.HasPrefix(object, poolKind.kind+" ") {
			return true
		}
	}
	for _, s := range k.objects.services.items {
		if s.Allocation != nil {
			return true
		}
	}
	return false
}
