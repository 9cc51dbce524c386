package policy

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/compile/policy/policytest"
	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// field is a router and, behind it, a namespace for each Pod address of the random clusters and one for all that is outside.
type field struct {
	t      *testing.T
	router *netnstest.NS
	hosts  map[netip.Addr]*netnstest.NS

	mu   sync.Mutex
	seen map[uint64]bool
}

// outside are addresses of nobody in the cluster.
var outside = []string{"198.51.100.7", "198.51.100.200", "8.8.8.8", "10.1.0.200", "2001:db8:5::81", "2001:db8:5::1", "2001:db8:9::1"}

var ports = []uint16{52, 53, 54, 79, 80, 81, 82, 443}

func newField(t *testing.T) *field {
	f := &field{t: t, router: netnstest.New(t), hosts: map[netip.Addr]*netnstest.NS{}, seen: map[uint64]bool{}}
	for path, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
	} {
		f.router.Sysctl(path, value)
	}
	for i := 2; i < 16; i++ {
		f.host(fmt.Sprintf("p%d", i), netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", i)))
	}
	var rest []netip.Addr
	for _, a := range outside {
		rest = append(rest, netip.MustParseAddr(a))
	}
	f.host("out", rest...)
	return f
}

// host makes a namespace with some addresses behind the router, and listens there.
func (f *field) host(link string, addrs ...netip.Addr) {
	ns := netnstest.New(f.t)
	ns.Sysctl("ipv6/conf/default/accept_dad", "0")
	netnstest.Veth(f.router, link, ns, "eth0")
	f.router.IP(fmt.Sprintf("link set %s address ee:ee:ee:ee:ee:ee\naddr add fe80::1/64 dev %s nodad", link, link))
	ns.IP(`route add 169.254.1.1/32 dev eth0 scope link
		neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
		neigh add fe80::1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
		route add default via 169.254.1.1 dev eth0
		route add default via fe80::1 dev eth0`)
	for _, a := range addrs {
		ns.IP(fmt.Sprintf("addr add %s/%d dev eth0%s", a, a.BitLen(), map[bool]string{false: " nodad"}[a.Is4()]))
		f.router.IP(fmt.Sprintf("route add %s/%d dev %s", a, a.BitLen(), link))
		f.hosts[a] = ns
	}
	for _, port := range ports {
		var c *net.UDPConn
		err := ns.Do(func() (err error) {
			c, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
			return err
		})
		if err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { c.Close() })
		go f.listen(c)
	}
}

func (f *field) listen(c *net.UDPConn) {
	b := make([]byte, 100)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if n >= 8 {
			f.mu.Lock()
			f.seen[binary.BigEndian.Uint64(b)] = true
			f.mu.Unlock()
		}
	}
}

// send sends one datagram in a flow of its own.
func (f *field) send(p policy.Packet, id uint64) {
	f.t.Helper()
	err := f.hosts[p.Src].Do(func() error {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Src, 0))}
		c, err := d.Dial("udp", netip.AddrPortFrom(p.Dst, p.Port).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(binary.BigEndian.AppendUint64(nil, id))
		return err
	})
	if err != nil {
		f.t.Fatalf("%+v: %v", p, err)
	}
}

func (f *field) arrived(id uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[id]
}

// TestKernelAgreesWithJudge sends packets through the real kernel: what arrives is what the policies allow.
func TestKernelAgreesWithJudge(t *testing.T) {
	f := newField(t)
	b := open(t, f.router)
	gen := uint32(generation)
	id, passed, denied := uint64(0), 0, 0
	for seed := range uint64(10) {
		w := policytest.New(seed + 7_000)
		var c policy.Compiler
		var rules ruleset.Policies
		for range 4 {
			gen += ruleset.PolicyStep
			apply(t, b, rules.Tables(ruleset.PolicyInput{Filters: c.Compile(w.Snap, w.In), Generation: gen}))
			j := &policy.Judge{Snapshot: w.Snap, Input: w.In, NodeAddresses: policytest.NodeAddrs}
			type sent struct {
				id uint64
				p  policy.Packet
				v  policy.Verdict
			}
			var all []sent
			for len(all) < 60 {
				p := w.Packet()
				p.Proto = model.UDP
				if f.hosts[p.Src] == nil || f.hosts[p.Dst] == nil || f.hosts[p.Src] == f.hosts[p.Dst] || !w.Crosses(p) {
					continue
				}
				id++
				f.send(p, id)
				all = append(all, sent{id, p, j.Verdict(p)})
			}
			deadline := time.Now().Add(5 * time.Second)
			for slices.ContainsFunc(all, func(s sent) bool { return s.v.Allowed && !f.arrived(s.id) }) && time.Now().Before(deadline) {
				_, _ = unix.Poll(nil, 5)
			}
			for _, s := range all {
				if f.arrived(s.id) != s.v.Allowed {
					t.Fatalf("seed %d: %+v arrived %v, want %v: %s", seed, s.p, f.arrived(s.id), s.v.Allowed, s.v.Why)
				}
				if s.v.Allowed {
					passed++
				} else {
					denied++
				}
			}
			w.Change()
		}
	}
	t.Logf("%d packets passed, %d were denied", passed, denied)
	if passed < 200 || denied < 200 {
		t.Error("the packets say too little")
	}
}
