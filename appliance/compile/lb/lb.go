// Package lb gives addresses of pools to Services of type LoadBalancer, and says which nodes may announce them.
package lb

import (
	"cmp"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// Class is the loadBalancerClass of weft.
const Class = "weft.network/lb"

// Input is what the outcome depends on.
type Input struct {
	Pools      map[string]*model.LoadBalancerPool
	Services   map[model.ServiceKey]*model.Service
	Namespaces map[string]*model.Namespace
	Nodes      map[string]*model.Node
	// NoDefault leaves Services without a loadBalancerClass to somebody else.
	NoDefault bool
	// Pods are those of the whole cluster, or nil where they are not known: they show whether the ServiceLB of k3s runs.
	Pods map[model.PodKey]*model.Pod
	// Spread gives each Service a place that follows from its name instead of the first free one. Where nobody keeps what was
	// given before, every node comes to the same outcome all the same, and a Service that comes or goes moves few others.
	Spread bool
	// Local says which nodes have a ready endpoint of each Service with externalTrafficPolicy Local, as LocalNodes does: of the nodes'
	// own addresses such a Service gets no others. Nil means that it is not known.
	Local map[model.ServiceKey]map[string]bool
	// Given is what was given lately and may not be in the Services' status yet.
	Given map[model.ServiceKey]Given
}

// Given is what a Service was given.
type Given struct {
	UID       string
	Addresses []netip.Addr
}

// The reasons of an Assignment, as users see them in the condition and in Events.
const (
	ReasonAllocated   = "Allocated"
	ReasonNode        = model.ReasonNode    // the addresses are those of nodes
	ReasonPartly      = "PartlyAllocated"   // one family only, which ipFamilyPolicy allows
	ReasonOutsidePool = "OutsidePool"       // the address is in no pool any more, and stays until the Service lets go of it
	ReasonExhausted   = "PoolExhausted"     // nothing is free
	ReasonNoPool      = "NoPool"            // no pool is for this Service
	ReasonTaken       = "AddressTaken"      // the address asked for belongs to another Service
	ReasonNotInPool   = "AddressNotInPool"  // the address asked for is in no pool that this Service may use
	ReasonMalformed   = "MalformedRequest"  // an annotation or field cannot be understood
	ReasonNoEndpoint  = "NoLocalEndpoint"   // it gets addresses of nodes with a ready endpoint, and there is none
	ReasonForeign     = "OtherLoadBalancer" // somebody else gave the Service its addresses
)

// Assignment is the outcome for one Service.
type Assignment struct {
	Service model.ServiceKey
	UID     string
	// Addresses in the order of the Service's families; empty when it gets none.
	Addresses []Address
	OK        bool
	Reason    string
	Message   string
}

// Address is one address with its pool; the name is empty when it is in none any more.
type Address struct {
	Addr netip.Addr
	Pool string
	// Node is set for an address that is a node's own.
	Node string
}

// Addrs returns the addresses alone.
func (a *Assignment) Addrs() []netip.Addr {
	out := make([]netip.Addr, 0, len(a.Addresses))
	for _, x := range a.Addresses {
		out = append(out, x.Addr)
	}
	return out
}

// PoolStatus counts one pool.
type PoolStatus struct {
	Name string
	// Size is the number of addresses that can be given, at most 1<<32; Used of them are.
	Size, Used uint64
	// Full names the families of which every address is in use; for a pool of node addresses, which Services share, none.
	Full string
	// Problem says why the pool, or a part of it, is not used.
	Problem string
	// Refused is true when none of the pool is used.
	Refused bool
}

// Result is what Allocate returns.
type Result struct {
	// Assignments has every Service that is weft's to look after. It is empty where there are no pools and never were any.
	Assignments map[model.ServiceKey]*Assignment
	// Cleared are Services that weft gave an address and that should have none any more: their type or class changed.
	Cleared []model.ServiceKey
	// Pools are sorted by name.
	Pools []PoolStatus
}

// Problems are for the log and the status screen, sorted.
func (r *Result) Problems() (out []string) {
	for _, p := range r.Pools {
		if p.Problem != "" {
			out = append(out, "LoadBalancerPool "+p.Name+": "+p.Problem)
		}
	}
	for key, a := range r.Assignments {
		if !a.OK || a.Reason == ReasonOutsidePool {
			out = append(out, "Service "+key.String()+": "+a.Message)
		}
	}
	slices.Sort(out)
	return out
}

// Wants reports whether a Service is weft's to give addresses to.
func Wants(s *model.Service, noDefault bool) bool {
	if s.Type != "LoadBalancer" {
		return false
	}
	return s.LoadBalancerClass == Class || s.LoadBalancerClass == "" && !noDefault
}

// Allocate decides who has which address. Who has one keeps it as long as it can; the rest is given to the oldest first.
func Allocate(in Input) Result {
	a := newAllocator(in)
	r := Result{Assignments: map[model.ServiceKey]*Assignment{}}
	var list []*claim
	for key, s := range in.Services {
		if !Wants(s, in.NoDefault) {
			if s.Allocation != nil {
				r.Cleared = append(r.Cleared, key)
			}
			continue
		}
		if len(in.Pools) > 0 || s.Allocation != nil {
			list = append(list, a.newClaim(s))
		}
	}
	slices.SortFunc(list, func(x, y *claim) int { return byAge(x.svc, y.svc) })
	// What a Service gives back because it needs both families, another may have: hence choose twice.
	for _, step := range []func(*claim){a.keep, a.request, a.choose, a.surrender, a.choose} {
		for _, c := range list {
			step(c)
		}
	}
	for _, c := range list {
		r.Assignments[c.svc.Key()] = c.finish()
	}
	slices.SortFunc(r.Cleared, func(x, y model.ServiceKey) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	r.Pools = a.status()
	return r
}

// byAge orders Services: the older wins.
func byAge(x, y *model.Service) int {
	return cmp.Or(cmp.Compare(x.Created, y.Created), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
}
