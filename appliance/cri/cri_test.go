package cri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.network/weft/appliance/model"
)

// fakeRuntime lists what it is told to.
type fakeRuntime struct {
	runtime.UnimplementedRuntimeServiceServer
	items []*runtime.PodSandbox
	err   error
	hang  bool
}

func (f *fakeRuntime) ListPodSandbox(ctx context.Context, req *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	if f.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if req.Filter != nil {
		return nil, errors.New("a filter would hide sandboxes")
	}
	return &runtime.ListPodSandboxResponse{Items: f.items}, f.err
}

func start(t *testing.T, path string, f *fakeRuntime) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtime.RegisterRuntimeServiceServer(s, f)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
}

func TestSandboxes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.sock")
	f := &fakeRuntime{}
	start(t, path, f)
	f.items = []*runtime.PodSandbox{
		{Id: "a", Metadata: &runtime.PodSandboxMetadata{Namespace: "default", Name: "web", Uid: "u1"}, State: runtime.PodSandboxState_SANDBOX_READY},
		{Id: "b", Metadata: &runtime.PodSandboxMetadata{Namespace: "default", Name: "web", Uid: "u1"}, State: runtime.PodSandboxState_SANDBOX_NOTREADY},
		{Id: "c"},
	}
	for _, socket := range []string{path, "unix://" + path} {
		got, err := Sandboxes(context.Background(), socket)
		if err != nil {
			t.Fatal(err)
		}
		web := model.PodRef{Namespace: "default", Name: "web", UID: "u1"}
		if len(got) != 3 || got["a"] != web || got["b"] != web || got["c"] != (model.PodRef{}) {
			t.Errorf("got %v", got)
		}
	}
	f.items = nil
	if got, err := Sandboxes(context.Background(), path); err != nil || got == nil || len(got) != 0 {
		t.Errorf("no sandboxes: %v %v; an empty list is not the same as none", got, err)
	}
}

// TestLarge is a node full of dead sandboxes: more than the 4 MiB that the library takes by itself.
func TestLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.sock")
	f := &fakeRuntime{}
	for i := range 1000 {
		f.items = append(f.items, &runtime.PodSandbox{Id: fmt.Sprint(i), Annotations: map[string]string{"last-applied": strings.Repeat("x", 8000)}})
	}
	start(t, path, f)
	if got, err := Sandboxes(context.Background(), path); err != nil || len(got) != 1000 {
		t.Errorf("%d sandboxes, %v", len(got), err)
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.sock")
	f := &fakeRuntime{err: errors.New("containerd is starting")}
	start(t, path, f)
	for _, tc := range []struct{ socket, want string }{
		{path, "listing the sandboxes of the container runtime at " + path},
		{path, "containerd is starting"},
		{filepath.Join(dir, "none"), "listing the sandboxes of the container runtime at " + dir},
	} {
		if got, err := Sandboxes(context.Background(), tc.socket); err == nil || got != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v, %v; want %s", got, err, tc.want)
		}
	}
	f.hang = true
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := Sandboxes(ctx, path); err == nil {
		t.Error("a runtime that does not answer: no error")
	}
}

func TestFind(t *testing.T) {
	root := t.TempDir() // a socket's path has at most 107 bytes: keep the name of this test short
	if _, err := Find(root); !errors.Is(err, ErrNoRuntime) || !strings.Contains(err.Error(), "runtimeSocket in weft.yaml") || !strings.Contains(err.Error(), Sockets[0]) {
		t.Errorf("none: %v", err)
	}
	// A plain file is no runtime.
	if err := os.MkdirAll(filepath.Dir(root+Sockets[0]), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+Sockets[0], nil, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, root+Sockets[1], &fakeRuntime{})
	if got, err := Find(root); got != root+Sockets[1] || err != nil {
		t.Errorf("%s %v", got, err)
	}
	// The one of k3s comes first.
	if err := os.Remove(root + Sockets[0]); err != nil {
		t.Fatal(err)
	}
	start(t, root+Sockets[0], &fakeRuntime{})
	if got, err := Find(root); got != root+Sockets[0] || err != nil {
		t.Errorf("%s %v", got, err)
	}
}
