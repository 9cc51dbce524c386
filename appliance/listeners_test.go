package appliance

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
)

// A process that listens where a node port is, is found by what the kernel says, and named.
func TestUsedNodePorts(t *testing.T) {
	tcp, err := net.Listen("tcp4", "127.0.0.2:0") // loopback, but not the address that nobody can be sent to
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	found := map[netip.AddrPort]listener{}
	for _, l := range listeners("/proc/self/net") {
		found[l.at] = l
	}
	for _, at := range []string{tcp.Addr().String(), udp.LocalAddr().String()} {
		l, ok := found[netip.MustParseAddrPort(at)]
		if !ok {
			t.Fatalf("the socket at %s is not in the list", at)
		}
		if who := socketOwner("/proc", l.inode); !strings.Contains(who, "appliance.test (pid ") {
			t.Errorf("the socket at %s belongs to %q, want this test", at, who)
		}
	}

	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:7530 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 0 100 0 0 10 0
   1: 0A00000A:7530 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 102 1 0 100 0 0 10 0
   2: 0100007F:7530 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 103 1 0 100 0 0 10 0
   3: 0A00000A:7530 0B00000A:1234 01 00000000:00000000 00:00000000 00000000     0        0 104 1 0 100 0 0 10 0
   4: 00000000:7531 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 105 1 0 100 0 0 10 0
   5: nonsense
`
	list := parseListeners(strings.NewReader(text), stateListen, model.TCP)
	key := model.ServiceKey{Namespace: "shop", Name: "web"}
	all := map[model.ServiceKey]*service.Frontends{key: {Service: key, Ports: []service.Port{
		{Protocol: model.TCP, Frontends: []service.Frontend{{Kind: service.NodePort, Port: 30000}}},
		{Protocol: model.UDP, Frontends: []service.Frontend{{Kind: service.NodePort, Port: 30001}}},
	}}}
	owner := func(inode string) string { return map[string]string{"101": "nginx (pid 7)"}[inode] }
	for _, tc := range []struct {
		addresses []netip.Prefix
		want      []string
	}{
		{nil, []string{
			"node port 30000/tcp of Service shop/web is in use by a process, which listens on 10.0.0.10:30000: its connections go to the Service; change one of the two ports",
			"node port 30000/tcp of Service shop/web is in use by nginx (pid 7), which listens on 0.0.0.0:30000: its connections go to the Service; change one of the two ports",
		}},
		{[]netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}, []string{
			"node port 30000/tcp of Service shop/web is in use by nginx (pid 7), which listens on 0.0.0.0:30000: its connections go to the Service; change one of the two ports",
		}},
	} {
		if got := strings.Join(usedNodePorts(all, tc.addresses, list, owner), "\n"); got != strings.Join(tc.want, "\n") {
			t.Errorf("with node ports at %v:\n%s", tc.addresses, got)
		}
	}
}
