package nflog

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/kernel/nft"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// TestListen drops datagrams of both families in a namespace and reads what they were.
func TestListen(t *testing.T) {
	ns := netnstest.New(t)
	rules, err := nft.Open(nft.Options{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer rules.Close()
	const group = 99
	table := ruleset.Table{Family: ruleset.INet, Name: "test", Chains: []*ruleset.Chain{{
		Name: "out", Base: &ruleset.Base{Type: ruleset.Filter, Hook: ruleset.Output},
		Rules: []ruleset.Rule{ruleset.R("", ruleset.Eq(ruleset.UDPDport, ruleset.Port(4242)), ruleset.Log{Group: group, Prefix: "some words", Snaplen: 80}, ruleset.Drop)},
	}}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := rules.Apply(ctx, []ruleset.Table{table}); err != nil {
		t.Fatal(err)
	}
	packets, err := Listen(ctx, Options{NetNS: ns.FD(), Group: group})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(ctx, Options{NetNS: ns.FD(), Group: group}); err == nil {
		t.Error("two may read one group")
	}
	for _, to := range []string{"127.0.0.1", "::1"} {
		err := ns.Do(func() error {
			c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(to), 4242).String())
			if err != nil {
				return err
			}
			defer c.Close()
			_, _ = c.Write([]byte("x")) // refused by the rule
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case p := <-packets:
			if a := netip.MustParseAddr(to); p.Prefix != "some words" || p.Src != a || p.Dst != a || p.Proto != model.UDP || p.Dport != 4242 || p.Sport == 0 {
				t.Errorf("got %+v", p)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no record")
		}
	}
	cancel()
	for p := range packets { // until it is closed
		t.Errorf("another record: %+v", p)
	}
}

func TestParse(t *testing.T) {
	fragment := append([]byte{0x60, 0, 0, 0, 0, 16, 44, 64}, make([]byte, 32)...)
	fragment[39] = 1
	fragment = append(fragment, 17, 0, 0, 0, 0, 0, 0, 1, 0, 53, 0x10, 0, 0, 0, 0, 0)
	var p Packet
	if !p.parse(fragment) || p.Proto != model.UDP || p.Sport != 53 || p.Dport != 4096 || p.Dst != netip.MustParseAddr("::1") {
		t.Errorf("got %+v", p)
	}
	for n := range fragment { // cut anywhere
		(&Packet{}).parse(fragment[:n])
	}
	if p.parse([]byte{0x45}) || p.parse(nil) || p.parse(make([]byte, 60)) {
		t.Error("what is no packet was read as one")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 20})
	f.Fuzz(func(_ *testing.T, b []byte) { (&Packet{}).parse(b) })
}
