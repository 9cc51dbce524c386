package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestDNS: Pods resolve names with nothing deployed for it; the Service that everybody looks for is there, at the address that
// kubelet tells Pods, and a name follows its Service.
func TestDNS(t *testing.T) {
	needCluster(t)
	pod := runNetexec(t, "resolver", cluster.Nodes[1])
	err := wait("a Pod to reach the API server by its name", 20*time.Second, nil, func() error {
		_, err := cluster.ExecPod(pod.Name, "/agnhost", "connect", "--timeout=5s", "kubernetes.default:443")
		return err
	})
	if err != nil {
		t.Error(err)
	}
	service, err := cluster.Kubectl("get", "service", "--namespace=kube-system", "kube-dns", "--output=jsonpath={.spec.clusterIP} {.metadata.labels.k8s-app} {.spec.ports[*].name}")
	if err != nil {
		t.Fatal(err)
	}
	if service != clusterDNS+" kube-dns dns dns-tcp metrics" {
		t.Errorf("the Service kube-dns is %q", service)
	}
	if _, err := cluster.ExecPod(pod.Name, "/agnhost", "connect", "--timeout=5s", "kube-dns.kube-system:9153"); err != nil {
		t.Errorf("the metrics of the DNS server: %v", err)
	}
	err = cluster.Apply("apiVersion: v1\nkind: Service\nmetadata: {name: fresh}\nspec: {selector: {app: none}, ports: [{port: 80}]}\n")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := cluster.Kubectl("delete", "service", "fresh"); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	err = wait("the name of a new Service", 20*time.Second, nil, func() error {
		// Nobody serves it, so the connection is refused, but by an address.
		out, err := cluster.ExecPod(pod.Name, "/agnhost", "connect", "--timeout=5s", "fresh:80")
		if text := fmt.Sprint(out, err); err == nil || strings.Contains(text, "DNS") || !strings.Contains(text, "REFUSED") {
			return fmt.Errorf("want REFUSED, have %s", text)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("the name of a new Service resolved %v after kubectl came back, with the time to run kubectl exec", time.Since(began).Round(time.Millisecond))
}
