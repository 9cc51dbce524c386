package lb

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"weft.network/weft/appliance/model"
)

// world is a cluster whose Services come, go and change, with an allocator that writes their status.
type world struct {
	rand     *rand.Rand
	services map[model.ServiceKey]*model.Service
	pools    map[string]*model.LoadBalancerPool
	clock    int64
}

func (w *world) input() Input { return Input{Pools: w.pools, Services: w.services} }

// step changes one thing and returns the Service that was touched.
func (w *world) step() (touched model.ServiceKey) {
	w.clock++
	name := fmt.Sprintf("s%d", w.rand.IntN(24))
	key := model.ServiceKey{Namespace: "default", Name: name}
	switch w.rand.IntN(8) {
	case 0:
		delete(w.services, key)
	case 1:
		size := []string{"192.0.2.1-192.0.2.4", "192.0.2.1-192.0.2.12 2001:db8::/124", "192.0.2.1-192.0.2.30 2001:db8::/120"}
		w.pools = pools(edge(size[w.rand.IntN(3)]), &model.LoadBalancerPool{Name: "more", Blocks: blocks("198.51.100.0/29")})
		return touched
	default:
		s := svc(name, fmt.Sprintf("created=%d", w.clock))
		s.UID = fmt.Sprint(w.clock)
		if old := w.services[key]; old != nil {
			s.Created, s.UID, s.Ingress, s.Allocation = old.Created, old.UID, old.Ingress, old.Allocation
		}
		s.Ports[0].Port = uint16(80 + w.rand.IntN(4))
		switch w.rand.IntN(6) {
		case 0:
			s.LoadBalancerIP = fmt.Sprintf("192.0.2.%d", 1+w.rand.IntN(35))
		case 1:
			s.Annotations[shareAnnotations[0]] = fmt.Sprint(w.rand.IntN(2))
		case 2:
			s.ClusterIPs, s.DualStack = append(s.ClusterIPs, ip("fd00::1")), []string{"", "prefer", "require"}[w.rand.IntN(3)]
		case 3:
			s.Type, s.Ingress = "ClusterIP", nil // the API server clears the status
		}
		w.services[key] = s
	}
	return key
}

// write puts the outcome into the status, as the cluster would show it.
func (w *world) write(r Result) {
	for key, a := range r.Assignments {
		s := *w.services[key]
		s.Ingress = nil
		for _, addr := range a.Addrs() {
			s.Ingress = append(s.Ingress, model.ServiceIngress{IP: addr})
		}
		s.Allocation = &model.Allocation{OK: a.OK, Reason: a.Reason, Message: a.Message}
		w.services[key] = &s
	}
	for _, key := range r.Cleared {
		s := *w.services[key]
		s.Ingress, s.Allocation = nil, nil
		w.services[key] = &s
	}
}

// checkApart fails if two Services have an address that they cannot share.
func checkApart(t *testing.T, r Result, all map[model.ServiceKey]*model.Service) {
	t.Helper()
	tenants := map[netip.Addr][]*model.Service{}
	for key, a := range r.Assignments {
		for _, addr := range a.Addrs() {
			tenants[addr] = append(tenants[addr], all[key])
		}
	}
	for addr, list := range tenants {
		for i, x := range list {
			for _, y := range list[i+1:] {
				key := x.Annotations[shareAnnotations[0]]
				if key == "" || key != y.Annotations[shareAnnotations[0]] || commonPort(x, y) != "" {
					t.Fatalf("%s belongs to %s and to %s", addr, x.Key(), y.Key())
				}
			}
		}
	}
}

// TestHistories: whatever happens, no address has two masters, nobody who was not touched loses one, and nobody waits while one is free.
func TestHistories(t *testing.T) {
	for seed := range uint64(40) {
		w := &world{rand: rand.New(rand.NewPCG(seed, 7)), services: map[model.ServiceKey]*model.Service{}, pools: pools(edge("192.0.2.1-192.0.2.12"))}
		for range 150 {
			before := map[model.ServiceKey][]model.ServiceIngress{}
			for key, s := range w.services {
				before[key] = s.Ingress
			}
			touched := w.step()
			r := Allocate(w.input())
			checkApart(t, r, w.services)
			if again := Allocate(w.input()); !reflect.DeepEqual(again, r) {
				t.Fatalf("seed %d: the same input gives another outcome", seed)
			}
			for key, had := range before {
				a := r.Assignments[key]
				if key == touched || a == nil {
					continue
				}
				for _, ing := range had {
					// Two that shared an address and no longer can: the older one keeps it.
					shared := slices.Contains(before[touched], ing)
					if !shared && !slices.Contains(a.Addrs(), ing.IP) {
						t.Fatalf("seed %d: %s lost %s while %s changed: %+v", seed, key, ing.IP, touched, a)
					}
				}
			}
			w.write(r)
			settled := Allocate(w.input())
			for key, a := range r.Assignments {
				if now := settled.Assignments[key]; !reflect.DeepEqual(a.Addresses, now.Addresses) || a.OK != now.OK {
					t.Fatalf("seed %d: not at rest once the status is written: %+v became %+v", seed, a, now)
				}
			}
			if len(settled.Cleared) > 0 {
				t.Fatalf("seed %d: cleared again: %v", seed, settled.Cleared)
			}
			for key, a := range r.Assignments {
				if a.Reason == ReasonExhausted {
					for _, p := range r.Pools {
						v6 := w.services[key].ClusterIPs
						if p.Used < p.Size && len(v6) == 1 && w.services[key].LoadBalancerIP == "" && freeV4(r, w.pools[p.Name]) {
							t.Fatalf("seed %d: %s waits although pool %s has free addresses: %s", seed, key, p.Name, a.Message)
						}
					}
				}
			}
		}
	}
}

// freeV4 reports whether the pool has an IPv4 address that nobody has.
func freeV4(r Result, p *model.LoadBalancerPool) bool {
	used := map[netip.Addr]bool{}
	for _, a := range r.Assignments {
		for _, addr := range a.Addrs() {
			used[addr] = true
		}
	}
	for _, b := range p.Blocks {
		for n := range size(b) {
			if addr := at(b, n); addr.Is4() && !used[addr] {
				return true
			}
		}
	}
	return false
}

// TestSpread: without any memory the outcome is the same everywhere, and one Service more or less moves few others.
func TestSpread(t *testing.T) {
	moved, kept := 0, 0
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 3))
		in := Input{Pools: pools(edge("192.0.2.0/26 2001:db8::/64")), Services: map[model.ServiceKey]*model.Service{}, Spread: true}
		for range 16 {
			s := svc(fmt.Sprintf("s%d", r.IntN(1000)), "dual=prefer")
			in.Services[s.Key()] = s
		}
		before := Allocate(in)
		checkApart(t, before, in.Services)
		for range 5 {
			if again := Allocate(in); !reflect.DeepEqual(again, before) {
				t.Fatal("the outcome depends on the order of a map")
			}
		}
		for key := range in.Services { // any
			delete(in.Services, key)
			break
		}
		after := Allocate(in)
		for key, a := range after.Assignments {
			if reflect.DeepEqual(a.Addresses, before.Assignments[key].Addresses) {
				kept++
			} else {
				moved++
			}
		}
	}
	if moved*20 > kept {
		t.Errorf("%d of %d Services moved when another one went", moved, moved+kept)
	}
}

func BenchmarkAllocate(b *testing.B) {
	in := Input{Pools: pools(edge("10.0.0.0/16 2001:db8::/64")), Services: map[model.ServiceKey]*model.Service{}}
	for i := range 1000 {
		s := svc(fmt.Sprintf("s%d", i), "dual=prefer", fmt.Sprintf("created=%d", i))
		in.Services[s.Key()] = s
	}
	r := Allocate(in)
	for key, a := range r.Assignments {
		for _, addr := range a.Addrs() {
			in.Services[key].Ingress = append(in.Services[key].Ingress, model.ServiceIngress{IP: addr})
		}
		in.Services[key].Allocation = &model.Allocation{OK: true}
	}
	for b.Loop() {
		Allocate(in)
	}
}
