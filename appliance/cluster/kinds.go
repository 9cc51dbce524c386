package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"weft.network/weft/appliance/model"
)

// kind is one resource that is listed and watched.
type kind struct {
	name    string
	example runtime.Object
	client  lister
	// only restricts what is listed.
	only func(*metav1.ListOptions)
	// into receives the objects.
	into cache.ReflectorStore
	// optional kinds do not count as a lost connection.
	optional bool
	// absent is called when the server says that there is no such kind (missing) or that it is not for us; may be nil.
	absent func(missing bool) error
}

// The names of the kinds.
const (
	kindNodes    = "nodes"
	kindPods     = "pods"
	kindServices = "services"
	kindSlices   = "endpointslices"
	kindServers  = "endpointslices of the API server"

	kindNamespaces = "namespaces"
	kindPolicies   = "networkpolicies"
)

// kinds is the table of what is watched. Another kind is one more entry, with its conversion in convert.go and its collection
// in objects.go.
func (k *Kubernetes) kinds(c kubernetes.Interface) []kind {
	all := []kind{
		{
			name:    kindNodes,
			example: &corev1.Node{},
			client:  typed[*corev1.NodeList]{c.CoreV1().Nodes()},
			into: &feed[*corev1.Node, string, model.Node]{
				name: "Node", objects: k.objects, collection: &k.objects.nodes, convert: convertNode, key: nodeKey,
				listed: func() { k.listed(kindNodes) },
			},
		},
		{
			name:    kindPods,
			example: &corev1.Pod{},
			client:  typed[*corev1.PodList]{c.CoreV1().Pods(metav1.NamespaceAll)},
			only:    k.onlyPods,
			into: &feed[*corev1.Pod, model.PodKey, model.Pod]{
				name: "Pod", objects: k.objects, collection: &k.objects.pods, convert: convertPod, key: podKey,
				listed: func() { k.listed(kindPods) },
			},
		},
		{
			name:    kindServers,
			example: &discoveryv1.EndpointSlice{},
			client:  typed[*discoveryv1.EndpointSliceList]{c.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)},
			only: func(o *metav1.ListOptions) {
				o.LabelSelector = labels.Set{discoveryv1.LabelServiceName: "kubernetes"}.String()
			},
			into:     &serverSlices{known: map[string][]string{}, learned: k.learned},
			optional: true,
		},
	}
	if k.options.Services {
		all = append(all, k.serviceKinds(c)...)
	}
	if k.options.DNS != nil {
		all = append(all, k.dnsKinds(c)...)
	}
	if k.options.Policies || k.options.Pools {
		all = append(all, k.namespaceKind(c))
	}
	if k.options.Policies {
		all = append(all, k.policyKind(c))
	}
	return all
}

// serviceKinds are the kinds that only a node with Services watches.
func (k *Kubernetes) serviceKinds(c kubernetes.Interface) []kind {
	return []kind{
		{
			name:    kindServices,
			example: &corev1.Service{},
			client:  typed[*corev1.ServiceList]{c.CoreV1().Services(metav1.NamespaceAll)},
			into: &feed[*corev1.Service, model.ServiceKey, model.Service]{
				name: "Service", objects: k.objects, collection: &k.objects.services, convert: convertService, key: serviceKey,
				listed: func() { k.listed(kindServices) },
			},
		},
		{
			name:    kindSlices,
			example: &discoveryv1.EndpointSlice{},
			client:  typed[*discoveryv1.EndpointSliceList]{c.DiscoveryV1().EndpointSlices(metav1.NamespaceAll)},
			only:    func(o *metav1.ListOptions) { o.LabelSelector = discoveryv1.LabelServiceName },
			into: &feed[*discoveryv1.EndpointSlice, model.SliceKey, model.EndpointSlice]{
				name: "EndpointSlice", objects: k.objects, collection: &k.objects.slices, convert: convertSlice, key: sliceKey,
				listed: func() { k.listed(kindSlices) },
			},
		},
	}
}

func nodeKey(m metav1.Object) string { return m.GetName() }
func podKey(m metav1.Object) model.PodKey {
	return model.PodKey{Namespace: m.GetNamespace(), Name: m.GetName()}
}

func serviceKey(m metav1.Object) model.ServiceKey {
	return model.ServiceKey{Namespace: m.GetNamespace(), Name: m.GetName()}
}

func sliceKey(m metav1.Object) model.SliceKey {
	return model.SliceKey{Namespace: m.GetNamespace(), Name: m.GetName()}
}

// lister is the part of a client that is needed, without the type of its list.
type lister interface {
	list(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// typed makes a lister of a client for one kind.
type typed[L runtime.Object] struct {
	client interface {
		List(context.Context, metav1.ListOptions) (L, error)
		Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
	}
}

func (t typed[L]) list(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return t.client.List(ctx, o)
}

func (t typed[L]) watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return t.client.Watch(ctx, o)
}

// rightsTo with the name of a kind stands for a refusal among the problems.
const rightsTo = "rights to "

// listWatch returns the kind for a reflector. Each answer and each error goes to the status; errors of an optional kind are
// problems.
func (k kind) listWatch(c any, s *status, o *objects) cache.ListerWatcher {
	result := func(ctx context.Context, err error) error {
		switch {
		case ctx.Err() != nil:
		case k.optional:
			o.optional(k.name, err)
			if k.absent != nil && isAbsent(err) {
				return errors.Join(err, k.absent(!apierrors.IsForbidden(err)))
			}
		case err == nil:
			s.works(k.name)
			o.problem(rightsTo+k.name, "")
		case apierrors.IsForbidden(err):
			err = fmt.Errorf("watching %s: %w: give weft a service account with the rights in its RBAC manifest", k.name, err)
			s.fails(k.name, err)
			o.problem(rightsTo+k.name, "nothing of the cluster is heard while one kind is refused: "+err.Error())
		case apierrors.IsResourceExpired(err) || apierrors.IsGone(err): // the reflector lists anew
		default:
			err = fmt.Errorf("watching %s: %w", k.name, err)
			s.fails(k.name, err)
		}
		return err
	}
	restrict := func(options metav1.ListOptions) metav1.ListOptions {
		if k.only != nil {
			k.only(&options)
		}
		return options
	}
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := k.client.list(ctx, restrict(options))
			return list, result(ctx, err)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			w, err := k.client.watch(ctx, restrict(options))
			if err = result(ctx, err); err != nil && options.SendInitialEvents != nil {
				// The reflector waits after an error that it may retry here without looking at the context: up to backoffMost
				// at the end of the daemon. One that it does not know makes it list instead, which waits as it should.
				return nil, errors.New(err.Error())
			}
			return w, err
		},
	}, c)
}

// feed is the store of a reflector: it converts each object and passes it on. The object of the API is dropped at once.
type feed[O metav1.Object, K comparable, T any] struct {
	name       string
	objects    *objects
	collection *collection[K, T]
	convert    func(O) (*T, []fieldError)
	key        func(metav1.Object) K
	listed     func()
}

// converted is an object after its conversion, in a form that the reflector can hold while it gathers a list.
type converted[T any] struct {
	metav1.ObjectMeta
	value    *T
	problems []string
}

func (f *feed[O, K, T]) transform(obj any) (any, error) {
	if done, ok := obj.(*converted[T]); ok {
		return done, nil
	}
	o, ok := obj.(O)
	if !ok {
		return nil, fmt.Errorf("%s: got an object of type %T", f.name, obj)
	}
	value, bad := f.convert(o)
	out := &converted[T]{ObjectMeta: metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName()}, value: value}
	for _, b := range bad {
		out.problems = append(out.problems, fmt.Sprintf("%s: %s (ignored)", title(f.name, o.GetNamespace(), o.GetName()), b.Error()))
	}
	return out, nil
}

// title names an object for people.
func title(kind, namespace, name string) string {
	if namespace != "" {
		name = namespace + "/" + name
	}
	return fmt.Sprintf("%s %q", kind, name)
}

// Transformer implements cache.TransformingStore.
func (f *feed[O, K, T]) Transformer() cache.TransformFunc { return f.transform }

// Add implements cache.ReflectorStore.
func (f *feed[O, K, T]) Add(obj any) error {
	out, err := f.transform(obj)
	if err != nil {
		return err
	}
	c := out.(*converted[T])
	f.objects.mu.Lock()
	defer f.objects.mu.Unlock()
	f.objects.setProblems(title(f.name, c.Namespace, c.Name), c.problems)
	if f.collection.put(f.key(c), c.value) {
		f.objects.touch()
	}
	return nil
}

// Update implements cache.ReflectorStore.
func (f *feed[O, K, T]) Update(obj any) error { return f.Add(obj) }

// Delete implements cache.ReflectorStore.
func (f *feed[O, K, T]) Delete(obj any) error {
	o, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("%s: got an object of type %T", f.name, obj)
	}
	f.objects.mu.Lock()
	defer f.objects.mu.Unlock()
	f.objects.setProblems(title(f.name, o.GetNamespace(), o.GetName()), nil)
	if f.collection.remove(f.key(o)) {
		f.objects.touch()
	}
	return nil
}

// Replace implements cache.ReflectorStore.
func (f *feed[O, K, T]) Replace(list []any, _ string) error {
	all := make(map[K]*T, len(list))
	problems := map[string][]string{}
	for _, obj := range list {
		out, err := f.transform(obj)
		if err != nil {
			return err
		}
		c := out.(*converted[T])
		if c.value != nil {
			all[f.key(c)] = c.value
		}
		if len(c.problems) > 0 {
			problems[title(f.name, c.Namespace, c.Name)] = c.problems
		}
	}
	f.objects.mu.Lock()
	f.objects.replaceProblems(f.name+" ", problems)
	if f.collection.replace(all) {
		f.objects.touch()
	}
	f.objects.mu.Unlock()
	f.listed()
	return nil
}

// Resync implements cache.ReflectorStore.
func (f *feed[O, K, T]) Resync() error { return nil }

// serverSlices is the store of the reflector for the EndpointSlices of the API server itself.
type serverSlices struct {
	known   map[string][]string // addresses by slice
	learned func([]string)
}

// Add implements cache.ReflectorStore.
func (s *serverSlices) Add(obj any) error {
	slice, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return fmt.Errorf("got an object of type %T", obj)
	}
	s.known[slice.Name] = serverAddresses(slice)
	s.tell()
	return nil
}

// Update implements cache.ReflectorStore.
func (s *serverSlices) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *serverSlices) Delete(obj any) error {
	if o, ok := obj.(metav1.Object); ok {
		delete(s.known, o.GetName())
	}
	s.tell()
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *serverSlices) Replace(list []any, _ string) error {
	clear(s.known)
	for _, obj := range list {
		if slice, ok := obj.(*discoveryv1.EndpointSlice); ok {
			s.known[slice.Name] = serverAddresses(slice)
		}
	}
	s.tell()
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *serverSlices) Resync() error { return nil }

func (s *serverSlices) tell() {
	var all []string
	for _, list := range s.known {
		all = append(all, list...)
	}
	slices.Sort(all)
	s.learned(slices.Compact(all))
}

// serverAddresses returns the addresses in a slice of the Service "kubernetes", as host:port. An address that only the
// server itself could use is left out.
func serverAddresses(slice *discoveryv1.EndpointSlice) (out []string) {
	for _, port := range slice.Ports {
		if port.Port == nil || port.Name != nil && *port.Name != "" && *port.Name != "https" {
			continue
		}
		for _, e := range slice.Endpoints {
			for _, text := range e.Addresses {
				addr, err := netip.ParseAddr(text)
				if err != nil || checkUnicast(addr) != nil || e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				out = append(out, net.JoinHostPort(addr.String(), strconv.Itoa(int(*port.Port))))
			}
		}
	}
	return out
}
