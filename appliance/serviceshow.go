package appliance

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/control"
	"weft.network/weft/appliance/kernel/conntrack"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// ServiceDetail is the answer to GET /v1/services/NAMESPACE/NAME: one Service, and what the kernel holds of it.
type ServiceDetail struct {
	ServiceStatus
	// Agrees says that the kernel holds what it should; Differences are what it holds otherwise.
	Agrees      bool     `json:"agrees"`
	Differences []string `json:"differences,omitempty"`
	// Connections counts those that the kernel tracks now, by endpoint; ones that were just closed are among them.
	Connections []EndpointConnections `json:"connections"`
	// Clients is how many clients are remembered for their endpoint (sessionAffinity).
	Clients int `json:"clients,omitempty"`
}

// EndpointConnections is how many connections through a Service an endpoint has from this node.
type EndpointConnections struct {
	Endpoint netip.AddrPort `json:"endpoint"`
	Protocol model.Protocol `json:"protocol"`
	Count    int            `json:"count"`
}

func (d *Daemon) serveService(w http.ResponseWriter, r *http.Request) {
	key := model.ServiceKey{Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
	result := d.loop.Status().Services
	f := result.Frontends[key]
	all := d.Services()
	i := slices.IndexFunc(all, func(s ServiceStatus) bool { return s.Namespace == key.Namespace && s.Name == key.Name })
	if f == nil || i < 0 {
		control.WriteError(w, http.StatusNotFound, d.whyNotServed(key, result))
		return
	}
	detail := ServiceDetail{ServiceStatus: all[i]}
	err := d.kernelOf(r.Context(), f, &detail)
	for range lookAgain {
		if err != nil || detail.Agrees {
			break
		}
		<-time.After(lookPause)
		if now := d.loop.Status().Services.Frontends[key]; now != nil {
			f = now
		}
		err = d.kernelOf(r.Context(), f, &detail)
	}
	if err != nil {
		control.WriteError(w, http.StatusInternalServerError, err)
		return
	}
	control.WriteJSON(w, detail)
}

// whyNotServed says why a Service has no addresses here.
func (d *Daemon) whyNotServed(key model.ServiceKey, result service.Result) error {
	s := d.snapshot().Service(key)
	switch {
	case d.loop.Services == nil:
		return fmt.Errorf("role services is off on this node")
	case s == nil:
		return fmt.Errorf("the cluster has no Service %s (weft service list shows those that this node serves)", key)
	case s.Headless || s.Type == "ExternalName":
		return fmt.Errorf("the Service %s is headless or of type ExternalName: it has no address to serve, its name leads straight to Pods", key)
	case s.OtherProxy != "":
		return fmt.Errorf("the Service %s is for another proxy: it has the label service.kubernetes.io/service-proxy-name or headless (%s)", key, s.OtherProxy)
	}
	for _, p := range result.Problems {
		if p.Service == key {
			return fmt.Errorf("this node does not serve %s: %s", key, p.Text)
		}
	}
	return fmt.Errorf("this node does not serve %s yet: weft status says what it waits for", key)
}

// kernelOf fills in what the kernel holds of a Service.
func (d *Daemon) kernelOf(ctx context.Context, f *service.Frontends, out *ServiceDetail) error {
	table := ruleset.ServiceTableOf(f)
	have, err := d.kernel.rules.Elements(table)
	if err != nil {
		return fmt.Errorf("reading the packet filter: %w", err)
	}
	out.Differences = ruleset.ServiceDifferences(f, have)
	out.Agrees, out.Clients = len(out.Differences) == 0, 0
	self := d.snapshot().Node(d.cfg.NodeName)
	type front struct {
		protocol model.Protocol
		at       netip.AddrPort
	}
	fronts := map[front]bool{}
	for i := range f.Ports {
		p := &f.Ports[i]
		for _, e := range p.Frontends {
			addrs := []netip.Addr{e.Addr}
			if !e.Addr.IsValid() && self != nil {
				addrs = self.Addresses
			}
			for _, a := range addrs {
				fronts[front{p.Protocol, netip.AddrPortFrom(a, e.Port)}] = true
			}
		}
	}
	for _, s := range table.Sets {
		if s.Dynamic {
			for _, e := range have[s.Name] {
				if at, proto, ok := ruleset.RememberedFrontend(s, &e); ok && fronts[front{proto, at}] {
					out.Clients++
				}
			}
		}
	}
	counts := map[EndpointConnections]int{}
	err = d.kernel.flows.table.Each(ctx, func(p model.Protocol, s conntrack.Seen) {
		if fronts[front{p, s.Dst}] && s.Backend != s.Dst {
			counts[EndpointConnections{Endpoint: s.Backend, Protocol: p}]++
		}
	})
	out.Connections = []EndpointConnections{}
	for c, n := range counts {
		c.Count = n
		out.Connections = append(out.Connections, c)
	}
	slices.SortFunc(out.Connections, func(a, b EndpointConnections) int { return a.Endpoint.Compare(b.Endpoint) })
	return err
}
