package appliance

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/cluster"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/reconcile"
	"weft.network/weft/embedded/coredns"
	"weft.network/weft/plugins/clusterdns"
)

// dnsRole is the cluster's DNS on this node.
type dnsRole struct {
	names  *clusterdns.Names
	server *coredns.Server
	store  fdStore
	// kubelet is what Pods of this node are told.
	kubelet config.Kubelet
	sockets dnsSockets
	metrics *dnsMetrics
	// upstreams are the last that the node's resolv.conf named; only runDNS uses them.
	upstreams coredns.Upstreams
	// taken is what the server goes by; only runDNS uses it.
	taken coredns.Settings

	mu       sync.Mutex
	problems []string
	// snippetError is what is wrong with the user's part of the Corefile.
	snippetError string
	search       []string // of the node
}

// The pace of the DNS role.
const (
	// hold is how long a starting server waits for the cluster to be heard before it answers from the stored picture: queries
	// wait in the sockets that the process before it has left, and no name that is new since then is denied.
	hold = time.Second
	// look is how often resolv.conf and what could not be done are looked at again.
	look = 2 * time.Second
)

// openDNS builds the DNS server. Without the role, the loop takes away what an earlier process has put into the kernel.
func (d *Daemon) openDNS() error {
	store, files := openFDStore()
	if d.cfg.Has(config.RoleDNS) || slices.Contains(d.former, config.RoleDNS) {
		d.loop.DNS = &reconcile.DNS{Link: d.kernel}
	}
	if !d.cfg.Has(config.RoleDNS) {
		return store.empty(files)
	}
	r := &dnsRole{kubelet: d.kubelet()}
	var err error
	domain := "cluster.local"
	for _, s := range []string{r.kubelet.ClusterDomain, d.cfg.DNS.Domain} {
		if s != "" {
			domain = s
		}
	}
	if r.names, err = clusterdns.New(domain, d.cfg.DNS.TTL); err != nil {
		return fmt.Errorf("dns.domain: %w", err)
	}
	r.server = coredns.New(coredns.Options{Names: r.names, Log: d.log.Named("dns"), LogEvery: d.cfg.DNS.LogEvery, Namespace: d.namespaceOf})
	r.metrics = newDNSMetrics(r.server, d.log)
	r.store = store
	r.sockets.adopt(files, d.log)
	d.dns = r
	d.loop.DNS.Addresses = r.sockets.addresses
	if d.loop.Policies != nil {
		d.loop.Policies.DNS = d.policyDNS
	}
	return nil
}

// kubelet is what Pods of this node are told. A file that cannot be read is no reason to have no DNS.
func (d *Daemon) kubelet() config.Kubelet {
	k, err := config.ReadKubelet(d.cfg.DNS.KubeletConfig)
	if err != nil {
		d.log.Warn("what kubelet tells Pods about the DNS is not known", zap.Error(err))
	}
	return k
}

// dnsOptions are what the source of the cluster's objects does for the DNS; nil without the role.
func (d *Daemon) dnsOptions() *cluster.DNSOptions {
	if !d.cfg.Has(config.RoleDNS) {
		return nil
	}
	o := &cluster.DNSOptions{Create: d.cfg.DNS.CreateService}
	for _, a := range slices.Concat(d.cfg.DNS.Addresses, d.kubelet().ClusterDNS) {
		// One per family, and none that every node has for itself.
		if a.IsPrivate() && !slices.ContainsFunc(o.Addresses, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			o.Addresses = append(o.Addresses, a)
		}
	}
	return o
}

// runDNS follows the cluster and the node until ctx ends, and lets go of the sockets in good order.
func (d *Daemon) runDNS(ctx context.Context) error {
	if d.dns == nil {
		return nil
	}
	defer func() {
		d.dns.metrics.set(nil)
		if err := d.dns.server.Close(context.WithoutCancel(ctx)); err != nil {
			d.log.Warn("stopping the DNS server", zap.Error(err))
		}
	}()
	holding := time.NewTimer(hold)
	defer holding.Stop()
	again := time.NewTicker(look)
	defer again.Stop()
	held := true
	var done coredns.Settings
	for {
		snap, changed := d.newest.Watch()
		if snap != nil && (!snap.Stored || snap.Revision > 0) {
			d.dns.names.Update(snap)
		}
		if snap != nil && !snap.Stored {
			held = false
		}
		d.followDNS(snap, !held, &done)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again.C:
		case <-holding.C:
			held = false
		}
	}
}

// followDNS brings CoreDNS and the sockets to what the cluster and the node ask for.
func (d *Daemon) followDNS(snap *model.Snapshot, listen bool, done *coredns.Settings) {
	r := d.dns
	var problems []string
	want := d.dnsAddresses(snap)
	if len(want) == 0 {
		problems = append(problems, "the cluster has no DNS address: there is no Service kube-dns in kube-system and kubelet names none; set dns.addresses in weft.yaml and clusterDNS for kubelet")
	}
	local := d.localDNSAddresses(snap)
	all := append(slices.Clone(want), local...)
	r.names.SetServers(all)

	settings, more := d.dnsSettings(snap, all)
	problems = append(problems, more...)
	if !reflect.DeepEqual(settings, *done) {
		*done = settings
		r.configure(settings, d.log)
	}
	if listen {
		changes, more := r.sockets.set(all, r.server, r.store)
		problems = append(append(problems, more...), r.metrics.set(all)...)
		if changes {
			d.loop.Kick(reconcile.Trigger{What: "the DNS server's addresses changed"})
		}
	}
	r.note(problems, d.log)
}

// configure sets the server up. Where a piece of the user's is wrong, the pieces of before go on with everything else that is new; at a start
// there are none, and those of one place do without the other's.
func (r *dnsRole) configure(want coredns.Settings, log *zap.Logger) {
	err := r.server.Configure(want)
	r.snippets(err)
	if err == nil {
		r.taken = want
		return
	}
	log.Error("the DNS server goes on without a change of its Corefile", zap.Error(err))
	only := func(keep func(coredns.Snippet) bool) (s coredns.Settings) {
		s = want
		s.Override, s.Servers = pick(want.Override, keep), pick(want.Servers, keep)
		return s
	}
	ofFile := func(s coredns.Snippet) bool { return strings.HasPrefix(s.Source, "weft.yaml ") }
	before := want
	before.Override, before.Servers = r.taken.Override, r.taken.Servers
	tries := []coredns.Settings{before}
	if r.server.Brief().Listening == nil {
		tries = []coredns.Settings{
			only(ofFile),
			only(func(s coredns.Snippet) bool { return !ofFile(s) }),
			only(func(coredns.Snippet) bool { return false }),
		}
	}
	for _, try := range tries {
		if !reflect.DeepEqual(try, r.taken) {
			if err := r.server.Configure(try); err != nil {
				log.Error("setting the DNS server up", zap.Error(err))
				continue
			}
		}
		r.taken = try
		return
	}
}

func pick(list []coredns.Snippet, keep func(coredns.Snippet) bool) (out []coredns.Snippet) {
	for _, s := range list {
		if keep(s) {
			out = append(out, s)
		}
	}
	return out
}

// snippets keeps what is wrong with the user's part of the Corefile, for as long as it is.
func (r *dnsRole) snippets(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.snippetError = ""
	if err != nil {
		r.snippetError = "the DNS server goes on without a change of its Corefile: " + err.Error()
	}
}

// note keeps what a person should know, and logs what is new.
func (r *dnsRole) note(problems []string, log *zap.Logger) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range problems {
		if !slices.Contains(r.problems, p) {
			log.Warn(p)
		}
	}
	r.problems = problems
}

// dnsWarnings are for the status screen.
func (d *Daemon) dnsWarnings() []string {
	if d.dns == nil {
		return nil
	}
	d.dns.mu.Lock()
	defer d.dns.mu.Unlock()
	out := slices.Clone(d.dns.problems)
	if d.dns.snippetError != "" {
		out = append(out, d.dns.snippetError)
	}
	return append(out, d.dns.server.Brief().Warnings...)
}

// policyDNS are the addresses that policies take for the cluster's DNS. They follow from the cluster and the settings and not from
// the sockets: what guards Pods must not change while a daemon that starts has not opened them yet.
func (d *Daemon) policyDNS() (out []netip.AddrPort) {
	snap := d.snapshot()
	for _, a := range append(slices.Clone(d.dnsAddresses(snap)), d.localDNSAddresses(snap)...) {
		out = append(out, netip.AddrPortFrom(a, model.DNSPort), netip.AddrPortFrom(a, model.DNSMetricsPort))
	}
	return out
}

// clusterDNS finds the Service by which the cluster's DNS is known: kube-dns, or any other with its label.
func clusterDNS(snap *model.Snapshot) *model.Service {
	if snap == nil {
		return nil
	}
	if s := snap.Services[model.ServiceKey{Namespace: clusterdns.ServiceNamespace, Name: clusterdns.ServiceName}]; s != nil {
		return s
	}
	var found *model.Service
	for key, s := range snap.Services {
		if key.Namespace == clusterdns.ServiceNamespace && s.Labels["k8s-app"] == clusterdns.ServiceName && len(s.ClusterIPs) > 0 && (found == nil || key.Name < found.Name) {
			found = s
		}
	}
	return found
}

// dnsAddresses are those at which Pods look for the cluster's DNS.
func (d *Daemon) dnsAddresses(snap *model.Snapshot) []netip.Addr {
	if len(d.cfg.DNS.Addresses) > 0 {
		return d.cfg.DNS.Addresses
	}
	var out []netip.Addr
	if s := clusterDNS(snap); s != nil {
		out = slices.Clone(s.ClusterIPs)
	}
	for _, a := range d.dns.kubelet.ClusterDNS {
		// A public resolver is none of ours to stand in for.
		if (a.IsPrivate() || a.IsLinkLocalUnicast()) && !slices.Contains(out, a) && !ofNode(snap, a) {
			out = append(out, a)
		}
	}
	return out
}

func ofNode(snap *model.Snapshot, a netip.Addr) bool {
	if snap != nil {
		for _, n := range snap.Nodes {
			if slices.Contains(n.Addresses, a) {
				return true
			}
		}
	}
	return false
}

// localDNSAddresses are the further ones, of the families that this node has.
func (d *Daemon) localDNSAddresses(snap *model.Snapshot) (out []netip.Addr) {
	self := snap.Node(d.cfg.NodeName)
	if self == nil {
		return nil
	}
	for _, a := range d.cfg.DNS.LocalAddresses {
		same := func(b netip.Addr) bool { return b.Is4() == a.Is4() }
		if slices.ContainsFunc(self.Addresses, same) || slices.ContainsFunc(self.PodCIDRs, func(p netip.Prefix) bool { return same(p.Addr()) }) {
			out = append(out, a)
		}
	}
	return out
}

// dnsSettings are what CoreDNS is set up with.
func (d *Daemon) dnsSettings(snap *model.Snapshot, own []netip.Addr) (s coredns.Settings, problems []string) {
	c := &d.cfg.DNS
	s = coredns.Settings{Domain: d.dns.names.Domain(), TTL: c.TTL, Pods: c.Pods, Autopath: c.Autopath}
	path := "/etc/resolv.conf"
	for _, p := range []string{d.dns.kubelet.ResolvConf, c.ResolvConf} {
		if p != "" {
			path = p
		}
	}
	up, err := coredns.ReadUpstreams(path, own)
	up, more := d.dns.keepUpstreams(up, err, own)
	d.dns.setSearch(up.Search)
	if c.Autopath {
		s.Search = up.Search
	}
	for _, u := range c.Upstreams {
		if ap, err := config.ParseUpstream(u); err == nil {
			s.Upstreams = append(s.Upstreams, ap)
		}
	}
	if len(s.Upstreams) == 0 {
		s.Upstreams, problems = up.Servers, more
	}
	add := func(list *[]coredns.Snippet, source, text string) {
		if strings.TrimSpace(text) != "" {
			*list = append(*list, coredns.Snippet{Source: source, Text: text})
		}
	}
	add(&s.Override, "weft.yaml dns.override", c.Override)
	add(&s.Servers, "weft.yaml dns.servers", c.Servers)
	if snap == nil {
		return s, problems
	}
	if own := snap.ConfigMaps[model.ConfigMapKey{Namespace: cluster.DNSNamespace, Name: cluster.DNSConfigMap}]; own != nil {
		for _, key := range slices.Sorted(maps.Keys(own.Data)) {
			source := "ConfigMap " + cluster.DNSNamespace + "/" + cluster.DNSConfigMap + " " + key
			switch {
			case strings.HasSuffix(key, ".override"):
				add(&s.Override, source, own.Data[key])
			case strings.HasSuffix(key, ".server"):
				add(&s.Servers, source, own.Data[key])
			}
		}
	}
	return s, problems
}

// keepUpstreams takes what was read of the resolv.conf. While that names no server, as for a moment when it is written anew or for as long as a
// link is down, those that it named before count on: without them CoreDNS would be set up again, and what it has in its cache would be lost.
func (r *dnsRole) keepUpstreams(up coredns.Upstreams, err error, own []netip.Addr) (now coredns.Upstreams, problems []string) {
	last := r.upstreams
	last.Servers = slices.DeleteFunc(slices.Clone(last.Servers), func(a netip.AddrPort) bool { return slices.Contains(own, a.Addr()) })
	problem := up.Path + " names no DNS server"
	switch {
	case err != nil:
		problem = err.Error()
	case len(up.Servers) > 0 && (!up.Stub || last.Stub || len(last.Servers) == 0):
		r.upstreams = up
		return up, up.Skipped
	case up.Stub:
		problem = "systemd-resolved names no DNS server"
	}
	if len(last.Servers) == 0 {
		return up, append(up.Skipped, problem+"; names outside the cluster are not answered: set dns.upstreams in weft.yaml")
	}
	return last, append(up.Skipped, problem+"; those that it named before are asked on: write one into it, or set dns.upstreams in weft.yaml")
}

func (r *dnsRole) setSearch(search []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.search = search
}

// namespaceOf returns the namespace of the Pod of this node that has an address, for autopath. The API may still tell of the Pod that
// had it before, and the lease tells of the one that has it now: when they differ, nobody is named.
func (d *Daemon) namespaceOf(a netip.Addr) string {
	p := d.dns.names.Pod(a)
	if p == nil || p.Node != d.cfg.NodeName {
		return ""
	}
	if d.loop.NoFabric { // another network's Pods: only the API tells
		return p.Namespace
	}
	for _, l := range d.attacher.Leases() {
		if slices.Contains(l.Addresses, a) && l.Pod.Key() == p.Key() {
			return p.Namespace
		}
	}
	return ""
}
