package cluster

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.network/weft/appliance/model"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func apiService(name, address string) *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIPs: []string{address}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

func apiSlice(name, service string, addresses ...string) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: "IPv4",
		Ports:       []discoveryv1.EndpointPort{{Port: ptr(int32(8080))}},
	}
	for _, a := range addresses {
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return out
}

func mapOf(m any) uintptr { return reflect.ValueOf(m).Pointer() }

func TestKubernetesFollowsServices(t *testing.T) {
	foreign := apiSlice("foreign", "web", "10.1.0.9")
	foreign.Labels = nil
	alien := apiSlice("alien", "web")
	alien.AddressType = "FQDN"
	w, client := withFake(t, apiNode("a"), apiService("web", "10.96.0.10"), apiSlice("web-1", "web", "10.1.0.2"), apiSlice("web-2", "web", "10.1.0.3"), foreign, alien)
	w.run()
	first := w.untilNodes("a")
	web, slice1 := model.ServiceKey{Namespace: "default", Name: "web"}, model.SliceKey{Namespace: "default", Name: "web-1"}
	if first.Revision != 1 || len(first.Services) != 1 || len(first.Slices) != 2 || !slices.Equal(first.Services[web].ClusterIPs, addrs("10.96.0.10")) {
		t.Fatalf("got %+v", first)
	}

	ctx, endpoints := t.Context(), client.DiscoveryV1().EndpointSlices("default")
	if _, err := endpoints.Update(ctx, apiSlice("web-1", "web", "10.1.0.2", "10.1.0.4"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	second := w.until("the second endpoint", func(s *model.Snapshot) bool { return len(s.Slices[slice1].Endpoints) == 2 })
	if len(first.Slices[slice1].Endpoints) != 1 {
		t.Error("a published slice has changed")
	}
	for key, old := range first.Slices {
		if key != slice1 && second.Slices[key] != old {
			t.Error("an unchanged slice got a new pointer")
		}
	}
	if mapOf(second.Services) != mapOf(first.Services) || mapOf(second.Nodes) != mapOf(first.Nodes) || mapOf(second.Slices) == mapOf(first.Slices) {
		t.Error("not exactly the map with the change was copied")
	}

	// A slice that is taken away from its Service, one that turns into names, and a Service that goes.
	lost := apiSlice("web-1", "", "10.1.0.2")
	if _, err := endpoints.Update(ctx, lost, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	names := apiSlice("web-2", "web")
	names.AddressType = "FQDN"
	if _, err := endpoints.Update(ctx, names, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.CoreV1().Services("default").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until("nothing", func(s *model.Snapshot) bool { return len(s.Services) == 0 && len(s.Slices) == 0 })

	bad := apiService("bad", "10.96.0.11")
	bad.Spec.ExternalIPs = []string{"nonsense"}
	if _, err := client.CoreV1().Services("default").Create(ctx, bad, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until("the bad one", func(s *model.Snapshot) bool { return len(s.Services) == 1 })
	want := []string{`Service "default/bad": spec.externalIPs[0]: "nonsense" is not an IPv4 or IPv6 address (ignored)`}
	if got := w.source.Status().Problems; !slices.Equal(got, want) || !slices.Equal(w.allProblems(), want) {
		t.Errorf("status %q, reported %q", got, w.allProblems())
	}
}

func TestServicesOverHTTP(t *testing.T) {
	for name, streams := range map[string]bool{"lists": false, "streams": true} {
		t.Run(name, func(t *testing.T) {
			ca := newAuthority(t)
			api := newAPIServer()
			api.streams = streams
			api.put(pathNodes, "a", apiNode("a"))
			api.put(pathServices, "web", apiService("web", "10.96.0.10"))
			api.put(pathAllSlices, "web-1", apiSlice("web-1", "web", "10.1.0.2"))
			api.setForbidden(pathServices, true)
			server := serve(t, api, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))
			w := kubeSource(t, KubernetesOptions{Kubeconfig: kubeconfig(t, "", "https://"+hostport(server), ca.pem)})
			w.run()
			w.until("the error", func(*model.Snapshot) bool {
				s := w.source.Status()
				return !s.Connected && strings.Contains(s.LastError, "watching services") && strings.Contains(s.LastError, "RBAC manifest")
			})
			if w.holder.Get() != nil {
				t.Error("published without the Services: their rules would go")
			}
			api.setForbidden(pathServices, false)
			first := w.untilNodes("a")
			if len(first.Services) != 1 || len(first.Slices) != 1 {
				t.Errorf("got %+v", first)
			}
			api.put(pathServices, "web", nil)
			api.put(pathAllSlices, "web-1", nil)
			w.until("nothing", func(s *model.Snapshot) bool { return len(s.Services) == 0 && len(s.Slices) == 0 })
			if !slices.ContainsFunc(api.seen(), func(r string) bool {
				return strings.HasPrefix(r, pathAllSlices) && strings.Contains(r, "labelSelector=kubernetes.io%2Fservice-name")
			}) {
				t.Errorf("slices without a Service are listed: %q", api.seen())
			}
		})
	}
}

func TestNoServicesWhereNobodyWantsThem(t *testing.T) {
	ca := newAuthority(t)
	api := newAPIServer()
	api.put(pathNodes, "a", apiNode("a"))
	api.put(pathServices, "web", apiService("web", "10.96.0.10"))
	server := serve(t, api, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))
	k, err := NewKubernetes(KubernetesOptions{NodeName: "a", Kubeconfig: kubeconfig(t, "", "https://"+hostport(server), ca.pem)})
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, source: k}
	w.run()
	first := w.untilNodes("a")
	w.until("connected", func(*model.Snapshot) bool { return k.Status().Connected })
	if len(first.Services) != 0 || slices.ContainsFunc(api.seen(), func(r string) bool {
		return strings.HasPrefix(r, pathServices) || strings.HasPrefix(r, pathAllSlices) || strings.HasPrefix(r, pathSpaces) ||
			strings.HasPrefix(r, pathPolicies) || strings.HasPrefix(r, pathPods) && !strings.Contains(r, "fieldSelector=spec.nodeName%3Da")
	}) {
		t.Errorf("got %+v after %q", first, api.seen())
	}

	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "all.yaml"), nodeA+"---\n"+serviceWeb+"---\n"+strings.Replace(sliceWeb, "10.1.0.2", "nonsense", 1))
	m, err := NewManifests(ManifestsOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	w = &watcher{t: t, source: m}
	w.run()
	if s := w.untilNodes("a"); len(s.Services) != 0 || len(s.Slices) != 0 {
		t.Errorf("got %+v", s)
	}
}

// TestManifestsGolden compares what files of Services become with what the store would hold.
func TestManifestsGolden(t *testing.T) {
	w := manifests(t, filepath.Join("testdata", "services"))
	w.run()
	snap := w.untilNodes("a")
	text, err := json.Marshal(snap)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := json.Indent(&got, text, "", "  "); err != nil {
		t.Fatal(err)
	}
	got.WriteByte('\n')
	golden := filepath.Join("testdata", "services.golden")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s: got\n%s", golden, got.Bytes())
	}
}

func TestManifestsFollowServices(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), nodeA+"---\n"+serviceWeb)
	writeFile(t, filepath.Join(dir, "b.yaml"), sliceWeb)
	w := manifests(t, dir)
	w.run()
	first := w.untilNodes("a")
	if len(first.Services) != 1 || len(first.Slices) != 1 {
		t.Fatalf("got %+v", first)
	}
	writeFile(t, filepath.Join(dir, "b.yaml"), sliceWeb+"---\n"+named(sliceWeb, "web-1", "web-2"))
	second := w.until("two slices", func(s *model.Snapshot) bool { return len(s.Slices) == 2 })
	key := model.SliceKey{Namespace: "default", Name: "web-1"}
	if second.Slices[key] != first.Slices[key] || mapOf(second.Services) != mapOf(first.Services) {
		t.Error("what did not change got a new pointer")
	}
	writeFile(t, filepath.Join(dir, "a.yaml"), nodeA)
	w.until("no Service", func(s *model.Snapshot) bool { return len(s.Services) == 0 })
}
