package coredns

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"weft.network/weft/plugins/clusterdns"
)

// Settings are what the Corefile is made of.
type Settings struct {
	// Domain is the cluster's, with the dot at the end.
	Domain string
	TTL    uint32
	// Pods says which names of Pods exist: disabled, insecure (any address) or verified.
	Pods string
	// Autopath tries the search list of Pods in their place. Search is the part of it that comes from the node.
	Autopath bool
	Search   []string
	// Upstreams answer for the rest of the world; none means that nobody does.
	Upstreams []netip.AddrPort
	// Override are directives for the main server, Servers are further server blocks, both by where they come from.
	Override, Servers []Snippet
}

// Snippet is a piece of a Corefile that a person wrote.
type Snippet struct {
	Source string
	Text   string
}

// file is a Corefile and what is to be known about it.
type file struct {
	text  string
	zones []string // of the further server blocks
	// direct is true when nothing in the main server comes before the names of the cluster.
	direct   bool
	warnings []string
}

// directives is every directive that is linked, in the order in which a query passes them. The names of the cluster come before
// the cache: they are in memory already, and a cache would hide new ones behind the denial of yesterday.
var directives = []string{blockDirective, "errors", "log", "loadbalance", "rewrite", "hosts", clusterdns.Name, "cache", "forward"}

// ours are the directives of common Corefiles that weft does itself.
var ours = []string{"bind", "debug", "health", "kubernetes", "loop", "prometheus", "ready", "reload"}

// afterNames are the directives that cannot change what a name of the cluster means.
var afterNames = []string{"cache", "errors", "forward"}

// several are the directives that may be there more than once; of forward, the first one for a name counts.
var several = []string{"forward", "log", "rewrite"}

// corefile writes the Corefile, or says what is wrong with a snippet.
func corefile(s Settings) (file, error) {
	f := file{direct: true}
	main, err := f.override(s)
	if err != nil {
		return f, err
	}
	var b strings.Builder
	// The domain is a zone of its own: CoreDNS takes the longest one, and a further block may be for a parent of it.
	fmt.Fprintf(&b, ". %s {\n\t%s\n", s.Domain, blockDirective)
	for _, d := range directives[1:] {
		if text := main[d]; text != "" {
			b.WriteString(text)
		}
	}
	b.WriteString("}\n")
	for _, snippet := range s.Servers {
		text, err := f.servers(s, snippet, main[clusterdns.Name])
		if err != nil {
			return f, err
		}
		b.WriteString(text)
	}
	f.text = b.String()
	return f, nil
}

// defaults are the directives of the main server.
func defaults(s Settings) map[string]string {
	out := map[string]string{
		"errors":        "\terrors {\n\t\tconsolidate 30s \".*\"\n\t}\n",
		"loadbalance":   "\tloadbalance round_robin\n",
		clusterdns.Name: fmt.Sprintf("\tweft %s in-addr.arpa ip6.arpa {\n\t\tpods %s\n\t\tttl %d\n\t\tfallthrough in-addr.arpa ip6.arpa\n\t}\n", s.Domain, s.Pods, s.TTL),
		// Popular names are asked for again before they end; what the upstream cannot say again is said once more for an hour.
		"cache": "\tcache {\n\t\tsuccess 9984 3600\n\t\tdenial 9984 30\n\t\tprefetch 5 1m 10%\n\t\tserve_stale 1h verify 250ms 30s 5s\n\t\tservfail 1s\n\t}\n",
	}
	if len(s.Upstreams) > 0 {
		var to []string
		for _, u := range s.Upstreams {
			to = append(to, u.String())
		}
		out["forward"] = fmt.Sprintf("\tforward . %s {\n\t\tmax_concurrent 2000\n\t\tpolicy sequential\n\t\thealth_check 1s\n\t}\n", strings.Join(to, " "))
	}
	return out
}

// override lays the user's directives over the defaults.
func (f *file) override(s Settings) (map[string]string, error) {
	out := defaults(s)
	own, from, all := map[string]string{}, map[string]string{}, false
	for _, snippet := range s.Override {
		if open := braces(snippet); open != 0 {
			return nil, fmt.Errorf("%s: %d braces are open at the end (server blocks belong into *.server)", snippet.Source, open)
		}
		// On the line of the brace, so that the numbers of lines are the user's.
		blocks, err := parse(snippet, ". { "+snippet.Text+"\n}\n")
		if err != nil {
			return nil, err
		}
		if len(blocks) != 1 {
			return nil, fmt.Errorf("%s: a brace is closed that was not opened; server blocks belong into *.server", snippet.Source)
		}
		for _, d := range slices.Sorted(maps.Keys(blocks[0].Tokens)) {
			tokens := blocks[0].Tokens[d]
			if slices.Contains(ours, d) {
				f.warnings = append(f.warnings, fmt.Sprintf("%s: %s is left out: weft does that itself", snippet.Source, d))
				continue
			}
			if from[d] != "" && !slices.Contains(several, d) {
				return nil, fmt.Errorf("%s: %s is in %s, too, and can be there once only: put both together", snippet.Source, d, from[d])
			}
			if !slices.Contains(afterNames, d) {
				f.direct = false
			}
			own[d] += render(nodeUpstreams(s, d, tokens))
			from[d], all = snippet.Source, all || d == "forward" && forwardsAll(tokens)
		}
	}
	for d, text := range own {
		if d == "forward" && !all {
			text += out[d]
		}
		out[d] = text
	}
	slices.Sort(f.warnings)
	return out, nil
}

// forwardsAll reports whether one of the directives forward is for all names.
func forwardsAll(tokens []caddyfile.Token) bool {
	d := caddyfile.NewDispenserTokens("", tokens)
	for d.Next() {
		if d.NextArg() && slices.Contains(plugin.Host(d.Val()).NormalizeExact(), ".") {
			return true
		}
		d.RemainingArgs()
		for d.NextBlock() {
		}
	}
	return false
}

// servers returns further server blocks in the form that is set up. names is the directive that answers for the cluster: in a block for
// addresses it tells the names of those that are the cluster's.
func (f *file) servers(s Settings, snippet Snippet, names string) (string, error) {
	blocks, err := parse(snippet, snippet.Text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, block := range blocks {
		var zones []string
		for _, key := range block.Keys {
			more, err := blockZones(s.Domain, key)
			if err != nil {
				return "", fmt.Errorf("%s: server block %q: %w", snippet.Source, key, err)
			}
			zones = append(zones, more...)
		}
		for _, z := range zones {
			if slices.Contains(f.zones, z) {
				return "", fmt.Errorf("%s: zone %s is served by another block already; put both together", snippet.Source, z)
			}
			f.zones = append(f.zones, z)
		}
		fmt.Fprintf(&b, "%s {\n\t%s\n", strings.Join(zones, " "), blockDirective)
		for _, d := range directives[1:] {
			switch tokens := block.Tokens[d]; {
			case d == clusterdns.Name && tokens != nil:
				return "", fmt.Errorf("%s: the directive weft belongs to weft itself", snippet.Source)
			case d == clusterdns.Name && slices.ContainsFunc(zones, func(z string) bool { return dns.IsSubDomain("arpa.", z) }):
				b.WriteString(names)
			case tokens != nil:
				b.WriteString(render(nodeUpstreams(s, d, tokens)))
			}
		}
		b.WriteString("}\n")
		for _, d := range ours {
			if block.Tokens[d] != nil {
				f.warnings = append(f.warnings, fmt.Sprintf("%s: %s is left out: weft does that itself", snippet.Source, d))
			}
		}
	}
	return b.String(), nil
}

// blockZones reads the head of a server block.
func blockZones(domain, key string) ([]string, error) {
	if scheme, _, ok := strings.Cut(key, "://"); ok && scheme != "dns" {
		return nil, errors.New("weft serves plain DNS only; leave out the scheme")
	}
	key = strings.TrimPrefix(key, "dns://")
	_, port, err := plugin.SplitHostPort(key)
	if err != nil {
		return nil, err
	}
	if port != "" && port != "53" {
		return nil, fmt.Errorf("weft serves port 53 only; leave out port %s", port)
	}
	zones := plugin.Host(key).NormalizeExact()
	if len(zones) == 0 {
		return nil, errors.New("not a zone of the DNS")
	}
	for _, z := range zones {
		switch {
		case z == ".":
			return nil, errors.New("the root belongs to the main server; put directives for it into *.override")
		case dns.IsSubDomain(domain, z):
			return nil, fmt.Errorf("the zone overlaps the cluster's domain %s; choose a zone outside it", domain)
		}
	}
	return zones, nil
}

// parse splits a snippet into blocks and directives. It must not read files of the node.
func parse(s Snippet, text string) ([]caddyfile.ServerBlock, error) {
	for _, line := range strings.Split(text, "\n") {
		if words := strings.Fields(line); len(words) > 0 && slices.Contains(words, "import") {
			return nil, fmt.Errorf("%s: import is not possible here; write the text itself", s.Source)
		}
	}
	known := slices.Concat(directives, ours, foreign)
	blocks, err := caddyfile.Parse(s.Source, strings.NewReader(text), known)
	if err != nil {
		return nil, fmt.Errorf("%w (known are %s)", err, strings.Join(directives[1:], ", "))
	}
	for _, b := range blocks {
		if b.Tokens[blockDirective] != nil {
			return nil, fmt.Errorf("%s: unknown directive %q", s.Source, blockDirective)
		}
		if err := refused(s, b); err != nil {
			return nil, err
		}
	}
	return blocks, nil
}

// braces counts the opened less the closed ones.
func braces(s Snippet) (open int) {
	d := caddyfile.NewDispenser(s.Source, strings.NewReader(s.Text))
	for d.Next() {
		switch d.Val() {
		case "{":
			open++
		case "}":
			open--
		}
	}
	return open
}

// render writes tokens as text again, each line on its own.
func render(tokens []caddyfile.Token) string {
	var b strings.Builder
	line := -1
	for _, t := range tokens {
		if t.Line != line {
			if line >= 0 {
				b.WriteByte('\n')
			}
			b.WriteByte('\t')
			line = t.Line
		} else {
			b.WriteByte(' ')
		}
		if t.Text == "" || strings.ContainsAny(t.Text, " \t\n\"#") {
			b.WriteString(`"` + strings.ReplaceAll(t.Text, `"`, `\"`) + `"`)
		} else {
			b.WriteString(t.Text)
		}
		line += strings.Count(t.Text, "\n")
	}
	return b.String() + "\n"
}
