package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDNSSettings(t *testing.T) {
	for _, tc := range []struct {
		text string
		want []string // in the error; none means that the text is fine
	}{
		{"dns: {domain: example.net, ttl: 30, pods: verified, upstreams: [192.0.2.1, '192.0.2.2:5353', '2001:db8::1', '[2001:db8::2]:5353']}", nil},
		{"dns: {pods: all}", []string{"dns.pods", "all", "verified"}},
		{"dns: {ttl: 3601}", []string{"dns.ttl", "3600"}},
		{"dns: {logEvery: -1}", []string{"dns.logEvery"}},
		{"dns: {domain: 'a b'}", []string{"dns.domain"}},
		{"dns: {domain: 'a..b'}", []string{"dns.domain"}},
		{"dns: {addresses: [127.0.0.1]}", []string{"dns.addresses[0]", "127.0.0.1"}},
		{"dns: {localAddresses: [169.254.20.10, '::']}", []string{"dns.localAddresses[1]"}},
		{"dns: {upstreams: [dns.example]}", []string{"dns.upstreams[0]", "192.0.2.1:53"}},
		{"dns: {upstream: [192.0.2.1]}", []string{"upstream", "unknown key"}},
	} {
		_, err := Parse([]byte(tc.text))
		if (err != nil) != (tc.want != nil) {
			t.Errorf("%s: %v", tc.text, err)
			continue
		}
		for _, w := range tc.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not name %q", tc.text, err, w)
			}
		}
	}
}

func TestReadKubelet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nclusterDNS: [10.96.0.10, 'fd00:96::a']\nclusterDomain: example.net\nresolvConf: /run/x\nmaxPods: 9\n")
	k, err := ReadKubelet(path)
	if err != nil || fmt.Sprint(k) != "{[10.96.0.10 fd00:96::a] example.net /run/x}" {
		t.Errorf("%v %v", k, err)
	}
	for _, text := range []string{"clusterDNS: [nonsense]\n", "clusterDNS: {\n"} {
		write(text)
		if _, err := ReadKubelet(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if k, err := ReadKubelet(filepath.Join(filepath.Dir(path), "none")); err != nil || len(k.ClusterDNS) > 0 {
		t.Errorf("without a file: %v %v", k, err)
	}
}
