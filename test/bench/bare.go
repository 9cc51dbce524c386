package main

import (
	"context"
	"fmt"
	"net/netip"
)

// Bare is a path made by hand: veth pairs, static routes, permanent neighbours, and nothing else.
type Bare struct {
	// Across puts the two Pods on two nodes.
	Across bool
	// VXLAN joins the nodes by a tunnel.
	VXLAN bool
	// Conntrack adds one rule that looks at the state of connections, which has the kernel track them all.
	Conntrack bool
}

func (b Bare) String() string {
	s := "bare veth"
	switch {
	case b.VXLAN:
		s = "bare kernel vxlan"
	case b.Across:
		s = "bare routes"
	}
	if b.Conntrack {
		s += " + conntrack"
	}
	return s
}

func (b Bare) mtu() int {
	if b.VXLAN {
		return 1450
	}
	return 1500
}

// BarePods makes a client's and a server's sandbox on such a path.
func (l *Lab) BarePods(ctx context.Context, b Bare) (pods [2]*Sandbox, err error) {
	nodes, err := l.Nodes(ctx)
	if err != nil {
		return pods, err
	}
	for i, n := range nodes {
		lines := "sysctl -qw net.ipv4.ip_forward=1\n"
		if b.Across {
			lines += b.routes(i)
		}
		if b.Conntrack {
			lines += `nft add table inet bench
				nft add chain inet bench forward { type filter hook forward priority 0 ; }
				nft add rule inet bench forward ct state invalid counter`
		}
		if err := n.run(ctx, lines, nil); err != nil {
			return pods, err
		}
	}
	for i := range pods {
		node := 0
		if b.Across {
			node = i
		}
		if pods[i], err = l.barePod(ctx, nodes[node], node, i, b.mtu()); err != nil {
			return pods, err
		}
	}
	return pods, nil
}

// routes lead from one node to the Pods of the other.
func (b Bare) routes(node int) string {
	own, peer := node+1, 2-node
	if !b.VXLAN {
		return fmt.Sprintf("ip route add 10.99.%[1]d.0/24 via 192.0.2.%[1]d\n", peer)
	}
	return fmt.Sprintf(`
		ip link add vxlan0 address 02:00:00:00:00:0%[1]d mtu %[3]d type vxlan id 99 dstport 4789 local 192.0.2.%[1]d dev eth0 nolearning
		ip addr add 10.99.%[1]d.0/32 dev vxlan0
		ip link set vxlan0 up
		bridge fdb append 02:00:00:00:00:0%[2]d dev vxlan0 dst 192.0.2.%[2]d
		ip neigh add 10.99.%[2]d.0 lladdr 02:00:00:00:00:0%[2]d dev vxlan0 nud permanent
		ip route add 10.99.%[2]d.0/24 via 10.99.%[2]d.0 dev vxlan0 onlink
		`, own, peer, b.mtu())
}

func (l *Lab) barePod(ctx context.Context, node *Netns, nodeNumber, number, mtu int) (*Sandbox, error) {
	pod, err := l.Sandbox()
	if err != nil {
		return nil, err
	}
	pod.node = node
	pod.addr = netip.AddrFrom4([4]byte{10, 99, byte(nodeNumber + 1), byte(number + 2)})
	hostMAC, podMAC := fmt.Sprintf("02:00:00:00:01:0%d", number), fmt.Sprintf("02:00:00:00:02:0%d", number)
	err = node.run(ctx, fmt.Sprintf(`
		ip link add pod%[1]d address %[2]s mtu %[3]d type veth peer name eth0 address %[4]s mtu %[3]d netns @pod
		ip link set pod%[1]d up
		ip route add %[5]s/32 dev pod%[1]d
		ip neigh add %[5]s lladdr %[4]s dev pod%[1]d nud permanent`, number, hostMAC, mtu, podMAC, pod.addr), map[string]*Netns{"pod": pod.Netns})
	if err != nil {
		return nil, err
	}
	return pod, pod.run(ctx, fmt.Sprintf(`
		ip link set lo up
		ip addr add %s/32 dev eth0
		ip link set eth0 up
		ip route add 169.254.1.1 dev eth0 scope link
		ip route add default via 169.254.1.1 dev eth0
		ip neigh add 169.254.1.1 lladdr %s dev eth0 nud permanent`, pod.addr, hostMAC), nil)
}
