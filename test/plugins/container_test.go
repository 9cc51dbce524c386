package plugins

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"weft.network/weft/appliance/kernel/netnstest"
)

// containerPort is where every container serves TCP and UDP.
const containerPort = 8080

// container is a network namespace in which servers tell who they are and whom they see.
type container struct {
	id    string
	ns    *netnstest.NS // nil for one that was made to vanish
	netns string
	ports []portMapping
	limit *limit
	addrs []netip.Addr
}

// portMapping and limit are what a runtime passes for the capabilities portMappings and bandwidth.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

type limit struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

func newContainer(t testing.TB, id string, ports ...portMapping) *container {
	t.Helper()
	c := &container{id: id, ns: netnstest.New(t), ports: ports}
	c.netns = c.ns.Path()
	quick(c.ns)
	c.serve(t)
	return c
}

// mortal is a container whose namespace ends when the function it returns is called.
func mortal(t testing.TB, id string, ports ...portMapping) (*container, func()) {
	t.Helper()
	cmd := exec.Command("cat") // ends with its input, so also with the test
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	end := func() {
		_ = in.Close()
		_ = cmd.Wait() // the second time it says so
	}
	t.Cleanup(end)
	return &container{id: id, netns: fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), ports: ports}, end
}

// conf is the call of the runtime.
func (c *container) conf() *libcni.RuntimeConf {
	args := map[string]any{}
	if len(c.ports) > 0 {
		args["portMappings"] = c.ports
	}
	if c.limit != nil {
		args["bandwidth"] = c.limit
	}
	return &libcni.RuntimeConf{ContainerID: c.id, NetNS: c.netns, IfName: "eth0", CapabilityArgs: args}
}

// serve starts the container's servers.
func (c *container) serve(t testing.TB) {
	t.Helper()
	var tcp net.Listener
	var udp net.PacketConn
	err := c.ns.Do(func() (err error) {
		if tcp, err = net.Listen("tcp", fmt.Sprintf(":%d", containerPort)); err != nil {
			return err
		}
		udp, err = net.ListenPacket("udp", fmt.Sprintf(":%d", containerPort))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close(); udp.Close() })
	go func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			go c.answer(conn)
		}
	}()
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo([]byte(c.whoIs(from)), from)
		}
	}()
}

func (c *container) whoIs(from net.Addr) string { return c.id + " " + from.String() + "\n" }

// answer tells who is who, then sends back as many bytes as the client asks for, or counts those that it sends.
func (c *container) answer(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	fmt.Fprint(conn, c.whoIs(conn.RemoteAddr()))
	var verb string
	var size int64
	r := bufio.NewReader(conn)
	if _, err := fmt.Fscanf(r, "%s %d\n", &verb, &size); err != nil {
		return
	}
	if verb == "get" {
		_, _ = io.CopyN(conn, zeros{}, size)
		return
	}
	if n, err := io.CopyN(io.Discard, r, size); err == nil {
		fmt.Fprintln(conn, n)
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// dial opens a connection from a namespace.
func dial(from *netnstest.NS, network string, to netip.AddrPort, timeout time.Duration) (conn net.Conn, err error) {
	err = from.Do(func() error {
		conn, err = (&net.Dialer{Timeout: timeout}).Dial(network, to.String())
		return err
	})
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(timeout))
	}
	return conn, err
}

// moment is how long a test listens for what must not come, and a try takes that another one follows.
const moment = time.Second

// ask returns who answers and which address it saw.
func ask(from *netnstest.NS, network string, to netip.AddrPort) (id string, seen netip.Addr, err error) {
	return askFor(patience, from, network, to)
}

func askFor(timeout time.Duration, from *netnstest.NS, network string, to netip.AddrPort) (id string, seen netip.Addr, err error) {
	conn, err := dial(from, network, to, timeout)
	if err != nil {
		return "", seen, err
	}
	defer conn.Close()
	if network == "udp" {
		if _, err := conn.Write([]byte("?")); err != nil {
			return "", seen, err
		}
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", seen, err
	}
	return whoWas(line)
}

func whoWas(line string) (id string, seen netip.Addr, err error) {
	id, text, _ := strings.Cut(strings.TrimSpace(line), " ")
	at, err := netip.ParseAddrPort(text)
	return id, at.Addr().Unmap(), err
}

// transfer moves bytes between a client and a container and returns the bits per second of the whole. get is from the container.
func transfer(from *netnstest.NS, verb string, to netip.AddrPort, size int64) (rate float64, err error) {
	conn, err := dial(from, "tcp", to, patience)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err = fmt.Fprintln(conn, verb, size); err != nil {
		return 0, err
	}
	if verb == "get" {
		_, err = io.CopyN(io.Discard, r, size)
	} else {
		_, err = io.CopyN(conn, zeros{}, size)
		_, ack := r.ReadString('\n')
		err = errors.Join(err, ack)
	}
	return float64(8*size) / time.Since(start).Seconds(), err
}

// meet fails unless each container reaches each other one in both families, and sees and is seen with its own address.
func meet(t testing.TB, cs ...*container) {
	t.Helper()
	for _, from := range cs {
		for _, to := range cs {
			for _, a := range to.addrs {
				id, seen, err := ask(from.ns, "tcp", netip.AddrPortFrom(a, containerPort))
				if err != nil || id != to.id || seen != from.addr(a) {
					t.Errorf("%s to %s at %s: answered by %q, which saw %s: %v", from.id, to.id, a, id, seen, err)
				}
			}
		}
	}
}

// addr is the container's address of the same family as the other one.
func (c *container) addr(like netip.Addr) netip.Addr {
	for _, a := range c.addrs {
		if a.Is4() == like.Is4() {
			return a
		}
	}
	return netip.Addr{}
}
