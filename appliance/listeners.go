package appliance

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
)

// listener is a socket of this node that takes connections or datagrams.
type listener struct {
	protocol model.Protocol
	at       netip.AddrPort
	inode    string
}

// Columns of /proc/net/tcp and udp, and the states that wait for others (include/net/tcp_states.h).
const (
	columnLocal, columnState, columnInode = 1, 3, 9
	stateListen, stateUnconnected         = "0A", "07"
)

// listeners reads the sockets that listen from the files in a folder such as /proc/self/net. The kernel of this machine may lack a
// family or protocol.
func listeners(dir string) (out []listener) {
	for _, f := range []struct {
		name, state string
		protocol    model.Protocol
	}{{"tcp", stateListen, model.TCP}, {"tcp6", stateListen, model.TCP}, {"udp", stateUnconnected, model.UDP}, {"udp6", stateUnconnected, model.UDP}} {
		file, err := os.Open(filepath.Join(dir, f.name))
		if err != nil {
			continue
		}
		out = append(out, parseListeners(file, f.state, f.protocol)...)
		_ = file.Close()
	}
	return out
}

func parseListeners(r io.Reader, state string, protocol model.Protocol) (out []listener) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) <= columnInode || fields[columnState] != state {
			continue
		}
		if at, ok := parseSocket(fields[columnLocal]); ok {
			out = append(out, listener{protocol, at, fields[columnInode]})
		}
	}
	return out
}

// parseSocket reads an address as /proc/net prints it: words of 32 bits in the order of the machine, and a port.
func parseSocket(s string) (netip.AddrPort, bool) {
	addr, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(addr)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok
}

// socketOwner names the process that has a socket; empty if it cannot be found.
func socketOwner(proc, inode string) string {
	want := "socket:[" + inode + "]"
	links, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	if err != nil {
		return ""
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == want {
			dir := filepath.Dir(filepath.Dir(link))
			comm, err := os.ReadFile(filepath.Join(dir, "comm"))
			if err != nil {
				return "pid " + filepath.Base(dir)
			}
			return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), filepath.Base(dir))
		}
	}
	return ""
}

// usedNodePorts names the node ports at which a process of this node listens, too: what is meant for it goes to the Service.
func usedNodePorts(all map[model.ServiceKey]*service.Frontends, nodePorts []netip.Prefix, list []listener, owner func(inode string) string) []string {
	type claim struct {
		protocol model.Protocol
		port     uint16
	}
	claims := map[claim]model.ServiceKey{}
	for key, f := range all {
		for i := range f.Ports {
			for _, e := range f.Ports[i].Frontends {
				if e.Kind == service.NodePort {
					claims[claim{f.Ports[i].Protocol, e.Port}] = key
				}
			}
		}
	}
	var out []string
	for _, l := range list {
		key, ok := claims[claim{l.protocol, l.at.Port()}]
		a := l.at.Addr()
		if !ok || a.IsLoopback() || len(nodePorts) > 0 && !a.IsUnspecified() && !slices.ContainsFunc(nodePorts, func(p netip.Prefix) bool { return p.Contains(a) }) {
			continue
		}
		who := owner(l.inode)
		if who == "" {
			who = "a process"
		}
		text := fmt.Sprintf("node port %d/%s of Service %s is in use by %s, which listens on %s: its connections go to the Service; change one of the two ports",
			l.at.Port(), l.protocol, key, who, l.at)
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return out
}
