package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// claim is an address and port that only one Service can have.
type claim struct {
	addr     netip.Addr // invalid for a node port
	port     uint16
	protocol model.Protocol
	ipv6     bool
}

// entry is what is remembered of one Service.
type entry struct {
	svc *model.Service
	// full is everything that the Service asks for, final what it gets; the same pointer if nobody else wants it.
	full, final *Frontends
	check       *HealthCheck
	problems    []Problem
}

func claimOf(p *Port, f *Frontend) claim { return claim{f.Addr, f.Port, p.Protocol, p.IPv6} }

// each calls f for every claim of the Service.
func (e *entry) each(f func(claim)) {
	if e.full == nil {
		return
	}
	for i := range e.full.Ports {
		p := &e.full.Ports[i]
		for j := range p.Frontends {
			f(claimOf(p, &p.Frontends[j]))
		}
	}
}

// claims knows who has what. Nearly always a claim has one claimant, so the others are kept apart.
type claims struct {
	owner  map[claim]*entry
	rivals map[claim][]*entry // all claimants, where there are several
}

// add takes up the claims of a Service and puts those whose share may change into touched.
func (c *claims) add(e *entry, touched map[*entry]bool) {
	e.each(func(k claim) {
		switch owner := c.owner[k]; {
		case owner == nil:
			c.owner[k] = e
		case owner != e: // a Service may name a port twice
			if c.rivals[k] == nil {
				c.rivals[k] = []*entry{owner}
			}
			if !slices.Contains(c.rivals[k], e) {
				c.rivals[k] = append(c.rivals[k], e)
			}
			c.elect(k, touched)
		}
	})
}

// remove gives the claims of a Service back.
func (c *claims) remove(e *entry, touched map[*entry]bool) {
	e.each(func(k claim) {
		rivals := c.rivals[k]
		switch i := slices.Index(rivals, e); {
		case i < 0:
			if c.owner[k] == e {
				delete(c.owner, k)
			}
		default:
			c.rivals[k] = slices.Delete(slices.Clone(rivals), i, i+1)
			c.elect(k, touched)
			if len(c.rivals[k]) == 1 {
				delete(c.rivals, k)
			}
		}
	})
}

// elect gives a claim to the oldest Service.
func (c *claims) elect(k claim, touched map[*entry]bool) {
	c.owner[k] = slices.MinFunc(c.rivals[k], func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.svc.Created, b.svc.Created), cmp.Compare(a.svc.Namespace, b.svc.Namespace), cmp.Compare(a.svc.Name, b.svc.Name))
	})
	for _, e := range c.rivals[k] {
		touched[e] = true
	}
}

// share returns what a Service gets of what it asks for, and the conflicts that it lost.
func (c *claims) share(e *entry) (*Frontends, []Problem) {
	all := true
	e.each(func(k claim) { all = all && c.owner[k] == e })
	if all {
		return e.full, nil
	}
	var lost []Problem
	out := &Frontends{Service: e.full.Service}
	for _, p := range e.full.Ports {
		wanted := p.Frontends
		p.Frontends = nil
		for _, f := range wanted {
			owner := c.owner[claimOf(&p, &f)]
			if owner == e {
				p.Frontends = append(p.Frontends, f)
				continue
			}
			lost = append(lost, Problem{e.full.Service, fmt.Sprintf("%s belongs to the older Service %s, so this one is not served there; change one of the two",
				f.text(p.Protocol), owner.svc.Key())})
		}
		if len(p.Frontends) > 0 {
			out.Ports = append(out.Ports, p)
		}
	}
	if len(out.Ports) == 0 {
		return nil, lost
	}
	return out, lost
}
