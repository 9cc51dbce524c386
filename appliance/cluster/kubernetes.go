package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"weft.network/weft/appliance/model"
)

const (
	// gather is how long changes are gathered after a Snapshot was published.
	gather = 5 * time.Millisecond
	// dialTimeout is how long one server may take to accept a connection before the next one is tried.
	dialTimeout = 3 * time.Second
	// configInterval is how often the kubeconfig is compared with what is in use.
	configInterval = 5 * time.Second
	// configRetry is the time between two attempts to read a kubeconfig that is not there yet.
	configRetry = time.Second
	// The waits after failed requests: from, to, and how fast they grow.
	backoffFirst  = 200 * time.Millisecond
	backoffMost   = 8 * time.Second
	backoffFactor = 2
)

// KubernetesOptions say how to reach the API server.
type KubernetesOptions struct {
	// NodeName is this node.
	NodeName string
	// Kubeconfig is a path; empty means the service account of the Pod that weft runs in.
	Kubeconfig string
	// Servers are tried instead of the server in the kubeconfig: https://host:port, or host with or without port (6443).
	Servers []string
	// Known are addresses that an earlier process has learned, as host:port; they are tried after the configured ones.
	Known []string
	// OnServers is told the real addresses of the API servers, as host:port, when they change; may be nil.
	OnServers func([]string)
	// OnProblem is told of each field of an object that cannot be used; may be nil.
	OnProblem func(string)
	// Services says whether Services and EndpointSlices are watched too; without it, a Snapshot has none.
	Services bool
	// Policies says whether NetworkPolicies are watched, with all that they are about: Namespaces and the Pods of all nodes.
	// Without it, and without EveryPod, a Snapshot has the Pods of this node only.
	Policies bool
	EveryPod bool
	// BGP says the same of BGPPeers and of the Secrets that they, or these Secrets by name, refer to.
	BGP             bool
	Secrets         []string
	SecretNamespace string
	// DNS is nil on a node without a DNS server.
	DNS *DNSOptions
	// Pools says whether LoadBalancerPools are watched, and the Namespaces that they select.
	Pools bool
	// Allocate gives addresses to Services; it runs on one node at a time, until its context ends. nil leaves that to others.
	// It runs from the first LoadBalancerPool on.
	Allocate func(context.Context, *Allocations)
	// Version of this weft, for the user agent.
	Version string
	// Stored is the last picture, or nil: what it says of weft's own kinds, of Secrets and of ConfigMaps holds until the server has answered about them.
	// A server that refuses has not, as one that has just started may refuse everybody.
	Stored *model.Snapshot
}

// Kubernetes is the source that watches an API server.
type Kubernetes struct {
	options   KubernetesOptions
	overrides []url.URL
	objects   *objects
	status    *status
	events    *events
	// Tests replace these.
	connect        func(*rest.Config, http.RoundTripper) (kubernetes.Interface, error)
	connectCustom  func(*rest.Config, http.RoundTripper) (dynamic.Interface, error)
	configInterval time.Duration

	mu    sync.Mutex
	known []string
	// relearn puts newly learned addresses to use; nil while there is no session.
	relearn func()
	synced  map[string]bool // each needed kind, and whether everything of it is known
	// secretsSeen are the Secrets that the server has answered about.
	secretsSeen map[string]bool
}

// NewKubernetes checks the options. Nothing is read or connected before Run.
func NewKubernetes(o KubernetesOptions) (*Kubernetes, error) {
	if o.NodeName == "" {
		return nil, errors.New("watching the cluster: the name of this node is not known: give --node-name")
	}
	if o.SecretNamespace == "" {
		o.SecretNamespace = DefaultSecretNamespace
	}
	needed := []string{kindNodes, kindPods}
	if o.Services {
		needed = append(needed, kindServices, kindSlices)
	}
	if o.Policies || o.Pools {
		needed = append(needed, kindNamespaces)
	}
	if o.Policies {
		needed = append(needed, kindPolicies)
	}
	k := &Kubernetes{
		options: o,
		objects: newObjects(o.OnProblem),
		status:  newStatus(KindKubernetes, "", needed...),
		events:  newEvents(o.NodeName),
		known:   slices.Clone(o.Known),
		synced:  map[string]bool{},

		configInterval: configInterval,
		connect: func(c *rest.Config, transport http.RoundTripper) (kubernetes.Interface, error) {
			return kubernetes.NewForConfigAndClient(c, &http.Client{Transport: transport})
		},
		connectCustom: func(c *rest.Config, transport http.RoundTripper) (dynamic.Interface, error) {
			return dynamic.NewForConfigAndClient(c, &http.Client{Transport: transport})
		},
		secretsSeen: map[string]bool{},
	}
	for _, name := range needed {
		k.synced[name] = false
	}
	for _, ck := range customKinds(o.BGP, o.Pools) {
		k.synced[ck.plural] = false
	}
	k.begin(o.Stored)
	for _, text := range o.Servers {
		u, err := parseServer(text)
		if err != nil {
			return nil, err
		}
		k.overrides = append(k.overrides, u)
	}
	return k, nil
}

// begin takes over what is known of the kinds that a server may refuse.
func (k *Kubernetes) begin(s *model.Snapshot) {
	if s == nil {
		return
	}
	if k.options.DNS != nil {
		k.objects.configMaps.replace(s.ConfigMaps)
	}
	if k.options.Pools {
		k.objects.pools.replace(s.Pools)
	}
	if !k.options.BGP {
		return
	}
	k.objects.bgpPeers.replace(s.BGPPeers)
	names := referredSecrets(s.BGPPeers, k.options.Secrets)
	for key, secret := range s.Secrets {
		if key.Namespace == k.options.SecretNamespace && slices.Contains(names, key.Name) {
			k.objects.secrets.put(key, secret)
		}
	}
}

// Status implements Source.
func (k *Kubernetes) Status() Status { return k.status.get(k.objects.allProblems()) }

// Recorder implements Source.
func (k *Kubernetes) Recorder() Recorder { return k.events }

// Run implements Source. It returns nil when the context ends.
func (k *Kubernetes) Run(ctx context.Context, publish func(*model.Snapshot)) error {
	var publishing sync.WaitGroup
	defer publishing.Wait()
	publishing.Go(func() { k.publish(ctx, publish) })
	for ctx.Err() == nil {
		if err := k.session(ctx); err != nil && ctx.Err() == nil {
			k.status.fails(kindNodes, err)
			pause(ctx, configRetry)
		}
	}
	return nil
}

// pause returns after that time or when the context ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// publish waits for changes and publishes Snapshots once every kind is known: after a quiet time at once, since a new name is asked for as
// soon as there is one, and what follows is gathered. Who pays for each Snapshot, as the loop does, waits for more by itself.
func (k *Kubernetes) publish(ctx context.Context, publish func(*model.Snapshot)) {
	published := false
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.objects.changed:
		}
		if !k.allListed() || !published && !k.allSecretsKnown() {
			continue
		}
		if wait := gather - time.Since(last); wait > 0 {
			pause(ctx, wait)
		}
		if ctx.Err() != nil {
			return
		}
		if s := k.objects.snapshot(); s != nil {
			publish(s)
			published, last = true, time.Now()
		}
	}
}

// listed notes that everything of a kind is known.
func (k *Kubernetes) listed(kind string) {
	k.mu.Lock()
	first := !k.synced[kind]
	k.synced[kind] = true
	k.mu.Unlock()
	k.status.listed(kind)
	if first {
		k.objects.notify() // also when there is no object of that kind
	}
}

func (k *Kubernetes) allListed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, known := range k.synced {
		if !known {
			return false
		}
	}
	return true
}

// session watches with the configuration as it is now, until that changes or the context ends.
func (k *Kubernetes) session(ctx context.Context) error {
	before := k.configText()
	config, err := k.config()
	if err != nil {
		return err
	}
	base, err := configured(config)
	if err != nil {
		return err
	}
	rotation := &servers{dial: dialer(config), answered: k.status.answered}
	use := func() { rotation.set(k.candidates(config, base)) }
	k.setRelearn(use)
	defer k.setRelearn(nil)
	use()

	client, err := k.connect(clientConfig(config, base), rotation)
	if err != nil {
		return fmt.Errorf("making a client for %s: %w", base.Host, err)
	}
	own, err := k.connectCustom(clientConfig(config, base), rotation)
	if err != nil {
		return fmt.Errorf("making a client for %s: %w", base.Host, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopEvents := k.events.start(ctx, client)
	defer stopEvents()
	var reflectors sync.WaitGroup
	defer reflectors.Wait()
	for _, kd := range k.kinds(client) {
		r := k.reflector(kd, client)
		reflectors.Go(func() { r.RunWithContext(ctx) })
	}
	for _, kd := range k.customKinds(own) {
		r := k.reflector(kd, own)
		reflectors.Go(func() { r.RunWithContext(ctx) })
	}
	if k.options.BGP {
		reflectors.Go(func() { k.followSecrets(ctx, client) })
	}
	if k.options.DNS != nil && k.options.DNS.Create {
		reflectors.Go(func() { k.ensureDNSService(ctx, client) })
	}
	if k.options.Allocate != nil {
		reflectors.Go(func() { k.lead(ctx, client, own) })
	}
	k.waitForNewConfig(ctx, before)
	cancel()
	return nil
}

// reflector lists and watches one kind with a client.
func (k *Kubernetes) reflector(kd kind, client any) *cache.Reflector {
	return cache.NewReflectorWithOptions(kd.listWatch(client, k.status, k.objects), kd.example, kd.into, cache.ReflectorOptions{
		Name:    kd.name,
		Backoff: &wait.Backoff{Duration: backoffFirst, Cap: backoffMost, Factor: backoffFactor, Jitter: 0.5, Steps: 100},
	})
}

// waitForNewConfig returns when the kubeconfig differs from what it was, or the context ends. A node that is joined to
// another cluster gets a new one; a certificate or token in a file of its own is read anew by client-go.
func (k *Kubernetes) waitForNewConfig(ctx context.Context, before []byte) {
	tick := time.NewTicker(k.configInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := k.configText(); now != nil && !bytes.Equal(now, before) {
			return
		}
	}
}

// configText returns the kubeconfig, or nil when there is none or it cannot be read.
func (k *Kubernetes) configText() []byte {
	if k.options.Kubeconfig == "" {
		return nil
	}
	text, err := os.ReadFile(k.options.Kubeconfig)
	if err != nil {
		return nil
	}
	return text
}

func (k *Kubernetes) config() (*rest.Config, error) {
	var config *rest.Config
	var err error
	if k.options.Kubeconfig == "" {
		config, err = rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("no API server is configured: give --kubeconfig, or run weft in a Pod with a service account")
		}
	} else {
		rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: k.options.Kubeconfig}
		config, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig %s: %w", k.options.Kubeconfig, err)
	}
	config.UserAgent = "weft/" + k.options.Version
	config.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	return config, nil
}

// configured returns the server that the configuration names, with its path.
func configured(config *rest.Config) (*url.URL, error) {
	u, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("server %q in the kubeconfig: %w", config.Host, err)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), map[string]string{"https": "443", "http": "80"}[u.Scheme])
	}
	return u, nil
}

// clientConfig is what the client needs to know besides the transport.
func clientConfig(config *rest.Config, base *url.URL) *rest.Config {
	return &rest.Config{
		Host: base.String(),
		ContentConfig: rest.ContentConfig{
			ContentType:        runtime.ContentTypeProtobuf,
			AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON,
		},
		UserAgent: config.UserAgent,
	}
}

// dialer makes the transport to one server: credentials, certificates and all.
func dialer(config *rest.Config) func(url.URL, string) (http.RoundTripper, error) {
	return func(u url.URL, tlsName string) (http.RoundTripper, error) {
		c := rest.CopyConfig(config)
		c.Host = u.String()
		c.ServerName = tlsName
		return rest.TransportFor(c)
	}
}

// candidates returns where the API may be, in the order in which it is tried: what the administrator says, what the kubeconfig
// says, what was learned. In a Pod, the kubeconfig's place is taken by a ClusterIP, which works only while somebody else
// programs Services: it serves once, to learn the real addresses, and not any more when one is known.
func (k *Kubernetes) candidates(config *rest.Config, base *url.URL) []*server {
	own := &server{url: url.URL{Scheme: base.Scheme, Host: base.Host}, names: []string{config.ServerName}}
	if strings.Trim(base.Path, "/") != "" {
		return []*server{own} // a proxy for many clusters: the servers behind it do not take its credentials
	}
	names := []string{"", base.Hostname(), serviceName}
	if config.ServerName != "" {
		names = []string{config.ServerName}
	}
	var list []*server
	for _, u := range k.overrides {
		list = append(list, &server{url: u, names: names})
	}
	learned := k.learnedServers()
	if len(list) == 0 && (k.options.Kubeconfig != "" || len(learned) == 0 || !isAddress(base.Hostname())) {
		list = append(list, own)
	}
	for _, address := range learned {
		u := url.URL{Scheme: "https", Host: address}
		if !slices.ContainsFunc(list, func(s *server) bool { return s.url == u }) {
			list = append(list, &server{url: u, names: names})
		}
	}
	return list
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

func (k *Kubernetes) learnedServers() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.known
}

// learned takes the real addresses of the API servers. An empty list is ignored: a cluster without API server cannot say so.
func (k *Kubernetes) learned(addresses []string) {
	k.mu.Lock()
	changed := len(addresses) > 0 && !slices.Equal(k.known, addresses)
	if changed {
		k.known = addresses
	}
	relearn := k.relearn
	k.mu.Unlock()
	if !changed {
		return
	}
	if relearn != nil {
		relearn()
	}
	if k.options.OnServers != nil {
		k.options.OnServers(slices.Clone(addresses))
	}
}

func (k *Kubernetes) setRelearn(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.relearn = f
}
