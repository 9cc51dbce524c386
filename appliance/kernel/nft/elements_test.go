package nft

import (
	"context"
	"net/netip"
	"reflect"
	"testing"

	"weft.network/weft/appliance/kernel/netnstest"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// Host ports come back from the kernel as they went in.
func TestHostPortsReadBack(t *testing.T) {
	ns := netnstest.New(t)
	b, err := Open(Options{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got, err := b.Elements(ruleset.HostPortTable(nil, true)); err != nil || len(got) != 0 {
		t.Fatalf("without a table: %v, %v", got, err)
	}
	a4, a6 := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
	mappings := []model.PortMapping{
		{HostPort: 53, ContainerPort: 5353, Protocol: model.UDP, HostIP: netip.MustParseAddr("192.0.2.1")},
		{HostPort: 8080, ContainerPort: 80, Protocol: model.TCP},
	}
	ports := &model.HostPorts{
		AttachmentKey: model.AttachmentKey{Network: "weft", ContainerID: "c", IfName: "eth0"}, Addresses: []netip.Addr{a4, a6}, Mappings: mappings,
	}
	table, _ := ruleset.Fabric(ruleset.FabricInput{HostPorts: []*model.HostPorts{ports}})
	if _, err := b.Apply(context.Background(), []ruleset.Table{table}); err != nil {
		t.Fatal(err)
	}
	elements, err := b.Elements(ruleset.HostPortTable(nil, true))
	if err != nil {
		t.Fatal(err)
	}
	want := map[netip.Addr][]model.PortMapping{a4: mappings, a6: mappings[1:]}
	if got := ruleset.ReadHostPorts(elements); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
