package coredns

import (
	"strings"
	"testing"

	"github.com/miekg/dns"

	"weft.network/weft/plugins/clusterdns"
)

// TestSnippetsThatAreRefused goes through mistakes; the server of before must go on.
func TestSnippetsThatAreRefused(t *testing.T) {
	s := newSite(t, upstream(t, says("192.0.2.1", 60)))
	for name, tc := range map[string]struct {
		override, servers string
		twice             bool // an earlier piece has the same in it
		want              []string
	}{
		"unknown directive":       {override: "nonsense 1\n", want: []string{"kube-system/coredns-custom test.override:1", "nonsense", "known are"}},
		"line":                    {override: "errors\n\nnonsense\n", want: []string{"test.override:3"}},
		"bad argument":            {override: "cache {\n prefetch lots\n}\n", want: []string{"cache", "lots"}},
		"closed too often":        {override: "errors\n}\nexample.org {\n", want: []string{"brace"}},
		"open brace":              {override: "cache {\n", want: []string{"test.override"}},
		"import":                  {override: "import /etc/passwd\n", want: []string{"import"}},
		"import in a block":       {servers: "example.org {\n import /etc/shadow\n}\n", want: []string{"import"}},
		"the cluster's domain":    {servers: "cluster.local {\n errors\n}\n", want: []string{"cluster.local", "overlaps"}},
		"below it":                {servers: "svc.cluster.local:53 {\n errors\n}\n", want: []string{"svc.cluster.local", "overlaps"}},
		"the root":                {servers: ".:53 {\n forward . 192.0.2.1\n}\n", want: []string{"root", "override"}},
		"another port":            {servers: "example.org:5353 {\n errors\n}\n", want: []string{"port 5353"}},
		"TLS":                     {servers: "tls://example.org {\n errors\n}\n", want: []string{"scheme"}},
		"twice":                   {servers: "example.org {\n errors\n}\nexample.org {\n errors\n}\n", want: []string{"another block"}},
		"weft's own":              {servers: "example.org {\n weft example.org\n}\n", want: []string{"weft"}},
		"once only":               {override: "cache 30\n", twice: true, want: []string{"test.override: cache is in kube-system/coredns-custom first.override, too", "once"}},
		"a directive of weft's":   {override: "weftblock\n", want: []string{"weftblock"}},
		"upstream that is a word": {override: "forward . not-an-address\n", want: []string{"not-an-address"}},
	} {
		t.Run(name, func(t *testing.T) {
			set := s.settings4()
			if tc.override != "" {
				set.Override = []Snippet{{"kube-system/coredns-custom test.override", tc.override}}
			}
			if tc.twice {
				set.Override = append([]Snippet{{"kube-system/coredns-custom first.override", tc.override}}, set.Override...)
			}
			if tc.servers != "" {
				set.Servers = []Snippet{{"kube-system/coredns-custom test.server", tc.servers}}
			}
			err := s.Configure(set)
			if err == nil {
				t.Fatal("taken")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not name %q", err, w)
				}
			}
			if s.Stats().Error != err.Error() {
				t.Errorf("the status says %q", s.Stats().Error)
			}
			s.expect("www.example.org.", "192.0.2.1")
		})
	}
}

// TestSnippetsThatAreTaken goes through what people have in their Corefiles.
func TestSnippetsThatAreTaken(t *testing.T) {
	world, corp := upstream(t, says("192.0.2.1", 60)), upstream(t, says("192.0.2.2", 60))
	s := newSite(t, world)
	set := s.settings4(world)
	set.Servers = []Snippet{{"corp.server", "corp.example:53 dns://sub.other {\n    errors\n    cache 30\n    reload\n    forward . " + corp.String() + "\n}\n10.0.0.0/8 {\n forward . " + corp.String() + "\n}\n"}}
	set.Override = []Snippet{{"own.override", "hosts {\n 192.0.2.7 fixed.example.org\n fallthrough\n}\nrewrite name exact short.example.org web.default.svc.cluster.local\nready\nhealth {\n lameduck 5s\n}\nlog . \"{remote} said \\\"{name}\\\"\"\n"}}
	if err := s.Configure(set); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"www.example.org.": "192.0.2.1", "a.corp.example.": "192.0.2.2", "a.sub.other.": "192.0.2.2", "fixed.example.org.": "192.0.2.7",
		"short.example.org.": "10.96.0.20", "web.default.svc.cluster.local.": "10.96.0.20",
	} {
		s.expect(name, want)
	}
	st := s.Stats()
	if got := strings.Join(st.Zones, " "); got != "corp.example. sub.other. 10.in-addr.arpa." {
		t.Errorf("zones %q", got)
	}
	if len(st.Warnings) != 3 || st.Error != "" || st.Direct != 0 {
		t.Errorf("%+v", st)
	}
}

// TestBlocksAroundTheCluster: CoreDNS takes the longest zone, so a block for a parent of the cluster's domain, or for addresses of the cluster,
// must leave the cluster's names to weft.
func TestBlocksAroundTheCluster(t *testing.T) {
	world, corp := upstream(t, says("192.0.2.1", 60)), upstream(t, says("192.0.2.2", 60))
	s := newSite(t, world)
	set := s.settings4(world)
	set.Servers = []Snippet{{"corp.server", "local 10.0.0.0/8 {\n forward . " + corp.String() + "\n}\n"}}
	for _, override := range []string{"", "rewrite name exact short.example.org www.example.org\n"} { // with the short way, and without
		set.Override = []Snippet{{"own.override", override}}
		if err := s.Configure(set); err != nil {
			t.Fatal(err)
		}
		s.expect("web.default.svc.cluster.local.", "10.96.0.20")
		s.expect("nope.default.svc.cluster.local.", "NXDOMAIN")
		s.expect("printer.local.", "192.0.2.2")
		s.expect("9.9.0.10.in-addr.arpa.", "192.0.2.2")
		s.expect("www.example.org.", "192.0.2.1")
		for _, proto := range []string{"udp", "tcp"} {
			r := s.ask(proto, "20.0.96.10.in-addr.arpa.", dns.TypePTR)
			if len(r.Answer) != 1 || !strings.HasSuffix(r.Answer[0].String(), "web.default.svc.cluster.local.") {
				t.Errorf("the name of a ClusterIP over %s: %v", proto, r)
			}
		}
	}
}

// TestOverridesAddUp: pieces of several keys stand side by side, and a forward for one zone leaves the rest of the world where it was.
func TestOverridesAddUp(t *testing.T) {
	world, corp, own := upstream(t, says("192.0.2.1", 60)), upstream(t, says("192.0.2.2", 60)), upstream(t, says("192.0.2.3", 60))
	s := newSite(t, world)
	set := s.settings4(world)
	set.Override = []Snippet{
		{"a.override", "rewrite name exact one.example.org web.default.svc.cluster.local\nforward corp.example " + corp.String() + " {\n max_concurrent 9\n}\n"},
		{"b.override", "rewrite name exact two.example.org web.default.svc.cluster.local\nforward other.example " + corp.String() + "\n"},
	}
	if err := s.Configure(set); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"one.example.org.": "10.96.0.20", "two.example.org.": "10.96.0.20", "a.corp.example.": "192.0.2.2", "a.other.example.": "192.0.2.2", "www.example.net.": "192.0.2.1",
	} {
		s.expect(name, want)
	}
	set.Override = append(set.Override, Snippet{"c.override", "forward .:53 " + own.String() + "\n"})
	if err := s.Configure(set); err != nil {
		t.Fatal(err)
	}
	s.expect("a.corp.example.", "192.0.2.2")
	s.expect("www.example.net.", "192.0.2.3") // the user's, in the place of the default
}

// FuzzCorefile makes sure that no snippet ends the process, or opens a listener of its own.
func FuzzCorefile(f *testing.F) {
	f.Add("errors\n", "example.org {\n forward . 192.0.2.1\n}\n")
	f.Add("cache {\n success 5\n}\n", "{\n}\n")
	f.Add("hosts {\n 1.2.3.4 \"a\"\n}\n", "(snip) {\n errors\n}\na.org {\n log\n}\n")
	names, err := clusterdns.New("cluster.local", 5)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, override, servers string) {
		c, err := build(names, Settings{Domain: "cluster.local.", Pods: "insecure", TTL: 5, Override: []Snippet{{"a", override}}, Servers: []Snippet{{"b", servers}}})
		if err == nil {
			_ = c.stop()
		}
	})
}
