package cluster

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.network/weft/appliance/model"
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestConvertNode(t *testing.T) {
	node := func(edit func(*corev1.Node)) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "1", Labels: map[string]string{"zone": "x"}}}
		edit(n)
		return n
	}
	internal := func(texts ...string) (out []corev1.NodeAddress) {
		for _, text := range texts {
			out = append(out, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: text})
		}
		return out
	}
	tests := []struct {
		name      string
		node      *corev1.Node
		addresses []netip.Addr
		cidrs     []netip.Prefix
		bad       []string
	}{
		{"nothing yet", node(func(*corev1.Node) {}), nil, nil, nil},
		{"both families in the order of the API", node(func(n *corev1.Node) {
			n.Status.Addresses = append([]corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "a"}, {Type: corev1.NodeExternalIP, Address: "198.51.100.1"}},
				internal("fd00::1", "192.0.2.1")...)
			n.Spec.PodCIDRs = []string{"10.244.1.7/24", "fd00:10:244:1::5/64"}
		}), addrs("fd00::1", "192.0.2.1"), prefixes("10.244.1.0/24", "fd00:10:244:1::/64"), nil},
		{"old field", node(func(n *corev1.Node) { n.Spec.PodCIDR = "10.244.1.0/24" }), nil, prefixes("10.244.1.0/24"), nil},
		{"old field bad", node(func(n *corev1.Node) { n.Spec.PodCIDR = "x" }), nil, nil, []string{`spec.podCIDR: "x" is not a range`}},
		{"mapped address", node(func(n *corev1.Node) { n.Status.Addresses = internal("::ffff:192.0.2.1") }), addrs("192.0.2.1"), nil, nil},
		{"bad ones are left out", node(func(n *corev1.Node) {
			n.Status.Addresses = internal("nonsense", "192.0.2.1", "fe80::1%eth0")
			n.Spec.PodCIDRs = []string{"10.244.1.0", "10.244.1.0/24", "10.244.2.0/24", "fd00:1::/64"}
		}), addrs("192.0.2.1"), prefixes("10.244.1.0/24", "fd00:1::/64"), []string{
			`status.addresses[0].address: "nonsense" is not`, `status.addresses[2].address: "fe80::1%eth0" is not`,
			`spec.podCIDRs[0]: "10.244.1.0" is not a range`, `spec.podCIDRs[2]: 10.244.2.0/24 is the second range of its family after 10.244.1.0/24`,
		}},
		{"ranges that no Pod can have", node(func(n *corev1.Node) {
			n.Spec.PodCIDRs = []string{"127.0.0.0/8", "224.0.0.0/4", "0.0.0.0/0", "::ffff:10.0.0.0/104", "1.0.0.0/0"}
		}), nil, nil, []string{"[0]: range 127.0.0.0/8: 127.0.0.0 is a loopback", "[1]", "[2]", "[3]", "[4]: range 1.0.0.0/0 holds every address"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := test.node.DeepCopy()
			got, bad := convertNode(test.node)
			want := &model.Node{Name: "a", UID: "1", Labels: map[string]string{"zone": "x"}, Addresses: test.addresses, PodCIDRs: test.cidrs}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			compareErrors(t, bad, test.bad)
			got.Labels["zone"] = "changed"
			if !reflect.DeepEqual(before, test.node) {
				t.Error("the object of the API has changed")
			}
		})
	}
}

func compareErrors(t *testing.T, got []fieldError, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %d errors %v, want %d", len(got), got, len(want))
	}
	for i := range got {
		if !strings.Contains(got[i].Error(), want[i]) {
			t.Errorf("got %q, want %q in it", got[i].Error(), want[i])
		}
	}
}

func TestConvertPod(t *testing.T) {
	pod := func(edit func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "1"}, Spec: corev1.PodSpec{NodeName: "a"}}
		edit(p)
		return p
	}
	base := model.Pod{PodRef: model.PodRef{Namespace: "default", Name: "web", UID: "1"}, Node: "a"}
	tests := []struct {
		name string
		pod  *corev1.Pod
		want func(*model.Pod)
		bad  []string
	}{
		{"pending", pod(func(*corev1.Pod) {}), func(*model.Pod) {}, nil},
		{"static", pod(func(p *corev1.Pod) { p.Annotations = map[string]string{"kubernetes.io/config.mirror": "4f5"} }), func(p *model.Pod) { p.UID = "4f5" }, nil},
		{"running", pod(func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodRunning
			p.Status.PodIPs = []corev1.PodIP{{IP: "10.1.0.2"}, {IP: "fd00::2"}}
		}), func(p *model.Pod) { p.Addresses = addrs("10.1.0.2", "fd00::2") }, nil},
		{"succeeded", pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), func(p *model.Pod) { p.Completed = true }, nil},
		{"failed", pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), func(p *model.Pod) { p.Completed = true }, nil},
		{"host network", pod(func(p *corev1.Pod) { p.Spec.HostNetwork = true }), func(p *model.Pod) { p.HostNetwork = true }, nil},
		{
			"requested", pod(func(p *corev1.Pod) { p.Annotations = map[string]string{AddressesAnnotation: "fd00::7, 10.1.0.7"} }),
			func(p *model.Pod) { p.Requested = addrs("fd00::7", "10.1.0.7") }, nil,
		},
		{
			"requested badly", pod(func(p *corev1.Pod) { p.Annotations = map[string]string{AddressesAnnotation: "10.1.0.300"} }),
			func(p *model.Pod) {
				p.RequestError = `annotation weft.network/addresses: "10.1.0.300" is not an IPv4 or IPv6 address`
			}, nil,
		},
		{
			"bad address", pod(func(p *corev1.Pod) { p.Status.PodIPs = []corev1.PodIP{{IP: "x"}, {IP: "10.1.0.2"}} }),
			func(p *model.Pod) { p.Addresses = addrs("10.1.0.2") },
			[]string{`status.podIPs[0].ip: "x" is not`},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want := base
			test.want(&want)
			got, bad := convertPod(test.pod)
			if !reflect.DeepEqual(*got, want) {
				t.Errorf("got  %+v\nwant %+v", *got, want)
			}
			compareErrors(t, bad, test.bad)
		})
	}
}

func TestParseAddresses(t *testing.T) {
	tests := []struct {
		text string
		want []netip.Addr
		err  string
	}{
		{"10.1.0.7", addrs("10.1.0.7"), ""},
		{" fd00::7 ,10.1.0.7", addrs("fd00::7", "10.1.0.7"), ""},
		{"", nil, `"" is not`},
		{"10.1.0.7,", nil, `"" is not`},
		{"10.1.0.7/24", nil, "is not an IPv4 or IPv6 address"},
		{"10.1.0.7,10.1.0.8", nil, "10.1.0.7 and 10.1.0.8 are of the same family"},
		{"10.1.0.7,fd00::7,fd00::8", nil, "same family"},
		{"127.0.0.1", nil, "loopback"},
		{"::", nil, "unspecified"},
		{"224.0.0.1", nil, "multicast"},
		{"fe80::1%eth0", nil, "is not an IPv4 or IPv6 address"},
	}
	for _, test := range tests {
		got, err := ParseAddresses(test.text)
		if !reflect.DeepEqual(got, test.want) || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%q: got %v, %v; want %v, %q", test.text, got, err, test.want, test.err)
		}
	}
}

func FuzzParseAddresses(f *testing.F) {
	for _, seed := range []string{"10.1.0.7", "fd00::7,10.1.0.7", "", ",", "::ffff:1.2.3.4"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseAddresses(text)
		if err != nil {
			return
		}
		if len(got) == 0 || len(got) > 2 || len(got) == 2 && got[0].Is4() == got[1].Is4() {
			t.Errorf("%q: %v", text, got)
		}
		for _, a := range got {
			if a.Zone() != "" || a.Is4In6() || !a.IsGlobalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
				t.Errorf("%q: %v is not an address for a Pod", text, a)
			}
		}
	})
}
