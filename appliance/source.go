package appliance

import (
	"context"
	"errors"
	"os"
	"time"

	"go.uber.org/zap"

	"weft.network/weft/appliance/cluster"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/store"
)

// newSource chooses where the picture of the cluster comes from: files, an API server, or, with Pod ranges in weft.yaml and
// neither of them, nowhere. stored is the picture of the last run.
func (d *Daemon) newSource(ctx context.Context, stored *model.Snapshot) (cluster.Source, error) {
	problem := func(text string) { d.log.Warn("ignored in the cluster's objects", zap.String("problem", text)) }
	lb, bgp, dns := d.cfg.Has(config.RoleLB), d.cfg.Has(config.RoleBGP), d.cfg.Has(config.RoleDNS)
	services, policies := d.cfg.Has(config.RoleServices) || dns || lb || bgp, d.cfg.Has(config.RolePolicy)
	everyPod := d.everyPod()
	if d.cfg.Manifests != "" {
		problem = func(text string) {
			d.log.Error("the files in manifests cannot be used, so what they said before goes on: mend this first", zap.String("problem", text))
		}
		return cluster.NewManifests(cluster.ManifestsOptions{
			Dir: d.cfg.Manifests, NodeName: d.cfg.NodeName, Services: services, Policies: policies, Pools: lb, DNS: dns, OnProblem: problem,
			EveryPod: everyPod, BGP: bgp, Secrets: d.cfg.BGP.Secrets(), SecretNamespace: d.cfg.BGP.SecretNamespace,
		})
	}
	inCluster := os.Getenv("KUBERNETES_SERVICE_HOST") != ""
	if d.cfg.Kubeconfig == "" && !inCluster {
		if len(d.cfg.PodCIDRs) > 0 {
			return standalone{since: time.Now()}, nil
		}
		return nil, errors.New("no source of cluster objects: give --kubeconfig FILE (an API server), --manifests DIR (files), or podCIDRs in weft.yaml (a node of its own)")
	}
	identity, err := d.store.Identity()
	if err != nil {
		return nil, err
	}
	return cluster.NewKubernetes(cluster.KubernetesOptions{
		Stored:   stored,
		NodeName: d.cfg.NodeName, Kubeconfig: d.cfg.Kubeconfig, Servers: d.cfg.APIServers, Known: identity.APIServers,
		OnServers: func(servers []string) { d.learnServers(ctx, servers) }, OnProblem: problem, Version: d.version,
		Services: services, Policies: policies, Pools: lb, Allocate: d.allocate(), DNS: d.dnsOptions(),
		EveryPod: everyPod, BGP: bgp, Secrets: d.cfg.BGP.Secrets(), SecretNamespace: d.cfg.BGP.SecretNamespace,
	})
}

// everyPod reports whether the picture of the cluster has the Pods of all nodes, and not of this one only: policies are about them, and the
// names of Pods that must exist.
func (d *Daemon) everyPod() bool {
	return d.cfg.Has(config.RolePolicy) || d.cfg.Has(config.RoleDNS) && d.cfg.DNS.Pods == "verified"
}

// learnServers keeps the API servers' real addresses for the next start.
func (d *Daemon) learnServers(ctx context.Context, servers []string) {
	err := d.store.UpdateIdentity(ctx, func(i *store.Identity) { i.APIServers = servers })
	if err != nil && ctx.Err() == nil {
		d.log.Warn("keeping the addresses of the API servers", zap.Error(err))
	}
}

// standalone is the source of a node that belongs to no cluster: it knows nothing, and that is all right.
type standalone struct{ since time.Time }

func (standalone) Run(ctx context.Context, publish func(*model.Snapshot)) error {
	publish(&model.Snapshot{Revision: 1})
	<-ctx.Done()
	return nil
}

func (s standalone) Status() cluster.Status {
	return cluster.Status{Kind: "standalone", Connected: true, Since: s.since}
}

func (standalone) Recorder() cluster.Recorder { return noEvents{} }

type noEvents struct{}

func (noEvents) WarnPod(model.PodRef, string, string)                   {}
func (noEvents) WarnNode(string, string, string)                        {}
func (noEvents) Service(model.ServiceKey, string, bool, string, string) {}

// sourceStatus joins the source's own words with the picture in use.
func (d *Daemon) sourceStatus(snap *model.Snapshot) SourceStatus {
	st := d.source.Status()
	out := SourceStatus{Kind: st.Kind, Connected: st.Connected, Since: st.Since, Server: st.Server, Read: st.Read, Error: st.LastError}
	if snap != nil {
		out.Revision, out.Stored, out.Nodes = snap.Revision, snap.Stored, len(snap.Nodes)
	}
	return out
}
