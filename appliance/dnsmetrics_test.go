package appliance

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/model"
	"weft.network/weft/embedded/coredns"
	"weft.network/weft/plugins/clusterdns"
)

// TestDNSMetrics: the metrics are where they are asked for and nowhere else, and one client cannot use up the connections.
func TestDNSMetrics(t *testing.T) {
	names, err := clusterdns.New("cluster.local", 5)
	if err != nil {
		t.Fatal(err)
	}
	m := newDNSMetrics(coredns.New(coredns.Options{Names: names, Log: zap.NewNop()}), zap.NewNop())
	first, second := netip.MustParseAddr("127.153.0.1"), netip.MustParseAddr("127.153.0.2")
	get := func(a netip.Addr) string {
		c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := c.Get("http://" + netip.AddrPortFrom(a, model.DNSMetricsPort).String() + "/metrics")
		if err != nil {
			return ""
		}
		defer func() { _ = r.Body.Close() }()
		text, _ := io.ReadAll(r.Body)
		return string(text)
	}
	for _, want := range [][]netip.Addr{{first}, {first, second}, {second}, nil} {
		if problems := m.set(want); len(problems) > 0 {
			t.Fatal(problems)
		}
		for _, a := range []netip.Addr{first, second} {
			served := len(want) > 0 && (want[0] == a || want[len(want)-1] == a)
			if got := strings.Contains(get(a), "weft_dns_refused_total 0"); got != served {
				t.Errorf("with %v there are metrics at %s: %v", want, a, got)
			}
		}
	}
	m.set([]netip.Addr{first})
	defer m.set(nil)
	var last net.Conn
	for range 100 {
		if last, err = net.Dial("tcp", netip.AddrPortFrom(first, model.DNSMetricsPort).String()); err != nil {
			t.Fatal(err)
		}
		defer func(c net.Conn) { _ = c.Close() }(last)
	}
	_ = last.SetReadDeadline(time.Now().Add(scrapeTimeout * 9 / 10)) // one that is let in is closed after the whole
	if _, err := last.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a client may have 100 connections: %v", err)
	}
}
