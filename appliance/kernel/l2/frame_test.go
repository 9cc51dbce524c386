package l2

import (
	"net/netip"
	"testing"

	"weft.network/weft/appliance/model"
)

func TestFrames(t *testing.T) {
	mac := model.MAC{2, 0, 0, 0, 0, 1}
	want := arp{op: arpReply, fromMAC: mac, from: netip.MustParseAddr("192.0.2.1"), toMAC: model.MAC{2}, to: netip.MustParseAddr("192.0.2.2")}
	frame := arpFrame(broadcast, want)
	if got, ok := parseARP(append(frame, make([]byte, 18)...)); !ok || got != want {
		t.Errorf("%+v, %v", got, ok)
	}
	if _, ok := parseARP(frame[:len(frame)-1]); ok {
		t.Error("half a message was read")
	}
	frame = advertisement(mac, allNodesMAC, vip6, allNodes, false)
	got, ok := parseNeighbour(frame)
	if !ok || !got.advertises || got.target != vip6 || got.mac != mac {
		t.Errorf("%+v, %v", got, ok)
	}
	for name, spoil := range map[string]func([]byte){
		"hop limit": func(b []byte) { b[etherLen+7] = 64 },
		"checksum":  func(b []byte) { b[etherLen+ipv6Len+2] ^= 1 },
		"code":      func(b []byte) { b[etherLen+ipv6Len+1] = 1 },
		"length":    func(b []byte) { b[etherLen+5] = 200 },
		"option":    func(b []byte) { b[etherLen+ipv6Len+ndpLen+1] = 9 },
	} {
		b := append([]byte{}, frame...)
		spoil(b)
		if _, ok := parseNeighbour(b); ok {
			t.Errorf("read in spite of a wrong %s", name)
		}
	}
}

// FuzzFrames: whatever a neighbour sends is read or ignored.
func FuzzFrames(f *testing.F) {
	f.Add(arpFrame(broadcast, arp{op: arpRequest, from: netip.IPv4Unspecified(), to: vip4}))
	f.Add(advertisement(model.MAC{2}, allNodesMAC, vip6, allNodes, true))
	f.Add(solicitation(model.MAC{2}, vip6))
	f.Fuzz(func(_ *testing.T, b []byte) {
		parseARP(b)
		parseNeighbour(b)
	})
}
