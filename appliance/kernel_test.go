package appliance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/compile/route"
	"weft.network/weft/appliance/model"
)

// TestFollow: a socket that cannot be opened, or fails later, is opened again, and no event of it is lost.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		opened := 0
		events := follow(ctx, zap.NewNop(), "something", func(context.Context) (<-chan int, error) {
			if opened++; opened == 1 {
				return nil, errors.New("no socket")
			}
			one := make(chan int, 1)
			one <- opened
			close(one)
			return one, nil
		})
		start := time.Now()
		for want := 2; want < 4; want++ {
			if got := <-events; got != want || time.Since(start) != time.Duration(want-1)*reopen {
				t.Fatalf("event %d after %v, want %d", got, time.Since(start), want)
			}
		}
		cancel()
		synctest.Wait() // nobody is left who would wait
	})
}

// TestPortFlows: a host port that opens or closes is no business of flows to that port of other machines.
func TestPortFlows(t *testing.T) {
	under := &route.Underlay{Links: []route.UnderlayLink{{Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24"), netip.MustParsePrefix("fd00::5/64")}}}}
	hp := &model.HostPorts{
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.6")},
		Mappings: []model.PortMapping{
			{HostPort: 53, ContainerPort: 53, Protocol: model.UDP},
			{HostPort: 54, ContainerPort: 53, Protocol: model.UDP, HostIP: netip.MustParseAddr("192.168.1.9")},
			{HostPort: 80, ContainerPort: 80, Protocol: model.TCP},
		},
	}
	var got []string
	for _, f := range portFlows(hp, under) {
		if !f.Dst.IsValid() && !f.Backend.IsValid() {
			t.Errorf("%+v is about any address", f)
		}
		got = append(got, fmt.Sprintf("%v %d %v", f.Dst, f.DstPort, f.Backend))
	}
	want := []string{
		"127.0.0.1 53 invalid IP", "192.168.1.5 53 invalid IP", "fd00::5 53 invalid IP", "invalid IP 53 10.1.0.6",
		"192.168.1.9 54 invalid IP", "invalid IP 54 10.1.0.6",
	}
	if !slices.Equal(got, want) {
		t.Errorf("filters are %q, want %q", got, want)
	}
}
