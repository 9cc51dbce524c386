package cluster

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"weft.network/weft/appliance/model"
)

// What weft shares with others who serve the cluster's DNS: the Service by which it is found, and the ConfigMap with the user's own
// pieces of a Corefile, whose keys end in .override and .server (the convention of k3s).
const (
	DNSNamespace = "kube-system"
	DNSService   = "kube-dns"
	DNSConfigMap = "coredns-custom"

	dnsLabel = "k8s-app"

	kindDNSConfig = "configmaps of the DNS"
)

// dnsKinds are the kinds that only a node with a DNS server watches.
func (k *Kubernetes) dnsKinds(c kubernetes.Interface) []kind {
	return []kind{{
		name:    kindDNSConfig,
		example: &corev1.ConfigMap{},
		client:  typed[*corev1.ConfigMapList]{c.CoreV1().ConfigMaps(DNSNamespace)},
		only: func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", DNSConfigMap).String()
		},
		into: &feed[*corev1.ConfigMap, model.ConfigMapKey, model.ConfigMap]{
			name: "ConfigMap", objects: k.objects, collection: &k.objects.configMaps, convert: convertConfigMap, key: configMapKey,
			listed: func() {},
		},
		optional: true,
	}}
}

func configMapKey(m metav1.Object) model.ConfigMapKey {
	return model.ConfigMapKey{Namespace: m.GetNamespace(), Name: m.GetName()}
}

// convertConfigMap takes over the ConfigMaps that weft reads, and no others.
func convertConfigMap(c *corev1.ConfigMap) (*model.ConfigMap, []fieldError) {
	if c.Namespace != DNSNamespace || c.Name != DNSConfigMap {
		return nil, nil
	}
	return &model.ConfigMap{Namespace: c.Namespace, Name: c.Name, Data: maps.Clone(c.Data)}, nil
}

// The pace at which the Service of the DNS is looked for.
const (
	dnsLook    = time.Second
	dnsRefused = time.Minute
)

// ensureDNSService makes the Service kube-dns where there is none, until the context ends. Every node does; the API server sees to it
// that one of them makes it.
func (k *Kubernetes) ensureDNSService(ctx context.Context, client kubernetes.Interface) {
	for ctx.Err() == nil {
		if !k.allListed() || k.hasDNSService() {
			k.objects.problem(DNSService, "")
			pause(ctx, dnsLook)
			continue
		}
		_, err := client.CoreV1().Services(DNSNamespace).Create(ctx, dnsService(k.dnsAddresses()), metav1.CreateOptions{})
		switch {
		case err == nil || apierrors.IsAlreadyExists(err) || ctx.Err() != nil:
			pause(ctx, dnsLook) // it will be heard of
		case apierrors.IsForbidden(err) || apierrors.IsInvalid(err):
			k.objects.problem(DNSService, fmt.Sprintf("the Service %s in %s is missing and cannot be made: %v: apply weft's RBAC manifest again, or make it yourself", DNSService, DNSNamespace, err))
			pause(ctx, dnsRefused)
		default: // the server is away, and the status says so
			pause(ctx, dnsLook)
		}
	}
}

// dnsAddresses are what the Service gets: what this node's kubelet tells Pods, or else by convention the tenth address of the range
// of Services, of which the API server's own Service has the first.
func (k *Kubernetes) dnsAddresses() []netip.Addr {
	if len(k.options.DNS.Addresses) > 0 {
		return k.options.DNS.Addresses
	}
	k.objects.mu.Lock()
	defer k.objects.mu.Unlock()
	api := k.objects.services.items[model.ServiceKey{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}]
	if api == nil || len(api.ClusterIPs) == 0 {
		return nil
	}
	a := api.ClusterIPs[0]
	for range 9 {
		a = a.Next()
	}
	return []netip.Addr{a}
}

// hasDNSService looks for the Service by its name and by the label that everybody gives it.
func (k *Kubernetes) hasDNSService() bool {
	k.objects.mu.Lock()
	defer k.objects.mu.Unlock()
	for key, s := range k.objects.services.items {
		if key.Namespace == DNSNamespace && (key.Name == DNSService || s.Labels[dnsLabel] == DNSService) {
			return true
		}
	}
	return false
}

// dnsService is the Service that monitoring and people look for. It has no selector: each node answers its own Pods.
func dnsService(addrs []netip.Addr) *corev1.Service {
	families := corev1.IPFamilyPolicyPreferDualStack
	port := func(name string, protocol corev1.Protocol, number int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Protocol: protocol, Port: number, TargetPort: intstr.FromInt32(number)}
	}
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: DNSNamespace, Name: DNSService,
			Labels: map[string]string{
				dnsLabel: DNSService, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS", "app.kubernetes.io/managed-by": "weft",
			},
			Annotations: map[string]string{"prometheus.io/port": strconv.Itoa(model.DNSMetricsPort), "prometheus.io/scrape": "true"},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, IPFamilyPolicy: &families,
			Ports: []corev1.ServicePort{port("dns", corev1.ProtocolUDP, model.DNSPort), port("dns-tcp", corev1.ProtocolTCP, model.DNSPort), port("metrics", corev1.ProtocolTCP, model.DNSMetricsPort)},
		},
	}
	for _, a := range addrs {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a.String())
	}
	if len(s.Spec.ClusterIPs) > 0 {
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	}
	return s
}

// DNSOptions are about the cluster's DNS.
type DNSOptions struct {
	// Create makes the Service kube-dns where there is none.
	Create bool
	// Addresses are what it gets, at most one per family; without any it is the tenth of the range, as everywhere.
	Addresses []netip.Addr
}
