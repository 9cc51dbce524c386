package cluster

import (
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"weft.network/weft/appliance/model"
)

func TestMain(m *testing.M) {
	RouteLogs(func(string) {}) // client-go tells at length of the outages that the tests make
	m.Run()
}

func kubeSource(t *testing.T, o KubernetesOptions) *watcher {
	t.Helper()
	w := &watcher{t: t}
	o.NodeName, o.Version, o.OnProblem, o.Services, o.Policies = "a", "test", w.problem, true, true
	k, err := NewKubernetes(o)
	if err != nil {
		t.Fatal(err)
	}
	k.configInterval = 50 * time.Millisecond
	w.source = k
	return w
}

func apiNode(name string, cidrs ...string) *corev1.Node {
	return &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDRs: cidrs},
	}
}

func apiPod(name string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.PodSpec{NodeName: "a"},
	}
}

// withFake makes the source use a client without a server.
func withFake(t *testing.T, objects ...runtime.Object) (*watcher, *fake.Clientset) {
	t.Helper()
	client := fake.NewClientset(objects...)
	w := kubeSource(t, KubernetesOptions{Kubeconfig: kubeconfig(t, "", "http://127.0.0.1:1", nil)})
	w.source.(*Kubernetes).connect = func(*rest.Config, http.RoundTripper) (kubernetes.Interface, error) { return client, nil }
	return w, client
}

func TestKubernetesFollowsTheObjects(t *testing.T) {
	w, client := withFake(t, apiNode("a", "10.1.0.0/24"), apiNode("b"), apiPod("web"))
	w.run()
	first := w.untilNodes("a", "b")
	if first.Revision != 1 || len(first.Pods) != 1 || !slices.Equal(first.Nodes["a"].PodCIDRs, prefixes("10.1.0.0/24")) {
		t.Errorf("got %+v", first)
	}
	w.until("connected", func(*model.Snapshot) bool { return w.source.Status().Connected })

	ctx := t.Context()
	if _, err := client.CoreV1().Nodes().Create(ctx, apiNode("c", "10.3.0.0/24"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	second := w.untilNodes("a", "b", "c")
	if second.Nodes["a"] != first.Nodes["a"] || len(first.Nodes) != 2 {
		t.Error("a published snapshot or an unchanged object has changed")
	}
	if reflect.ValueOf(second.Pods).Pointer() != reflect.ValueOf(first.Pods).Pointer() {
		t.Error("the map of Pods was copied without a change")
	}

	pod := apiPod("web")
	pod.Status.Phase = corev1.PodSucceeded
	if _, err := client.CoreV1().Pods("default").Update(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	key := model.PodKey{Namespace: "default", Name: "web"}
	w.until("completed", func(s *model.Snapshot) bool { return s.Pod(key) != nil && s.Pod(key).Completed })
	if first.Pod(key).Completed {
		t.Error("a published Pod has changed")
	}
	if err := client.CoreV1().Pods("default").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until("no Pod", func(s *model.Snapshot) bool { return len(s.Pods) == 0 })

	// A change of a field that is not kept is no news.
	before := w.holder.Get().Revision
	noise := apiNode("a", "10.1.0.0/24")
	noise.Annotations = map[string]string{"x": "y"}
	if _, err := client.CoreV1().Nodes().Update(ctx, noise, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.CoreV1().Nodes().Delete(ctx, "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if after := w.untilNodes("a", "c"); after.Revision != before+1 {
		t.Errorf("revision %d after %d", after.Revision, before)
	}
}

func TestKubernetesIgnoresAndReportsBadFields(t *testing.T) {
	w, client := withFake(t, apiNode("a", "10.1.0.0/24", "nonsense"))
	w.run()
	s := w.untilNodes("a")
	if !slices.Equal(s.Nodes["a"].PodCIDRs, prefixes("10.1.0.0/24")) {
		t.Errorf("got %+v", s.Nodes["a"])
	}
	want := `Node "a": spec.podCIDRs[1]: "nonsense" is not a range of addresses such as 10.244.1.0/24 or fd00:10:244:1::/64 (ignored)`
	again := apiNode("a", "10.1.0.0/24", "nonsense")
	again.Labels = map[string]string{"x": "y"}
	if _, err := client.CoreV1().Nodes().Update(t.Context(), again, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until("the label", func(s *model.Snapshot) bool { return s.Nodes["a"].Labels["x"] == "y" })
	if got := w.allProblems(); !slices.Equal(got, []string{want}) {
		t.Errorf("reported %q", got)
	}
	if got := w.source.Status().Problems; !slices.Equal(got, []string{want}) {
		t.Errorf("status %q", got)
	}
	if _, err := client.CoreV1().Nodes().Update(t.Context(), apiNode("a", "10.1.0.0/24"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until("no problem", func(*model.Snapshot) bool { return len(w.source.Status().Problems) == 0 })
}

func TestKubernetesEvents(t *testing.T) {
	w, client := withFake(t)
	w.source.Recorder().WarnPod(model.PodRef{Namespace: "default", Name: "early"}, "Early", "before Run") // it waits for the server
	w.run()
	w.untilNodes()
	w.source.Recorder().WarnPod(model.PodRef{Namespace: "default", Name: "web", UID: "1"}, "AddressesExhausted", "no address is left")
	w.source.Recorder().WarnNode("a", "AddressesExhausted", "no address is left")
	var got []corev1.Event
	w.until("three events", func(*model.Snapshot) bool {
		list, err := client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got = list.Items
		return len(got) == 3
	})
	for _, e := range got {
		if e.Type != "Warning" || e.Reason != "AddressesExhausted" && e.Reason != "Early" || e.Source.Component != "weft" || e.Source.Host != "a" || e.Namespace != "default" {
			t.Errorf("got %+v", e)
		}
	}
	if !slices.ContainsFunc(got, func(e corev1.Event) bool { return e.InvolvedObject.Kind == "Pod" && e.InvolvedObject.UID == "1" }) {
		t.Errorf("no event for the Pod: %+v", got)
	}
}

func TestOutageOfTheOnlyServer(t *testing.T) {
	for name, streams := range map[string]bool{"lists": false, "streams": true} {
		t.Run(name, func(t *testing.T) { testOutage(t, streams) })
	}
}

func testOutage(t *testing.T, streams bool) {
	ca := newAuthority(t)
	cert := ca.certificate(t, "127.0.0.1")
	api := newAPIServer()
	api.streams = streams
	api.put(pathNodes, "a", apiNode("a"))
	server := serve(t, api, "127.0.0.1:0", cert)
	at := hostport(server)
	w := kubeSource(t, KubernetesOptions{Kubeconfig: kubeconfig(t, "", "https://"+at, ca.pem)})
	stopSource := w.run()
	first := w.untilNodes("a")
	w.until("connected", func(*model.Snapshot) bool {
		s := w.source.Status()
		return s.Connected && s.Server == at && s.LastError == ""
	})
	if slices.ContainsFunc(api.seen(), func(r string) bool {
		return strings.HasPrefix(r, pathPods) && strings.Contains(r, "fieldSelector=")
	}) {
		t.Errorf("Pods of other nodes, which policies are about, are not listed: %q", api.seen())
	}

	listed := slices.ContainsFunc(api.seen(), func(r string) bool { return strings.HasPrefix(r, pathNodes) && !strings.Contains(r, "watch") })
	if listed == streams {
		t.Errorf("listed %v, want %v: %q", listed, !streams, api.seen())
	}

	stop(server)
	w.until("disconnected", func(*model.Snapshot) bool {
		s := w.source.Status()
		return !s.Connected && strings.Contains(s.LastError, at) && strings.Contains(s.LastError, "refused")
	})
	if w.holder.Get() != first {
		t.Error("the outage has changed the snapshot")
	}
	api.put(pathNodes, "b", apiNode("b"))
	server = serve(t, api, at, cert)
	second := w.untilNodes("a", "b")
	if second.Nodes["a"] != first.Nodes["a"] {
		t.Error("the outage has changed the pointer of an unchanged object")
	}
	w.until("connected", func(*model.Snapshot) bool { return w.source.Status().Connected })

	stop(server)
	w.until("disconnected", func(*model.Snapshot) bool { return !w.source.Status().Connected })
	start := time.Now()
	stopSource()
	t.Logf("the source took %v to stop while the API is away", time.Since(start))
}

func TestNextServerTakesOver(t *testing.T) {
	ca := newAuthority(t)
	api := newAPIServer()
	api.put(pathNodes, "a", apiNode("a"))
	configured := serve(t, api, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))
	// The certificate of the second server has only the name that all of them share.
	other := serve(t, api, "127.0.0.1:0", ca.certificate(t, serviceName))
	foreign := serve(t, api, "127.0.0.1:0", newAuthority(t).certificate(t, "127.0.0.1", serviceName))
	w := kubeSource(t, KubernetesOptions{
		Kubeconfig: kubeconfig(t, "", "https://"+hostport(configured), ca.pem),
		Known:      []string{hostport(foreign), hostport(other)},
	})
	w.run()
	w.untilNodes("a")
	w.until("first server", func(*model.Snapshot) bool { return w.source.Status().Server == hostport(configured) })
	stop(configured)
	api.put(pathNodes, "b", apiNode("b"))
	w.untilNodes("a", "b")
	w.until("second server", func(*model.Snapshot) bool {
		s := w.source.Status()
		return s.Connected && s.Server == hostport(other)
	})
	stop(other)
	w.until("none", func(*model.Snapshot) bool {
		s := w.source.Status()
		return !s.Connected && strings.Contains(s.LastError, "unknown authority") && strings.Contains(s.LastError, "refused")
	})
}

func TestColdStartWithTheConfiguredServerAway(t *testing.T) {
	ca := newAuthority(t)
	api := newAPIServer()
	api.put(pathNodes, "a", apiNode("a"))
	known := serve(t, api, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))
	w := kubeSource(t, KubernetesOptions{
		Kubeconfig: kubeconfig(t, "", "https://127.0.0.1:1", ca.pem), Known: []string{hostport(known)},
	})
	w.run()
	w.untilNodes("a")
}

func TestKubeconfigThatComesLateAndChanges(t *testing.T) {
	ca := newAuthority(t)
	first, second := newAPIServer(), newAPIServer()
	first.put(pathNodes, "a", apiNode("a"))
	second.put(pathNodes, "z", apiNode("z"))
	path := filepath.Join(t.TempDir(), "kubeconfig")
	w := kubeSource(t, KubernetesOptions{Kubeconfig: path})
	w.run()
	w.until("the error", func(*model.Snapshot) bool {
		s := w.source.Status()
		return !s.Connected && strings.Contains(s.LastError, path) && strings.Contains(s.LastError, "no such file")
	})
	kubeconfig(t, path, "https://"+hostport(serve(t, first, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))), ca.pem)
	w.untilNodes("a")
	w.until("connected", func(*model.Snapshot) bool { return w.source.Status().Connected })
	kubeconfig(t, path, "https://"+hostport(serve(t, second, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))), ca.pem)
	w.untilNodes("z")
}

func TestMissingRights(t *testing.T) {
	ca := newAuthority(t)
	api := newAPIServer()
	api.put(pathNodes, "a", apiNode("a"))
	api.setForbidden(pathNodes, true)
	api.setForbidden(pathSlices, true) // the API server's own addresses: does without
	server := serve(t, api, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))
	w := kubeSource(t, KubernetesOptions{Kubeconfig: kubeconfig(t, "", "https://"+hostport(server), ca.pem)})
	w.run()
	w.until("the error", func(*model.Snapshot) bool {
		s := w.source.Status()
		return !s.Connected && strings.Contains(s.LastError, "watching nodes") && strings.Contains(s.LastError, "RBAC manifest")
	})
	if w.holder.Get() != nil {
		t.Error("published without the nodes")
	}
	w.until("the problem", func(*model.Snapshot) bool {
		p := w.allProblems()
		slices.Sort(p)
		return len(p) == 2 && strings.Contains(p[0], "nothing of the cluster is heard while one kind is refused: watching nodes: ") &&
			strings.Contains(p[1], "watching endpointslices of the API server: ")
	})
	api.setForbidden(pathNodes, false)
	w.untilNodes("a")
	w.until("connected", func(*model.Snapshot) bool {
		s := w.source.Status()
		return s.Connected && len(s.Problems) == 1
	})
}

func slice(name string, ready bool, port int32, addresses ...string) *discoveryv1.EndpointSlice {
	https := "https"
	return &discoveryv1.EndpointSlice{
		TypeMeta:   metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: addresses, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:      []discoveryv1.EndpointPort{{Name: &https, Port: &port}},
	}
}

func TestServersAreLearned(t *testing.T) {
	ca := newAuthority(t)
	api := newAPIServer()
	api.put(pathSlices, "v4", slice("v4", true, 6443, "192.0.2.2", "192.0.2.1", "127.0.0.1"))
	api.put(pathSlices, "v6", slice("v6", true, 6443, "2001:db8::1"))
	api.put(pathSlices, "gone", slice("gone", false, 6443, "192.0.2.9"))
	server := serve(t, api, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))
	var mu sync.Mutex
	var learned [][]string
	w := kubeSource(t, KubernetesOptions{
		Kubeconfig: kubeconfig(t, "", "https://"+hostport(server), ca.pem),
		OnServers:  func(s []string) { mu.Lock(); learned = append(learned, s); mu.Unlock() },
	})
	w.run()
	until := func(want ...[]string) {
		t.Helper()
		w.until("learned servers", func(*model.Snapshot) bool {
			mu.Lock()
			defer mu.Unlock()
			return reflect.DeepEqual(learned, want)
		})
	}
	both := []string{"192.0.2.1:6443", "192.0.2.2:6443", "[2001:db8::1]:6443"}
	until(both)
	api.put(pathSlices, "v6", nil)
	one := []string{"192.0.2.1:6443", "192.0.2.2:6443"}
	until(both, one)
	api.put(pathSlices, "v4", nil)
	api.put(pathSlices, "v6", slice("v6", true, 6443, "2001:db8::2"))
	until(both, one, []string{"[2001:db8::2]:6443"}) // the empty list in between is not believed
}

func TestCandidates(t *testing.T) {
	tests := []struct {
		name    string
		options KubernetesOptions
		host    string // of the kubeconfig
		learned []string
		want    []string
	}{
		{"kubeconfig", KubernetesOptions{Kubeconfig: "x"}, "https://cp:6443", nil, []string{"https://cp:6443"}},
		{
			"kubeconfig first, then learned",
			KubernetesOptions{Kubeconfig: "x"},
			"https://192.0.2.1:6443",
			[]string{"192.0.2.1:6443", "192.0.2.2:6443"},
			[]string{"https://192.0.2.1:6443", "https://192.0.2.2:6443"},
		},
		{
			"flags replace the kubeconfig",
			KubernetesOptions{Kubeconfig: "x", Servers: []string{"192.0.2.5", "http://lb:8080", "2001:db8::1", "[2001:db8::2]:443"}},
			"https://cp:6443",
			[]string{"192.0.2.1:6443"},
			[]string{"https://192.0.2.5:6443", "http://lb:8080", "https://[2001:db8::1]:6443", "https://[2001:db8::2]:443", "https://192.0.2.1:6443"},
		},
		{"ClusterIP when nothing else is known", KubernetesOptions{}, "https://10.96.0.1:443", nil, []string{"https://10.96.0.1:443"}},
		{"no ClusterIP when there is better", KubernetesOptions{}, "https://10.96.0.1:443", []string{"192.0.2.1:6443"}, []string{"https://192.0.2.1:6443"}},
		{"no ClusterIP beside flags", KubernetesOptions{Servers: []string{"192.0.2.5"}}, "https://10.96.0.1:443", nil, []string{"https://192.0.2.5:6443"}},
		{
			"a name in a Pod is no ClusterIP",
			KubernetesOptions{},
			"https://lb.example:6443",
			[]string{"192.0.2.1:6443"},
			[]string{"https://lb.example:6443", "https://192.0.2.1:6443"},
		},
		{"a proxy with a path", KubernetesOptions{Kubeconfig: "x"}, "https://rancher/k8s/clusters/c-1", []string{"192.0.2.1:6443"}, []string{"https://rancher:443"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.options.NodeName, test.options.Known = "a", test.learned
			k, err := NewKubernetes(test.options)
			if err != nil {
				t.Fatal(err)
			}
			config := &rest.Config{Host: test.host}
			base, err := configured(config)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range k.candidates(config, base) {
				got = append(got, s.url.String())
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestBadOptions(t *testing.T) {
	if _, err := NewKubernetes(KubernetesOptions{}); err == nil || !strings.Contains(err.Error(), "--node-name") {
		t.Errorf("got %v", err)
	}
	for _, text := range []string{"", "ftp://x", "https://x/path", "https://", "a b", "x:y:z"} {
		if _, err := NewKubernetes(KubernetesOptions{NodeName: "a", Servers: []string{text}}); err == nil {
			t.Errorf("%q is taken for a server", text)
		}
	}
	if _, err := NewManifests(ManifestsOptions{}); err == nil {
		t.Error("manifests without a directory")
	}
}

// answers is a transport that fails or answers as told.
type answers struct {
	code int
	err  error
	seen *[]string
}

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	*a.seen = append(*a.seen, r.URL.String())
	if a.err != nil {
		return nil, a.err
	}
	return &http.Response{StatusCode: a.code, Body: http.NoBody, Request: r}, nil
}

func TestRotation(t *testing.T) {
	var seen []string
	behaviour := map[string]answers{}
	s := &servers{
		dial: func(u url.URL, _ string) (http.RoundTripper, error) {
			a := behaviour[u.Host]
			a.seen = &seen
			return a, nil
		},
		answered: func(string) {},
	}
	list := func(hosts ...string) (out []*server) {
		for _, h := range hosts {
			out = append(out, &server{url: url.URL{Scheme: "https", Host: h}, names: []string{""}})
		}
		return out
	}
	try := func(method string) (int, error) {
		seen = nil
		r, err := http.NewRequestWithContext(t.Context(), method, "https://configured/api?x=y", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := s.RoundTrip(r)
		if err != nil {
			return 0, err
		}
		return res.StatusCode, nil
	}
	if _, err := try(http.MethodGet); err == nil {
		t.Error("no error without servers")
	}
	behaviour["down"], behaviour["down2"] = answers{err: http.ErrServerClosed}, answers{err: http.ErrHandlerTimeout}
	behaviour["up"], behaviour["leaving"] = answers{code: 200}, answers{code: 503}

	s.set(list("down", "down2"))
	if _, err := try(http.MethodGet); err == nil || !strings.Contains(err.Error(), "API server down: ") || !strings.Contains(err.Error(), "API server down2: ") {
		t.Errorf("got %v", err)
	}
	s.set(list("down", "up"))
	if code, err := try(http.MethodGet); code != 200 || err != nil || !slices.Equal(seen, []string{"https://down/api?x=y", "https://up/api?x=y"}) {
		t.Errorf("got %d, %v, %q", code, err, seen)
	}
	if try(http.MethodGet); len(seen) != 1 {
		t.Errorf("the server that answered is not tried first: %q", seen)
	}
	s.set(list("new", "up")) // the current one stays current
	if try(http.MethodGet); !slices.Equal(seen, []string{"https://up/api?x=y"}) {
		t.Errorf("got %q", seen)
	}
	s.set(list("down", "up"))
	s.current = 0
	if _, err := try(http.MethodPost); err == nil || len(seen) != 1 {
		t.Errorf("a request with an effect was repeated: %q", seen)
	}
	if code, _ := try(http.MethodPost); code != 200 {
		t.Error("the next request does not go to the next server")
	}
	s.set(list("leaving", "up"))
	s.current = 0
	if code, _ := try(http.MethodGet); code != 503 {
		t.Errorf("got %d", code)
	}
	if code, _ := try(http.MethodGet); code != 200 {
		t.Errorf("got %d", code)
	}
}
