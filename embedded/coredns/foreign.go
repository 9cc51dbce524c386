package coredns

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coredns/caddy/caddyfile"
)

// advice is what to do instead of a plugin of CoreDNS that is not in weft; elsewhere is for those that are not named.
var advice = map[string]string{
	"acl":         "write a NetworkPolicy",
	"autopath":    "set dns.autopath: true in weft.yaml",
	"file":        "write the names into a block hosts, or forward the zone to a server that has the file",
	"header":      "leave it out",
	"minimal":     "leave it out",
	"multisocket": "leave it out: weft reads many packets at a time",
	"pprof":       "set pprof: true in weft.yaml",
	"template":    "write the names into a block hosts, turn them into others with rewrite, or forward the zone to a CoreDNS of your own that has it",
	"tls":         "leave it out: weft serves plain DNS only",
}

const elsewhere = "forward the zone to a CoreDNS of your own that has it"

// foreign are the plugins of CoreDNS that are neither linked nor done by weft itself.
var foreign = []string{
	"acl", "any", "auto", "autopath", "azure", "bufsize", "cancel", "chaos", "clouddns", "dns64", "dnssec", "dnstap", "dynupdate", "erratic", "etcd", "file", "geoip", "grpc",
	"grpc_server", "header", "https", "https3", "k8s_external", "local", "metadata", "minimal", "multisocket", "nomad", "nsid", "on", "pprof", "proxyproto", "quic",
	"root", "route53", "secondary", "shed", "sign", "siit", "template", "timeouts", "tls", "trace", "transfer", "tsig", "view", "whoami",
}

// corednsFolder is where CoreDNS' Pod has its files.
const corednsFolder = "/etc/coredns/"

// refused says what of a block weft cannot do, and what to do about it.
func refused(s Snippet, b caddyfile.ServerBlock) error {
	for _, d := range slices.Sorted(maps.Keys(b.Tokens)) {
		tokens := b.Tokens[d]
		if slices.Contains(foreign, d) {
			what := advice[d]
			if what == "" {
				what = elsewhere
			}
			return fmt.Errorf("%s:%d: the plugin %s of CoreDNS is not in weft: %s", s.Source, tokens[0].Line, d, what)
		}
		if slices.Contains(ours, d) {
			continue
		}
		for _, t := range tokens {
			if strings.HasPrefix(t.Text, corednsFolder) {
				return fmt.Errorf("%s:%d: %s: %s is a file in CoreDNS' own Pod: write its lines here", s.Source, t.Line, d, t.Text)
			}
		}
	}
	return nil
}

// nodeUpstreams replaces the resolv.conf in a forward by the servers that weft has found there: it knows those that would lead back to itself.
func nodeUpstreams(s Settings, d string, tokens []caddyfile.Token) (out []caddyfile.Token) {
	for _, t := range tokens {
		if d != "forward" || t.Text != "/etc/resolv.conf" || len(s.Upstreams) == 0 {
			out = append(out, t)
			continue
		}
		for _, u := range s.Upstreams {
			out = append(out, caddyfile.Token{File: t.File, Line: t.Line, Text: u.String()})
		}
	}
	return out
}
