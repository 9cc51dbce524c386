package coredns

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	_ "github.com/coredns/coredns/plugin/cache"       // what the upstreams said, for as long as they said
	_ "github.com/coredns/coredns/plugin/errors"      // failed queries in the log, gathered
	_ "github.com/coredns/coredns/plugin/forward"     // the rest of the world
	_ "github.com/coredns/coredns/plugin/hosts"       // own names, for users' snippets
	_ "github.com/coredns/coredns/plugin/loadbalance" // the order of addresses
	_ "github.com/coredns/coredns/plugin/log"         // for users' snippets
	_ "github.com/coredns/coredns/plugin/rewrite"     // for users' snippets
	"github.com/miekg/dns"

	"weft.network/weft/plugins/clusterdns"
)

const (
	// blockDirective marks each server block, so that its configuration can be found after the directives were carried out.
	blockDirective = "weftblock"
	// listenName is how CoreDNS' metrics name the server; dashboards know it.
	listenName = "dns://:53"
)

// chain is CoreDNS as one Corefile describes it.
type chain struct {
	file
	server   *dnsserver.Server
	instance *caddy.Instance
	autopath bool
	search   []string
}

// The registries of CoreDNS and caddy belong to the process. build uses them, one at a time.
var (
	building sync.Mutex
	blocks   []block
	register = sync.OnceValue(func() error {
		// After the plugins' own init functions, and once: a second registration is a panic.
		plugin.Register(clusterdns.Name, clusterdns.Setup)
		plugin.Register(blockDirective, setupBlock)
		for _, d := range directives {
			action, err := caddy.DirectiveAction("dns", d)
			if err != nil {
				return err
			}
			caddy.RegisterPlugin(d, caddy.Plugin{Action: action})
		}
		return dnsserver.SetDirectives(directives)
	})
)

// block is one server block after its directives were carried out.
type block struct {
	config *dnsserver.Config
	keys   []string
}

func setupBlock(c *caddy.Controller) error {
	blocks = append(blocks, block{dnsserver.GetConfig(c), c.ServerBlockKeys})
	return nil
}

// build sets CoreDNS up. Nothing listens, and nothing runs before start.
func build(names *clusterdns.Names, s Settings) (c *chain, err error) {
	f, err := corefile(s)
	if err != nil {
		return nil, err
	}
	building.Lock()
	defer building.Unlock()
	defer func() {
		if r := recover(); r != nil { // a plugin's parser met something unforeseen
			err = fmt.Errorf("setting CoreDNS up: %v", r)
		}
	}()
	if err := register(); err != nil {
		return nil, err
	}
	blocks = nil
	clusterdns.Use(names)
	c = &chain{file: f, instance: &caddy.Instance{Storage: map[any]any{}}, autopath: s.Autopath, search: s.Search}
	input := caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(f.text), ServerTypeName: "dns"}
	if err := caddy.ValidateAndExecuteDirectives(input, c.instance, false); err != nil {
		return nil, err
	}
	var all []*dnsserver.Config
	for _, b := range blocks {
		for i, key := range b.keys {
			config := b.config
			if i > 0 { // the directives are carried out for the first key of a block; the others share its plugins
				config = &dnsserver.Config{Zone: plugin.Host(key).NormalizeExact()[0], Plugin: b.config.Plugin}
			}
			all = append(all, config)
		}
	}
	c.server, err = dnsserver.NewServer(listenName, all)
	return c, err
}

func run(functions []func() error) error {
	var errs []error
	for _, f := range functions {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (c *chain) start() error { return run(c.instance.OnStartup) }

func (c *chain) stop() error {
	return run(append(c.instance.OnShutdown, c.instance.OnFinalShutdown...))
}

// serve answers one query.
func (c *chain) serve(w dns.ResponseWriter, r *dns.Msg) {
	ctx := context.WithValue(context.Background(), dnsserver.Key{}, c.server)
	c.server.ServeDNS(context.WithValue(ctx, dnsserver.LoopKey{}, 0), w, r)
}
