package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// lbTime is far more than an address takes to arrive on a busy machine. The first time weft may not know yet that the cluster has
// LoadBalancerPools: it looks twice a minute.
const lbTime = 90 * time.Second

func pool(addresses string) string {
	return "apiVersion: weft.network/v1alpha1\nkind: LoadBalancerPool\nmetadata: {name: edge}\nspec: {addresses: [" + addresses + "]}\n"
}

// balancer is a Service of type LoadBalancer; spec and annotations are further lines of YAML in braces.
func balancer(name, annotations, spec string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %s, annotations: {%s}}
spec: {type: LoadBalancer, selector: {app: lb}, ports: [{port: 80, targetPort: 8080}], %s}
`, name, annotations, spec)
}

// ingress returns the addresses in a Service's status.
func ingress(name string) (out []netip.Addr, err error) {
	text, err := cluster.Kubectl("get", "service", name, "--output=jsonpath={.status.loadBalancer.ingress[*].ip}")
	for _, f := range strings.Fields(text) {
		addr, err := netip.ParseAddr(f)
		if err != nil {
			return nil, err
		}
		out = append(out, addr)
	}
	return out, err
}

// untilAllocated waits for the condition of a Service to have that reason, and returns its message.
func untilAllocated(t *testing.T, name, reason string) string {
	t.Helper()
	var message string
	err := wait("Service "+name+" to say "+reason, lbTime, nil, func() error {
		text, err := cluster.Kubectl("get", "service", name, `--output=jsonpath={.status.conditions[?(@.type=="weft.network/AddressAllocated")]['reason','message']}`)
		got, rest, _ := strings.Cut(text, " ")
		if message = rest; err == nil && got != reason {
			err = fmt.Errorf("its condition is %q", text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return message
}

// untilPool waits for the status of a pool: total, used, and each condition with its reason.
func untilPool(t *testing.T, name, want string) {
	t.Helper()
	err := wait("pool "+name+" to show "+want, lbTime, nil, func() error {
		text, err := cluster.Kubectl("get", "loadbalancerpool", name,
			`--output=jsonpath={.status.total} {.status.used} {range .status.conditions[*]}{.type}={.status}:{.reason}{"\n"}{end}`)
		fields := strings.Fields(text)
		slices.Sort(fields[min(2, len(fields)):])
		if got := strings.Join(fields, " "); err == nil && got != want {
			err = fmt.Errorf("it shows %s", got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestLoadBalancer: a pool applied with kubectl, a Service, and a host of the segment that reaches it; then everything that can be
// wrong with a Service's wish, each said in its condition and as an Event.
func TestLoadBalancer(t *testing.T) {
	needCluster(t)
	runNetexec(t, "lb", cluster.Nodes[1])
	apply := func(objects string) {
		t.Helper()
		if err := cluster.Apply(objects); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cluster.Kubectl("label", "pod", "lb", "app=lb"); err != nil {
		t.Fatal(err)
	}
	apply(pool("192.168.77.200-192.168.77.201, 'fd00:77::200-fd00:77::201'"))
	t.Cleanup(func() {
		for _, what := range [][]string{{"service", "web", "other", "full", "late"}, {"loadbalancerpool", "edge", "second"}} {
			if _, err := cluster.Kubectl(append([]string{"delete", "--ignore-not-found"}, what...)...); err != nil {
				t.Error(err)
			}
		}
	})
	began := time.Now()
	apply(balancer("web", "", "ipFamilyPolicy: RequireDualStack"))
	untilAllocated(t, "web", "Allocated")
	t.Logf("the Service had its addresses after %.1f s", time.Since(began).Seconds())
	vips, err := ingress("web")
	if err != nil || len(vips) != 2 || vips[0].String() != "192.168.77.200" || vips[1].String() != "fd00:77::200" {
		t.Fatalf("the Service has %v, %v", vips, err)
	}
	for _, vip := range vips {
		url := "http://" + netip.AddrPortFrom(vip, 80).String() + "/hostname"
		err := wait(vip.String()+" to answer", lbTime, nil, func() error {
			out, err := cluster.fabric.Exec("curl", "--silent", "--show-error", "--max-time", "2", url)
			if err == nil && out != "lb" {
				err = fmt.Errorf("got %q", out)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, reason := range []string{"Allocated", "AddressAnnounced"} {
		err := wait("the Event "+reason, lbTime, nil, func() error {
			text, err := cluster.Kubectl("get", "events", "--field-selector=involvedObject.kind=Service,involvedObject.name=web,reason="+reason, "--output=name")
			if err == nil && text == "" {
				err = fmt.Errorf("there is none")
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}

	apply(balancer("other", "metallb.io/loadBalancerIPs: 192.168.77.200", ""))
	if why := untilAllocated(t, "other", "AddressTaken"); !strings.Contains(why, "default/web") {
		t.Errorf("the address is taken, but by whom? %s", why)
	}
	apply(balancer("other", "metallb.io/loadBalancerIPs: 192.168.77.201", ""))
	untilAllocated(t, "other", "Allocated")
	apply(balancer("full", "", ""))
	if why := untilAllocated(t, "full", "PoolExhausted"); !strings.Contains(why, "2, of which 2 are in use") {
		t.Errorf("the pool is exhausted, but how? %s", why)
	}
	untilPool(t, "edge", `4 3 Exhausted=True:AllInUse Ready=True:Usable`)
	apply(strings.Replace(pool("192.168.77.201"), "name: edge", "name: second", 1))
	untilPool(t, "second", `0 0 Exhausted=False:NotCounted Ready=False:Refused`)
	apply(strings.Replace(pool("192.168.77.300"), "name: edge", "name: second", 1))
	untilPool(t, "second", `0 0 Exhausted=False:NotCounted Ready=False:InvalidSpec`)
	apply(pool("192.168.77.201-192.168.77.202, 'fd00:77::201-fd00:77::202'"))
	untilAllocated(t, "full", "Allocated")
	untilAllocated(t, "web", "OutsidePool")
	if now, err := ingress("web"); err != nil || fmt.Sprint(now) != fmt.Sprint(vips) {
		t.Errorf("a Service whose pool shrank has %v instead of %v, %v", now, vips, err)
	}

	// A Service that is none of this type any more gives everything back.
	apply(strings.Replace(balancer("other", "", ""), "LoadBalancer", "ClusterIP", 1))
	err = wait("the condition to go", lbTime, nil, func() error {
		text, err := cluster.Kubectl("get", "service", "other", "--output=jsonpath={.status}")
		if err == nil && strings.Contains(text, "weft.network") {
			err = fmt.Errorf("its status is %s", text)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	apply(balancer("late", "", ""))
	untilAllocated(t, "late", "Allocated")
	if now, err := ingress("late"); err != nil || len(now) != 1 || now[0].String() != "192.168.77.201" {
		t.Errorf("the address that was given back is not given out: %v, %v", now, err)
	}
}
