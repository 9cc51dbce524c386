package appliance

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"weft.network/weft/appliance/attach"
	"weft.network/weft/appliance/model"
)

// TestResultLeases reads files as libcni writes them.
func TestResultLeases(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := func(id, conf, ips string) {
		t.Helper()
		put("net-"+id+"-eth0", fmt.Sprintf(`{"kind": "cniCacheV1", "containerId": %q, "config": %q, "ifName": "eth0", "networkName": "net", "netns": "/run/netns/%s",
			"cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", "web"], ["K8S_POD_UID", "u1"]],
			"result": {"cniVersion": "1.0.0", "ips": [%s], "interfaces": [{"name": "cni0"}]}}`, id, base64.StdEncoding.EncodeToString([]byte(conf)), id, ips))
	}
	bridge := `{"type": "bridge", "ipam": {"type": "host-local"}}`
	file("list", `{"name": "net", "plugins": [`+bridge+`, {"type": "portmap"}]}`, `{"address": "10.5.0.2/24"}, {"address": "fd05::2/64"}`)
	file("single", `{"name": "net", "type": "macvlan", "ipam": {"type": "weft-ipam"}}`, `{"address": "10.1.0.9/24"}`)
	file("flannel", `{"name": "net", "plugins": [{"type": "flannel", "delegate": {"isDefaultGateway": true}}]}`, `{"address": "10.244.1.3/24"}`)
	file("dhcp", `{"name": "net", "plugins": [{"type": "flannel", "delegate": {"ipam": {"type": "dhcp"}}}]}`, `{"address": "10.244.1.4/24"}`)
	file("static", `{"name": "net", "type": "bridge", "ipam": {"type": "static"}}`, `{"address": "10.6.0.2/24"}`)
	file("weft", `{"name": "net", "plugins": [{"type": "weft-cni"}]}`, `{"address": "10.1.0.3/32"}`)
	file("lo", `{"name": "net", "plugins": [{"type": "loopback"}]}`, `{"address": "127.0.0.1/8"}`)
	file("gone", bridge, `{"address": "10.5.0.3/24"}`)
	file("none", bridge, ``)
	file("bad", bridge, `{"address": "nonsense"}`)
	put("net-half-eth0", `{"kind": "cniCacheV1", "contai`)
	put("net-old-eth0", `{"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.5.0.9/24"}]}`)

	opened := 0
	openNS := func(path string) (int, func(), error) {
		if path == "/run/netns/gone" {
			return -1, nil, fmt.Errorf("%s: %w", path, attach.ErrNetNSGone)
		}
		opened++
		return 0, func() { opened-- }, nil
	}
	leases, err := resultLeases(dir, []string{weftIPAM, hostLocal}, openNS)
	if err != nil || opened != 0 {
		t.Fatalf("%d namespaces are left open, error %v", opened, err)
	}
	var got []string
	for _, l := range leases {
		if l.Kind != model.LeaseIPAM || l.Pod != (model.PodRef{Namespace: "default", Name: "web", UID: "u1"}) || l.NetNS != "/run/netns/"+l.ContainerID {
			t.Errorf("lease %+v", l)
		}
		got = append(got, fmt.Sprint(l.AttachmentKey, l.Addresses))
	}
	want := []string{"net/flannel/eth0 [10.244.1.3]", "net/list/eth0 [10.5.0.2 fd05::2]", "net/single/eth0 [10.1.0.9]"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	if leases, err := resultLeases(dir, []string{weftIPAM}, openNS); err != nil || len(leases) != 1 || leases[0].ContainerID != "single" {
		t.Errorf("where host-local is not weft: %v, %v", leases, err)
	}
	for key, want := range map[model.AttachmentKey]string{
		{Network: "net", ContainerID: "weft", IfName: "eth0"}: "/run/netns/weft",
		{Network: "net", ContainerID: "half", IfName: "eth0"}: "",
		{Network: "net", ContainerID: "none", IfName: "net1"}: "",
	} {
		if got := resultNetNS(dir, key); got != want {
			t.Errorf("the network namespace of %v is %q, want %q", key, got, want)
		}
	}
	if leases, err := resultLeases(filepath.Join(dir, "missing"), nil, nil); err != nil || leases != nil {
		t.Errorf("without a folder: %v, %v", leases, err)
	}
}

func TestIPAMPlugins(t *testing.T) {
	dir := t.TempDir()
	if got := ipamPlugins(dir); !slices.Equal(got, []string{weftIPAM}) {
		t.Errorf("without host-local: %q", got)
	}
	path := filepath.Join(dir, hostLocal)
	if err := os.WriteFile(path, []byte("the reference plugin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := ipamPlugins(dir); !slices.Equal(got, []string{weftIPAM}) {
		t.Errorf("with the reference plugin: %q", got)
	}
	self, err := os.Executable()
	if err == nil {
		err = os.Remove(path)
	}
	if err == nil {
		err = os.Symlink(self, path)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := ipamPlugins(dir); !slices.Equal(got, []string{weftIPAM, hostLocal}) {
		t.Errorf("with weft as host-local: %q", got)
	}
}
