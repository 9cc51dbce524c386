package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"weft.network/weft/appliance"
	"weft.network/weft/appliance/control"
)

func init() {
	register(70, Row{
		Name: "bgp-converge",
		About: "routes of a BIRD 2 in another namespace, over sessions that are established, from the command that makes them until all are received: " +
			"10,000 from one peer, and 200 from each of 50; nothing is installed in the kernel",
		Run: runBGPConverge,
	})
	register(71, Row{
		Name:  "bgp-withdraw",
		About: "from the manifest without the last local endpoint until BIRD 2 has dropped the address; 50 ms of it weftd waits for the file to be whole",
		Run:   runBGPWithdraw,
	})
}

// bgpWait is more than a session or a table ever needs.
const bgpWait = time.Minute

// bird is a BIRD 2 in a namespace.
type bird struct {
	dir string
}

func (l *Lab) bird(ctx context.Context, n *Netns, config string) (*bird, error) {
	dir, err := os.MkdirTemp("", "bird") // a socket's path may not be long
	if err != nil {
		return nil, err
	}
	l.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &bird{dir: dir}
	if err := b.write(config); err != nil {
		return nil, err
	}
	cmd := exec.Command("/usr/sbin/bird", "-f", "-c", dir+"/bird.conf", "-s", dir+"/bird.ctl", "-P", dir+"/bird.pid")
	if err := n.start(cmd); err != nil {
		return nil, fmt.Errorf("starting BIRD: %w", err)
	}
	l.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return b, poll(ctx, 5*time.Millisecond, bgpWait, "BIRD", func() bool { _, err := b.ask("show status"); return err == nil })
}

func (b *bird) write(config string) error {
	return os.WriteFile(filepath.Join(b.dir, "bird.conf"), []byte("protocol device {}\n"+config), 0o644)
}

// ask sends a command as birdc does, without a process for each.
func (b *bird) ask(command string) (string, error) {
	conn, err := net.Dial("unix", b.dir+"/bird.ctl")
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(bgpWait))
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return "", err
	}
	var out strings.Builder
	lines := bufio.NewScanner(conn)
	for first := true; lines.Scan(); first = false {
		line := lines.Text()
		if first { // the greeting
			continue
		}
		out.WriteString(line + "\n")
		if len(line) > 4 && line[4] == ' ' && strings.IndexFunc(line[:4], func(r rune) bool { return r < '0' || r > '9' }) < 0 {
			return out.String(), nil // the last line of an answer has no dash after its code
		}
	}
	return out.String(), errors.New("BIRD closed the connection")
}

// counted is in an answer for each table.
var counted = regexp.MustCompile(`(\d+) of \d+ routes`)

// routes counts those that BIRD has received by BGP.
func (b *bird) routes() int {
	text, err := b.ask("show route where source = RTS_BGP count")
	if err != nil {
		return -1
	}
	most := 0
	for _, found := range counted.FindAllStringSubmatch(text, -1) {
		n, _ := strconv.Atoi(found[1]) // digits only
		most = max(most, n)
	}
	return most
}

// source is the configuration of the BIRD that tells, and connects: each peer, at an address of its own, tells a part of the routes, or
// nothing yet. It finds the other end at an address of its own, too: one BIRD has one session with an address, whatever its own
// address is, and keeps all further ones Idle without a word.
func source(peers, each int, telling bool) string {
	var b strings.Builder
	b.WriteString("router id 192.0.2.2;\n")
	for i := range peers {
		fmt.Fprintf(&b, "ipv4 table t%d;\nprotocol static s%d { ipv4 { table t%d; };\n", i, i, i)
		for r := range each {
			if telling {
				n := i*each + r
				fmt.Fprintf(&b, " route 10.%d.%d.%d/32 blackhole;\n", 100+n>>16, n>>8&255, n&255)
			}
		}
		fmt.Fprintf(&b, "}\nprotocol bgp p%[1]d { local 192.0.2.%[2]d as %[3]d; neighbor 192.0.2.%[4]d as 64512; hold time 90; connect delay time 1; connect retry time 2; error wait time 1, 2;\n"+
			" ipv4 { table t%[1]d; import none; export all; }; }\n", i, 101+i, 64600+i, 151+i)
	}
	return b.String()
}

// sink is one that receives: how many sessions and routes it has.
type sink struct {
	name     string
	sessions func() int
	routes   func() int
	pid      func() int
}

func (l *Lab) weftSink(ctx context.Context, n *Netns, peers int) (*sink, error) {
	w, err := l.Weftd(ctx, n, 1, "auto")
	if err != nil {
		return nil, err
	}
	var manifest strings.Builder
	for i := range peers {
		fmt.Fprintf(&manifest, "---\napiVersion: weft.network/v1alpha1\nkind: BGPPeer\nmetadata: {name: p%d}\nspec: {peerAddress: 192.0.2.%d, peerASN: %d, passive: true}\n", i, 101+i, 64600+i)
	}
	if err := w.manifest("peers.yaml", manifest.String()); err != nil {
		return nil, err
	}
	status := func() (s appliance.BGPStatus) {
		var all appliance.Status
		if control.NewClient(filepath.Join(w.dir, "run")).Get(ctx, "/v1/status", &all) == nil && all.BGP != nil {
			s = *all.BGP
		}
		return s
	}
	return &sink{
		name: "weft",
		sessions: func() (up int) {
			for _, p := range status().Peers {
				if p.State == "Established" {
					up++
				}
			}
			return up
		},
		routes: func() (sum int) {
			for _, p := range status().Peers {
				sum += int(p.Received)
			}
			return sum
		},
		pid: func() int { return status().PID },
	}, nil
}

// manifest writes an object for the daemon, whole at once.
func (w *Weftd) manifest(name, text string) error {
	path := filepath.Join(w.dir, "manifests", name)
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (l *Lab) birdSink(ctx context.Context, n *Netns, peers int) (*sink, error) {
	var config strings.Builder
	config.WriteString("router id 192.0.2.1;\n")
	for i := range peers {
		fmt.Fprintf(&config, "protocol bgp p%[1]d { local 192.0.2.%[4]d as 64512; neighbor 192.0.2.%[2]d as %[3]d; passive on; hold time 90;\n"+
			" ipv4 { import all; export none; }; }\n", i, 101+i, 64600+i, 151+i)
	}
	b, err := l.bird(ctx, n, config.String())
	if err != nil {
		return nil, err
	}
	return &sink{
		name: "BIRD 2",
		sessions: func() int {
			text, _ := b.ask("show protocols")
			return strings.Count(text, "Established")
		},
		routes: b.routes,
		pid: func() int {
			text, _ := os.ReadFile(b.dir + "/bird.pid")
			pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
			return pid
		},
	}, nil
}

func runBGPConverge(ctx context.Context, lab *Lab) ([]Result, error) {
	var out []Result
	for _, load := range []struct{ peers, each int }{{1, lab.Sized(10000, 500)}, {lab.Sized(50, 5), lab.Sized(200, 20)}} {
		results, err := lab.convergeAll(ctx, load.peers, load.each)
		if err != nil {
			return nil, err
		}
		out = append(out, results...)
	}
	return out, nil
}

// convergeAll measures one load on weft and on each speaker that it is compared with.
func (l *Lab) convergeAll(ctx context.Context, peers, each int) ([]Result, error) {
	var sinks []*sink
	var arms []arm
	for _, start := range []func(context.Context, *Netns, int) (*sink, error){l.weftSink, l.birdSink, l.gobgpSink} {
		nodes, err := l.Nodes(ctx)
		if err != nil {
			return nil, err
		}
		for side, first := range []int{151, 101} {
			var aliases strings.Builder
			for i := range peers {
				fmt.Fprintf(&aliases, "ip addr add 192.0.2.%d/24 dev eth0\n", first+i)
			}
			if err := nodes[side].run(ctx, aliases.String(), nil); err != nil {
				return nil, err
			}
		}
		to, err := start(ctx, nodes[0], peers)
		if err != nil {
			return nil, err
		}
		from, err := l.bird(ctx, nodes[1], source(peers, each, false))
		if err != nil {
			return nil, err
		}
		if err := poll(ctx, 20*time.Millisecond, bgpWait, to.name+"'s sessions", func() bool { return to.sessions() == peers }); err != nil {
			return nil, fmt.Errorf("%w: %d of %d", err, to.sessions(), peers)
		}
		sinks = append(sinks, to)
		arms = append(arms, func(ctx context.Context) (float64, error) { return converge(ctx, from, to, peers, each) })
	}
	s, err := interleave(ctx, l.Rounds(10), arms...)
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("BGP, %d routes of one peer", each)
	if peers > 1 {
		what = fmt.Sprintf("BGP, %d routes of each of %d peers", each, peers)
	}
	memory, own := make([][]float64, len(sinks)), make([]float64, len(sinks))
	for i, to := range sinks {
		kib, err := memoryOf(to.pid())
		if err != nil {
			return nil, err
		}
		memory[i], own[i] = []float64{kib["VmRSS"] / mega}, kib["RssAnon"]/mega
	}
	var out []Result
	for i := 1; i < len(sinks); i++ {
		out = append(out,
			compare(what+" received", "ms", s[0], sinks[i].name, s[i], noBudget),
			compare(what+", the speaker's memory", "MB", memory[0], sinks[i].name, memory[i], noBudget).
				note("%.0f MB of it its own, the rest pages of the file, which weftd has too; the other: %.0f MB its own", own[0], own[i]))
	}
	return out, nil
}

// converge has the source tell all its routes, waits until they are there, and has it take them back.
func converge(ctx context.Context, from *bird, to *sink, peers, each int) (float64, error) {
	reload := func(telling bool, want int) (time.Duration, error) {
		if err := from.write(source(peers, each, telling)); err != nil {
			return 0, err
		}
		start := time.Now()
		if _, err := from.ask("configure"); err != nil {
			return 0, err
		}
		err := poll(ctx, 2*time.Millisecond, bgpWait, fmt.Sprintf("%s to have %d routes", to.name, want), func() bool { return to.routes() == want })
		return time.Since(start), err
	}
	took, err := reload(true, peers*each)
	if err == nil {
		_, err = reload(false, 0)
	}
	return float64(took.Microseconds()) / 1000, err
}

func runBGPWithdraw(ctx context.Context, lab *Lab) ([]Result, error) {
	nodes, err := lab.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	router, err := lab.bird(ctx, nodes[1], "router id 192.0.2.2;\nprotocol bgp node { local 192.0.2.2 as 64600; neighbor 192.0.2.1 as 64512; connect delay time 1; ipv4 { import all; export none; }; }\n")
	if err != nil {
		return nil, err
	}
	w, err := lab.Weftd(ctx, nodes[0], 1, "auto")
	if err != nil {
		return nil, err
	}
	service := func(endpoints string) error {
		return w.manifest("web.yaml", `apiVersion: weft.network/v1alpha1
kind: BGPPeer
metadata: {name: router}
spec: {peerAddress: 192.0.2.2, peerASN: 64600, connectRetrySeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: LoadBalancer, loadBalancerClass: weft.network/bgp, externalTrafficPolicy: Local, clusterIPs: [10.96.0.10], ports: [{port: 80, targetPort: 8080, protocol: TCP}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.10}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints: [`+endpoints+"]\n")
	}
	var samples []float64
	for range lab.Rounds(20) {
		for _, step := range []struct {
			endpoints string
			want      int
		}{{"{addresses: [10.244.1.9], conditions: {ready: true}, nodeName: node1}", 1}, {"", 0}} {
			start := time.Now()
			if err := service(step.endpoints); err != nil {
				return nil, err
			}
			if err := poll(ctx, time.Millisecond, bgpWait, "the router", func() bool { return router.routes() == step.want }); err != nil {
				return nil, err
			}
			if step.want == 0 {
				samples = append(samples, float64(time.Since(start).Microseconds())/1000)
			}
		}
	}
	return []Result{alone("BGP, the last local endpoint goes, until the router has dropped the address", "ms", samples, atMost(1000, "ms"))}, nil
}
