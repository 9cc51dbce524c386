package appliance

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"weft.network/weft/appliance/control"
	"weft.network/weft/appliance/model"
	"weft.network/weft/embedded/coredns"
)

// DNSStats is the answer to GET /v1/dns.
type DNSStats struct {
	coredns.Stats
	Domain string `json:"domain"`
	// Services and Slices have names; Revision is that of the picture they are from.
	Services int      `json:"services"`
	Slices   int      `json:"slices"`
	Revision uint64   `json:"revision"`
	Synced   bool     `json:"synced"`
	Search   []string `json:"nodeSearch,omitempty"`
	Problems []string `json:"problems,omitempty"`
}

// DNSQuery is the answer to GET /v1/dns/query: each name that a resolver tries, in its order, until one has an answer.
type DNSQuery struct {
	From  string           `json:"from,omitempty"`
	Steps []coredns.Answer `json:"steps"`
	// Found is the number of the step with the answer, counted from 0; -1 when none has one.
	Found int `json:"found"`
}

// serveDNS answers GET /v1/dns.
func (d *Daemon) serveDNS(w http.ResponseWriter, _ *http.Request) {
	r := d.dns
	if r == nil {
		control.WriteError(w, http.StatusNotFound, errNoDNS)
		return
	}
	out := DNSStats{Stats: r.server.Stats(), Domain: r.names.Domain(), Revision: r.names.Revision(), Synced: r.names.Synced(), Problems: d.dnsWarnings()}
	out.Services, out.Slices = r.names.Counts()
	r.mu.Lock()
	out.Search, out.Error = r.search, r.snippetError
	r.mu.Unlock()
	control.WriteJSON(w, out)
}

var errNoDNS = fmt.Errorf("the role dns is off on this node: add it to roles in weft.yaml")

// ndots is what kubelet writes into a Pod's resolv.conf: a name with fewer dots is tried with the search list first.
const ndots = 5

// serveDNSQuery answers GET /v1/dns/query?name=…&type=…&from=NAMESPACE/POD.
func (d *Daemon) serveDNSQuery(w http.ResponseWriter, req *http.Request) {
	if d.dns == nil {
		control.WriteError(w, http.StatusNotFound, errNoDNS)
		return
	}
	q := req.URL.Query()
	kind, err := coredns.ParseType(q.Get("type"))
	if err != nil {
		control.WriteError(w, http.StatusBadRequest, err)
		return
	}
	name, out := q.Get("name"), DNSQuery{Found: -1}
	names := []string{name}
	from := netip.IPv4Unspecified()
	if pod := q.Get("from"); pod != "" {
		namespace, podName, ok := strings.Cut(pod, "/")
		if !ok {
			namespace, podName = "default", pod
		}
		p := d.snapshot().Pod(model.PodKey{Namespace: namespace, Name: podName})
		if p == nil {
			control.WriteError(w, http.StatusNotFound, fmt.Errorf("no Pod %s/%s is known on this node", namespace, podName))
			return
		}
		if len(p.Addresses) > 0 {
			from = p.Addresses[0]
		}
		out.From = p.String()
		names = d.searched(name, namespace)
	}
	for _, n := range names {
		a, err := d.dns.server.Lookup(n, kind, from)
		if err != nil {
			control.WriteError(w, http.StatusBadRequest, err)
			return
		}
		out.Steps = append(out.Steps, a)
		if len(a.Records) > 0 {
			out.Found = len(out.Steps) - 1
			break
		}
	}
	control.WriteJSON(w, out)
}

// searched returns the names that the resolver of a Pod tries for a name, in its order.
func (d *Daemon) searched(name, namespace string) []string {
	if strings.HasSuffix(name, ".") {
		return []string{name}
	}
	domain := d.dns.names.Domain()
	suffixes := []string{namespace + ".svc." + domain, "svc." + domain, domain}
	d.dns.mu.Lock()
	suffixes = append(suffixes, d.dns.search...)
	d.dns.mu.Unlock()
	var out []string
	for _, s := range suffixes {
		out = append(out, name+"."+s)
	}
	if strings.Count(name, ".") >= ndots {
		return append([]string{name}, out...)
	}
	return append(out, name)
}
