package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft.network/weft/appliance/model"
)

const nodeA = `apiVersion: v1
kind: Node
metadata:
  name: a
spec:
  podCIDRs:
  - 10.1.0.0/24
  - fd00:1::/64
status:
  addresses:
  - type: InternalIP
    address: 192.0.2.1
`

const serviceWeb = `apiVersion: v1
kind: Service
metadata:
  name: web
  annotations:
    service.beta.kubernetes.io/load-balancer-source-ranges: 192.0.2.0/24
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10]
  ports:
  - port: 80
    nodePort: 30080
`

const sliceWeb = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels:
    kubernetes.io/service-name: web
addressType: IPv4
endpoints:
- addresses:
  - 10.1.0.2
ports: [{port: 8080}]
`

const podWeb = `apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  nodeName: a
`

func TestParseFile(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string // titles with lines
		err        string
	}{
		{"empty", "", nil, ""},
		{"comments only", "# nothing\n---\n# here\n", nil, ""},
		{"one", nodeA, []string{`f.yaml:1 Node "a"`}, ""},
		{"two documents", nodeA + "---\n" + podWeb, []string{`f.yaml:1 Node "a"`, `f.yaml:14 Pod "default/web"`}, ""},
		{
			"leading mark, end mark, empty ones", "---\n" + podWeb + "...\n---\n\n--- # comment\n" + nodeA,
			[]string{`f.yaml:2 Pod "default/web"`, `f.yaml:12 Node "a"`},
			"",
		},
		{"marks inside a text are none", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  annotations:\n    a: |\n      ---\n      ...\n---more: no\n", []string{`f.yaml:1 Pod "default/x"`}, ""},
		{
			"byte order mark and CRLF", "\xef\xbb\xbf" + strings.ReplaceAll(nodeA+"---\n"+podWeb, "\n", "\r\n"),
			[]string{`f.yaml:1 Node "a"`, `f.yaml:14 Pod "default/web"`},
			"",
		},
		{"JSON", `{"apiVersion":"v1","kind":"Node","metadata":{"name":"a"}}`, []string{`f.yaml:1 Node "a"`}, ""},
		{
			"List", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata:\n    name: a\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: p, namespace: x}\n",
			[]string{`f.yaml:4 Node "a"`, `f.yaml:8 Pod "x/p"`},
			"",
		},
		{"NodeList", "apiVersion: v1\nkind: NodeList\nitems:\n- metadata:\n    name: a\n", []string{`f.yaml:4 Node "a"`}, ""},
		{
			"other kinds and unknown fields", "apiVersion: apps/v1\nkind: Deployment\nspec: {replicas: 3}\n---\n" + podWeb + "  unknown: 1\nmore: x\n",
			[]string{`f.yaml:5 Pod "default/web"`},
			"",
		},
		{"a Node of another group", "apiVersion: example.com/v1\nkind: Node\nmetadata: {name: 7}\n", nil, ""},
		{"names are case-sensitive", "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: {PodCIDRs: [x]}\n", []string{`f.yaml:1 Node "a"`}, ""},
		{
			"anchors", "apiVersion: v1\nkind: List\nitems:\n- &n\n  apiVersion: v1\n  kind: Node\n  metadata: &m {labels: {x: z}, name: a}\n- apiVersion: v1\n  kind: Pod\n  metadata: *m\n",
			[]string{`f.yaml:4 Node "a"`, `f.yaml:8 Pod "default/a"`},
			"",
		},

		{
			"bad range", strings.Replace(nodeA, "fd00:1::/64", "fd00:1::/640", 1), nil,
			`f.yaml:8: Node "a": spec.podCIDRs[1]: "fd00:1::/640" is not a range of addresses such as 10.244.1.0/24 or fd00:10:244:1::/64`,
		},
		{
			"bad range in the second document", podWeb + "---\n" + strings.Replace(nodeA, "10.1.0.0/24", "10.1.0.0", 1), nil,
			`f.yaml:14: Node "a": spec.podCIDRs[0]: "10.1.0.0" is not a range of addresses such as 10.244.1.0/24 or fd00:10:244:1::/64`,
		},
		{
			"bad range in a list", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata: {name: a}\n  spec:\n    podCIDR: x\n", nil,
			`f.yaml:8: Node "a": spec.podCIDR: "x" is not a range of addresses such as 10.244.1.0/24 or fd00:10:244:1::/64`,
		},
		{
			"bad address", strings.Replace(nodeA, "192.0.2.1", "host", 1), nil,
			`f.yaml:12: Node "a": status.addresses[0].address: "host" is not an IPv4 or IPv6 address`,
		},
		{
			"string for an array", strings.Replace(nodeA, "podCIDRs:\n  - 10.1.0.0/24\n  - fd00:1::/64", "podCIDRs: 10.1.0.0/24", 1), nil,
			`f.yaml:6: Node "a": spec.podCIDRs: got a string, want an array`,
		},
		{
			"number for a string", strings.Replace(podWeb, "nodeName: a", "nodeName: 7", 1), nil,
			`f.yaml:6: Pod "web": spec.nodeName: got a number, want a string`,
		},
		{
			"string for a bool", podWeb + "  hostNetwork: \"true\"\n", nil,
			`f.yaml:7: Pod "web": spec.hostNetwork: got a string, want true or false`,
		},
		{"array for an object", "apiVersion: v1\nkind: Pod\nmetadata: []\n", nil, `f.yaml:3: Pod: metadata: got an array, want an object`},
		{
			"port in a container", podWeb + "  containers:\n  - name: a\n    ports:\n    - containerPort: http\n", nil,
			`f.yaml:10: Pod "web": spec.containers.ports.containerPort: got a string, want a number`,
		},
		{
			"Service and slice", serviceWeb + "---\n" + sliceWeb,
			[]string{`f.yaml:1 Service "default/web"`, `f.yaml:14 EndpointSlice "default/web-1"`},
			"",
		},
		{"slices that are no use", strings.Replace(sliceWeb, "kubernetes.io/service-name", "x", 1) + "---\n" + strings.Replace(sliceWeb, "IPv4", "FQDN", 1), nil, ""},
		{
			"a Service is a label", strings.Replace(serviceWeb, "name: web", "name: web.x", 1), nil,
			`f.yaml:4: Service "default/web.x": metadata.name: must not contain dots`,
		},
		{
			"bad port", strings.Replace(serviceWeb, "port: 80", "port: 80000", 1), nil,
			`f.yaml:11: Service "default/web": spec.ports[0].port: 80000 is not a port; give one from 1 to 65535`,
		},
		{
			"bad annotation", strings.Replace(serviceWeb, "192.0.2.0/24", "192.0.2.0", 1), nil,
			`f.yaml:6: Service "default/web": metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: "192.0.2.0" is not a range`,
		},
		{
			"bad endpoint", strings.Replace(sliceWeb, "10.1.0.2", "127.0.0.1", 1), nil,
			`f.yaml:10: EndpointSlice "default/web-1": endpoints[0].addresses[0]: 127.0.0.1 is a loopback`,
		},
		{"no family", strings.Replace(sliceWeb, "addressType: IPv4", "", 1), nil, `f.yaml:1: EndpointSlice "default/web-1": addressType: "" is not IPv4 or IPv6`},

		{"no name", "apiVersion: v1\nkind: Node\nmetadata:\n  labels: {}\n", nil, `f.yaml:4: Node "": metadata.name: missing`},
		{"impossible name", "apiVersion: v1\nkind: Node\nmetadata:\n  name: ../a\n", nil, `f.yaml:4: Node "../a": metadata.name: a lowercase RFC 1123 subdomain`},
		{"impossible namespace", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  namespace: A\n", nil, `f.yaml:5: Pod "A/a": metadata.namespace: a lowercase RFC 1123 label`},
		{"no kind", "apiVersion: v1\nmetadata: {name: a}\n", nil, "f.yaml:1: kind: missing; every object needs apiVersion and kind"},
		{"no version", "\n\nkind: Node\n", nil, "f.yaml:3: apiVersion: missing; every object needs apiVersion and kind"},
		{"not an object", "- a\n- b\n", nil, "f.yaml:1: got an array, want an object"},
		{"item is not an object", "apiVersion: v1\nkind: NodeList\nitems:\n- 7\n", nil, "f.yaml:4: not an object"},
		{"a text", "hello\n", nil, "f.yaml:1: got a string, want an object"},
		{"broken YAML", podWeb + "---\napiVersion: v1\nkind: [\n", nil, "f.yaml:"},
		{"tab", "apiVersion: v1\n\tkind: Node\n", nil, "f.yaml:2: not valid YAML: found a tab character that violates indentation"},
		{"key twice", "---\napiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: {}\nspec: {}\n", nil, `f.yaml:6: not valid YAML: key "spec" already set in map`},
		{"JSON cut short", `{"apiVersion":"v1","kind":"Node",`, nil, "f.yaml:1: not valid YAML"},
		{"binary", "\x00\x01\x02", nil, "f.yaml:1: not valid YAML: "},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			objects, err := parseFile("f.yaml", []byte(test.text), readers(ManifestsOptions{Services: true, Policies: true, BGP: true}))
			var got []string
			for _, o := range objects {
				got = append(got, o.at+" "+o.title)
			}
			if err == nil && test.err == "" && slices.Equal(got, test.want) {
				return
			}
			if err != nil && test.err != "" && strings.HasPrefix(err.Error(), test.err) {
				return
			}
			t.Errorf("got  %q, %v\nwant %q, %s", got, err, test.want, test.err)
		})
	}
}

func FuzzParseFile(f *testing.F) {
	for _, seed := range []string{nodeA, podWeb, serviceWeb, sliceWeb, nodeA + "---\n" + podWeb, "apiVersion: v1\nkind: List\nitems:\n- &a {b: *a}\n", "a: &a [*a,*a]", "%YAML 1.1\n---\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		objects, err := parseFile("f.yaml", text, readers(ManifestsOptions{Services: true, Policies: true, BGP: true}))
		if err != nil {
			var line int
			if n, _ := fmt.Sscanf(err.Error(), "f.yaml:%d: ", &line); n != 1 || line < 1 || line > strings.Count(string(text), "\n")+2 {
				t.Errorf("the error does not name a line of the file: %v", err)
			}
		}
		for _, o := range objects {
			if o.value == nil || o.title == "" {
				t.Errorf("half an object: %+v", o)
			}
		}
	})
}

// watcher runs a source and collects what it publishes.
type watcher struct {
	t      *testing.T
	source Source
	holder Holder

	mu       sync.Mutex
	problems []string
}

func (w *watcher) problem(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, text)
}

func (w *watcher) allProblems() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.problems)
}

// run starts the source and stops it with the test.
func (w *watcher) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- w.source.Run(ctx, func(s *model.Snapshot) {
			if old := w.holder.Get(); old != nil && s.Revision != old.Revision+1 {
				w.t.Errorf("revision %d follows %d", s.Revision, old.Revision)
			}
			w.holder.Set(s)
		})
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					w.t.Error(err)
				}
			case <-time.After(30 * time.Second): // less than anything it might wait for, more than a busy machine needs
				w.t.Error("the source does not stop")
			}
		})
	}
	w.t.Cleanup(stop)
	return stop
}

// until waits for a condition, and fails when it does not come.
func (w *watcher) until(what string, condition func(*model.Snapshot) bool) *model.Snapshot {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s, changed := w.holder.Watch()
		if condition(s) {
			return s
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("waited in vain for: %s; status %+v, snapshot %+v, problems %q", what, w.source.Status(), s, w.allProblems())
		}
	}
}

func (w *watcher) untilNodes(names ...string) *model.Snapshot {
	w.t.Helper()
	return w.until(fmt.Sprint("nodes ", names), func(s *model.Snapshot) bool {
		return s != nil && slices.Equal(slices.Sorted(maps.Keys(s.Nodes)), names)
	})
}

func manifests(t *testing.T, dir string) *watcher {
	t.Helper()
	w := &watcher{t: t}
	m, err := NewManifests(ManifestsOptions{Dir: dir, NodeName: "a", Services: true, OnProblem: w.problem})
	if err != nil {
		t.Fatal(err)
	}
	w.source = m
	return w
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

func named(text, from, to string) string {
	return strings.Replace(text, "name: "+from, "name: "+to, 1)
}

func TestManifestsFollowTheFiles(t *testing.T) {
	dir := t.TempDir()
	w := manifests(t, dir)
	w.run()
	if s := w.untilNodes(); len(s.Pods) != 0 || s.Revision != 1 {
		t.Errorf("an empty directory gives %+v", s)
	}

	writeFile(t, filepath.Join(dir, "a.yaml"), nodeA)
	first := w.untilNodes("a")
	want := &model.Node{Name: "a", Addresses: addrs("192.0.2.1"), PodCIDRs: prefixes("10.1.0.0/24", "fd00:1::/64")}
	if !reflect.DeepEqual(first.Nodes["a"], want) {
		t.Errorf("got %+v", first.Nodes["a"])
	}

	writeFile(t, filepath.Join(dir, "deep", "er", "b.json"), `{"apiVersion":"v1","kind":"Node","metadata":{"name":"b"}}`)
	second := w.untilNodes("a", "b")
	if second.Nodes["a"] != first.Nodes["a"] {
		t.Error("an unchanged node got a new pointer")
	}
	if len(first.Nodes) != 1 {
		t.Error("a published snapshot has changed")
	}

	other := strings.Replace(named(podWeb, "web", "far"), "nodeName: a", "nodeName: b", 1)
	writeFile(t, filepath.Join(dir, "pods.yml"), podWeb+"---\n"+other)
	third := w.until("a Pod", func(s *model.Snapshot) bool { return len(s.Pods) == 1 })
	if third.Pod(model.PodKey{Namespace: "default", Name: "web"}) == nil {
		t.Errorf("got %+v", third.Pods)
	}

	for _, path := range []string{"a.yaml", "pods.yml"} {
		if err := os.Remove(filepath.Join(dir, path)); err != nil {
			t.Fatal(err)
		}
	}
	w.untilNodes("b")
	if err := os.RemoveAll(filepath.Join(dir, "deep")); err != nil {
		t.Fatal(err)
	}
	w.untilNodes()
	if s := w.source.Status(); !s.Connected || s.Kind != KindManifests || s.Server != dir || len(w.allProblems()) != 0 {
		t.Errorf("status %+v, problems %q", s, w.allProblems())
	}
}

func TestBadManifestKeepsTheLastGoodState(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), nodeA)
	w := manifests(t, dir)
	w.run()
	good := w.untilNodes("a")

	bad := filepath.Join(dir, "b.yaml")
	writeFile(t, bad, strings.Replace(named(nodeA, "a", "b"), "10.1.0.0/24", "10.1.0.0/33", 1))
	want := bad + `:7: Node "b": spec.podCIDRs[0]: "10.1.0.0/33" is not a range of addresses such as 10.244.1.0/24 or fd00:10:244:1::/64`
	w.until("the error", func(*model.Snapshot) bool { return w.source.Status().LastError == want })
	writeFile(t, filepath.Join(dir, "c.yaml"), named(nodeA, "a", "c"))
	twice := filepath.Join(dir, "d.yaml")
	read := w.source.Status().Read
	writeFile(t, twice, "x\n")
	w.until("both errors", func(*model.Snapshot) bool { return w.source.Status().LastError == want+" (and 1 more)" })
	if s := w.source.Status(); s.Connected || s.Read != read {
		t.Errorf("a bad file counts as read: %+v", s)
	}
	if w.holder.Get() != good {
		t.Error("a bad file has changed the state")
	}
	if got := w.allProblems(); !slices.Equal(got, []string{want, twice + ":1: got a string, want an object"}) {
		t.Errorf("problems %q", got)
	}

	if err := os.Remove(twice); err != nil {
		t.Fatal(err)
	}
	writeFile(t, bad, named(nodeA, "a", "b"))
	written := time.Now()
	w.until("another look", func(*model.Snapshot) bool { return w.source.Status().Read.After(written) })
	if got := slices.Sorted(maps.Keys(w.holder.Get().Nodes)); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("what was written before that look is not known after it: %q", got)
	}
	w.until("connected", func(*model.Snapshot) bool { s := w.source.Status(); return s.Connected && s.LastError == "" })
}

func TestSameObjectInTwoFiles(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "1.yaml"), filepath.Join(dir, "2.yaml")
	writeFile(t, one, "# first\n"+nodeA)
	writeFile(t, two, podWeb+"---\n"+nodeA)
	w := manifests(t, dir)
	w.run()
	want := fmt.Sprintf(`%s:8: Node "a": already defined at %s:2; remove one of them`, two, one)
	w.until("the error", func(*model.Snapshot) bool { return w.source.Status().LastError == want })
	if w.holder.Get() != nil {
		t.Error("something was published")
	}
	writeFile(t, two, podWeb)
	w.untilNodes("a")
}

func TestManifestDirectoryThatIsMissing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	w := manifests(t, dir)
	w.run()
	w.until("the error", func(*model.Snapshot) bool { return strings.Contains(w.source.Status().LastError, "no such file") })
	writeFile(t, filepath.Join(dir, "a.yaml"), nodeA)
	w.untilNodes("a")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	w.until("the error again", func(*model.Snapshot) bool { return strings.Contains(w.source.Status().LastError, "no such file") })
	if len(w.holder.Get().Nodes) != 1 {
		t.Error("the state is gone with the directory")
	}
	writeFile(t, filepath.Join(dir, "b.yaml"), named(nodeA, "a", "b"))
	w.untilNodes("b")
	writeFile(t, filepath.Join(dir, "c.yaml"), named(nodeA, "a", "c"))
	w.untilNodes("b", "c")
}

// TestMountedConfigMap swaps a link, as the kubelet does for a volume.
func TestMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name+".tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, name+".tmp"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(dir, "..1", "n.yaml"), nodeA)
	link("..1", "..data")
	link("..data/n.yaml", "n.yaml")
	w := manifests(t, dir)
	w.run()
	w.untilNodes("a")
	writeFile(t, filepath.Join(dir, "..2", "n.yaml"), named(nodeA, "a", "b"))
	link("..2", "..data")
	w.untilNodes("b")
}

// TestSwitchedFolder: the folder is a link that is switched to another one, of which no event tells.
func TestSwitchedFolder(t *testing.T) {
	dir := t.TempDir()
	current := filepath.Join(dir, "current")
	for _, version := range []string{"a", "b"} {
		writeFile(t, filepath.Join(dir, version, "n.yaml"), named(nodeA, "a", version))
	}
	if err := os.Symlink("a", current); err != nil {
		t.Fatal(err)
	}
	w := manifests(t, current)
	w.source.(*Manifests).audit = 20 * time.Millisecond
	w.run()
	w.untilNodes("a")
	if err := errors.Join(os.Symlink("b", current+".tmp"), os.Rename(current+".tmp", current)); err != nil {
		t.Fatal(err)
	}
	w.untilNodes("b")
}

// TestFolderMovedAway: folders that are moved out and removed, while all is read, leave the source able to see what comes.
func TestFolderMovedAway(t *testing.T) {
	dir, away := t.TempDir(), t.TempDir()
	for i := range 300 { // so that reading takes a while
		writeFile(t, filepath.Join(dir, "many", fmt.Sprintf("%d.yaml", i)), named(nodeA, "a", fmt.Sprintf("many%d", i)))
	}
	w := manifests(t, dir)
	w.run()
	for i := range 20 {
		sub := filepath.Join(dir, "sub")
		writeFile(t, filepath.Join(sub, "n.yaml"), named(nodeA, "a", fmt.Sprintf("sub%d", i)))
		name := fmt.Sprintf("sub%d", i)
		w.until(name, func(s *model.Snapshot) bool { return s.Node(name) != nil })
		writeFile(t, filepath.Join(dir, "many", "0.yaml"), named(nodeA, "a", fmt.Sprintf("again%d", i))) // somebody reads now
		gone := filepath.Join(away, fmt.Sprint(i))
		if err := errors.Join(os.Rename(sub, gone), os.RemoveAll(gone)); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(dir, "last.yaml"), named(nodeA, "a", "last"))
	w.until("last", func(s *model.Snapshot) bool { return s.Node("last") != nil })
}

func TestManifestsWithoutInotify(t *testing.T) {
	dir := t.TempDir()
	w := manifests(t, dir)
	m := w.source.(*Manifests)
	if m.watch(nil) {
		t.Error("watched without a watcher")
	}
	var got *model.Snapshot
	publish := func(s *model.Snapshot) { got = s }
	m.load(publish)
	writeFile(t, filepath.Join(dir, "a.yaml"), nodeA)
	m.load(publish)
	if got.Node("a") == nil {
		t.Error("the second reading has not found the file")
	}
	first := got
	m.load(publish)
	if got != first {
		t.Error("published without a change")
	}
}

func TestHolder(t *testing.T) {
	var h Holder
	if h.Get() != nil {
		t.Error("something in a new holder")
	}
	_, changed := h.Watch()
	const readers = 8
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for {
				s, changed := h.Watch()
				if s != nil && s.Revision == 100 {
					return
				}
				<-changed
			}
		})
	}
	for n := range uint64(100) {
		h.Set(&model.Snapshot{Revision: n + 1})
	}
	wg.Wait()
	select {
	case <-changed:
	default:
		t.Error("the first channel is still open")
	}
	s, changed := h.Watch()
	select {
	case <-changed:
		t.Error("changed without a change")
	default:
	}
	if s != h.Get() || s.Revision != 100 {
		t.Errorf("got %+v", s)
	}
}
