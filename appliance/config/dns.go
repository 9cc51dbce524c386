package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// DNS is the cluster's DNS on this node.
type DNS struct {
	// Domain is the cluster's; empty means what kubelet says, else cluster.local.
	Domain string `yaml:"domain"`
	// Addresses are where Pods look for the cluster's DNS; empty means those of the Service kube-dns and what kubelet says.
	Addresses []netip.Addr `yaml:"addresses"`
	// LocalAddresses are further ones that are the same on every node.
	LocalAddresses []netip.Addr `yaml:"localAddresses"`
	// Upstreams answer for names outside the cluster; empty means those in ResolvConf.
	Upstreams  []string `yaml:"upstreams"`
	ResolvConf string   `yaml:"resolvConf"`
	// TTL is for names of the cluster, in seconds.
	TTL uint32 `yaml:"ttl"`
	// Pods says which names of Pods there are: disabled, insecure or verified.
	Pods string `yaml:"pods"`
	// Override are directives of a Corefile for the main server, Servers are further server blocks.
	Override string `yaml:"override"`
	Servers  string `yaml:"servers"`
	// Autopath tries the search list of Pods in their place.
	Autopath bool `yaml:"autopath"`
	// LogEvery writes one query in so many to the log.
	LogEvery int `yaml:"logEvery"`
	// CreateService makes the Service kube-dns where there is none.
	CreateService bool `yaml:"createService"`
	// KubeletConfig is kubelet's own file, which knows what Pods are told.
	KubeletConfig string `yaml:"kubeletConfig"`
}

func defaultDNS() DNS {
	return DNS{
		LocalAddresses: []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("fd00:169:254:20::10")},
		TTL:            5, Pods: "insecure", CreateService: true, KubeletConfig: defaultKubelet,
	}
}

// mostTTL is the longest that CoreDNS takes.
const mostTTL = 3600

func (d *DNS) validate() (errs []error) {
	bad := func(key string, value any, fix string) {
		errs = append(errs, fmt.Errorf("dns.%s: %v: %s", key, value, fix))
	}
	if !slices.Contains([]string{"disabled", "insecure", "verified"}, d.Pods) {
		bad("pods", d.Pods, "must be disabled, insecure or verified")
	}
	if d.TTL > mostTTL {
		bad("ttl", d.TTL, fmt.Sprintf("must be 0 to %d", mostTTL))
	}
	if d.LogEvery < 0 {
		bad("logEvery", d.LogEvery, "must not be negative; 0 logs nothing")
	}
	if s := strings.Trim(d.Domain, "abcdefghijklmnopqrstuvwxyz0123456789-."); s != "" || strings.Contains(d.Domain, "..") {
		bad("domain", d.Domain, "must be a domain such as cluster.local")
	}
	lists := map[string][]netip.Addr{"addresses": d.Addresses, "localAddresses": d.LocalAddresses}
	for _, key := range []string{"addresses", "localAddresses"} {
		for i, a := range lists[key] {
			if a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || a.Is4In6() {
				bad(fmt.Sprintf("%s[%d]", key, i), a, "must be an address that Pods can ask")
			}
		}
	}
	for i, u := range d.Upstreams {
		if _, err := ParseUpstream(u); err != nil {
			bad(fmt.Sprintf("upstreams[%d]", i), u, err.Error())
		}
	}
	return errs
}

// ParseUpstream reads an address with or without a port.
func ParseUpstream(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return ap, errors.New("must be an address, or an address and a port as in 192.0.2.1:53 or [2001:db8::1]:53")
	}
	return ap, nil
}

// defaultKubelet is where kubeadm puts kubelet's file, bundledKubelets where distributions do that bring a kubelet of their own.
const defaultKubelet = "/var/lib/kubelet/config.yaml"

var bundledKubelets = []string{
	"/var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf", "/var/lib/rancher/rke2/agent/etc/kubelet.conf.d/00-rke2-defaults.conf",
}

// Kubelet is what kubelet tells Pods about the DNS.
type Kubelet struct {
	ClusterDNS    []netip.Addr
	ClusterDomain string
	ResolvConf    string
}

// ReadKubelet reads kubelet's file. That there is none is no error: kubelet may be a part of another program.
func ReadKubelet(path string) (Kubelet, error) {
	text, err := os.ReadFile(path)
	if path == defaultKubelet {
		for _, other := range bundledKubelets {
			if errors.Is(err, fs.ErrNotExist) {
				path = other
				text, err = os.ReadFile(path)
			}
		}
	}
	if errors.Is(err, fs.ErrNotExist) || path == "" {
		return Kubelet{}, nil
	}
	if err != nil {
		return Kubelet{}, fmt.Errorf("reading kubelet's configuration: %w", err)
	}
	var file struct {
		ClusterDNS    []string `yaml:"clusterDNS"`
		ClusterDomain string   `yaml:"clusterDomain"`
		ResolvConf    string   `yaml:"resolvConf"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return Kubelet{}, fmt.Errorf("reading kubelet's configuration %s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	out := Kubelet{ClusterDomain: file.ClusterDomain, ResolvConf: file.ResolvConf}
	for _, a := range file.ClusterDNS {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			return out, fmt.Errorf("reading kubelet's configuration %s: clusterDNS: %q is not an address", path, a)
		}
		out.ClusterDNS = append(out.ClusterDNS, addr.Unmap())
	}
	return out, nil
}
