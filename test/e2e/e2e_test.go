package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cluster is shared by all tests: it has two nodes, or WEFT_E2E_NODES, with the network installed.
var cluster *Cluster

func TestMain(m *testing.M) {
	if os.Getenv("WEFT_E2E") != "1" {
		os.Exit(m.Run()) // every test skips
	}
	os.Exit(runInCluster(m))
}

func runInCluster(m *testing.M) (code int) {
	network, err := networkFromEnvironment()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	nodes := 2
	if text := os.Getenv("WEFT_E2E_NODES"); text != "" {
		if nodes, err = strconv.Atoi(text); err != nil || nodes < 2 {
			fmt.Fprintf(os.Stderr, "WEFT_E2E_NODES=%s: set it to a number from 2\n", text)
			return 2
		}
	}
	began := time.Now()
	cluster, err = Start(nodes, network)
	defer func() {
		if err := cluster.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	if err == nil {
		err = cluster.InstallNetwork()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("%d Ready nodes after %.1f s\n", nodes, time.Since(began).Seconds())
	return m.Run()
}

func needCluster(t *testing.T) {
	t.Helper()
	if cluster == nil {
		t.Skip("needs a cluster: run test/e2e/run.sh")
	}
}

// runNetexec runs a Pod with a server that tells who asks; the Pod goes with the test.
func runNetexec(t *testing.T, name string, node *Node) Pod {
	t.Helper()
	t.Cleanup(func() {
		if err := cluster.DeletePod(name); err != nil {
			t.Error(err)
		}
	})
	pod, err := cluster.RunPod(name, node, AgnhostImage, "netexec")
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func TestPodsReachEachOther(t *testing.T) {
	needCluster(t)
	first, second := cluster.Nodes[0], cluster.Nodes[1]
	a, b, neighbour := runNetexec(t, "a", first), runNetexec(t, "b", second), runNetexec(t, "neighbour", first)
	for _, way := range []struct{ from, to Pod }{{a, b}, {b, a}, {a, neighbour}, {neighbour, a}} {
		for family, address := range way.to.Addresses {
			t.Run(fmt.Sprintf("%s to %s %s", way.from.Name, way.to.Name, address), func(t *testing.T) {
				// A Pod is Running a moment before its server listens.
				err := wait("the server", 5*time.Second, nil, func() error {
					_, err := cluster.ExecPod(way.from.Name, "/agnhost", "connect", "--timeout=2s", net.JoinHostPort(address.String(), "8080"))
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				client, err := cluster.ClientAddress(way.from, address)
				if err != nil {
					t.Fatal(err)
				}
				if client != way.from.Addresses[family] {
					t.Errorf("%s saw the client %s, want the Pod's own address %s", way.to.Name, client, way.from.Addresses[family])
				}
			})
		}
	}
}

func TestPodStartTime(t *testing.T) {
	needCluster(t)
	const limit = 3 * time.Second
	runNetexec(t, "warm-up", cluster.Nodes[1])
	began := time.Now()
	runNetexec(t, "measured", cluster.Nodes[1])
	took := time.Since(began)
	t.Logf("a Pod on a warm node was Running after %.2f s", took.Seconds())
	if took > limit {
		t.Errorf("took %s, want less than %s", took, limit)
	}
}

func TestNodeNotReadyUntilNetwork(t *testing.T) {
	needCluster(t)
	const limit = 2 * time.Second
	node, err := cluster.AddNode()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.RemoveNode(node); err != nil {
			t.Error(err)
		}
	})
	condition := "--output=jsonpath={.status.conditions[?(@.type=='Ready')]['status','message']}"
	var message string
	err = wait("a node without a network to say so", 20*time.Second, node.processes, func() error {
		output, err := cluster.Kubectl("get", "node", node.name, condition)
		if err == nil && !(strings.HasPrefix(output, "False") && strings.Contains(output, "cni")) {
			err = fmt.Errorf("its condition Ready is %q: want False and a message about CNI", output)
		}
		message = output
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(message)
	type event struct {
		at  time.Time
		err error
	}
	appeared := make(chan event)
	go func() {
		err := cluster.waitConflist(node)
		appeared <- event{time.Now(), err}
	}()
	installErr := cluster.InstallNetwork()
	ready := time.Now()
	conflist := <-appeared
	if err := errors.Join(installErr, conflist.err); err != nil {
		t.Fatal(err)
	}
	took := ready.Sub(conflist.at)
	t.Logf("the node was Ready %.2f s after its conflist appeared", took.Seconds())
	if took > limit {
		t.Errorf("took %s, want less than %s", took, limit)
	}
}
