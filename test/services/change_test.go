package services

import (
	"context"
	"net/netip"
	"testing"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
	"weft.network/weft/appliance/ruleset"
)

// TestTypeChangesInPlace: a Service changes its type, policy, ports and addresses in place, one thing after the other, and after each
// change the kernel holds exactly what it would have been given from nothing.
func TestTypeChangesInPlace(t *testing.T) {
	_, b := openKernel(t)
	var c service.Compiler
	var rules ruleset.Services
	p := pattern{places: []place{ready("local"), ready("there"), draining("far")}}
	vip := pair("100.64.0.9")
	for _, step := range []struct {
		name   string
		change func(*model.Service)
		served bool
		fronts int // of port t, IPv4
	}{
		{"ClusterIP", nil, true, 1},
		{"NodePort", func(s *model.Service) { s.Type = "NodePort"; nodePorts(s, 0) }, true, 2},
		{"NodePort on other ports", func(s *model.Service) { s.Type = "NodePort"; nodePorts(s, 7) }, true, 2},
		{"LoadBalancer", func(s *model.Service) {
			s.Type, s.Ingress = "LoadBalancer", []model.ServiceIngress{{IP: vip[0]}, {IP: vip[1]}}
			nodePorts(s, 7)
		}, true, 3},
		{"LoadBalancer, policy Local, with affinity", func(s *model.Service) {
			s.Type, s.Ingress, s.ExternalLocal, s.AffinityTimeout = "LoadBalancer", []model.ServiceIngress{{IP: vip[0]}}, true, 60
			nodePorts(s, 7)
		}, true, 3},
		{"node ports that a ClusterIP still names do not count", func(s *model.Service) { nodePorts(s, 7) }, true, 1},
		{"ExternalName", func(s *model.Service) { s.Type, s.ExternalName, s.ClusterIPs = "ExternalName", "example.com", nil }, false, 0},
		{"headless", func(s *model.Service) { s.Headless, s.ClusterIPs = true, nil }, false, 0},
		{"another proxy's", func(s *model.Service) { s.OtherProxy = "mesh" }, false, 0},
		{"ClusterIP again", nil, true, 1},
		{"ports 65535 and 0", func(s *model.Service) { s.Ports[0].Port, s.Ports[1].Port = 65535, 0 }, true, 1},
		{"no ports at all", func(s *model.Service) { s.Ports = nil }, false, 0},
		{"another address", func(s *model.Service) { s.ClusterIPs = vip.list() }, true, 1},
	} {
		t.Run(step.name, func(t *testing.T) {
			s := plain(0, p)
			if step.change != nil {
				step.change(s)
			}
			snap := &model.Snapshot{Services: map[model.ServiceKey]*model.Service{s.Key(): s}, Slices: map[model.SliceKey]*model.EndpointSlice{}}
			for _, e := range slicesOf(s, p) {
				snap.Slices[e.Key()] = e
			}
			r := c.Compile(snap, this)
			f := r.Frontends[s.Key()]
			if (f != nil) != step.served {
				t.Fatalf("served: %v, want %v (%v)", f != nil, step.served, r.Problems)
			}
			fronts := 0
			if f != nil {
				for _, port := range f.Ports {
					if port.Name == "t" && !port.IPv6 {
						fronts = len(port.Frontends)
					}
				}
			}
			if fronts != step.fronts {
				t.Errorf("%d frontends, want %d: %+v", fronts, step.fronts, f)
			}
			in := ruleset.ServicesInput{Frontends: r.Frontends, PodRanges: podRanges}
			table := rules.Table(in)
			if _, err := b.Apply(context.Background(), []ruleset.Table{table}); err != nil {
				t.Fatal(err)
			}
			fresh := new(ruleset.Services).Table(ruleset.ServicesInput{Frontends: new(service.Compiler).Compile(snap, this).Frontends, PodRanges: podRanges})
			if !table.Empty() {
				have, differ, err := b.ReadBack(fresh)
				if err != nil || len(differ) > 0 {
					t.Errorf("the kernel is not what it would be from nothing: %v, %v", differ, err)
				}
				if have.Empty() {
					t.Error("the kernel has nothing")
				}
			} else if found, err := b.Exists(fresh); err != nil || found {
				t.Errorf("a table is left although nothing is served: %v, %v", found, err)
			}
		})
	}
}

// TestTwoServicesWantOneAddress: the older one has it, the younger one is told; and when the older one goes, the other is served.
func TestTwoServicesWantOneAddress(t *testing.T) {
	_, b := openKernel(t)
	var c service.Compiler
	var rules ruleset.Services
	p := pattern{places: []place{ready("local")}}
	first, second := plain(0, p), plain(1, p)
	second.ClusterIPs, first.Created, second.Created = first.ClusterIPs, 1, 2
	second.Ports = append(second.Ports[:1:1], model.ServicePort{Name: "t", Protocol: model.TCP, Port: 8443})
	apply := func(services ...*model.Service) service.Result {
		snap := &model.Snapshot{Services: map[model.ServiceKey]*model.Service{}, Slices: map[model.SliceKey]*model.EndpointSlice{}}
		for _, s := range services {
			snap.Services[s.Key()] = s
			for _, e := range slicesOf(s, p) {
				snap.Slices[e.Key()] = e
			}
		}
		r := c.Compile(snap, this)
		table := rules.Table(ruleset.ServicesInput{Frontends: r.Frontends, PodRanges: podRanges})
		if err := table.Check(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Apply(context.Background(), []ruleset.Table{table}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := apply(second, first)
	if len(r.Problems) == 0 || r.Problems[0].Service != second.Key() {
		t.Errorf("problems: %v, want one of %s", r.Problems, second.Key())
	}
	at := netip.AddrPortFrom(first.ClusterIPs[0], 80)
	tr := ruleset.NewTracer([]ruleset.Table{rules.Table(ruleset.ServicesInput{Frontends: r.Frontends, PodRanges: podRanges})}, facts(func(uint32) uint32 { return 0 }))
	if out, chosen := journey(tr, conn{model.TCP, pair("10.42.1.20")[0], at, false}, "weftpclient"); !chosen {
		t.Errorf("%s is served by nobody: %+v", at, out)
	}
	if f := r.Frontends[second.Key()]; f == nil || len(f.Ports) != 2 || f.Ports[0].Frontends[0].Port != 8443 {
		t.Errorf("the younger Service has %+v, want its other port in both families", f)
	}
	if r = apply(second); len(r.Problems) != 0 || len(r.Frontends[second.Key()].Ports) != 4 {
		t.Errorf("alone it has %+v and problems %v", r.Frontends[second.Key()], r.Problems)
	}
}
