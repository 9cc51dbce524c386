package cli

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/control"
)

func dnsCommand() *cli.Command {
	return &cli.Command{
		Name: "dns", Usage: "the cluster's DNS on this node", OnUsageError: usageError,
		Subcommands: []*cli.Command{
			{
				Name: "query", Usage: "ask for a name, and see what each step answers and from where", ArgsUsage: "NAME",
				Description: "With --from, the names are those that the Pod's own resolver would try, in its order, until one has an answer.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "type", Value: "A", Usage: "`TYPE` of the records: A, AAAA, SRV, PTR, …"},
					&cli.StringFlag{Name: "from", Usage: "ask as the Pod `[NAMESPACE/]POD` would"},
					outputFlag(), runDirFlag(),
				},
				OnUsageError: usageError, Action: queryDNS,
			},
			{
				Name: "stats", Usage: "what the DNS server does, for whom, and what is wrong",
				Flags: []cli.Flag{outputFlag(), runDirFlag()}, OnUsageError: usageError, Before: noArguments,
				Action: func(c *cli.Context) error {
					var s appliance.DNSStats
					if err := control.NewClient(c.String("run-dir")).Get(c.Context, "/v1/dns", &s); err != nil {
						return err
					}
					return show(c, s, func(p *printer) { printDNSStats(p, &s) })
				},
			},
		},
	}
}

func queryDNS(c *cli.Context) error {
	if c.NArg() != 1 {
		return cli.Exit("query needs one NAME; try weft dns query kubernetes.default.svc.cluster.local", 2)
	}
	values := url.Values{"name": {c.Args().First()}, "type": {c.String("type")}}
	if from := c.String("from"); from != "" {
		values.Set("from", from)
	}
	var q appliance.DNSQuery
	if err := control.NewClient(c.String("run-dir")).Get(c.Context, "/v1/dns/query?"+values.Encode(), &q); err != nil {
		return err
	}
	if err := show(c, q, func(p *printer) { printDNSQuery(p, &q) }); err != nil {
		return err
	}
	if q.Found < 0 {
		return cli.Exit("", 1)
	}
	return nil
}

func printDNSQuery(p *printer, q *appliance.DNSQuery) {
	p.row("NAME", "TYPE", "ANSWER", "FROM", "TOOK")
	for _, s := range q.Steps {
		answer := s.Rcode
		if s.Rcode == "NOERROR" && len(s.Records) == 0 {
			answer = "no record of this type"
		}
		if len(s.Records) > 0 {
			answer = fmt.Sprintf("%d records", len(s.Records))
		}
		p.row(s.Name, s.Type, answer, s.By, s.Took)
	}
	for _, s := range q.Steps {
		for _, r := range s.Records {
			p.line("%s", r)
		}
	}
}

func printDNSStats(p *printer, s *appliance.DNSStats) {
	var at []string
	for _, a := range s.Listening {
		at = append(at, a.Addr().String())
	}
	var to []string
	for _, u := range s.Upstreams {
		to = append(to, u.String())
	}
	p.row("domain", s.Domain)
	p.row("listening at", strings.Join(at, ", "))
	p.row("upstreams", strings.Join(to, ", "))
	p.row("server blocks", strings.Join(s.Zones, ", "))
	known := fmt.Sprintf("%d Services, %d endpoint slices (revision %d)", s.Services, s.Slices, s.Revision)
	if !s.Synced {
		known = p.paint(yellow, "nothing yet: every name of the cluster is answered with SERVFAIL")
	}
	p.row("names of", known)
	p.row("queries", fmt.Sprintf("%d, of them %d straight from the picture of the cluster", s.Queries, s.Direct))
	p.row("answers", counts(s.Rcodes))
	p.row("types", counts(s.Types))
	p.row("refused", fmt.Sprintf("%d, to keep one client from starving the others", s.Refused))
	p.row("malformed", s.Malformed)
	if len(s.Clients) > 0 {
		p.line("")
		p.row("CLIENT", "POD", "QUERIES (ABOUT)")
		for _, c := range s.Clients {
			p.row(c.Address, c.Pod, c.Queries)
		}
	}
	for _, text := range s.Problems {
		p.line("%s", p.paint(yellow, "warning: "+text))
	}
}

// dnsLine is the DNS server on the status screen.
func dnsLine(p *printer, s *appliance.Status) string {
	var at []string
	for _, a := range s.DNS.Listening {
		at = append(at, a.Addr().String())
	}
	if len(at) == 0 {
		return p.paint(yellow, "answers nowhere yet")
	}
	return fmt.Sprintf("answers at %s; %d queries, %d upstreams", strings.Join(at, ", "), s.DNS.Queries, s.DNS.Upstreams)
}

// counts prints numbers by name, the greatest first.
func counts(m map[string]uint64) string {
	names := slices.SortedFunc(maps.Keys(m), func(a, b string) int { return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b)) })
	for i, n := range names {
		names[i] = fmt.Sprintf("%s %d", n, m[n])
	}
	return strings.Join(names, ", ")
}
