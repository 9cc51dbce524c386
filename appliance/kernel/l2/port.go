// Package l2 answers ARP and Neighbour Discovery for addresses that no link has, and carries the hellos of nodes on a segment.
//
//	segment ── ARP ─────── answer at once, if the address is held ── else, somebody uses a watched address: Heard
//	        ── NDP ─────── the same
//	        ── hello ───── Event
//
// Questions are answered where they are read, by a goroutine that does nothing else: a daemon that is busy must not be slow here.
package l2

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/compile/announce"
	"weft.network/weft/appliance/model"
)

// HelloProtocol is the EtherType of hellos: "local experimental 1" of IEEE 802.
const HelloProtocol = 0x88b5

// helloGroup is the group address of hellos, so that only nodes of weft are woken by them.
var helloGroup = model.MAC{0x03, 'w', 'e', 'f', 't', 0x01}

// Port is one link of the node.
type Port struct {
	name  string
	index int
	mac   model.MAC
	// socks are the raw sockets by what they carry; groups is one that only joins multicast groups.
	arp, ndp, hello *socket
	groups          int
	events          chan announce.Heard
	work            sync.WaitGroup
	closed          atomic.Bool

	answered atomic.Uint64
	// view is what the readers go by.
	view atomic.Pointer[view]

	mu     sync.Mutex
	joined map[netip.Addr]bool
}

// view is the addresses that are answered for and those that are looked out for.
type view struct{ held, watched map[netip.Addr]bool }

// eventQueue is how many events may wait.
const eventQueue = 256

// Open opens the link of that name, in the network namespace of the calling thread.
func Open(name string) (*Port, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("opening link %s: %w", name, err)
	}
	if len(link.HardwareAddr) != 6 {
		return nil, fmt.Errorf("link %s has no Ethernet address: addresses cannot be answered for on it", name)
	}
	p := &Port{
		name: name, index: link.Index, mac: model.MAC(link.HardwareAddr), groups: -1,
		events: make(chan announce.Heard, eventQueue), joined: map[netip.Addr]bool{},
	}
	p.view.Store(&view{})
	if err := p.open(); err != nil {
		p.Close()
		return nil, fmt.Errorf("opening link %s: %w", name, err)
	}
	for s, read := range map[*socket]func([]byte){p.arp: p.readARP, p.ndp: p.readNDP, p.hello: p.readHello} {
		p.work.Go(func() { s.run(read) })
	}
	return p, nil
}

func (p *Port) open() (err error) {
	if p.arp, err = listen(p.index, unix.ETH_P_ARP, nil); err != nil {
		return err
	}
	if p.ndp, err = listen(p.index, unix.ETH_P_IPV6, onlyNeighbours); err != nil {
		return err
	}
	if p.hello, err = listen(p.index, HelloProtocol, nil); err != nil {
		return err
	}
	group := unix.PacketMreq{Ifindex: int32(p.index), Type: unix.PACKET_MR_MULTICAST, Alen: 6}
	copy(group.Address[:], helloGroup[:])
	if err := unix.SetsockoptPacketMreq(p.hello.fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &group); err != nil {
		return fmt.Errorf("joining the group of hellos: %w", err)
	}
	// A node without IPv6 has no such socket, and no such groups to join.
	if p.groups, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); errors.Is(err, unix.EAFNOSUPPORT) {
		p.groups = -1
	} else if err != nil {
		return fmt.Errorf("opening a socket for multicast groups: %w", err)
	}
	return nil
}

// MAC returns the link's own hardware address.
func (p *Port) MAC() model.MAC { return p.mac }

// Stale reports whether the link is another one by now than the one that was opened.
func (p *Port) Stale() bool {
	link, err := net.InterfaceByName(p.name)
	return err != nil || link.Index != p.index || string(link.HardwareAddr) != string(p.mac[:])
}

// Events are what was heard. The channel is closed after Close.
func (p *Port) Events() <-chan announce.Heard { return p.events }

// Answered counts the questions about held addresses that were answered.
func (p *Port) Answered() uint64 { return p.answered.Load() }

// Close ends the port. Nothing is said to the segment.
func (p *Port) Close() {
	if p.closed.Swap(true) {
		return
	}
	for _, s := range []*socket{p.arp, p.ndp, p.hello} {
		if s != nil {
			s.close()
		}
	}
	if p.groups >= 0 {
		_ = unix.Close(p.groups)
	}
	p.work.Wait()
	close(p.events)
}

func (p *Port) tell(e announce.Heard) {
	select {
	case p.events <- e:
	default: // who floods us must not stop the answers
	}
}

// Set says which addresses are answered for, and which are looked out for. The same again changes nothing.
func (p *Port) Set(held, watched []netip.Addr) error {
	v := &view{held: map[netip.Addr]bool{}, watched: map[netip.Addr]bool{}}
	for _, a := range watched {
		v.watched[a] = true
	}
	for _, a := range held {
		v.held[a], v.watched[a] = true, true
	}
	p.view.Store(v)
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for a := range v.held {
		if a.Is6() && !p.joined[a] && p.groups >= 0 {
			if err := p.group(unix.IPV6_JOIN_GROUP, a); err != nil {
				errs = append(errs, fmt.Errorf("listening for questions about %s on %s: %w", a, p.name, err))
				continue
			}
			p.joined[a] = true
		}
	}
	for _, a := range slices.Collect(maps.Keys(p.joined)) {
		if !v.held[a] {
			delete(p.joined, a)
			if !slices.ContainsFunc(slices.Collect(maps.Keys(p.joined)), func(o netip.Addr) bool { return solicitedNode(o) == solicitedNode(a) }) {
				_ = p.group(unix.IPV6_LEAVE_GROUP, a)
			}
		}
	}
	return errors.Join(errs...)
}

// group joins or leaves the group that questions about an address are sent to. The kernel tells the switches (MLD).
func (p *Port) group(option int, a netip.Addr) error {
	m := &unix.IPv6Mreq{Multiaddr: solicitedNode(a).As16(), Interface: uint32(p.index)}
	err := unix.SetsockoptIPv6Mreq(p.groups, unix.IPPROTO_IPV6, option, m)
	if errors.Is(err, unix.EADDRINUSE) && option == unix.IPV6_JOIN_GROUP {
		return nil // another address has the same group
	}
	return err
}

// Hello sends a hello to all nodes of the segment.
func (p *Port) Hello(payload []byte) error {
	return p.send(p.hello, ethernet(helloGroup, p.mac, HelloProtocol, payload))
}

// Probe asks whether anybody uses an address, without a claim to it (RFC 5227 section 2.1.1, RFC 4862 section 5.4.2).
func (p *Port) Probe(a netip.Addr) error {
	if a.Is4() {
		return p.send(p.arp, arpFrame(broadcast, arp{op: arpRequest, fromMAC: p.mac, from: netip.IPv4Unspecified(), to: a}))
	}
	return p.send(p.ndp, solicitation(p.mac, a))
}

// Announce tells everybody that an address is here: both forms of gratuitous ARP, since some listen to one of them only, or an
// unsolicited advertisement.
func (p *Port) Announce(a netip.Addr) error {
	if a.Is6() {
		return p.send(p.ndp, advertisement(p.mac, allNodesMAC, a, allNodes, false))
	}
	return errors.Join(
		p.send(p.arp, arpFrame(broadcast, arp{op: arpRequest, fromMAC: p.mac, from: a, to: a})),
		p.send(p.arp, arpFrame(broadcast, arp{op: arpReply, fromMAC: p.mac, from: a, toMAC: broadcast, to: a})),
	)
}

func (p *Port) send(s *socket, frame []byte) error {
	if err := s.send(frame); err != nil {
		return fmt.Errorf("sending on %s: %w", p.name, err)
	}
	return nil
}

// readARP answers questions and notes who uses an address.
func (p *Port) readARP(frame []byte) {
	a, ok := parseARP(frame)
	if !ok || a.fromMAC == p.mac {
		return
	}
	v := p.view.Load()
	if a.from != netip.IPv4Unspecified() && v.watched[a.from] {
		p.tell(announce.Heard{Addr: a.from, From: a.fromMAC})
	}
	if a.op == arpRequest && a.from != a.to && v.held[a.to] {
		answer := arp{op: arpReply, fromMAC: p.mac, from: a.to, toMAC: a.fromMAC, to: a.from}
		if p.arp.send(arpFrame(a.fromMAC, answer)) == nil {
			p.answered.Add(1)
		}
	}
}

// readNDP is the same for IPv6.
func (p *Port) readNDP(frame []byte) {
	n, ok := parseNeighbour(frame)
	if !ok || n.fromMAC == p.mac {
		return
	}
	v := p.view.Load()
	switch {
	case n.advertises && v.watched[n.target]:
		p.tell(announce.Heard{Addr: n.target, From: n.mac})
	case !n.advertises && v.watched[n.from]:
		p.tell(announce.Heard{Addr: n.from, From: n.fromMAC})
	}
	if n.advertises || !v.held[n.target] {
		return
	}
	answer := advertisement(p.mac, n.fromMAC, n.target, n.from, true)
	if n.from.IsUnspecified() { // somebody is about to use it: everybody must hear that it is taken
		answer = advertisement(p.mac, allNodesMAC, n.target, allNodes, false)
	}
	if p.ndp.send(answer) == nil {
		p.answered.Add(1)
	}
}

func (p *Port) readHello(frame []byte) {
	if len(frame) < etherLen || model.MAC(frame[6:12]) == p.mac {
		return
	}
	p.tell(announce.Heard{Hello: slices.Clone(frame[etherLen:]), From: model.MAC(frame[6:12])})
}

// onlyNeighbours lets solicitations and advertisements through and nothing else: a link carries much more IPv6 than those.
var onlyNeighbours = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: etherLen + 6}, // next header
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_ICMPV6, Jf: 4},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: etherLen + ipv6Len}, // type
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: typeSolicitation, Jt: 1},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: typeAdvertisement, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

// filter puts a program on a socket.
func filter(fd int, program []unix.SockFilter) error {
	f := unix.SockFprog{Len: uint16(len(program)), Filter: unsafe.SliceData(program)}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &f)
}
