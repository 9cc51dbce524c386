package appliance

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"weft.network/weft/appliance/cluster"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/model"
	"weft.network/weft/embedded/coredns"
	"weft.network/weft/plugins/clusterdns"
)

// newDNS is a daemon with nothing but the DNS role, and the resolv.conf that it reads.
func newDNS(t *testing.T) (d *Daemon, resolvConf string) {
	t.Helper()
	names, err := clusterdns.New("cluster.local", 5)
	if err != nil {
		t.Fatal(err)
	}
	resolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	d = &Daemon{cfg: config.Config{DNS: config.DNS{TTL: 5, Pods: "insecure", ResolvConf: resolvConf}}, log: zap.NewNop()}
	d.dns = &dnsRole{names: names, server: coredns.New(coredns.Options{Names: names, Log: zap.NewNop()})}
	return d, resolvConf
}

// TestResolvConfForAMoment: a file that is just being written anew takes nobody's servers away, and so not the cache either.
func TestResolvConfForAMoment(t *testing.T) {
	d, path := newDNS(t)
	d.cfg.DNS.Autopath = true // which makes the search list a part of the settings
	cluster := netip.MustParseAddr("10.96.0.10")
	for _, step := range []struct {
		name, text    string // none takes the file away
		own           []netip.Addr
		want, problem string
	}{
		{"nothing yet", "none", nil, "", "no such file or directory; names outside the cluster are not answered"},
		{"empty at first", "", nil, "", "names no DNS server; names outside the cluster are not answered"},
		{"a server", "search lan\nnameserver 192.0.2.1\n", nil, "192.0.2.1:53 lan", ""},
		{"empty", "", nil, "192.0.2.1:53 lan", "names no DNS server; those that it named before are asked on"},
		{"gone", "none", nil, "192.0.2.1:53 lan", "no such file or directory; those that it named before are asked on"},
		{"another", "search corp\nnameserver 192.0.2.2\nnameserver 10.96.0.10\n", nil, "192.0.2.2:53 10.96.0.10:53 corp", ""},
		{"one of them is this server", "", []netip.Addr{cluster}, "192.0.2.2:53 corp", "those that it named before are asked on"},
		{"nothing but this server", "nameserver 10.96.0.10\n", []netip.Addr{cluster}, "192.0.2.2:53 corp", "questions would go round in a loop"},
	} {
		if step.text == "none" {
			_ = os.Remove(path)
		} else if err := os.WriteFile(path, []byte(step.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, problems := d.dnsSettings(nil, step.own)
		var got []string
		for _, u := range s.Upstreams {
			got = append(got, u.String())
		}
		if got := strings.Join(append(got, s.Search...), " "); got != step.want {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
		if p := strings.Join(problems, "\n"); !strings.Contains(p, step.problem) || (p == "") != (step.problem == "") {
			t.Errorf("%s: problems %q, want %q", step.name, p, step.problem)
		}
	}
}

// TestStubForAMoment: systemd-resolved's stub stands in for its servers only until these were known.
func TestStubForAMoment(t *testing.T) {
	stub := coredns.Upstreams{Servers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53")}, Stub: true}
	named := coredns.Upstreams{Servers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}}
	r := &dnsRole{}
	for i, step := range []struct {
		read, want coredns.Upstreams
		problem    bool
	}{{stub, stub, false}, {stub, stub, false}, {named, named, false}, {stub, named, true}, {named, named, false}} {
		got, problems := r.keepUpstreams(step.read, nil, nil)
		if got.Servers[0] != step.want.Servers[0] || len(problems) > 0 != step.problem {
			t.Errorf("step %d: %v, %q", i, got.Servers, problems)
		}
	}
}

// fixed is a piece of a Corefile by which one name has one address.
func fixed(name, address string) string {
	return "hosts {\n " + address + " " + name + "\n fallthrough\n}\n"
}

// TestBadSnippets: a piece with a mistake leaves the pieces of other places and everything else in force, at a start and later.
func TestBadSnippets(t *testing.T) {
	const bad = "nonsense\n"
	for _, c := range []struct {
		name, file, configMap string
		want                  map[string]string
	}{
		{"the ConfigMap's", fixed("file.example.", "192.0.2.1"), bad, map[string]string{"file.example.": "192.0.2.1"}},
		{"the file's", bad, fixed("map.example.", "192.0.2.2"), map[string]string{"map.example.": "192.0.2.2"}},
		{"both", bad, bad, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, _ := newDNS(t)
			defer func() { _ = d.dns.server.Close(context.Background()) }()
			d.cfg.DNS.Override, d.cfg.DNS.Upstreams = c.file, []string{"127.153.0.1"}
			expect := func(when string, upstream string, want map[string]string) {
				t.Helper()
				for name, address := range want {
					if a, err := d.dns.server.Lookup(name, 1, netip.MustParseAddr("127.0.0.1")); err != nil || len(a.Records) != 1 || !strings.HasSuffix(a.Records[0], " "+address) {
						t.Errorf("%s: %s is %v %v, want %s", when, name, a, err, address)
					}
				}
				if got := d.dns.server.Stats().Upstreams; len(got) != 1 || got[0].String() != upstream {
					t.Errorf("%s: upstreams %v", when, got)
				}
			}
			var done coredns.Settings
			d.followDNS(withConfigMap(c.configMap), false, &done)
			expect("at a start", "127.153.0.1:53", c.want)
			if w := strings.Join(d.dnsWarnings(), "\n"); !strings.Contains(w, "nonsense") {
				t.Errorf("warnings %q do not say what is wrong", w)
			}

			d.dns.server.Listen(coredns.Socket{Addr: netip.MustParseAddrPort("127.0.0.1:53")}) // which makes it a running one
			d.cfg.DNS.Upstreams = []string{"127.153.0.2"}
			d.followDNS(withConfigMap(c.configMap), false, &done)
			expect("with other upstreams", "127.153.0.2:53", c.want)

			d.cfg.DNS.Override = fixed("new.example.", "192.0.2.3")
			d.followDNS(withConfigMap(""), false, &done)
			expect("mended", "127.153.0.2:53", map[string]string{"new.example.": "192.0.2.3"})
			d.followDNS(withConfigMap(bad), false, &done)
			expect("broken again", "127.153.0.2:53", map[string]string{"new.example.": "192.0.2.3"})
			if w := strings.Join(d.dnsWarnings(), "\n"); !strings.Contains(w, "nonsense") {
				t.Errorf("warnings %q do not say what is wrong", w)
			}
		})
	}
}

func withConfigMap(override string) *model.Snapshot {
	key := model.ConfigMapKey{Namespace: cluster.DNSNamespace, Name: cluster.DNSConfigMap}
	return &model.Snapshot{ConfigMaps: map[model.ConfigMapKey]*model.ConfigMap{key: {Namespace: key.Namespace, Name: key.Name, Data: map[string]string{"own.override": override}}}}
}
