package appliance

import (
	"cmp"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
)

// ServiceStatus is one Service as this node serves it.
type ServiceStatus struct {
	Namespace string        `json:"namespace"`
	Name      string        `json:"name"`
	Type      string        `json:"type"`
	Ports     []ServicePort `json:"ports"`
	// Problems are parts that are not served, or not as their author may think.
	Problems []string `json:"problems,omitempty"`
}

// ServicePort is one port of a Service in one address family.
type ServicePort struct {
	Name     string         `json:"name,omitempty"`
	Protocol model.Protocol `json:"protocol"`
	IPv6     bool           `json:"ipv6,omitempty"`
	// Affinity is for how many seconds a client keeps its endpoint (sessionAffinity ClientIP); Hashed says that the client's address
	// decides, on every node alike.
	Affinity  uint32            `json:"affinityTimeout,omitempty"`
	Hashed    bool              `json:"hashed,omitempty"`
	Frontends []ServiceFrontend `json:"frontends"`
	// Endpoints serve connections with policy Cluster, Local those with policy Local.
	Endpoints []netip.AddrPort `json:"endpoints"`
	Local     []netip.AddrPort `json:"localEndpoints,omitempty"`
}

// ServiceFrontend is one address at which connections arrive, and what becomes of them.
type ServiceFrontend struct {
	Kind string `json:"kind"`
	// Address is invalid for a node port, which is on every address of the node but loopback.
	Address netip.Addr `json:"address,omitzero"`
	Port    uint16     `json:"port"`
	// Inside is for connections of this node and its Pods, Outside for all others.
	Inside  string         `json:"inside"`
	Outside string         `json:"outside"`
	Sources []netip.Prefix `json:"sources,omitempty"`
}

// Services lists every Service that this node serves, sorted by name.
func (d *Daemon) Services() []ServiceStatus {
	snap, result := d.snapshot(), d.loop.Status().Services
	problems := map[model.ServiceKey][]string{}
	for _, p := range result.Problems {
		problems[p.Service] = append(problems[p.Service], p.Text)
	}
	out := []ServiceStatus{}
	for key, f := range result.Frontends {
		s := ServiceStatus{Namespace: key.Namespace, Name: key.Name, Problems: problems[key]}
		if svc := snap.Services[key]; svc != nil {
			s.Type = svc.Type
		}
		for i := range f.Ports {
			s.Ports = append(s.Ports, servicePort(&f.Ports[i]))
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b ServiceStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func servicePort(p *service.Port) ServicePort {
	out := ServicePort{Name: p.Name, Protocol: p.Protocol, IPv6: p.IPv6, Affinity: p.Affinity, Hashed: p.Hashed, Endpoints: p.Cluster, Local: p.Local}
	for _, f := range p.Frontends {
		out.Frontends = append(out.Frontends, ServiceFrontend{
			Kind: f.Kind.String(), Address: f.Addr, Port: f.Port, Inside: f.Inside.String(), Outside: f.Outside.String(), Sources: f.Sources,
		})
	}
	return out
}
