// Package netlab tells whole stories about weft: several real daemons on one machine, Pods attached through the real CNI call.
package netlab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft.network/weft/appliance/lab"
	"weft.network/weft/appliance/model"
)

// weft is the binary under test.
var weft string

func TestMain(m *testing.M) {
	if lifelineHelper() {
		return
	}
	os.Exit(build(m))
}

// build makes the binary, unless WEFT_BIN names one, and runs the tests.
func build(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run() // every test skips or fails by itself
	}
	if weft = os.Getenv("WEFT_BIN"); weft != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "weft-netlab-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	weft = filepath.Join(dir, "weft")
	cmd := exec.Command("go", "build", "-o", weft, "weft.network/weft")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building weft: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// needRoot skips a story without root, or fails it where a skip is not allowed.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("WEFT_TEST_MUST_RUN") == "1" {
		t.Fatal("needs root, and WEFT_TEST_MUST_RUN=1 forbids skipping")
	}
	t.Skip("needs root")
}

// story is a lab for one test, which it fails when anything goes wrong.
type story struct {
	*lab.Lab
	t   testing.TB
	ctx context.Context
	// limit is how long one request may take; see answerTime.
	limit time.Duration
}

// storyTime bounds one story; a healthy one takes seconds.
const storyTime = 4 * time.Minute

// patience is how long a test waits at least for what it is promised. A process may not run for seconds on a busy machine, which is
// no mistake of the product: what comes later than promised is logged.
const patience = 30 * time.Second

// One request that must be answered has answerTime. What is asked again has shortTime, since the first packet of a flow may be lost
// before all is there; so has what nobody may answer.
const (
	answerTime = 15 * time.Second
	shortTime  = 2 * time.Second
)

// repairTime is how long a repair may take here. The promise is a second and the usual time a tenth of that, which the tests log;
// a machine that builds something else at the same time may be slower, and no test fails by the clock for that.
const repairTime = 5 * time.Second

// tell builds a lab. It ends with the test, and also when the test process is killed.
func tell(t testing.TB, o lab.Options) *story {
	t.Helper()
	needRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), storyTime)
	t.Cleanup(cancel)
	o.Dir, o.WeftBin, o.Attached = filepath.Join(t.TempDir(), "lab"), weft, true
	l, err := lab.Up(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	s := &story{Lab: l, t: t, ctx: ctx, limit: answerTime}
	t.Cleanup(func() {
		if t.Failed() {
			s.logs()
		}
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
		if left := leftovers(o.Dir); left != "" {
			t.Errorf("the lab left behind: %s", left)
		}
	})
	return s
}

// leftovers names processes and files of a lab that should be gone.
func leftovers(dir string) string {
	var left []string
	if _, err := os.Stat(dir); err == nil {
		left = append(left, dir)
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range commands {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), "\x00"+dir+"\x00") {
			left = append(left, strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	mounts, _ := os.ReadFile("/proc/thread-self/mountinfo")
	if strings.Contains(string(mounts), dir) {
		left = append(left, "a mount")
	}
	return strings.Join(left, "; ")
}

func (s *story) logs() {
	report, err := s.Status(context.Background())
	if err != nil {
		s.t.Log(err)
		return
	}
	for _, n := range report.Nodes {
		s.t.Logf("%s: ready %v %s; the end of its log:\n%s", n.Name, n.Ready, n.Why, s.Log(n.Name, 40))
	}
}

func (s *story) no(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// run starts Pods on a node and returns them in the order of their names.
func (s *story) run(node string, names ...string) []*lab.Pod {
	s.t.Helper()
	specs := make([]lab.PodSpec, len(names))
	for i, n := range names {
		specs[i].Name = n
	}
	return s.runSpecs(node, specs...)
}

func (s *story) runSpecs(node string, specs ...lab.PodSpec) []*lab.Pod {
	s.t.Helper()
	results, err := s.RunPods(s.ctx, node, specs)
	s.no(err)
	var out []*lab.Pod
	for i, r := range results {
		if r.Err != nil {
			s.t.Fatalf("running %s on %s: %v", specs[i].Name, node, r.Err)
		}
		out = append(out, r.Pod)
	}
	return out
}

func (s *story) delete(names ...string) {
	s.t.Helper()
	errs, err := s.DeletePods(s.ctx, names)
	s.no(err)
	s.no(errors.Join(errs...))
}

// out runs a command and returns what it printed.
func (s *story) out(target string, command string) string {
	s.t.Helper()
	out, err := s.Output(s.ctx, target, strings.Fields(command)...)
	s.no(err)
	return out
}

// within gives requests another time limit until the function that it returns is called.
func (s *story) within(limit time.Duration) (back func()) {
	before := s.limit
	s.limit = limit
	return func() { s.limit = before }
}

// refused asks for what nobody may answer, and returns why nobody did.
func (s *story) refused(ask func() error) error {
	defer s.within(shortTime)()
	return ask()
}

// eventually waits until the condition holds; the last reason why it did not is in the failure. It does not fail before patience is
// over, nor without a last try after that.
func (s *story) eventually(what string, promised time.Duration, condition func() error) time.Duration {
	s.t.Helper()
	defer s.within(shortTime)()
	start := time.Now()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		last := time.Since(start) > max(promised, patience)
		if last {
			s.limit = answerTime
		}
		err := condition()
		took := time.Since(start)
		if err == nil {
			if took > promised {
				s.t.Logf("%s took %v, and should take %v at most", what, took, promised)
			}
			return took
		}
		if last {
			s.t.Fatalf("%s did not happen within %v: %v", what, took, err)
		}
		select {
		case <-s.ctx.Done():
			s.t.Fatalf("%s: the story's time is over: %v", what, err)
		case <-ticker.C:
		}
	}
}

// get asks a server who it is and whom it sees.
func (s *story) get(from string, at netip.Addr, port int) (lab.Answer, error) {
	answers, err := s.getAll(from, port, at)
	if err != nil {
		return lab.Answer{}, err
	}
	return answers[0], nil
}

// getAll is get for several addresses.
func (s *story) getAll(from string, port int, at ...netip.Addr) (answers []lab.Answer, err error) {
	args := []string{"weft", lab.PodCommand, "get", "--timeout", s.limit.String()}
	for _, a := range at {
		args = append(args, fmt.Sprintf("http://%s/", netip.AddrPortFrom(a, uint16(port))))
	}
	out, err := s.Output(s.ctx, from, args...)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(strings.NewReader(out))
	answers = make([]lab.Answer, len(at))
	for i := range answers {
		if err := dec.Decode(&answers[i]); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// udp is get by one datagram.
func (s *story) udp(from string, at netip.Addr, port int) (a lab.Answer, err error) {
	out, err := s.Output(s.ctx, from, "weft", lab.PodCommand, "udp", "--timeout", s.limit.String(), netip.AddrPortFrom(at, uint16(port)).String())
	if err == nil {
		err = json.Unmarshal([]byte(out), &a)
	}
	return a, err
}

// transfer runs a client that moves bytes and returns what it measured, in the order of its targets.
func (s *story) transfer(from string, args ...string) (all []lab.Transfer, err error) {
	argv := append([]string{"weft", lab.PodCommand, args[0], "--timeout", s.limit.String()}, args[1:]...)
	out, err := s.Output(s.ctx, from, argv...)
	if err != nil {
		return nil, err
	}
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var tr lab.Transfer
		if err := dec.Decode(&tr); err != nil {
			return nil, err
		}
		all = append(all, tr)
	}
	return all, nil
}

// reaches fails unless a Pod reaches others in every family, and each sees the Pod's own address.
func (s *story) reaches(from *lab.Pod, to ...*lab.Pod) {
	s.t.Helper()
	s.no(s.tryReach(from, to...))
}

func (s *story) tryReach(from *lab.Pod, to ...*lab.Pod) error {
	var at []netip.Addr
	for _, p := range to {
		at = append(at, p.Addresses...)
	}
	answers, err := s.getAll(from.FullName(), lab.HTTPPort, at...)
	if err != nil {
		return fmt.Errorf("from %s: %w", from.Name, err)
	}
	for _, p := range to {
		for _, at := range p.Addresses {
			a := answers[0]
			answers = answers[1:]
			if want := from.Address(family(at)); a.Pod != p.FullName() || a.Client != want {
				return fmt.Errorf("%s to %s (%s): answered by %s, which saw %s, want %s", from.Name, p.Name, at, a.Pod, a.Client, want)
			}
		}
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

// leases asks a node's weftd.
func (s *story) leases(node string) []*model.Lease {
	s.t.Helper()
	var out []*model.Lease
	s.no(s.Ask(s.ctx, node, "/v1/leases", &out))
	return out
}

// status is the part of weft status that stories look at.
type status struct {
	Node   struct{ PID int } `json:"node"`
	Source struct {
		Connected, Stored bool
		Error             string
		Revision          uint64
	} `json:"source"`
	Fabric struct {
		MTU     int
		Rounds  uint64
		Repairs uint64
		Error   string
		Peers   []struct {
			Node, Mode string
			Outer      netip.Addr
		}
	} `json:"fabric"`
	IPAM  struct{ Total, Held, Cooling int } `json:"ipam"`
	Store struct {
		Recovered string
		Revision  uint64
	} `json:"store"`
	Warnings []string `json:"warnings"`
}

func (s *story) status(node string) (st status) {
	s.t.Helper()
	s.no(s.Ask(s.ctx, node, "/v1/status", &st))
	return st
}

// stored waits until a node has written what it knows of the cluster now: before a power cut.
func (s *story) stored(node string) {
	s.t.Helper()
	know := s.status(node).Source.Revision
	s.eventually(fmt.Sprintf("%s has written the picture %d", node, know), 2*time.Minute, func() error {
		if has := s.status(node).Store.Revision; has < know {
			return fmt.Errorf("its store has %d", has)
		}
		return nil
	})
}

// addresses returns the addresses that Pods have, by Pod; an address that two have fails the story.
func (s *story) addresses(pods ...*lab.Pod) map[string][]netip.Addr {
	s.t.Helper()
	owner := map[netip.Addr]string{}
	out := map[string][]netip.Addr{}
	for _, p := range pods {
		out[p.FullName()] = p.Addresses
		for _, a := range p.Addresses {
			if other := owner[a]; other != "" {
				s.t.Fatalf("the address %s was given to %s and to %s", a, other, p.FullName())
			}
			owner[a] = p.FullName()
		}
	}
	return out
}

// pods returns all Pods of a node as the lab knows them.
func (s *story) pods(node string) []*lab.Pod {
	s.t.Helper()
	n, err := s.Node(node)
	s.no(err)
	return n.Pods
}

// clean compares all that a node holds for Pods with the Pods that run there: leases, links, routes, namespaces.
func (s *story) clean(node string) {
	s.t.Helper()
	pods := s.pods(node)
	s.eventually("a node without leftovers", 5*time.Second, func() error { return s.leaks(node, pods) })
}

func (s *story) leaks(node string, pods []*lab.Pod) error {
	held := map[string][]netip.Addr{}
	for _, l := range s.leases(node) {
		held[l.ContainerID] = l.Addresses
	}
	var addresses []string
	for _, p := range pods {
		if !slices.Equal(held[p.ContainerID], p.Addresses) {
			return fmt.Errorf("%s has %v, its lease says %v", p.FullName(), p.Addresses, held[p.ContainerID])
		}
		for _, a := range p.Addresses {
			addresses = append(addresses, a.String())
		}
	}
	if len(held) != len(pods) {
		return fmt.Errorf("%d leases for %d Pods", len(held), len(pods))
	}
	if n := len(s.podLinks(node)); n != len(pods) {
		return fmt.Errorf("%d links for %d Pods", n, len(pods))
	}
	routes := s.podRoutes(node)
	slices.Sort(addresses)
	if !slices.Equal(routes, addresses) {
		return fmt.Errorf("routes to %v, Pods have %v", routes, addresses)
	}
	if names := strings.Fields(s.out(node, "ls /run/netns")); len(names) != len(pods) {
		return fmt.Errorf("%d network namespaces for %d Pods", len(names), len(pods))
	}
	return nil
}

// podLinks returns the names of all host ends of Pods, as weft names them.
func (s *story) podLinks(node string) []string {
	s.t.Helper()
	var links []struct{ Ifname string }
	s.no(json.Unmarshal([]byte(s.out(node, "ip -j link show")), &links))
	var out []string
	for _, l := range links {
		if strings.HasPrefix(l.Ifname, "weftp") {
			out = append(out, l.Ifname)
		}
	}
	return out
}

// podRoutes returns the destinations of all host routes to Pods, sorted.
func (s *story) podRoutes(node string) []string {
	s.t.Helper()
	var out []string
	for _, flag := range []string{"-4", "-6"} {
		var routes []struct{ Dst, Dev, Protocol string }
		s.no(json.Unmarshal([]byte(s.out(node, "ip -j "+flag+" route show table main")), &routes))
		for _, r := range routes {
			if strings.HasPrefix(r.Dev, "weftp") && r.Protocol != "kernel" && !strings.Contains(r.Dst, "/") {
				out = append(out, r.Dst)
			}
		}
	}
	slices.Sort(out)
	return out
}
