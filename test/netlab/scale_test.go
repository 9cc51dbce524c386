package netlab

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft.network/weft/appliance/lab"
	"weft.network/weft/plugins/cni"
)

// small gives a node a range of 13 addresses for Pods: 16, less the network, the node and the broadcast address.
func small(node string) map[string][]netip.Prefix {
	return map[string][]netip.Prefix{node: {netip.MustParsePrefix("10.244.1.0/28"), netip.MustParsePrefix("fd00:10:244:1::/64")}}
}

// TestScale: a range that is full says so, with numbers and a way out; addresses are freed by DEL, rest for a while, and are used
// again.
func TestScale(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1, PodCIDRs: small("node1")})
	s.runSpecs("node1", pauses("p", 12)...)
	if st := s.status("node1").IPAM; st.Total != 13 || st.Held != 12 {
		t.Errorf("addresses: %+v, want 12 of 13 held", st)
	}
	freed := s.pods("node1")[3]
	s.delete(freed.Name)
	if st := s.status("node1").IPAM; st.Held != 11 || st.Cooling != 1 {
		t.Errorf("addresses: %+v, want 11 held and one that rests", st)
	}
	// The one that was never used comes first, the one that rests only when there is no other.
	first := s.runSpecs("node1", lab.PodSpec{Name: "first", Pause: true})[0]
	second := s.runSpecs("node1", lab.PodSpec{Name: "second", Pause: true})[0]
	if first.Address(4) == freed.Address(4) {
		t.Errorf("%s was given again although another address was free", freed.Address(4))
	}
	if second.Address(4) != freed.Address(4) {
		t.Errorf("the last address is %s, want %s, which was freed", second.Address(4), freed.Address(4))
	}
	s.addresses(s.pods("node1")...)

	_, err := s.RunPod(s.ctx, "node1", lab.PodSpec{Name: "toomuch", Pause: true})
	var refused *lab.CNIError
	if !errors.As(err, &refused) {
		t.Fatalf("a Pod more than fits: %v, want a CNI error", err)
	}
	t.Log(refused)
	if refused.Code != cni.CodeExhausted {
		t.Errorf("CNI error %d, want %d", refused.Code, cni.CodeExhausted)
	}
	for _, word := range []string{"10.244.1.0/28", "13 usable", "13 held", "podCIDRs"} {
		if !strings.Contains(refused.Error(), word) {
			t.Errorf("the error does not say %q: %s", word, refused)
		}
	}
	s.clean("node1")

	// Down to nothing and up again.
	var all []string
	for _, p := range s.pods("node1") {
		all = append(all, p.Name)
	}
	s.delete(all...)
	s.clean("node1")
	if st := s.status("node1").IPAM; st.Held != 0 || st.Cooling != 13 {
		t.Errorf("addresses: %+v, want 13 that rest", st)
	}
	s.runSpecs("node1", pauses("again", 13)...)
	s.addresses(s.pods("node1")...)
	s.clean("node1")
}

// TestRequestedAddress: a Pod may ask for an address, by CNI capability or annotation, and is told why it cannot have it.
func TestRequestedAddress(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 1})
	want := []netip.Addr{netip.MustParseAddr("10.244.1.77"), netip.MustParseAddr("fd00:10:244:1::77")}
	byCapability := s.runSpecs("node1", lab.PodSpec{Name: "capability", Addresses: want})[0]
	if !slices.Equal(byCapability.Addresses, want) {
		t.Errorf("asked for %v, got %v", want, byCapability.Addresses)
	}
	byAnnotation := s.runSpecs("node1", lab.PodSpec{Name: "annotation", Annotations: map[string]string{"weft.network/addresses": "10.244.1.78"}})[0]
	if byAnnotation.Address(4) != netip.MustParseAddr("10.244.1.78") {
		t.Errorf("asked for 10.244.1.78 by annotation, got %v", byAnnotation.Addresses)
	}
	s.reaches(byCapability, byAnnotation)
	for _, tc := range []struct {
		address string
		code    uint
		says    string
	}{
		{"10.244.1.77", cni.CodeUnavailable, "held by"},
		{"10.244.1.1", cni.CodeUnavailable, "reserved"},
		{"10.244.9.9", cni.CodeUnavailable, "none of this node's ranges"},
	} {
		_, err := s.RunPod(s.ctx, "node1", lab.PodSpec{Name: "refused", Addresses: []netip.Addr{netip.MustParseAddr(tc.address)}})
		var refused *lab.CNIError
		if !errors.As(err, &refused) || refused.Code != tc.code || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("asking for %s: %v, want error %d that says %q", tc.address, err, tc.code, tc.says)
		}
	}
	s.clean("node1")
}
