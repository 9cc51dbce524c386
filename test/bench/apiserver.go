package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
)

// apiServer answers lists and watches as far as the proxies need it, from memory: a real one would take longer to be filled than
// anything that is measured here.
type apiServer struct {
	mu      sync.Mutex
	version int
	objects map[string]map[string]json.RawMessage // by path of the resource, then by name
	log     []apiChange
	wake    chan struct{}
}

type apiChange struct {
	version    int
	path, kind string
	object     json.RawMessage
}

// The resources that there are; the list of any other one is not found.
const (
	pathNodes    = "/api/v1/nodes"
	pathServices = "/api/v1/services"
	pathSlices   = "/apis/discovery.k8s.io/v1/endpointslices"
)

var apiHeads = map[string][2]string{
	pathNodes: {"v1", "Node"}, pathServices: {"v1", "Service"}, pathSlices: {"discovery.k8s.io/v1", "EndpointSlice"},
	"/api/v1/pods": {"v1", "Pod"}, "/api/v1/namespaces": {"v1", "Namespace"}, "/api/v1/nodes/node1": {"v1", "Node"},
	"/apis/networking.k8s.io/v1/networkpolicies": {"networking.k8s.io/v1", "NetworkPolicy"},
	"/apis/networking.k8s.io/v1/servicecidrs":    {"networking.k8s.io/v1", "ServiceCIDR"},
}

// newAPIServer starts a server in a namespace, on its loopback, and returns it with the path of a kubeconfig.
func (l *Lab) newAPIServer(n *Netns) (*apiServer, string, error) {
	a := &apiServer{version: 1, objects: map[string]map[string]json.RawMessage{}, wake: make(chan struct{})}
	var listener net.Listener
	err := n.do(func() (err error) {
		listener, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("listening for the API's clients: %w", err)
	}
	server := &http.Server{Handler: a}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "bench: serving the API:", err)
		}
	}()
	l.Cleanup(func() { _ = server.Close() })
	dir, err := l.Folder("api")
	if err != nil {
		return nil, "", err
	}
	path := filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": [{"name": "c", "cluster": {"server": "http://%s"}}], "users": [{"name": "c", "user": {}}],
		"contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]}`, listener.Addr())
	return a, path, os.WriteFile(path, []byte(text), 0o600)
}

// put adds or replaces an object. metadata is added to it: the name, the namespace bench, and the version.
func (a *apiServer) put(path, name string, object map[string]any, metadata map[string]any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	m := map[string]any{"name": name, "uid": "uid-of-" + name, "resourceVersion": strconv.Itoa(a.version), "creationTimestamp": "2026-01-01T00:00:00Z"}
	if path != pathNodes {
		m["namespace"] = "bench"
	}
	maps.Copy(m, metadata)
	object["metadata"], object["apiVersion"], object["kind"] = m, apiHeads[path][0], apiHeads[path][1]
	text, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("writing %s %s: %w", path, name, err)
	}
	if a.objects[path] == nil {
		a.objects[path] = map[string]json.RawMessage{}
	}
	kind := "ADDED"
	if a.objects[path][name] != nil {
		kind = "MODIFIED"
	}
	a.objects[path][name] = text
	a.log = append(a.log, apiChange{a.version, path, kind, text})
	close(a.wake)
	a.wake = make(chan struct{})
	return nil
}

// ServeHTTP answers one list, watch or get; whoever writes is told that it was done.
func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	head, known := apiHeads[r.URL.Path]
	q := r.URL.Query()
	switch {
	case r.Method != http.MethodGet:
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte(`{}`))
	case r.URL.Path == pathNodes+"/node1":
		a.mu.Lock()
		defer a.mu.Unlock()
		_, _ = w.Write(a.objects[pathNodes]["node1"])
	case !known:
		http.NotFound(w, r)
	case q.Get("sendInitialEvents") != "":
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = w.Write([]byte(`{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422, "message": "sendInitialEvents is forbidden"}`))
	case q.Get("watch") != "":
		a.watch(w, r)
	default:
		a.list(w, r.URL.Path, head)
	}
}

func (a *apiServer) list(w http.ResponseWriter, path string, head [2]string) {
	a.mu.Lock()
	items := slices.Collect(maps.Values(a.objects[path]))
	version := a.version
	a.mu.Unlock()
	fmt.Fprintf(w, `{"apiVersion": %q, "kind": %q, "metadata": {"resourceVersion": "%d"}, "items": [`, head[0], head[1]+"List", version)
	for i, item := range items {
		if i > 0 {
			_, _ = w.Write([]byte(","))
		}
		_, _ = w.Write(item)
	}
	_, _ = w.Write([]byte("]}"))
}

func (a *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	w.(http.Flusher).Flush()
	for {
		a.mu.Lock()
		wake := a.wake
		at, _ := slices.BinarySearchFunc(a.log, from+1, func(c apiChange, version int) int { return c.version - version })
		pending := slices.Clone(a.log[at:])
		from = a.version
		a.mu.Unlock()
		for _, c := range pending {
			if c.path == r.URL.Path {
				fmt.Fprintf(w, "{\"type\": %q, \"object\": %s}\n", c.kind, c.object)
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
