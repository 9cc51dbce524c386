package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// machine is one set of namespaces with its own view of the file system: a node, or the switch between the nodes.
type machine struct {
	name    string
	pid     string // of its first process, as the host counts
	logs    string // folder for the output of its processes
	bin     string // folder with the built programs
	first   *process
	address [2]netip.Addr // IPv4, IPv6
}

// process is a long-running program on a machine.
type process struct {
	name, log string
	command   *exec.Cmd
	ended     chan struct{}
}

// newMachine creates the namespaces and returns when the first process runs in them.
func (c *Cluster) newMachine(name string) (*machine, error) {
	m := &machine{name: name, logs: filepath.Join(c.logs, name), bin: c.bin}
	dir := filepath.Join(c.dir, name)
	for _, folder := range []string{dir, m.logs} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, err
		}
	}
	script := filepath.Join(c.dir, "node.sh")
	command := exec.Command("sh", script, "create", name, dir, c.group+"/"+name, c.bin)
	command.Stdin = c.lifeline
	var err error
	if m.first, err = m.launch("init", command); err != nil {
		return nil, err
	}
	err = wait(name+" to boot", 10*time.Second, []*process{m.first}, func() error {
		pid, err := os.ReadFile(filepath.Join(dir, "pid"))
		m.pid = strings.TrimSpace(string(pid))
		return err
	})
	return m, err
}

// command prepares a program to run inside the machine's namespaces.
func (m *machine) command(argv ...string) *exec.Cmd {
	enter := []string{"--target", m.pid, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"}
	command := exec.Command("nsenter", append(enter, argv...)...)
	command.Dir = "/"
	// kubectl keeps a cache at home: /run is the machine's own.
	command.Env = []string{"PATH=" + m.bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/run"}
	return command
}

// Exec runs a program inside the machine, for at most a minute, and returns what it printed on standard output.
func (m *machine) Exec(argv ...string) (string, error) { return m.execInput("", argv...) }

func (m *machine) execInput(input string, argv ...string) (string, error) {
	command := m.command(append([]string{"timeout", "--kill-after=1", "60"}, argv...)...)
	var stdout, stderr bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %s: %w: %s", m.name, strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Start runs a program inside the machine until the machine ends; its output goes to a log of that name.
func (m *machine) Start(name string, argv ...string) (*process, error) {
	// It joins the machine's cgroups first: nsenter enters only the view of them.
	join := `for file in /sys/fs/cgroup/*/cgroup.procs; do echo 0 >"$file"; done; exec "$@"`
	return m.launch(name, m.command(append([]string{"sh", "-ec", join, "sh"}, argv...)...))
}

func (m *machine) launch(name string, command *exec.Cmd) (*process, error) {
	p := &process{name: m.name + "/" + name, log: filepath.Join(m.logs, name+".log"), command: command, ended: make(chan struct{})}
	output, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	command.Stdout, command.Stderr = output, output
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	go func() {
		_ = command.Wait()
		close(p.ended)
	}()
	return p, nil
}

// Path returns where the host sees a file of the machine. No part of path may be an absolute symbolic link.
func (m *machine) Path(path string) string { return filepath.Join("/proc", m.pid, "root", path) }

// WriteFile writes a file of the machine and makes the folders above it.
func (m *machine) WriteFile(path, content string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(m.Path(path)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(m.Path(path), []byte(content), mode)
}

// plug connects the machine to the switch by a veth pair, as its eth0. Neither end is ever in the host's namespace.
func (c *Cluster) plug(m *machine, number int) error {
	m.address = [2]netip.Addr{addressIn(underlay4, number), addressIn(underlay6, number)}
	// Only the switch's network is entered here: the node's pid means nothing among its processes.
	create := exec.Command("nsenter", "--target", c.fabric.pid, "--net", "ip", "link", "add", m.name, "type", "veth", "peer", "name", "eth0", "netns", m.pid)
	if output, err := create.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(create.Args, " "), err, output)
	}
	if err := c.fabric.ip("link set " + m.name + " master br0 up"); err != nil {
		return err
	}
	return m.ip(
		"link set eth0 up",
		fmt.Sprintf("address add %s/%d dev eth0", m.address[0], underlay4.Bits()),
		// Without duplicate address detection: it would keep the address unusable for a second.
		fmt.Sprintf("address add %s/%d dev eth0 nodad", m.address[1], underlay6.Bits()),
		fmt.Sprintf("route add default via %s", addressIn(underlay4, 1)),
		fmt.Sprintf("-6 route add default via %s", addressIn(underlay6, 1)),
	)
}

// ip runs ip(8) commands inside the machine, one after the other.
func (m *machine) ip(commands ...string) error {
	for _, command := range commands {
		if _, err := m.Exec(append([]string{"ip"}, strings.Fields(command)...)...); err != nil {
			return err
		}
	}
	return nil
}

// addressIn returns the address of a prefix with the given number as its last byte.
func addressIn(prefix netip.Prefix, number int) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	bytes[len(bytes)-1] = byte(number)
	address, _ := netip.AddrFromSlice(bytes)
	return address
}
