package iface

import (
	"context"
	"slices"
	"testing"

	"weft.network/weft/appliance/kernel/netnstest"
)

// The link of kube-proxy's IPVS mode goes. This kernel has neither its type, dummy, nor IPVS: a bridge of that name stands in, and what
// the kernel does not have is no error.
func TestKubeProxyIPVS(t *testing.T) {
	ns := netnstest.New(t)
	b, err := Open(Options{NetNS: ns.FD(), ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx := context.Background()
	if found, err := b.KubeProxyIPVS(ctx, true); err != nil || found != nil {
		t.Errorf("of nothing: %v, %v", found, err)
	}
	ns.IP("link add kube-ipvs0 type bridge\naddr add 10.96.0.1/32 dev kube-ipvs0")
	for _, remove := range []bool{false, true} {
		found, err := b.KubeProxyIPVS(ctx, remove)
		if err != nil || !slices.Contains(found, "link kube-ipvs0") {
			t.Errorf("remove %v: %v, %v", remove, found, err)
		}
	}
	if found, err := b.KubeProxyIPVS(ctx, false); err != nil || found != nil {
		t.Errorf("after it was removed: %v, %v", found, err)
	}
}
