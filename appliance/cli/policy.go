package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/control"
)

func policyCommand() *cli.Command {
	return &cli.Command{
		Name: "policy", Usage: "NetworkPolicies as this node enforces them", OnUsageError: usageError,
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "every NetworkPolicy, and which Pods of this node it selects",
				Flags: storeFlags(), OnUsageError: usageError, Before: noArguments,
				Action: func(c *cli.Context) error {
					r, err := policies(c)
					if err != nil {
						return err
					}
					return show(c, r, func(p *printer) { printPolicies(p, &r) })
				},
			},
			{
				Name: "show", Usage: "in words what a Pod of this node may exchange, or what a policy says", ArgsUsage: "[NAMESPACE/]NAME",
				Description: "NAME is a Pod of this node or a NetworkPolicy; what has both names is shown as both.",
				Flags:       storeFlags(), OnUsageError: usageError,
				Action: showPolicy,
			},
		},
	}
}

func policies(c *cli.Context) (r appliance.PolicyReport, err error) {
	cfg, err := storeConfig(c)
	if err != nil {
		return r, err
	}
	return appliance.ReadPolicies(c.Context, cfg)
}

// printPicture says when the answer is not a running weftd's.
func printPicture(p *printer, picture string) {
	if picture != "" {
		p.line("%s this is from %s", p.paint(yellow, "warning:"), picture)
	}
}

func printPolicies(p *printer, r *appliance.PolicyReport) {
	if len(r.Policies) == 0 {
		p.line("no NetworkPolicies: every Pod may talk with everybody")
	} else {
		p.row("POLICY", "ISOLATES", "PODS", "HERE", "")
	}
	for _, np := range r.Policies {
		note := ""
		switch {
		case len(np.Problems) > 0:
			note = p.paint(yellow, np.Problems[0])
		case np.AuditOnly:
			note = "only audits: what it would drop passes and is recorded"
		}
		p.row(np.Namespace+"/"+np.Name, strings.Join(np.Isolates, "+"), np.Pods, len(np.Here), note)
	}
	for _, pod := range r.Pods {
		for _, w := range pod.Warnings {
			p.line("%s %s/%s: %s", p.paint(yellow, "warning:"), pod.Namespace, pod.Name, w)
		}
	}
	for _, w := range r.Warnings {
		p.line("%s %s", p.paint(yellow, "warning:"), w)
	}
	printPicture(p, r.Picture)
	if r.Inherited {
		p.line("%s the cluster was not heard since the daemon started: the kernel keeps what was in force before", p.paint(yellow, "warning:"))
	}
}

// shownPolicy is what show prints as JSON.
type shownPolicy struct {
	Picture string                   `json:"picture,omitempty"`
	Pod     *appliance.IsolatedPod   `json:"pod,omitempty"`
	Policy  *appliance.NetworkPolicy `json:"policy,omitempty"`
}

func showPolicy(c *cli.Context) error {
	if c.NArg() != 1 {
		return cli.Exit("show needs the name of a Pod or a NetworkPolicy; try weft policy list", 2)
	}
	name := c.Args().First()
	if !strings.Contains(name, "/") {
		name = "default/" + name
	}
	r, err := policies(c)
	if err != nil {
		return err
	}
	found := shownPolicy{Picture: r.Picture}
	pods := slices.Concat(r.Pods, r.Open)
	if i := slices.IndexFunc(pods, func(p appliance.IsolatedPod) bool { return p.Namespace+"/"+p.Name == name }); i >= 0 {
		found.Pod = &pods[i]
	}
	if i := slices.IndexFunc(r.Policies, func(p appliance.NetworkPolicy) bool { return p.Namespace+"/"+p.Name == name }); i >= 0 {
		found.Policy = &r.Policies[i]
	}
	if found.Pod == nil && found.Policy == nil {
		return fmt.Errorf("weft has no Pod %s on this node, and there is no NetworkPolicy of that name (weft ipam list and weft policy list show what there is)", name)
	}
	return show(c, found, func(p *printer) {
		if found.Pod != nil {
			printIsolated(p, found.Pod)
		}
		if found.Policy != nil {
			printPolicy(p, found.Policy)
		}
		printPicture(p, r.Picture)
	})
}

func printIsolated(p *printer, pod *appliance.IsolatedPod) {
	p.line("Pod %s/%s, %s", pod.Namespace, pod.Name, addresses(pod.Addresses))
	for _, d := range []struct {
		name, free string
		words      *appliance.IsolatedInWords
	}{
		{"comes in", "from everybody: no policy isolates its ingress", pod.Ingress},
		{"goes out", "to everybody: no policy isolates its egress", pod.Egress},
	} {
		p.line("")
		if d.words == nil {
			p.line("What %s: %s", d.name, d.free)
			continue
		}
		verb := "only this"
		if d.words.AuditOnly {
			verb = "everything, but recorded is what is not among this"
		}
		p.line("What %s: %s, by %s", d.name, p.paint(bold, verb), strings.Join(d.words.Policies, ", "))
		for _, rule := range d.words.Allowed {
			p.line("  %s", rule)
		}
		if len(d.words.Allowed) == 0 {
			p.line("  nothing")
		}
	}
	p.line("")
	p.line("It always reaches itself and its own node, and its node reaches it.")
	for _, w := range pod.Warnings {
		p.line("%s %s", p.paint(yellow, "warning:"), w)
	}
}

func printPolicy(p *printer, np *appliance.NetworkPolicy) {
	p.line("NetworkPolicy %s/%s isolates %s of Pods %s in namespace %s", np.Namespace, np.Name, strings.Join(np.Isolates, " and "), np.Pods, np.Namespace)
	if np.AuditOnly {
		p.line("It only audits: what it would drop passes and is recorded.")
	}
	for _, rule := range append(slices.Clone(np.Ingress), np.Egress...) {
		p.line("  allowed: %s", rule)
	}
	if len(np.Ingress)+len(np.Egress) == 0 {
		p.line("  allowed: nothing")
	}
	p.line("Pods of this node: %s", strings.Join(np.Here, " "))
	for _, problem := range np.Problems {
		p.line("%s %s", p.paint(yellow, "warning:"), problem)
	}
}

func observeCommand() *cli.Command {
	return &cli.Command{
		Name: "observe", Usage: "what happens on this node, as it happens", OnUsageError: usageError,
		Description: "With --drops: each packet that a NetworkPolicy drops, with its Pods, the policies and why; at most 100 a second and\n" +
			"direction are recorded. Policies with the annotation weft.network/audit-only drop nothing and are shown as audit.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "drops", Usage: "packets that policies drop"},
			&cli.BoolFlag{Name: "once", Usage: "show what was recorded until now, and end"},
			outputFlag(), runDirFlag(),
		},
		Before: noArguments,
		Action: observe,
	}
}

func observe(c *cli.Context) error {
	if !c.Bool("drops") {
		return cli.Exit("observe needs --drops; try weft observe --help", 2)
	}
	format := c.String("output")
	if format != "text" && format != "json" {
		return cli.Exit(fmt.Sprintf("--output %q: must be text or json", format), 2)
	}
	client := control.NewClient(c.String("run-dir"))
	p, last := newPrinter(c.App.Writer), uint64(0)
	for {
		path := fmt.Sprintf("/v1/drops?after=%d", last)
		if !c.Bool("once") {
			path += "&wait=1"
		}
		var list []appliance.Drop
		if err := client.Get(c.Context, path, &list); err != nil {
			if c.Context.Err() != nil {
				return nil // interrupted
			}
			return err
		}
		for i := range list {
			last = list[i].Number
			if format == "json" {
				if err := json.NewEncoder(c.App.Writer).Encode(list[i]); err != nil {
					return err
				}
				continue
			}
			printDrop(p, &list[i])
		}
		if err := p.w.Flush(); err != nil {
			return err
		}
		if c.Bool("once") {
			return nil
		}
	}
}

func printDrop(p *printer, d *appliance.Drop) {
	verb := p.paint(red, "dropped")
	if d.Audit {
		verb = p.paint(yellow, "audit")
	}
	what := d.Protocol.String()
	if d.Port != 0 {
		what = fmt.Sprintf("%s/%d", what, d.Port)
	}
	arrow := "->"
	if d.Answer {
		arrow = "-> (answer)"
	}
	p.line("%s %s %s: %s %s %s %s: %s", d.At.Local().Format("15:04:05.000"), verb, d.Direction, d.Client, arrow, d.Server, what, d.Why)
}
