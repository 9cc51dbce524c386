package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// apiServer answers lists and watches of a few resources, as far as a reflector needs it. Several listeners may share one, as
// the API servers of one cluster share etcd.
type apiServer struct {
	mu       sync.Mutex
	version  int
	objects  map[string]map[string]runtime.Object // by path of the resource, then by name
	log      []change
	wake     chan struct{}
	forbid   map[string]bool
	unknown  map[string]bool // kinds that this server does not have
	requests []string
	streams  bool // answers a list as a stream (KEP-3157), as servers do since 1.32
}

type change struct {
	version int
	path    string
	kind    string
	object  runtime.Object
}

func newAPIServer() *apiServer {
	return &apiServer{version: 1, objects: map[string]map[string]runtime.Object{}, wake: make(chan struct{}), forbid: map[string]bool{}, unknown: map[string]bool{}}
}

const (
	pathNodes     = "/api/v1/nodes"
	pathPods      = "/api/v1/pods"
	pathServices  = "/api/v1/services"
	pathAllSlices = "/apis/discovery.k8s.io/v1/endpointslices"
	pathSpaces    = "/api/v1/namespaces"
	pathPolicies  = "/apis/networking.k8s.io/v1/networkpolicies"
	pathSlices    = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices" // of the API server
	pathBGPPeers  = "/apis/weft.network/v1alpha1/bgppeers"
	pathSecrets   = "/api/v1/namespaces/kube-system/secrets"
)

// heads are the apiVersion and kind of what is at a path.
var heads = map[string][2]string{
	pathNodes: {"v1", "Node"}, pathPods: {"v1", "Pod"}, pathServices: {"v1", "Service"},
	pathAllSlices: {"discovery.k8s.io/v1", "EndpointSlice"}, pathSlices: {"discovery.k8s.io/v1", "EndpointSlice"},
	pathSpaces: {"v1", "Namespace"}, pathPolicies: {"networking.k8s.io/v1", "NetworkPolicy"},
	pathBGPPeers: {"weft.network/v1alpha1", "BGPPeer"}, pathSecrets: {"v1", "Secret"},
}

// put adds or replaces an object; a nil object removes it.
func (a *apiServer) put(path, name string, object runtime.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	if a.objects[path] == nil {
		a.objects[path] = map[string]runtime.Object{}
	}
	old, exists := a.objects[path][name]
	kind := "ADDED"
	switch {
	case object == nil:
		kind, object = "DELETED", old
		delete(a.objects[path], name)
	case exists:
		kind = "MODIFIED"
	}
	if kind != "DELETED" {
		object.(metav1.Object).SetResourceVersion(strconv.Itoa(a.version))
		a.objects[path][name] = object
	}
	a.log = append(a.log, change{a.version, path, kind, object})
	close(a.wake)
	a.wake = make(chan struct{})
}

func (a *apiServer) setForbidden(path string, forbidden bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forbid[path] = forbidden
}

func (a *apiServer) seen() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.requests)
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.requests = append(a.requests, r.URL.RequestURI())
	forbidden, unknown := a.forbid[r.URL.Path], a.unknown[r.URL.Path]
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case unknown:
		w.Header().Set("Content-Type", "text/plain")
		http.Error(w, "404 page not found", http.StatusNotFound)
	case forbidden:
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, "nodes is forbidden: no such right")
	case r.URL.Query().Get("sendInitialEvents") != "" && !a.streams:
		refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden")
	case r.URL.Query().Get("watch") != "":
		a.watch(w, r)
	default:
		a.list(w, r)
	}
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: reason, Message: message, Code: int32(code),
	})
}

func (a *apiServer) list(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	items := []runtime.Object{}
	for _, name := range slices.Sorted(maps.Keys(a.objects[r.URL.Path])) {
		items = append(items, a.objects[r.URL.Path][name])
	}
	head := heads[r.URL.Path]
	_ = json.NewEncoder(w).Encode(map[string]any{
		"apiVersion": head[0], "kind": head[1] + "List", "items": items, "metadata": map[string]any{"resourceVersion": strconv.Itoa(a.version)},
	})
}

func (a *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if r.URL.Query().Get("sendInitialEvents") != "" {
		from = a.initial(w, r.URL.Path)
	}
	w.(http.Flusher).Flush()
	for {
		a.mu.Lock()
		wake := a.wake
		var pending []change
		for _, c := range a.log {
			if c.version > from && c.path == r.URL.Path {
				pending = append(pending, c)
			}
		}
		from = a.version
		a.mu.Unlock()
		for _, c := range pending {
			if json.NewEncoder(w).Encode(map[string]any{"type": c.kind, "object": c.object}) != nil {
				return
			}
		}
		w.(http.Flusher).Flush()
		select {
		case <-wake:
		case <-r.Context().Done():
			return
		}
	}
}

// initial sends all objects and the bookmark that ends them, and returns its version.
func (a *apiServer) initial(w http.ResponseWriter, path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	event := func(kind string, object any) {
		_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": object})
	}
	for _, name := range slices.Sorted(maps.Keys(a.objects[path])) {
		event("ADDED", a.objects[path][name])
	}
	head := heads[path]
	event("BOOKMARK", map[string]any{"apiVersion": head[0], "kind": head[1], "metadata": map[string]any{
		"resourceVersion": strconv.Itoa(a.version), "annotations": map[string]string{metav1.InitialEventsAnnotationKey: "true"},
	}})
	return a.version
}

// authority signs certificates for test servers.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// certificate returns one that is valid for the given names and addresses.
func (a *authority) certificate(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
			continue
		}
		template.DNSNames = append(template.DNSNames, n)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve answers at an address; "127.0.0.1:0" chooses a port.
func serve(t *testing.T, api http.Handler, at string, cert tls.Certificate) *httptest.Server {
	t.Helper()
	listener, err := net.Listen("tcp", at)
	for end := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(end); listener, err = net.Listen("tcp", at) {
		<-time.After(50 * time.Millisecond) // a client of somebody else's may have the port for now
	}
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(api)
	_ = server.Listener.Close()
	server.Listener = listener
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(func() { stop(server) })
	return server
}

// stop ends a server at once, with the watches that it serves.
func stop(server *httptest.Server) {
	server.CloseClientConnections()
	_ = server.Config.Close()
}

func hostport(server *httptest.Server) string { return server.Listener.Addr().String() }

// kubeconfig writes one and returns its path.
func kubeconfig(t *testing.T, path, server string, ca []byte) string {
	t.Helper()
	if path == "" {
		path = filepath.Join(t.TempDir(), "kubeconfig")
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: c
  cluster: {server: %q, certificate-authority-data: %s}
users:
- name: u
  user: {token: secret}
contexts:
- name: x
  context: {cluster: c, user: u}
current-context: x
`, server, base64.StdEncoding.EncodeToString(ca))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
