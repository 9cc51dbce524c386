package cluster

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"weft.network/weft/appliance/model"
)

const peerTor = `apiVersion: weft.network/v1alpha1
kind: BGPPeer
metadata:
  name: tor
spec:
  peerAddress: 192.0.2.1
  peerASN: 64600
  holdSeconds: 9
  passwordSecretRef: {name: weft-bgp, key: tor}
  advertise:
    communities: ["64512:100"]
`

func TestBGPPeerInFiles(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"good", peerTor, ""},
		{"misspelt", strings.Replace(peerTor, "holdSeconds", "holdTime", 1), `f.yaml:8: BGPPeer "tor": spec.holdTime: unknown field (kubectl explain bgppeers.spec shows all)`},
		{"no address", strings.Replace(peerTor, "  peerAddress: 192.0.2.1\n", "", 1), `f.yaml:6: BGPPeer "tor": spec.peerAddress: missing`},
		{"bad address", strings.Replace(peerTor, "192.0.2.1", "tor1", 1), `f.yaml:6: BGPPeer "tor": spec.peerAddress: "tor1" is not an IPv4 or IPv6 address`},
		{"bad type", strings.Replace(peerTor, "64600", "AS64600", 1), `f.yaml:7: BGPPeer "tor": spec.peerASN: got a string, want a number`},
		{"bad community", strings.Replace(peerTor, "64512:100", "64512", 1), `f.yaml:11: BGPPeer "tor": spec.advertise.communities[0]: "64512" is not a community`},
		{"no key", strings.Replace(peerTor, ", key: tor", "", 1), `f.yaml:9: BGPPeer "tor": spec.passwordSecretRef: needs name and key`},
		{"a file of the node", peerTor + "  passwordFile: /etc/shadow\n", `f.yaml:12: BGPPeer "tor": spec.passwordFile: cannot be used together`},
		{"only a file", strings.Replace(peerTor, "passwordSecretRef: {name: weft-bgp, key: tor}", "passwordFile: /etc/shadow", 1), `f.yaml:9: BGPPeer "tor": spec.passwordFile: only weft.yaml may name a file`},
	} {
		_, err := parseFile("f.yaml", []byte(tc.text), readers(ManifestsOptions{BGP: true}))
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.want)):
			t.Errorf("%s: got %v\nwant %s", tc.name, err, tc.want)
		}
	}
	if objects, err := parseFile("f.yaml", []byte(peerTor), readers(ManifestsOptions{})); err != nil || len(objects) > 0 {
		t.Errorf("a node without BGP reads peers: %v %v", objects, err)
	}
}

// TestSecretsInFiles reads those Secrets that a peer refers to, in the one namespace, and no others.
func TestSecretsInFiles(t *testing.T) {
	dir := t.TempDir()
	secret := func(namespace, name string) string {
		return "---\napiVersion: v1\nkind: Secret\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nstringData: {tor: one}\ndata: {b: Yg==}\n"
	}
	text := peerTor + secret("kube-system", "weft-bgp") + secret("kube-system", "other") + secret("default", "weft-bgp")
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := NewManifests(ManifestsOptions{Dir: dir, BGP: true})
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, source: m}
	w.run()
	s := w.until("the peer", func(s *model.Snapshot) bool { return s != nil && len(s.BGPPeers) == 1 })
	got := s.Secrets[model.SecretKey{Namespace: "kube-system", Name: "weft-bgp"}]
	if len(s.Secrets) != 1 || got == nil || string(got.Data["tor"]) != "one" || string(got.Data["b"]) != "b" {
		t.Errorf("secrets are %v", s.Secrets)
	}
	if p := s.BGPPeers["tor"]; p.Address != netip.MustParseAddr("192.0.2.1") || p.KeepaliveSeconds != 3 || p.RestartSeconds != 120 || !p.IPv4 || !p.IPv6 {
		t.Errorf("the peer is %+v", p)
	}
}

func apiPeer(address string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "weft.network/v1alpha1", "kind": "BGPPeer", "metadata": map[string]any{"name": "tor"},
		"spec": map[string]any{
			"peerAddress": address, "peerASN": int64(64600), "passwordSecretRef": map[string]any{"name": "weft-bgp", "key": "tor"},
		},
	}}
}

func apiSecret(password string) *corev1.Secret {
	return &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "weft-bgp"},
		Data:       map[string][]byte{"tor": []byte(password)},
	}
}

// bgpSource watches a server that speaks JSON only.
func bgpSource(t *testing.T, api *apiServer) *watcher {
	t.Helper()
	ca := newAuthority(t)
	server := serve(t, api, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))
	w := kubeSource(t, KubernetesOptions{Kubeconfig: kubeconfig(t, "", "https://"+hostport(server), ca.pem), BGP: true})
	api.put(pathNodes, "a", apiNode("a", "10.1.0.0/24"))
	return w
}

func TestBGPPeersOfTheAPI(t *testing.T) {
	api := newAPIServer()
	w := bgpSource(t, api)
	api.put(pathBGPPeers, "tor", apiPeer("192.0.2.1"))
	api.put(pathSecrets, "weft-bgp", apiSecret("one"))
	w.run()
	first := w.until("a snapshot", func(s *model.Snapshot) bool { return s != nil })
	key := model.SecretKey{Namespace: "kube-system", Name: "weft-bgp"}
	if len(first.BGPPeers) != 1 || first.Secrets[key] == nil {
		t.Fatalf("the first snapshot has peers %v and secrets %v", first.BGPPeers, first.Secrets)
	}
	api.put(pathSecrets, "weft-bgp", apiSecret("two"))
	w.until("the new password", func(s *model.Snapshot) bool { return string(s.Secrets[key].Data["tor"]) == "two" })
	api.put(pathBGPPeers, "tor", apiPeer("tor1"))
	w.until("no peer of a bad spec, nor its Secret", func(s *model.Snapshot) bool { return len(s.BGPPeers)+len(s.Secrets) == 0 })
	if p := w.allProblems(); !slices.Contains(p, `BGPPeer "tor": spec.peerAddress: "tor1" is not an IPv4 or IPv6 address (ignored)`) {
		t.Errorf("problems are %q", p)
	}
	api.put(pathBGPPeers, "tor", apiPeer("192.0.2.1"))
	w.until("peer and Secret again", func(s *model.Snapshot) bool { return len(s.BGPPeers) == 1 && len(s.Secrets) == 1 })
	api.put(pathSecrets, "weft-bgp", nil)
	w.until("the peer without its Secret", func(s *model.Snapshot) bool { return len(s.BGPPeers) == 1 && len(s.Secrets) == 0 })

	// weft.yaml names it now, and then no longer.
	api.put(pathBGPPeers, "tor", nil)
	api.put(pathSecrets, "weft-bgp", apiSecret("three"))
	w.until("neither peer nor Secret", func(s *model.Snapshot) bool { return len(s.BGPPeers)+len(s.Secrets) == 0 })
	w.source.(*Kubernetes).ReferTo([]string{"weft-bgp"})
	w.until("the Secret that weft.yaml names", func(s *model.Snapshot) bool {
		return s.Secrets[key] != nil && string(s.Secrets[key].Data["tor"]) == "three"
	})
	w.source.(*Kubernetes).ReferTo(nil)
	w.until("no Secret", func(s *model.Snapshot) bool { return len(s.Secrets) == 0 })
	for _, r := range api.seen() {
		if strings.HasPrefix(r, pathSecrets) && !strings.Contains(r, "fieldSelector=metadata.name%3Dweft-bgp") {
			t.Errorf("a request for more than the one Secret: %s", r)
		}
	}
}

// TestClusterWithoutOurKinds is a cluster in which nobody has installed the definitions, or the rights.
func TestClusterWithoutOurKinds(t *testing.T) {
	for name, prepare := range map[string]func(*apiServer){
		"no definition": func(a *apiServer) { a.unknown[pathBGPPeers] = true },
		"no right":      func(a *apiServer) { a.setForbidden(pathBGPPeers, true) },
		"no right to the Secret": func(a *apiServer) {
			a.put(pathBGPPeers, "tor", apiPeer("192.0.2.1"))
			a.setForbidden(pathSecrets, true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPIServer()
			prepare(api)
			w := bgpSource(t, api)
			w.run()
			w.until("a snapshot", func(s *model.Snapshot) bool { return s != nil && len(s.Nodes) == 1 })
			w.until("connected", func(*model.Snapshot) bool { return w.source.Status().Connected })
			if strings.HasPrefix(name, "no right") {
				w.until("a problem", func(*model.Snapshot) bool { return len(w.allProblems()) > 0 })
			}
		})
	}
}

// TestRefusedAtStart: a server that refuses, as one that has just started may, has not said that there is nothing: what was known goes on.
// What it says later counts.
func TestRefusedAtStart(t *testing.T) {
	key := model.SecretKey{Namespace: "kube-system", Name: "weft-bgp"}
	stored := &model.Snapshot{
		BGPPeers: map[string]*model.BGPPeer{"tor": {Name: "tor", PasswordSecret: &model.SecretRef{Name: "weft-bgp", Key: "tor"}}},
		Secrets: map[model.SecretKey]*model.Secret{
			key: {Namespace: key.Namespace, Name: key.Name, Data: map[string][]byte{"tor": []byte("one")}}, {Namespace: "kube-system", Name: "other"}: {Namespace: "kube-system", Name: "other"},
		},
		Pools: map[string]*model.LoadBalancerPool{"lan": {Name: "lan"}},
	}
	api := newAPIServer()
	for _, path := range []string{pathBGPPeers, pathSecrets} {
		api.setForbidden(path, true)
	}
	ca := newAuthority(t)
	server := serve(t, api, "127.0.0.1:0", ca.certificate(t, "127.0.0.1"))
	w := kubeSource(t, KubernetesOptions{Kubeconfig: kubeconfig(t, "", "https://"+hostport(server), ca.pem), BGP: true, Stored: stored})
	api.put(pathNodes, "a", apiNode("a", "10.1.0.0/24"))
	w.run()
	first := w.until("a snapshot", func(s *model.Snapshot) bool { return s != nil })
	if first.BGPPeers["tor"] == nil || len(first.Secrets) != 1 || string(first.Secrets[key].Data["tor"]) != "one" || len(first.Pools) != 0 {
		t.Errorf("the first snapshot has peers %v, Secrets %v and pools %v", first.BGPPeers, first.Secrets, first.Pools)
	}
	for _, path := range []string{pathBGPPeers, pathSecrets} {
		api.setForbidden(path, false)
	}
	w.until("what the server says", func(s *model.Snapshot) bool { return len(s.BGPPeers)+len(s.Secrets) == 0 })
}

// TestDefinitionsArriveLater installs the definitions in a running cluster.
func TestDefinitionsArriveLater(t *testing.T) {
	api := newAPIServer()
	api.unknown[pathBGPPeers] = true
	w := bgpSource(t, api)
	w.run()
	w.until("a snapshot", func(s *model.Snapshot) bool { return s != nil })
	api.mu.Lock()
	api.unknown[pathBGPPeers] = false
	api.mu.Unlock()
	var peer runtime.Object = apiPeer("192.0.2.1")
	api.put(pathBGPPeers, "tor", peer)
	w.until("the peer", func(s *model.Snapshot) bool { return len(s.BGPPeers) == 1 })
}
