package attach

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"weft.network/weft/appliance/ipam"
	"weft.network/weft/appliance/model"
)

// The stories: each line is what a runtime, an operator or fate does, and behind the arrow what comes of it ("error: " and a part
// of the text for an error). Range: 10.1.0.0/28 (2 to 14) and fd01::/64.
var stories = map[string]string{
	"fresh and repeated": `
		add c1 p1 => 10.1.0.2 fd01::2
		add c1 p1 => 10.1.0.2 fd01::2
		add c2 p2 => 10.1.0.3 fd01::3
		check c1 => 10.1.0.2 fd01::2
		restart
		add c1 p1 => 10.1.0.2 fd01::2
		leases => c1=10.1.0.2,fd01::2 c2=10.1.0.3,fd01::3`,
	"reboot: the same Pod, a new sandbox, the same address; the old lease is gone": `
		add c1 p1 => 10.1.0.2 fd01::2
		add c2 p2 => 10.1.0.3 fd01::3
		reboot
		restart
		add n2 p2 => 10.1.0.3 fd01::3
		add n1 p1 => 10.1.0.2 fd01::2
		leases => n1=10.1.0.2,fd01::2 n2=10.1.0.3,fd01::3
		restart
		leases => n1=10.1.0.2,fd01::2 n2=10.1.0.3,fd01::3`,
	"reboot: the same sandbox again": `
		add c1 p1 => 10.1.0.2 fd01::2
		reboot
		restart
		add c1 p1 => 10.1.0.2 fd01::2
		check c1 => 10.1.0.2 fd01::2`,
	"reboot: the first ADD fails, the retry still has the old address": `
		add c1 p1 => 10.1.0.2 fd01::2
		reboot
		restart
		fail AddPod 1
		add n1 p1 => error: injected
		leases =>
		add n2 p1 => 10.1.0.2 fd01::2`,
	"reboot: the retry comes from the next daemon": `
		add c1 p1 => 10.1.0.2 fd01::2
		reboot
		restart
		fail AddPod 1
		add n1 p1 => error: injected
		restart
		add n2 p1 => 10.1.0.2 fd01::2`,
	"another incarnation of the Pod is another Pod": `
		add c1 p1 => 10.1.0.2 fd01::2
		del c1
		add c2 p1b => 10.1.0.3 fd01::3
		add c3 p1 => 10.1.0.2 fd01::2`,
	"the old sandbox is alive: another address, and its late DEL frees only its own": `
		add c1 p1 => 10.1.0.2 fd01::2
		add c2 p1 => 10.1.0.3 fd01::3
		del c1
		leases => c2=10.1.0.3,fd01::3
		check c2 => 10.1.0.3 fd01::3
		add c3 p3 => 10.1.0.4 fd01::4`,
	"late DEL of a sandbox whose address went to its successor": `
		add c1 p1 => 10.1.0.2 fd01::2
		unlink c1
		add c2 p1 => 10.1.0.2 fd01::2
		del c1
		del c1
		check c2 => 10.1.0.2 fd01::2
		leases => c2=10.1.0.2,fd01::2
		add c3 p3 ips=10.1.0.2 => error: held by weft/c2/eth0`,
	"DEL is idempotent and needs nothing": `
		add c1 p1 => 10.1.0.2 fd01::2
		nsgone c1
		del c1
		del c1
		del never
		restart
		del c1
		leases =>
		flows => 10.1.0.2 fd01::2
		left =>`,
	"DEL of an attachment whose link is gone": `
		add c1 p1 => 10.1.0.2 fd01::2
		unlink c1
		del c1
		left =>`,
	"cooling off is a preference": `
		add c1 p1 => 10.1.0.2 fd01::2
		del c1
		add c2 p2 => 10.1.0.3 fd01::3
		restart
		add c3 p3 => 10.1.0.4 fd01::4
		now 31
		restart
		add c4 p4 => 10.1.0.2 fd01::2`,
	"requested by the capability": `
		add c1 p1 ips=10.1.0.9 => 10.1.0.9 fd01::2
		add c2 p2 ips=fd01::99,10.1.0.8 => 10.1.0.8 fd01::99
		add c3 p3 ips=10.1.0.9 => error: requested address 10.1.0.9 cannot be given: it is held by weft/c1/eth0
		add c3 p3 ips=10.1.0.1 => error: it is reserved (the node's own address or a gateway)
		add c3 p3 ips=10.1.0.15 => error: it is in none of this node's ranges 10.1.0.0/28, fd01::/64
		add c3 p3 ips=10.2.0.1 => error: none of this node's ranges
		add c3 p3 ips=10.1.0.5,10.1.0.6 => error: another address was requested from the same range
		leases => c1=10.1.0.9,fd01::2 c2=10.1.0.8,fd01::99
		unlink c1
		add c3 p3 ips=10.1.0.9 => 10.1.0.9 fd01::4`,
	"requested by the annotation": `
		annotate p1 10.1.0.9
		add c1 p1 => 10.1.0.9 fd01::2
		add c2 p1 ips=10.1.0.10 => 10.1.0.10 fd01::3
		annotate p2 bad
		add c3 p2 => error: request refused: pod default/p2: annotation weft.network/addresses: bad
		leases => c1=10.1.0.9,fd01::2 c2=10.1.0.10,fd01::3`,
	"used by someone else": `
		inuse 10.1.0.2 the node's eth0 has it
		inuse fd01::3 a route leads there
		add c1 p1 => 10.1.0.3 fd01::2
		add c2 p2 ips=10.1.0.2 => error: it is in use: the node's eth0 has it
		add c2 p2 => 10.1.0.4 fd01::4`,
	"the kernel cannot be asked who uses an address": `
		fail InUse -1
		add c1 p1 => 10.1.0.2 fd01::2`,
	"exhausted": `
		fill 13
		add c1 p1 => error: no address left in 10.1.0.0/28: 13 usable, 13 held by attachments, 0 in use by others; run ` + "`weft ipam check`" + `
		exhausted => default/p1
		del f3
		add c1 p1 => 10.1.0.5 fd01::f
		usage => 13 13 0`,
	"a range of the node's own, and none of others": `
		add c1 p1 range=10.1.0.0/29 => 10.1.0.2
		add c2 p2 range=10.9.0.0/24 => error: request refused: range 10.9.0.1-10.9.0.254 lies outside this node's Pod ranges`,
	"not ready": `
		notready
		add c1 p1 => error: not ready
		addipam c1 p1 => error: not ready
		addipam c1 p1 range=10.5.0.0/24 => 10.5.0.2/24 via 10.5.0.1
		delipam c1
		del c1
		left =>`,
	"a repeated ADD that fails leaves the attachment alone": `
		add c1 p1 => 10.1.0.2 fd01::2
		fail SetBandwidth 1
		also AddPod 1
		add c1 p1 => error: injected
		check c1 => 10.1.0.2 fd01::2
		leases => c1=10.1.0.2,fd01::2`,
	"no namespace": `
		addgone c1 p1 => error: network namespace is gone
		left =>`,
	"addresses alone": `
		addipam c1 p1 range=10.5.0.0/24 => 10.5.0.2/24 via 10.5.0.1
		addipam c1 p1 range=10.5.0.0/24 => 10.5.0.2/24 via 10.5.0.1
		addipam c2 p2 => 10.1.0.2/28 via 10.1.0.1 fd01::2/64 via fd01::1
		addipam c3 p1 range=10.5.0.0/24 => 10.5.0.3/24 via 10.5.0.1
		nsgone c1
		addipam c4 p1 range=10.5.0.0/24 => 10.5.0.2/24 via 10.5.0.1
		leases => c2=10.1.0.2,fd01::2 c3=10.5.0.3 c4=10.5.0.2`,
	"the node's own ranges are one for all networks, others are not": `
		addipam c1 p1 => 10.1.0.2/28 via 10.1.0.1 fd01::2/64 via fd01::1
		add c2 p2 => 10.1.0.3 fd01::3
		add c3 p3 ips=10.1.0.2 => error: it is in use: held by other/c1/eth0
		addipam c3 p3 net=third => 10.1.0.4/28 via 10.1.0.1 fd01::4/64 via fd01::1
		addipam c4 p4 net=third range=10.1.0.0/28 => 10.1.0.5/28 via 10.1.0.1
		addipam c5 p5 range=10.5.0.0/24 => 10.5.0.2/24 via 10.5.0.1
		addipam c6 p6 net=third range=10.5.0.0/24 => 10.5.0.2/24 via 10.5.0.1
		restart
		add c7 p7 => 10.1.0.6 fd01::5`,
	"the memory of released addresses outlives the daemon, also for a network without a lease": `
		addipam c1 p1 range=10.5.0.0/24 => 10.5.0.2/24 via 10.5.0.1
		delipam c1
		restart
		addipam c2 p2 range=10.5.0.0/24 => 10.5.0.3/24 via 10.5.0.1
		addipam c3 p1 range=10.5.0.0/24 => 10.5.0.2/24 via 10.5.0.1`,
	"one attachment, two plugins": `
		add c1 p1 => 10.1.0.2 fd01::2
		addipam c1 p1 net=weft => error: request refused: attachment weft/c1/eth0 has a lease of kind pod already`,
	"host ports": `
		add c1 p1 ports=8080:80/tcp => 10.1.0.2 fd01::2
		add c2 p2 ports=8080:80/udp => 10.1.0.3 fd01::3
		add c3 p3 ports=8080:80/tcp => error: host port 8080/tcp is taken by default/p1 (attachment weft/c1/eth0): choose another hostPort or hostIP
		add c4 p4 ports=192.0.2.1:8080:80/tcp => error: host port 8080/tcp is taken
		add c5 p5 ports=192.0.2.1:9090:80/tcp => 10.1.0.6 fd01::6
		add c6 p6 ports=192.0.2.2:9090:80/tcp => 10.1.0.7 fd01::7
		open => c1:8080->80/tcp c2:8080->80/udp c5:9090->80/tcp c6:9090->80/tcp
		restart
		ports => c1:8080->80/tcp c2:8080->80/udp c5:9090->80/tcp c6:9090->80/tcp
		del c1
		add c3 p3 ports=8080:80/tcp => 10.1.0.4 fd01::4
		open => c2:8080->80/udp c3:8080->80/tcp c5:9090->80/tcp c6:9090->80/tcp`,
	"reboot: a host port goes to who asks for it; the dead sandbox that had it is gone": `
		add c1 p1 ports=8080:80/tcp => 10.1.0.2 fd01::2
		add c2 p2 ports=9090:80/tcp => 10.1.0.3 fd01::3
		reboot
		add c3 p3 ports=8080:80/tcp => 10.1.0.4 fd01::4
		open => c2:9090->80/tcp c3:8080->80/tcp
		leases => c2=10.1.0.3,fd01::3 c3=10.1.0.4,fd01::4`,
	"localhost cannot reach the port: only a warning": `
		fail LetLocalhostReach -1
		add c1 p1 ports=8080:80/tcp => 10.1.0.2 fd01::2`,
	"UDP flows of host ports are forgotten when they open and when they close": `
		add c1 p1 ports=5353:53/udp => 10.1.0.2 fd01::2
		portflows => [5353]
		del c1
		portflows => [5353 5353]
		flows => 10.1.0.2 fd01::2`,
	"the MTU of the fabric changes under running Pods": `
		add c1 p1 => 10.1.0.2 fd01::2
		add c2 p2 mtu=1300 => 10.1.0.3 fd01::3
		add c3 p3 mtu=9000 => 10.1.0.4 fd01::4
		add c4 p4 => 10.1.0.5 fd01::5
		nsgone c4
		mtus => c1=1450 c2=1300 c3=1450 c4=1450
		mtu 1450 1400
		mtus => c1=1400 c2=1300 c3=1400 c4=1450
		restart
		mtu 1400 1450
		mtus => c1=1450 c2=1300 c3=1450 c4=1450
		fail SetPodMTU 1
		mtu 1450 1400 => error: setting the MTU of default/p
		mtu 1450 1400
		mtus => c1=1400 c2=1300 c3=1400 c4=1450`,
	"CHECK": `
		check c1 => error: no such attachment
		add c1 p1 bw ports=8080:80/tcp => 10.1.0.2 fd01::2
		check c1 => 10.1.0.2 fd01::2
		checkports c1 8081:80/tcp => error: has not the host ports that were asked for
		unlimit c1
		check c1 => error: limit of
		unlink c1
		check c1 => error: is missing
		checkipam c1 => error: no such attachment
		nsgone c1
		check c1 => error: network namespace is gone`,
	"GC knows network and kind": `
		add c1 p1 => 10.1.0.2 fd01::2
		add c2 p2 => 10.1.0.3 fd01::3
		addipam c3 p3 range=10.5.0.0/24 => 10.5.0.2/24 via 10.5.0.1
		addipam c4 p4 range=10.5.0.0/24 => 10.5.0.3/24 via 10.5.0.1
		gc weft pod c2
		leases => c2=10.1.0.3,fd01::3 c3=10.5.0.2 c4=10.5.0.3
		gc weft ipam
		leases => c2=10.1.0.3,fd01::3 c3=10.5.0.2 c4=10.5.0.3
		gc other ipam c4
		leases => c2=10.1.0.3,fd01::3 c4=10.5.0.3
		gc weft pod
		leases => c4=10.5.0.3`,
	"GC goes on behind an error": `
		add c1 p1 => 10.1.0.2 fd01::2
		add c2 p2 => 10.1.0.3 fd01::3
		fail DelPod 1
		gc weft pod => error: injected
		count => 1
		gc weft pod
		left =>`,
	"leaks": `
		add c1 p1 => 10.1.0.2 fd01::2
		addipam c2 p2 range=10.5.0.0/24 => 10.5.0.2/24 via 10.5.0.1
		add c3 p3 => 10.1.0.3 fd01::3
		now 61
		leaks =>
		unlink c1
		nsgone c2
		leaks => c1
		leaks known c1,c9 => c2
		leaks known => c1 c2
		add c4 p4 => 10.1.0.4 fd01::4
		unlink c4
		leaks => c1
		now 61
		leaks => c1 c4
		fail HasPod 1
		leaks => error: injected`,
	"by hand": `
		add c1 p1 => 10.1.0.2 fd01::2
		release c1 => error: lease of weft/c1/eth0 (Pod default/p1) is in use: delete the Pod, or use --force
		leases => c1=10.1.0.2,fd01::2
		unlink c1
		release c1
		left =>
		add c1 p1 => 10.1.0.2 fd01::2
		release c1 force
		left =>`,
	"undo that fails is finished by DEL": `
		fail DelPod 1
		also AddPod 1
		add c1 p1 ports=80:80/tcp => error: undoing the attachment
		del c1
		left =>`,
	"closing ports that fails is finished by the next DEL": `
		add c1 p1 ports=80:80/tcp => 10.1.0.2 fd01::2
		fail SyncPorts 1
		del c1 => error: closing the host ports of weft/c1/eth0
		del c1
		left =>
		restart
		ports =>`,
	"the disk is full: ADD fails and holds no address, however often": `
		fail store.Write -1
		add c1 p1 => error: injected
		add c2 p2 => error: injected
		add c3 p3 => error: injected
		left =>`,
	"the disk is full: DEL fails, and frees the address when it is not": `
		add c1 p1 ports=80:80/tcp bw => 10.1.0.2 fd01::2
		fail store.Write -1
		del c1 => error: injected
		add c2 p2 ips=10.1.0.2 => error: injected
		fail none 0
		del c1
		left =>`,
}

func TestStories(t *testing.T) {
	for name, text := range stories {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "10.1.0.0/28", "fd01::/64")
			for line := range strings.Lines(text) {
				line = strings.TrimSpace(line)
				if line == "" {
					continue
				}
				command, want, _ := strings.Cut(line, "=>")
				want = strings.TrimSpace(want)
				got, err := r.do(strings.Fields(command))
				if err != nil {
					got = "error: " + err.Error()
				}
				part, isError := strings.CutPrefix(want, "error: ")
				if isError != (err != nil) || isError && !strings.Contains(got, part) || !isError && got != want {
					t.Fatalf("%s\n got %s\nwant %s", command, got, want)
				}
			}
			for fd, path := range r.kernel.fds {
				t.Errorf("descriptor %d of %s is open", fd, path)
			}
		})
	}
}

// options reads what stands behind the Pod in an add line.
func (r *rig) options(req *Request, words []string) {
	for _, w := range words {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "ips":
			for _, s := range strings.Split(value, ",") {
				req.Want = append(req.Want, netip.MustParseAddr(s))
			}
		case "ports":
			req.Ports = mappings(value)
		case "bw":
			req.Bandwidth = model.Bandwidth{IngressRate: 1e6, IngressBurst: 1e6}
		case "mtu":
			req.MTU, _ = strconv.Atoi(value)
		case "net":
			req.Key.Network = value
		case "range":
			rg, err := ipam.NodeRange(netip.MustParsePrefix(value))
			if err != nil {
				r.t.Fatal(err)
			}
			req.Ranges = [][]ipam.Range{{rg}}
		default:
			r.t.Fatalf("unknown option %s", w)
		}
	}
}

// mappings reads [HOSTIP:]HOSTPORT:PORT/PROTOCOL.
func mappings(s string) []model.PortMapping {
	ports, proto, _ := strings.Cut(s, "/")
	p, _ := model.ParseProtocol(proto)
	f := strings.Split(ports, ":")
	m := model.PortMapping{Protocol: p}
	if len(f) == 3 {
		m.HostIP, f = netip.MustParseAddr(f[0]), f[1:]
	}
	host, _ := strconv.Atoi(f[0])
	pod, _ := strconv.Atoi(f[1])
	m.HostPort, m.ContainerPort = uint16(host), uint16(pod)
	return []model.PortMapping{m}
}

func portTexts(list []*model.HostPorts) string {
	var out []string
	for _, hp := range list {
		for _, m := range hp.Mappings {
			out = append(out, fmt.Sprintf("%s:%d->%d/%s", hp.ContainerID, m.HostPort, m.ContainerPort, m.Protocol))
		}
	}
	return strings.Join(out, " ")
}

func (r *rig) do(w []string) (string, error) {
	ctx := context.Background()
	key := keyOf("weft", w[min(1, len(w)-1)])
	switch w[0] {
	case "add", "addgone", "addipam":
		req := r.request(w[1], w[2])
		if w[0] == "addgone" {
			delete(r.kernel.ns, req.NetNS)
		}
		if w[0] == "addipam" {
			req.Kind, req.Key.Network = model.LeaseIPAM, "other"
		}
		r.options(&req, w[3:])
		res, err := r.a.Add(ctx, req)
		if err != nil || req.Kind == model.LeasePod {
			return resultText(res), err
		}
		var out []string
		for i, p := range res.Prefixes {
			out = append(out, fmt.Sprintf("%s via %s", p, res.Gateways[i]))
		}
		return strings.Join(out, " "), nil
	case "del":
		return "", r.a.Del(ctx, key, model.LeasePod)
	case "delipam":
		key.Network = "other"
		return "", r.a.Del(ctx, key, model.LeaseIPAM)
	case "check", "checkports", "checkipam":
		return r.check(ctx, w)
	case "gc":
		var valid []model.AttachmentKey
		for _, c := range strings.Split(strings.Join(w[3:], ","), ",") {
			valid = append(valid, keyOf(w[1], c))
		}
		return "", r.a.Collect(ctx, w[1], model.LeaseKind(w[2]), valid)
	case "leaks":
		return r.leaks(ctx, w)
	case "release":
		for _, l := range r.a.Leases() {
			if l.AttachmentKey == key {
				return "", r.a.Release(ctx, l, len(w) > 2)
			}
		}
		r.t.Fatal("no such lease")
	case "mtu":
		before, _ := strconv.Atoi(w[1])
		now, _ := strconv.Atoi(w[2])
		return "", r.a.SetMTU(ctx, before, now)
	case "fill":
		n, _ := strconv.Atoi(w[1])
		for i := range n {
			if _, err := r.a.Add(ctx, r.request(fmt.Sprintf("f%d", i), fmt.Sprintf("fill%d", i))); err != nil {
				return "", err
			}
		}
		return "", nil
	}
	return r.world(w, key)
}

func resultText(res Result) string {
	if res.Lease == nil {
		return ""
	}
	return texts(res.Lease.Addresses)
}

func (r *rig) check(ctx context.Context, w []string) (string, error) {
	req := Request{Key: keyOf("weft", w[1]), Kind: model.LeasePod, NetNS: "/run/netns/" + w[1], NSFD: -1}
	if fd, done, err := r.kernel.OpenNS(req.NetNS); err == nil {
		defer done()
		req.NSFD = fd
	}
	switch w[0] {
	case "checkports":
		req.Ports = mappings(w[2])
	case "checkipam":
		req.Kind = model.LeaseIPAM
	}
	res, err := r.a.Check(ctx, req)
	return resultText(res), err
}

func (r *rig) leaks(ctx context.Context, w []string) (string, error) {
	var known map[string]bool
	if len(w) > 1 {
		known = map[string]bool{}
		for _, id := range strings.Split(strings.Join(w[2:], ","), ",") {
			known[id] = true
		}
	}
	list, err := r.a.Leaks(ctx, known)
	var out []string
	for _, l := range list {
		out = append(out, l.Lease.ContainerID)
		if l.Why == "" || (known != nil) != strings.Contains(l.Why, "runtime") {
			r.t.Fatalf("why: %q", l.Why)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " "), err
}

// world is what happens around the attacher, and what can be seen of it.
func (r *rig) world(w []string, key model.AttachmentKey) (string, error) {
	switch w[0] {
	case "restart":
		r.restart()
	case "reboot":
		r.kernel.reboot()
	case "unlink", "unlimit":
		for name, link := range r.kernel.links {
			if strings.Contains(link.Alias, " "+key.ContainerID+" ") {
				delete(r.kernel.limit, name)
				if w[0] == "unlink" {
					delete(r.kernel.links, name)
				}
				return "", nil
			}
		}
		r.t.Fatalf("no link of %s", key)
	case "nsgone":
		delete(r.kernel.ns, "/run/netns/"+w[1])
	case "now":
		n, _ := strconv.Atoi(w[1])
		r.now += int64(n)
	case "fail", "also":
		n, _ := strconv.Atoi(w[2])
		if w[0] == "fail" {
			r.plan(w[1], n)
		} else {
			r.nth[w[1]] = n
		}
	case "annotate":
		p := &model.Pod{PodRef: podRef(w[1])}
		if a, err := netip.ParseAddr(w[2]); err == nil {
			p.Requested = []netip.Addr{a}
		} else {
			p.RequestError = "annotation weft.network/addresses: " + w[2]
		}
		r.node.pods[p.PodRef] = p
	case "inuse":
		r.kernel.inUse[netip.MustParseAddr(w[1])] = strings.Join(w[2:], " ")
	case "notready":
		r.node.facts.NotReady = fmt.Errorf("weft is %w: the routes are being set up", ErrNotReady)
	default:
		return r.view(w[0]), nil
	}
	return "", nil
}

func (r *rig) view(what string) string {
	switch what {
	case "leases":
		var out []string
		for _, l := range r.a.Leases() {
			out = append(out, l.ContainerID+"="+strings.ReplaceAll(texts(l.Addresses), " ", ","))
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	case "count":
		return strconv.Itoa(len(r.a.Leases()))
	case "ports":
		return portTexts(r.a.HostPorts())
	case "open":
		return portTexts(r.node.synced)
	case "mtus":
		var out []string
		for _, l := range r.a.Leases() {
			if link := r.kernel.links[l.HostIf]; link.MTU != l.MTU {
				r.t.Fatalf("link of %s has MTU %d, lease %d", l.ContainerID, link.MTU, l.MTU)
			}
			out = append(out, fmt.Sprintf("%s=%d", l.ContainerID, l.MTU))
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	case "portflows":
		return fmt.Sprint(r.kernel.portFlows)
	case "flows":
		return texts(r.kernel.flows)
	case "exhausted":
		var out []string
		for _, e := range r.node.exhausted {
			pod, _, _ := strings.Cut(e, ": ")
			out = append(out, pod)
		}
		return strings.Join(out, " ")
	case "usage":
		return fmt.Sprint(r.a.Usage())
	case "left":
		return strings.Join(r.leftovers(), ", ")
	}
	r.t.Fatalf("unknown command %s", what)
	return ""
}

// TestTaken passes over addresses that somebody else keeps the books of, and refuses them by name.
func TestTaken(t *testing.T) {
	r := newRig(t)
	req := r.request("c1", "p1")
	req.Key, req.Kind = keyOf("bridge", "c1"), model.LeaseIPAM
	nr, err := ipam.NodeRange(netip.MustParsePrefix("10.5.0.0/28"))
	if err != nil {
		t.Fatal(err)
	}
	req.Ranges = [][]ipam.Range{{nr}}
	req.Taken = func(a netip.Addr) string {
		if a == netip.MustParseAddr("10.5.0.2") {
			return "somebody"
		}
		return ""
	}
	if res, err := r.a.Add(t.Context(), req); err != nil || texts(res.Lease.Addresses) != "10.5.0.3" {
		t.Errorf("it gave %+v, %v", res.Lease, err)
	}
	req.Key, req.Want = keyOf("bridge", "c2"), []netip.Addr{netip.MustParseAddr("10.5.0.2")}
	if _, err := r.a.Add(t.Context(), req); err == nil || !strings.Contains(err.Error(), "it is in use: somebody") {
		t.Errorf("by name: %v", err)
	}
}

// TestSetMTUWithoutNetNS says so when it cannot reach a Pod, and does not pretend that it has the new MTU.
func TestSetMTUWithoutNetNS(t *testing.T) {
	r := newRig(t, "10.1.0.0/28")
	if _, err := r.a.Add(t.Context(), r.request("c1", "p1")); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.WarnLevel)
	r.a.log = zap.New(core)
	for _, l := range r.a.leases { // as one rebuilt from its link
		l.NetNS = ""
	}
	if err := r.a.SetMTU(t.Context(), 1450, 1400); err != nil {
		t.Fatal(err)
	}
	if l := r.a.Leases()[0]; l.MTU != 1450 || logs.FilterMessageSnippet("recreate it").Len() != 1 {
		t.Errorf("the lease says %d, the log %v", l.MTU, logs.All())
	}
}
