package netlab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/lab"
)

// trace asks a node what becomes of a connection.
func (s *story) trace(node, from, to string, flags ...string) appliance.TraceAnswer {
	s.t.Helper()
	a, err := s.tryTrace(node, from, to, flags...)
	s.no(err)
	return a
}

// tryTrace checks the exit code, which says whether the connection arrives, against the answer.
func (s *story) tryTrace(node, from, to string, flags ...string) (a appliance.TraceAnswer, err error) {
	argv := append([]string{"weft", "trace", from, to, "-o", "json"}, flags...)
	var out, errs strings.Builder
	exit, err := s.Exec(s.ctx, node, argv, lab.Stdio{Out: &out, Err: &errs})
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal([]byte(out.String()), &a); err != nil {
		return a, fmt.Errorf("weft trace %s %s on %s: %w: %s%s", from, to, node, err, out.String(), errs.String())
	}
	works := a.Agrees
	for _, p := range a.Paths {
		works = works && p.Works
	}
	if works != (exit == 0) {
		return a, fmt.Errorf("weft trace %s %s ended with %d: %s", from, to, exit, out.String())
	}
	return a, nil
}

// TestTrace: what weft trace says is what happens, from Pods, nodes and outside, with the daemon and without; and what somebody
// else did to the kernel's tables is named.
func TestTrace(t *testing.T) {
	s := tell(t, lab.Options{Nodes: 2})
	client := s.run("node1", "client")[0]
	web := append(s.run("node1", "web0"), s.run("node2", "web1")...)
	s.serve(web...)
	node1, err := s.Node("node1")
	s.no(err)
	vip := netip.MustParseAddr(webService)
	s.eventually("the Service answers", 10*time.Second, func() error {
		_, err := s.get(client.FullName(), vip, 80)
		return err
	})
	// By Service name, by port name, by address: both endpoints, and the client's own address at each.
	for _, to := range []string{"default/web:80", "svc/default/web:http", webService + ":80"} {
		a := s.trace("node1", "default/client", to)
		if !a.Agrees || a.Node != "node1" {
			t.Errorf("to %s: the kernel differs: %v", to, a.Differences)
		}
		for _, p := range a.Paths {
			var pods []string
			for _, e := range p.Endpoints {
				pods = append(pods, e.Pod)
				if e.Masqueraded || e.Source != p.Source || e.Share != 0.5 {
					t.Errorf("to %s: endpoint %+v", to, e)
				}
			}
			if slices.Sort(pods); !slices.Equal(pods, []string{"default/web0", "default/web1"}) || p.Service != "default/web" {
				t.Errorf("to %s: Service %q, endpoints %v", to, p.Service, pods)
			}
		}
	}
	// What a server sees is what was foretold.
	for from, at := range map[string]netip.AddrPort{
		client.FullName(): netip.AddrPortFrom(vip, 80), "node1": netip.AddrPortFrom(vip, 80),
		lab.Outside: netip.AddrPortFrom(node1.Addresses[0], webNodePort),
	} {
		source := from
		if from == lab.Outside {
			out := s.out(lab.Outside, "ip -j route get "+node1.Addresses[0].String())
			var routes []struct{ Prefsrc string }
			s.no(json.Unmarshal([]byte(out), &routes))
			source = routes[0].Prefsrc
		}
		a := s.trace("node1", source, at.String())
		foretold := map[string]netip.Addr{}
		for _, e := range a.Paths[0].Endpoints {
			foretold[e.Pod] = e.Source
		}
		for range 6 {
			answer, err := s.get(from, at.Addr(), int(at.Port()))
			s.no(err)
			if want, ok := foretold[answer.Pod]; !ok || want != answer.Client {
				t.Errorf("from %s to %s: %s saw %s, foretold was %v", from, at, answer.Pod, answer.Client, foretold)
			}
		}
	}
	if a := s.trace("node1", "default/client", webService+":81"); a.Paths[0].Works || !strings.Contains(a.Paths[0].Verdict, "refuse") {
		t.Errorf("a TCP port that the Service does not have: %+v", a.Paths[0])
	}
	if a := s.trace("node1", "default/client", "default/web:81", "--proto", "udp"); !a.Paths[0].Works {
		t.Errorf("its UDP port: %+v", a.Paths[0])
	}
	// Another node's decision, from the same picture.
	if a := s.trace("node1", "default/web1", "default/web:80"); a.Paths[0].Hops[0].Node != "node2" || len(a.Paths[0].Endpoints) != 2 {
		t.Errorf("from a Pod of the other node: %+v", a.Paths[0])
	}
	if a := s.trace("node1", "default/client", web[1].Addresses[0].String()+":8080"); !a.Paths[0].Works || !strings.Contains(a.Paths[0].Verdict, "default/web1") {
		t.Errorf("straight to a Pod: %+v", a.Paths[0])
	}

	// A client with sessionAffinity gets the endpoint that it had.
	s.serveSpec("sessionAffinity: ClientIP", web...)
	s.eventually("the client is remembered", 10*time.Second, func() error {
		answer, err := s.get(client.FullName(), vip, 80)
		if err != nil {
			return err
		}
		a, err := s.tryTrace("node1", "default/client", webService+":80")
		if err == nil && !a.Agrees {
			err = fmt.Errorf("%v", a.Differences)
		}
		if i := slices.IndexFunc(web, func(p *lab.Pod) bool { return p.FullName() == answer.Pod }); err == nil && a.Paths[0].Remembered.Addr() != web[i].Address(4) {
			err = fmt.Errorf("%s answered, remembered is %v", answer.Pod, a.Paths[0].Remembered)
		}
		return err
	})
	s.serve(web...)

	s.eventually("weft service show", 10*time.Second, func() error {
		if _, err := s.get(client.FullName(), vip, 80); err != nil {
			return err
		}
		out, err := s.Output(s.ctx, "node1", "weft", "service", "show", "web")
		if err == nil && (!strings.Contains(out, "The kernel agrees") || !strings.Contains(out, " connections")) {
			err = fmt.Errorf("it says %s", out)
		}
		return err
	})
	if out, err := s.Output(s.ctx, "node1", "weft", "service", "show", "other/none"); err == nil || !strings.Contains(err.Error(), "the cluster has no Service other/none") {
		t.Errorf("of a Service that there is not: %s, %v", out, err)
	}

	// Without the daemon: from the store, and against the kernel, which somebody changes now.
	s.no(s.KillDaemon(s.ctx, "node1", unix.SIGTERM))
	a := s.trace("node1", "default/client", "default/web:80")
	if !a.Agrees || len(a.Paths[0].Endpoints) != 2 || !strings.Contains(a.Picture, "store") {
		t.Errorf("without the daemon: agrees %v (%v), %+v", a.Agrees, a.Differences, a.Paths)
	}
	s.out("node1", "nft flush map inet weft_services endpoints4")
	a = s.trace("node1", "default/client", "default/web:80")
	if text := strings.Join(a.Differences, "\n"); a.Agrees || !strings.Contains(text, "in the kernel") || !strings.Contains(text, "endpoints4 lacks") {
		t.Errorf("after a flush of the endpoints: %v %s", a.Agrees, text)
	}
	s.out("node1", "nft delete table inet weft_services")
	a = s.trace("node1", "default/client", "default/web:80")
	if text := strings.Join(a.Differences, "\n"); !strings.Contains(text, "table inet weft_services is not in the kernel") {
		t.Errorf("after the table was deleted: %s", text)
	}
	s.no(s.StartDaemon(s.ctx, "node1"))
	s.eventually("the daemon has repaired it", 10*time.Second, func() error {
		a, err := s.tryTrace("node1", "default/client", "default/web:80")
		if err == nil && !a.Agrees {
			err = fmt.Errorf("%v", a.Differences)
		}
		return err
	})
	t.Log("\n" + s.out("node1", "weft trace default/client default/web:80"))
}
