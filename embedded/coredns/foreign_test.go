package coredns

import (
	"strings"
	"testing"
)

// What kubeadm writes into the ConfigMap coredns, with the zone filled in.
const kubeadmCorefile = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
`

// What k3s writes there.
const k3sCorefile = `.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
      pods insecure
      fallthrough in-addr.arpa ip6.arpa
    }
    hosts /etc/coredns/NodeHosts {
      ttl 60
      reload 15s
      fallthrough
    }
    prometheus :9153
    cache 30
    loop
    reload
    loadbalance
    import /etc/coredns/custom/*.override
    forward . /etc/resolv.conf
}
import /etc/coredns/custom/*.server
`

// inner is what is between the braces of the first block.
func inner(corefile string) string {
	_, text, _ := strings.Cut(corefile, "{\n")
	text, _, _ = strings.Cut(text, "\n}\n")
	return text
}

// without leaves the lines out that contain a word.
func without(text, word string) string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		if !strings.Contains(line, word) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// TestCorefilesOfOthers: the directives of kubeadm's and k3s' own Corefiles are taken as they are, without what weft does itself, and the
// node's resolv.conf is what weft has read of it.
func TestCorefilesOfOthers(t *testing.T) {
	s := newSite(t)
	world := upstream(t, says("192.0.2.1", 60))
	hosts := strings.ReplaceAll(k3sCorefile, "hosts /etc/coredns/NodeHosts {", "hosts {\n 192.0.2.7 node-a")
	for _, c := range [][2]string{{"kubeadm", inner(kubeadmCorefile)}, {"k3s", without(inner(hosts), "import")}} {
		name, set := c[0], s.settings4(world)
		set.Override = []Snippet{{name, c[1]}}
		if err := s.Configure(set); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s.expect("www."+name+".example.", "192.0.2.1")
		s.expect("web.default.svc.cluster.local.", "10.96.0.20")
		if w := strings.Join(s.Stats().Warnings, "\n"); strings.Count(w, "is left out: weft does that itself") != 6 {
			t.Errorf("%s: warnings\n%s", name, w)
		}
	}
	s.expect("node-a.", "192.0.2.7") // of k3s
}

// TestForeignSnippets: what weft does not have is refused with one message that names it, where it is and what to do.
func TestForeignSnippets(t *testing.T) {
	for _, c := range []struct {
		name, override, servers string
		want                    []string
	}{
		{name: "kubeadm's whole Corefile", servers: kubeadmCorefile, want: []string{"coredns-custom: server block \".:53\"", "put directives for it into *.override"}},
		{name: "k3s' whole Corefile", servers: without(k3sCorefile, "import"), want: []string{"/etc/coredns/NodeHosts is a file in CoreDNS' own Pod: write its lines here"}},
		{name: "k3s' imports", servers: k3sCorefile, want: []string{"import is not possible here"}},
		{
			name: "template, of the manual of k3s", override: "template IN A lab.example {\n  match ^(.*)\\.lab\\.example\\.$\n  answer \"{{ .Name }} 60 IN A 192.0.2.5\"\n  fallthrough\n}\n",
			want: []string{"coredns-custom:1: the plugin template of CoreDNS is not in weft", "hosts", "rewrite"},
		},
		{name: "a server block with file", servers: "corp.example:53 {\n  errors\n  file /etc/coredns/custom/corp.db\n}\n", want: []string{"coredns-custom:3: the plugin file of CoreDNS is not in weft", "forward the zone"}},
		{name: "autopath", override: "autopath @kubernetes\n", want: []string{"set dns.autopath: true in weft.yaml"}},
		{name: "another one", servers: "corp.example {\n  route53 corp.example:Z1\n}\n", want: []string{"the plugin route53 of CoreDNS is not in weft", elsewhere}},
		{name: "no plugin at all", override: "nonsense\n", want: []string{"nonsense", "known are"}},
	} {
		set := Settings{Domain: "cluster.local.", TTL: 5, Pods: "insecure"}
		if c.override != "" {
			set.Override = []Snippet{{"coredns-custom", c.override}}
		}
		if c.servers != "" {
			set.Servers = []Snippet{{"coredns-custom", c.servers}}
		}
		_, err := corefile(set)
		if err == nil {
			t.Errorf("%s is taken", c.name)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", c.name, err, w)
			}
		}
	}
}
