// Package cri asks the container runtime which Pod sandboxes exist, over the Container Runtime Interface.
package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weft.network/weft/appliance/model"
)

// Sockets are where runtimes listen, in the order in which they are tried: k3s brings its own containerd and must come first,
// since the machine may have another one beside it.
var Sockets = []string{
	"/run/k3s/containerd/containerd.sock",
	"/run/containerd/containerd.sock",
	"/var/run/crio/crio.sock",
	"/var/run/cri-dockerd.sock",
}

// ErrNoRuntime says that no runtime socket was found.
var ErrNoRuntime = errors.New("no container runtime socket found (set runtimeSocket in weft.yaml)")

// Find returns the first runtime socket that exists below the root directory ("" for this machine).
func Find(root string) (string, error) {
	for _, s := range Sockets {
		if st, err := os.Stat(root + s); err == nil && st.Mode()&os.ModeSocket != 0 {
			return root + s, nil
		}
	}
	return "", fmt.Errorf("%w: tried %s", ErrNoRuntime, strings.Join(Sockets, ", "))
}

// listTime bounds one question; a runtime that is starting may accept and not answer.
const listTime = 10 * time.Second

// maxAnswer is the largest answer taken, in bytes: as much as the runtimes send. With the 4 MiB of the library, a node full of dead
// sandboxes with long annotations would look like one without a runtime.
const maxAnswer = 16 << 20

// Sandboxes lists every sandbox the runtime knows, running or not, by its ID. socket may be empty: then Find chooses.
func Sandboxes(ctx context.Context, socket string) (map[string]model.PodRef, error) {
	if socket == "" {
		var err error
		if socket, err = Find(""); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(socket, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("connecting to the container runtime at %s: %w", socket, err)
	}
	defer func() { _ = conn.Close() }()
	resp, err := runtime.NewRuntimeServiceClient(conn).ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing the sandboxes of the container runtime at %s: %w", socket, err)
	}
	out := make(map[string]model.PodRef, len(resp.Items))
	for _, s := range resp.Items {
		m := s.GetMetadata()
		out[s.Id] = model.PodRef{Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid()}
	}
	return out, nil
}
