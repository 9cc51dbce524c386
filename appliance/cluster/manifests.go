package cluster

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"weft.network/weft/appliance/model"
)

const (
	// settle is how long a directory must be quiet before it is read: a file that is written in place is half there for a while.
	settle = 50 * time.Millisecond
	// settleMost bounds that wait.
	settleMost = time.Second
	// pollInterval is how often the files are read while they cannot be watched, auditInterval how often while they are: nobody tells of
	// a link to another folder that was switched, nor of what another machine writes to a shared disk.
	pollInterval  = time.Second
	auditInterval = 10 * time.Second
)

// ManifestsOptions say which files to read.
type ManifestsOptions struct {
	// Dir is the directory; *.yaml, *.yml and *.json below it are read, except in directories whose name begins with a dot.
	Dir string
	// NodeName is this node; without Policies and EveryPod only its Pods are published, as an API server would select them. Empty publishes
	// all Pods.
	NodeName string
	// Services says whether Services and EndpointSlices are read too; without it, a Snapshot has none.
	Services bool
	// Policies says whether NetworkPolicies and Namespaces are read too, and the Pods of all nodes; EveryPod says the latter alone.
	Policies bool
	EveryPod bool
	// DNS says whether the ConfigMap of the DNS is read.
	DNS bool
	// Pools says whether LoadBalancerPools are read, and the Namespaces that they select.
	Pools bool
	// BGP says the same of BGPPeers and of the Secrets that they, or these Secrets by name, refer to.
	BGP             bool
	Secrets         []string
	SecretNamespace string
	// OnProblem is told of each file that cannot be used, once; may be nil.
	OnProblem func(string)
}

// Manifests is the source that reads the objects of a cluster from files. While a file is bad, the state before it stays.
type Manifests struct {
	options ManifestsOptions
	objects *objects
	status  *status
	readers map[string]reader
	files   map[string]parsed // by path
	said    map[string]bool   // problems of the last attempt
	seed    maphash.Seed
	again   chan struct{} // has a value when other Secrets are referred to
	audit   time.Duration // auditInterval; tests replace it
}

// parsed is what a file with that content holds.
type parsed struct {
	sum     uint64
	objects []object
	err     error
}

// NewManifests checks the options. Nothing is read before Run.
func NewManifests(o ManifestsOptions) (*Manifests, error) {
	if o.Dir == "" {
		return nil, errors.New("reading manifests: no directory is given: set --manifests")
	}
	if o.SecretNamespace == "" {
		o.SecretNamespace = DefaultSecretNamespace
	}
	if o.OnProblem == nil {
		o.OnProblem = func(string) {}
	}
	return &Manifests{
		options: o,
		objects: newObjects(nil),
		status:  newStatus(KindManifests, o.Dir, KindManifests),
		readers: readers(o),
		files:   map[string]parsed{},
		said:    map[string]bool{},
		seed:    maphash.MakeSeed(),
		again:   make(chan struct{}, 1),
		audit:   auditInterval,
	}, nil
}

// Status implements Source.
func (m *Manifests) Status() Status { return m.status.get(nil) }

// Recorder implements Source: nobody reads Events of files.
func (m *Manifests) Recorder() Recorder { return noEvents{} }

// Run implements Source. It returns nil when the context ends.
func (m *Manifests) Run(ctx context.Context, publish func(*model.Snapshot)) error {
	watcher, err := fsnotify.NewWatcher() // fails when the machine has no inotify instances left
	var events <-chan fsnotify.Event
	lost := make(chan struct{}, 1)
	if err == nil {
		defer func() { _ = watcher.Close() }()
		events = watcher.Events
		// Read all the time: fsnotify may hold the lock that watch waits for while it tells of an error.
		go func() {
			for range watcher.Errors {
				select {
				case lost <- struct{}{}:
				default:
				}
			}
		}()
	}
	for ctx.Err() == nil {
		again := pollInterval
		if m.watch(watcher) {
			again = m.audit
		}
		m.load(publish)
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-m.again:
		case <-lost: // events were lost: read everything
		case <-events: // one file was touched; more will follow
			quiet(ctx, events)
		}
		timer.Stop()
	}
	return nil
}

// quiet returns when no event has come for some time.
func quiet(ctx context.Context, events <-chan fsnotify.Event) {
	most := time.NewTimer(settleMost)
	defer most.Stop()
	timer := time.NewTimer(settle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-events: // one file was touched; more will follow
			timer.Reset(settle)
		case <-timer.C:
			return
		case <-most.C:
			return
		}
	}
}

// watch watches all directories and reports whether it could. It comes before reading them, so that no change is missed.
func (m *Manifests) watch(watcher *fsnotify.Watcher) bool {
	if watcher == nil {
		return false
	}
	return m.walk(func(path string, dir bool) error {
		if dir {
			return watcher.Add(path)
		}
		return nil
	}) == nil
}

// walk visits the directories and the manifest files in the order of their paths.
func (m *Manifests) walk(visit func(path string, dir bool) error) error {
	root := m.options.Dir
	if target, err := filepath.EvalSymlinks(root); err == nil && target != filepath.Clean(root) {
		root += string(filepath.Separator) // WalkDir does not follow a link unless the path ends like this
	}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path != root && strings.HasPrefix(d.Name(), "."): // also the hidden directories of a mounted ConfigMap
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return visit(path, true)
		case !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
			return nil
		}
		return visit(path, false)
	})
}

// load reads all files and publishes what they hold, if all of them are good and something has changed.
func (m *Manifests) load(publish func(*model.Snapshot)) {
	began := time.Now()
	problems := m.read()
	var all *model.Snapshot
	if len(problems) == 0 {
		all, problems = m.merge()
	}
	said := map[string]bool{}
	for _, p := range problems {
		said[p.Error()] = true
		if !m.said[p.Error()] {
			m.options.OnProblem(p.Error())
		}
	}
	m.said = said
	if len(problems) > 0 {
		err := problems[0]
		if more := len(problems) - 1; more > 0 {
			err = fmt.Errorf("%w (and %d more)", err, more)
		}
		m.status.fails(KindManifests, err)
		return
	}
	m.status.listed(KindManifests)
	m.status.works(KindManifests)
	m.apply(all)
	if s := m.objects.snapshot(); s != nil {
		publish(s)
	}
	m.status.read(began)
}

// read parses the files that have changed.
func (m *Manifests) read() (problems []error) {
	files := map[string]parsed{}
	err := m.walk(func(path string, dir bool) error {
		if dir {
			return nil
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since the directory was read; there will be an event
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("reading a manifest: %w", err))
			return nil
		}
		sum := maphash.Bytes(m.seed, text)
		file, ok := m.files[path]
		if !ok || file.sum != sum {
			file.sum = sum
			file.objects, file.err = parseFile(path, text, m.readers)
		}
		if file.err != nil {
			problems = append(problems, file.err)
		}
		files[path] = file
		return nil
	})
	if err != nil {
		return append(problems, fmt.Errorf("reading the manifests: %w", err))
	}
	m.files = files
	return problems
}

// merge puts the objects of all files together.
func (m *Manifests) merge() (*model.Snapshot, []error) {
	all := &model.Snapshot{
		Nodes: map[string]*model.Node{}, Pods: map[model.PodKey]*model.Pod{},
		Services: map[model.ServiceKey]*model.Service{}, Slices: map[model.SliceKey]*model.EndpointSlice{},
		Namespaces: map[string]*model.Namespace{}, Policies: map[model.PolicyKey]*model.NetworkPolicy{},
		Pools: map[string]*model.LoadBalancerPool{}, BGPPeers: map[string]*model.BGPPeer{}, Secrets: map[model.SecretKey]*model.Secret{},
		ConfigMaps: map[model.ConfigMapKey]*model.ConfigMap{},
	}
	first := map[string]string{}
	var problems []error
	for _, path := range slices.Sorted(maps.Keys(m.files)) {
		for _, o := range m.files[path].objects {
			if at, ok := first[o.title]; ok {
				problems = append(problems, fmt.Errorf("%s: %s: already defined at %s; remove one of them", o.at, o.title, at))
				continue
			}
			first[o.title] = o.at
			switch value := o.value.(type) {
			case *model.Node:
				all.Nodes[value.Name] = value
			case *model.Pod:
				if m.options.Policies || m.options.EveryPod || m.options.NodeName == "" || value.Node == m.options.NodeName {
					all.Pods[value.Key()] = value
				}
			case *model.Service:
				all.Services[value.Key()] = value
			case *model.EndpointSlice:
				all.Slices[value.Key()] = value
			case *model.Namespace:
				all.Namespaces[value.Name] = value
			case *model.NetworkPolicy:
				all.Policies[value.Key()] = value
			case *model.ConfigMap:
				all.ConfigMaps[value.Key()] = value
			case *model.LoadBalancerPool:
				all.Pools[value.Name] = value
			case *model.BGPPeer:
				all.BGPPeers[value.Name] = value
			case *model.Secret:
				all.Secrets[value.Key()] = value
			}
		}
	}
	m.objects.mu.Lock()
	referred := referredSecrets(all.BGPPeers, m.options.Secrets)
	m.objects.mu.Unlock()
	maps.DeleteFunc(all.Secrets, func(key model.SecretKey, _ *model.Secret) bool {
		return key.Namespace != m.options.SecretNamespace || !slices.Contains(referred, key.Name)
	})
	return all, problems
}

// apply takes the objects over.
func (m *Manifests) apply(all *model.Snapshot) {
	m.objects.mu.Lock()
	defer m.objects.mu.Unlock()
	changed := []bool{
		m.objects.nodes.replace(all.Nodes), m.objects.pods.replace(all.Pods),
		m.objects.services.replace(all.Services), m.objects.slices.replace(all.Slices),
		m.objects.namespaces.replace(all.Namespaces), m.objects.policies.replace(all.Policies),
		m.objects.pools.replace(all.Pools), m.objects.bgpPeers.replace(all.BGPPeers), m.objects.secrets.replace(all.Secrets),
		m.objects.configMaps.replace(all.ConfigMaps),
	}
	if slices.Contains(changed, true) {
		m.objects.touch()
	}
}
