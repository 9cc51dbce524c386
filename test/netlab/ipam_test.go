package netlab

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/lab"
)

// TestStoreLostIPAM: a container on another plugin's interface keeps its address for itself when the store is lost, with weftd and
// without, although nothing of weft is in the kernel for it.
func TestStoreLostIPAM(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1})
	conf := `{"cniVersion": "1.0.0", "name": "bridged", "type": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.55.0.0/24"}]]}}`
	add := func(id string) string {
		t.Helper()
		out, err := s.Output(s.ctx, "node1", "sh", "-c", fmt.Sprintf("echo '%s' | CNI_COMMAND=ADD CNI_CONTAINERID=%s CNI_NETNS=/run/netns/%s CNI_IFNAME=eth0 "+
			"CNI_PATH=/opt/cni/bin /opt/cni/bin/host-local", conf, id, id))
		s.no(err)
		var res struct{ IPs []struct{ Address string } }
		s.no(json.Unmarshal([]byte(out), &res))
		return res.IPs[0].Address
	}
	s.out("node1", "ip netns add c1")
	first := add("c1")
	// As the runtime keeps it.
	results := filepath.Join(s.Dir, "node1", "var/lib/cni/results")
	s.no(os.MkdirAll(results, 0o700))
	s.no(os.WriteFile(filepath.Join(results, "bridged-c1-eth0"), fmt.Appendf(nil, `{"kind": "cniCacheV1", "containerId": "c1", "config": %q, "ifName": "eth0",
		"networkName": "bridged", "netns": "/run/netns/c1", "result": {"cniVersion": "1.0.0", "ips": [{"address": %q}]}}`,
		base64.StdEncoding.EncodeToString([]byte(conf)), first), 0o600))
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGTERM))
	s.out("node1", "rm /var/lib/weft/weft.db")
	if second := add("c2"); second == first {
		t.Errorf("without weftd c2 got %s, which c1 has", second)
	}
	s.out("node1", "rm /var/lib/weft/weft.db")
	s.no(s.StartDaemon(s.ctx, "node1"))
	s.no(s.WaitReady(s.ctx, "node1"))
	if second := add("c2"); second == first {
		t.Errorf("c2 got %s, which c1 has", second)
	}
	if again := add("c1"); again != first {
		t.Errorf("a repeated ADD of c1 gave %s, not %s", again, first)
	}
}
