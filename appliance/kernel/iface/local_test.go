package iface

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestApplyDNS gives a node the addresses of a DNS server, changes them, and takes them away; a second time changes nothing.
func TestApplyDNS(t *testing.T) {
	n := newNode(t)
	first := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("fd00:96::a")}
	for _, want := range [][]netip.Addr{first, first[1:], nil, nil} {
		before := n.run("ip -o link")
		changes, err := n.ApplyDNS(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := n.ApplyDNS(t.Context(), want); err != nil || len(again) > 0 {
			t.Errorf("a second time changed %q, %v", again, err)
		}
		if len(want) == 0 {
			if out := n.run("ip -o link"); strings.Contains(out, DNSLink) {
				t.Errorf("the link is still there: %s", out)
			}
			if !strings.Contains(before, DNSLink) && len(changes) > 0 {
				t.Errorf("with nothing there it changed %q", changes)
			}
			continue
		}
		out := n.run("ip -o addr show dev " + DNSLink)
		for _, a := range first {
			if got := strings.Contains(out, " "+host(a).String()+" "); got != slices.Contains(want, a) {
				t.Errorf("%s on the link: %v, in\n%s", a, got, out)
			}
			if slices.Contains(want, a) && !strings.Contains(n.run("ip route get "+a.String()), "local") {
				t.Errorf("%s is not local", a)
			}
		}
		if strings.Contains(out, "tentative") {
			t.Errorf("an address is not ready: %s", out)
		}
	}
}

// TestApplyDNSAlien refuses a link of that name that weft did not make.
func TestApplyDNSAlien(t *testing.T) {
	n := newNode(t)
	n.run("ip link add " + DNSLink + " type bridge")
	if _, err := n.ApplyDNS(t.Context(), []netip.Addr{netip.MustParseAddr("10.96.0.10")}); err == nil || !strings.Contains(err.Error(), DNSLink) {
		t.Errorf("a link of somebody else: %v", err)
	}
	if _, err := n.ApplyDNS(t.Context(), nil); err != nil || !strings.Contains(n.run("ip -o link"), DNSLink) {
		t.Errorf("somebody else's link was removed (%v)", err)
	}
}

// TestWatchDNS: what others do to the link or its addresses is reported, what ApplyDNS does is not.
func TestWatchDNS(t *testing.T) {
	n := newNode(t)
	events, err := n.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	if _, err := n.ApplyDNS(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	n.run("ip addr del 10.96.0.10/32 dev " + DNSLink)
	timeout := time.After(20 * time.Second)
	for {
		select {
		case e := <-events:
			if slices.Contains(e.Ours, "address 10.96.0.10/32 on weft.dns deleted") {
				return
			}
			if len(e.Ours) > 0 {
				t.Errorf("reported %q", e.Ours)
			}
		case <-timeout:
			t.Fatal("nobody said that the address was deleted")
		}
	}
}
