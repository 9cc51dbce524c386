package clusterdns

import (
	"strings"
	"testing"

	"github.com/miekg/dns"

	"weft.network/weft/appliance/model"
)

// specWorld is a cluster with one Service of each kind that the Kubernetes DNS specification 1.1 knows.
func specWorld(t testing.TB) *world {
	w := newWorld(t, stanza)
	w.service(&model.Service{
		Namespace: "default", Name: "web", Type: "ClusterIP", ClusterIPs: addrs("10.96.0.20", "fd00:96::20"),
		Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}, {Name: "dns", Protocol: model.UDP, Port: 53}},
	})
	w.service(&model.Service{
		Namespace: "default", Name: "single", Type: "ClusterIP", ClusterIPs: addrs("10.96.0.21"),
		Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}},
	})
	w.service(&model.Service{
		Namespace: "default", Name: "db", Type: "ClusterIP", Headless: true, Ports: []model.ServicePort{{Name: "pg", Protocol: model.TCP, Port: 5432}},
	})
	w.slice(&model.EndpointSlice{
		Namespace: "default", Name: "db-a", Service: "db", Ports: []model.EndpointPort{{Name: "pg", Protocol: model.TCP, Port: 5432}},
		Endpoints: []model.Endpoint{
			{Addresses: addrs("10.244.1.5"), Hostname: "db-0", Ready: true, Serving: true},
			{Addresses: addrs("10.244.2.6"), Ready: true, Serving: true},
			{Addresses: addrs("10.244.2.7"), Hostname: "db-2"},
		},
	})
	w.slice(&model.EndpointSlice{
		Namespace: "default", Name: "db-b", Service: "db", IPv6: true, Ports: []model.EndpointPort{{Name: "pg", Protocol: model.TCP, Port: 5432}},
		Endpoints: []model.Endpoint{{Addresses: addrs("fd00:244:1::5"), Hostname: "db-0", Ready: true, Serving: true}, {Addresses: addrs("fd00:244::"), Ready: true}},
	})
	w.service(&model.Service{Namespace: "default", Name: "early", Type: "ClusterIP", Headless: true, PublishNotReady: true})
	w.slice(&model.EndpointSlice{Namespace: "default", Name: "early-a", Service: "early", Endpoints: []model.Endpoint{{Addresses: addrs("10.244.3.9"), Hostname: "early-0"}}})
	w.service(&model.Service{Namespace: "default", Name: "empty", Type: "ClusterIP", Headless: true})
	w.service(&model.Service{Namespace: "default", Name: "waiting", Type: "ClusterIP", Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}})
	w.service(&model.Service{Namespace: "default", Name: "out", Type: "ExternalName", ExternalName: "example.org"})
	w.service(&model.Service{Namespace: "default", Name: "alias", Type: "ExternalName", ExternalName: "web.default.svc.cluster.local"})
	w.service(&model.Service{Namespace: "kube-system", Name: "kube-dns", Type: "ClusterIP", ClusterIPs: addrs("10.96.0.10", "fd00:96::a"), Ports: []model.ServicePort{{Name: "dns", Protocol: model.UDP, Port: 53}}})
	w.objects.Namespaces = map[string]*model.Namespace{"quiet": {Name: "quiet"}}
	w.names.SetServers(addrs("10.96.0.10", "169.254.20.10"))
	w.publish()
	return w
}

// TestSpecification is the Kubernetes DNS specification 1.1, section by section, and what CoreDNS adds to it.
func TestSpecification(t *testing.T) {
	w := specWorld(t)
	for _, tc := range []struct {
		name, kind, want string // the answer section, additional records after "+"; NODATA or a code
	}{
		// 2.2 schema version
		{"dns-version.cluster.local.", "TXT", `dns-version.cluster.local. 28800 IN TXT "1.1.0"`},
		{"dns-version.cluster.local.", "A", "NXDOMAIN"},
		// 2.3 a Service with a ClusterIP
		{"web.default.svc.cluster.local.", "A", "web.default.svc.cluster.local. 5 IN A 10.96.0.20"},
		{"web.default.svc.cluster.local.", "AAAA", "web.default.svc.cluster.local. 5 IN AAAA fd00:96::20"},
		{"WEB.Default.svc.CLUSTER.local.", "A", "WEB.Default.svc.CLUSTER.local. 5 IN A 10.96.0.20"},
		{"single.default.svc.cluster.local.", "A", "single.default.svc.cluster.local. 5 IN A 10.96.0.21"},
		{"single.default.svc.cluster.local.", "AAAA", "NODATA"},
		{"_http._tcp.web.default.svc.cluster.local.", "SRV", "_http._tcp.web.default.svc.cluster.local. 5 IN SRV 0 50 80 web.default.svc.cluster.local.+" +
			"web.default.svc.cluster.local. 5 IN A 10.96.0.20+web.default.svc.cluster.local. 5 IN AAAA fd00:96::20"},
		{"_dns._udp.web.default.svc.cluster.local.", "SRV", "_dns._udp.web.default.svc.cluster.local. 5 IN SRV 0 50 53 web.default.svc.cluster.local.+" +
			"web.default.svc.cluster.local. 5 IN A 10.96.0.20+web.default.svc.cluster.local. 5 IN AAAA fd00:96::20"},
		{"_http._udp.web.default.svc.cluster.local.", "SRV", "NXDOMAIN"},
		{"_nope._tcp.web.default.svc.cluster.local.", "SRV", "NXDOMAIN"},
		{"_http._tcp.web.default.svc.cluster.local.", "A", "_http._tcp.web.default.svc.cluster.local. 5 IN A 10.96.0.20"},
		{"20.0.96.10.in-addr.arpa.", "PTR", "20.0.96.10.in-addr.arpa. 5 IN PTR web.default.svc.cluster.local."},
		{"0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.", "PTR", "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa. 5 IN PTR web.default.svc.cluster.local."},
		{"web.default.svc.cluster.local.", "TXT", "NODATA"},
		{"web.default.svc.cluster.local.", "MX", "NODATA"},
		{"web.default.svc.cluster.local.", "HTTPS", "NODATA"},
		// 2.4 a headless Service
		{"db.default.svc.cluster.local.", "A", "db.default.svc.cluster.local. 5 IN A 10.244.1.5|db.default.svc.cluster.local. 5 IN A 10.244.2.6"},
		{"db.default.svc.cluster.local.", "AAAA", "db.default.svc.cluster.local. 5 IN AAAA fd00:244:1::5|db.default.svc.cluster.local. 5 IN AAAA fd00:244::"},
		{"db-0.db.default.svc.cluster.local.", "A", "db-0.db.default.svc.cluster.local. 5 IN A 10.244.1.5"},
		{"db-0.db.default.svc.cluster.local.", "AAAA", "db-0.db.default.svc.cluster.local. 5 IN AAAA fd00:244:1::5"},
		{"10-244-2-6.db.default.svc.cluster.local.", "A", "10-244-2-6.db.default.svc.cluster.local. 5 IN A 10.244.2.6"},
		{"fd00-244--0.db.default.svc.cluster.local.", "AAAA", "fd00-244--0.db.default.svc.cluster.local. 5 IN AAAA fd00:244::"},
		{"10-244-2-6.db.default.svc.cluster.local.", "AAAA", "NODATA"},
		{"db-2.db.default.svc.cluster.local.", "A", "NXDOMAIN"}, // not ready
		{"db-9.db.default.svc.cluster.local.", "A", "NXDOMAIN"},
		{"_pg._tcp.db.default.svc.cluster.local.", "SRV", "_pg._tcp.db.default.svc.cluster.local. 5 IN SRV 0 25 5432 10-244-2-6.db.default.svc.cluster.local.|" +
			"_pg._tcp.db.default.svc.cluster.local. 5 IN SRV 0 25 5432 db-0.db.default.svc.cluster.local.|" +
			"_pg._tcp.db.default.svc.cluster.local. 5 IN SRV 0 25 5432 fd00-244--0.db.default.svc.cluster.local.+" +
			"10-244-2-6.db.default.svc.cluster.local. 5 IN A 10.244.2.6+db-0.db.default.svc.cluster.local. 5 IN A 10.244.1.5+" +
			"db-0.db.default.svc.cluster.local. 5 IN AAAA fd00:244:1::5+fd00-244--0.db.default.svc.cluster.local. 5 IN AAAA fd00:244::"},
		{"5.1.244.10.in-addr.arpa.", "PTR", "5.1.244.10.in-addr.arpa. 5 IN PTR db-0.db.default.svc.cluster.local."},
		{"6.2.244.10.in-addr.arpa.", "PTR", "6.2.244.10.in-addr.arpa. 5 IN PTR 10-244-2-6.db.default.svc.cluster.local."},
		{"7.2.244.10.in-addr.arpa.", "PTR", "NXDOMAIN"}, // not ready
		{"early.default.svc.cluster.local.", "A", "early.default.svc.cluster.local. 5 IN A 10.244.3.9"},
		{"early-0.early.default.svc.cluster.local.", "A", "early-0.early.default.svc.cluster.local. 5 IN A 10.244.3.9"},
		{"9.3.244.10.in-addr.arpa.", "PTR", "9.3.244.10.in-addr.arpa. 5 IN PTR early-0.early.default.svc.cluster.local."},
		{"empty.default.svc.cluster.local.", "A", "NXDOMAIN"},
		// 2.5 a name outside the cluster
		{"out.default.svc.cluster.local.", "CNAME", "out.default.svc.cluster.local. 5 IN CNAME example.org."},
		{"out.default.svc.cluster.local.", "A", "example.org. 5 IN A 192.0.2.80|out.default.svc.cluster.local. 5 IN CNAME example.org."},
		{"alias.default.svc.cluster.local.", "A", "alias.default.svc.cluster.local. 5 IN CNAME web.default.svc.cluster.local.|web.default.svc.cluster.local. 5 IN A 10.96.0.20"},
		// Pods, as CoreDNS answers with "pods insecure"
		{"10-244-1-5.default.pod.cluster.local.", "A", "10-244-1-5.default.pod.cluster.local. 5 IN A 10.244.1.5"},
		{"fd00-244-1--5.default.pod.cluster.local.", "AAAA", "fd00-244-1--5.default.pod.cluster.local. 5 IN AAAA fd00:244:1::5"},
		{"10-244-1-5.nowhere.pod.cluster.local.", "A", "NXDOMAIN"},
		{"nonsense.default.pod.cluster.local.", "A", "NXDOMAIN"},
		// names on the way to others exist, and have nothing
		{"default.svc.cluster.local.", "A", "NODATA"},
		{"quiet.svc.cluster.local.", "A", "NODATA"},
		{"10-1-2-3.quiet.pod.cluster.local.", "A", "10-1-2-3.quiet.pod.cluster.local. 5 IN A 10.1.2.3"},
		{"svc.cluster.local.", "A", "NODATA"},
		{"nowhere.svc.cluster.local.", "A", "NXDOMAIN"},
		{"nope.default.svc.cluster.local.", "A", "NXDOMAIN"},
		{"nope.default.svc.cluster.local.", "SRV", "NXDOMAIN"},
		{"waiting.default.svc.cluster.local.", "A", "NXDOMAIN"},
		// what search lists make of names outside
		{"example.org.default.svc.cluster.local.", "A", "NXDOMAIN"},
		{"www.example.org.default.svc.cluster.local.", "AAAA", "NXDOMAIN"},
		{"a.www.example.org.default.svc.cluster.local.", "A", "NXDOMAIN"},
		{"www.example.org.svc.cluster.local.", "A", "NXDOMAIN"},
		{"www.example.org.cluster.local.", "A", "NXDOMAIN"},
		// the domain itself
		{"cluster.local.", "NS", "cluster.local. 5 IN NS kube-dns.kube-system.svc.cluster.local.+" +
			"kube-dns.kube-system.svc.cluster.local. 5 IN A 10.96.0.10+kube-dns.kube-system.svc.cluster.local. 5 IN AAAA fd00:96::a"},
		{"ns.dns.cluster.local.", "A", "ns.dns.cluster.local. 5 IN A 10.96.0.10"},
		{"ns.dns.cluster.local.", "AAAA", "ns.dns.cluster.local. 5 IN AAAA fd00:96::a"},
		{"cluster.local.", "A", "NODATA"},
		// no zone transfer
		{"cluster.local.", "AXFR", "REFUSED"},
	} {
		t.Run(tc.kind+" "+tc.name, func(t *testing.T) {
			if got := short(w.ask(t, tc.name, dns.StringToType[tc.kind])); got != tc.want {
				t.Errorf("got\n%s\nwant\n%s", got, tc.want)
			}
		})
	}
}

// short turns a message into the form of the table.
func short(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	code, _, _ := strings.Cut(lines[0], " ")
	var answer, extra []string
	for _, l := range lines[1:] {
		switch {
		case strings.HasPrefix(l, "authority "):
		case strings.HasPrefix(l, "extra "):
			extra = append(extra, strings.TrimPrefix(l, "extra "))
		default:
			answer = append(answer, l)
		}
	}
	switch {
	case code != "NOERROR":
		return code
	case len(answer) == 0:
		return "NODATA"
	}
	return strings.Join(append([]string{strings.Join(answer, "|")}, extra...), "+")
}

// TestNegativeAnswersSayHowLong checks the SOA record, by which clients remember that there is no such name.
func TestNegativeAnswersSayHowLong(t *testing.T) {
	w := specWorld(t)
	for _, name := range []string{"nope.default.svc.cluster.local.", "www.example.org.default.svc.cluster.local.", "default.svc.cluster.local."} {
		got := w.ask(t, name, dns.TypeA)
		if !strings.Contains(got, "authority cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. ") || !strings.Contains(got, " 7200 1800 86400 5\n") {
			t.Errorf("%s:\n%s", name, got)
		}
	}
}

// TestNothingKnown makes sure that no name is denied before the cluster was heard.
func TestNothingKnown(t *testing.T) {
	w := newWorld(t, stanza)
	for _, name := range []string{"web.default.svc.cluster.local.", "nope.default.svc.cluster.local.", "20.0.96.10.in-addr.arpa.", "cluster.local.", "ns.dns.cluster.local."} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeNS, dns.TypeTXT} {
			if got := short(w.ask(t, name, kind)); got != "SERVFAIL" {
				t.Errorf("%s %s: %s", name, dns.TypeToString[kind], got)
			}
		}
	}
	w.publish()
	if got := short(w.ask(t, "web.default.svc.cluster.local.", dns.TypeA)); got != "NXDOMAIN" {
		t.Errorf("with an empty cluster: %s", got)
	}
}
