package model

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
)

func TestSnapshotRoundTrip(t *testing.T) {
	pod := &Pod{PodRef: PodRef{"default", "web", "u1"}, Node: "a", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Ports: []NamedPort{{"http", TCP, 80}}}
	svc := &Service{Namespace: "default", Name: "web", Type: "ClusterIP", Ports: []ServicePort{{Name: "http", Protocol: TCP, Port: 80}}}
	slice := &EndpointSlice{Namespace: "default", Name: "web-1", Service: "web", Endpoints: []Endpoint{{Ready: true, Node: "a"}}}
	block := netip.MustParsePrefix("192.0.2.0/24")
	policy := &NetworkPolicy{
		Namespace: "default", Name: "deny", Pods: Selector{{Key: "app", Op: OpIn, Values: []string{"web"}}}, IsolatesIngress: true, IsolatesEgress: true,
		Ingress: []PolicyRule{{
			Peers: []PolicyPeer{{Pods: &Selector{}}, {Namespaces: &Selector{{Key: "x", Op: OpExists}}}, {Block: block, Except: []netip.Prefix{block}}},
			Ports: []PolicyPort{{Protocol: TCP, First: 80, Last: 90}, {Protocol: UDP, Name: "dns"}},
		}},
		Egress: []PolicyRule{{AnyPeer: true, AnyPort: true}}, AuditOnly: true,
	}
	in := &Snapshot{
		Revision: 7,
		Nodes:    map[string]*Node{"a": {Name: "a", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}}},
		Pods:     map[PodKey]*Pod{pod.Key(): pod},
		Services: map[ServiceKey]*Service{svc.Key(): svc},
		Slices:   map[SliceKey]*EndpointSlice{slice.Key(): slice},

		Namespaces: map[string]*Namespace{"default": {Name: "default", Labels: map[string]string{"x": "y"}}},
		Policies:   map[PolicyKey]*NetworkPolicy{policy.Key(): policy},
		BGPPeers:   map[string]*BGPPeer{"tor": {Name: "tor", Address: netip.MustParseAddr("192.0.2.1"), ASN: 1, PasswordSecret: &SecretRef{"s", "k"}}},
		Secrets:    map[SecretKey]*Secret{{"kube-system", "s"}: {Namespace: "kube-system", Name: "s", Data: map[string][]byte{"k": []byte("pw")}}},
		ConfigMaps: map[ConfigMapKey]*ConfigMap{{"kube-system", "c"}: {Namespace: "kube-system", Name: "c", Data: map[string]string{"a.server": "x"}}},
	}
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out Snapshot
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*in, out) {
		t.Errorf("came back as %+v", out)
	}
	again, err := json.Marshal(&out)
	if err != nil || string(again) != string(text) {
		t.Errorf("equal Snapshots give different text: %s %s %v", text, again, err)
	}
}

func TestParseMAC(t *testing.T) {
	for text, ok := range map[string]bool{
		"0a:58:0a:f4:01:02": true, "0A-58-0a-f4-01-02": true, "": false, "00:00:00:00:00:00": false, "01:00:5e:00:00:01": false,
		"0a:58:0a:f4:01": false, "zz:58:0a:f4:01:02": false,
	} {
		if _, err := ParseMAC(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}
