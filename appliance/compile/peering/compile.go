package peering

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weft.network/weft/appliance/model"
)

// Compile returns what this node's speaker should be. It never fails as a whole: a peer that cannot be used is refused with the
// reason, and the others go on.
func Compile(snap *model.Snapshot, cfg Config) Speaker {
	c := compiler{snap: snap, cfg: cfg, self: snap.Node(cfg.NodeName), taken: map[netip.Addr]string{}, switches: map[string]switches{}}
	if c.self == nil {
		return c.out
	}
	c.out.ASN = c.asn(c.self)
	c.out.RouterID = c.routerID()
	if cfg.Listen {
		c.out.Port = cfg.Port
	}
	c.peers()
	if cfg.Mesh {
		c.mesh()
	}
	c.out.Drained = c.drained()
	slices.SortFunc(c.out.Neighbours, func(a, b Neighbour) int { return a.Address.Compare(b.Address) })
	slices.SortFunc(c.out.Groups, func(a, b Group) int { return cmp.Compare(a.Name, b.Name) })
	if len(c.out.Neighbours) > 0 {
		c.paths()
	}
	return c.out
}

type compiler struct {
	snap     *model.Snapshot
	cfg      Config
	self     *model.Node
	taken    map[netip.Addr]string // which peer has the address
	switches map[string]switches   // by group
	out      Speaker
}

func (c *compiler) problem(format string, args ...any) {
	c.out.Problems = append(c.out.Problems, fmt.Sprintf(format, args...))
}

// asn is the AS number of a node: its label, else that of the configuration, which all nodes share.
func (c *compiler) asn(n *model.Node) uint32 {
	if text, ok := n.Labels[ASNLabel]; ok {
		asn, err := strconv.ParseUint(text, 10, 32)
		if err == nil && asn > 0 {
			return uint32(asn)
		}
		c.problem("node %s: label %s: %q is not an AS number from 1 to 4294967295", n.Name, ASNLabel, text)
	}
	return cmp.Or(c.cfg.ASN, DefaultASN)
}

// routerID is the node's first IPv4 address. A node without one derives a number from its name: it need only differ from others'.
func (c *compiler) routerID() netip.Addr {
	if c.cfg.RouterID.IsValid() {
		return c.cfg.RouterID
	}
	for _, a := range c.self.Addresses {
		if a.Is4() {
			return a
		}
	}
	sum := sha256.Sum256([]byte("weft router " + c.self.Name))
	return netip.AddrFrom4([4]byte{sum[0]%223 + 1, sum[1], sum[2], sum[3]})
}

// peers adds the BGPPeers of the cluster and of weft.yaml that are for this node.
func (c *compiler) peers() {
	all := slices.Clone(c.cfg.Peers)
	for _, name := range slices.Sorted(maps.Keys(c.snap.BGPPeers)) {
		all = append(all, c.snap.BGPPeers[name])
	}
	for _, p := range all {
		if !selects(p.NodeSelector, c.self.Labels) {
			continue
		}
		if why := c.add(p); why != "" {
			c.out.Refused = append(c.out.Refused, Refused{Name: p.Name, Address: p.Address, ASN: p.ASN, Why: why})
			c.problem("BGPPeer %q (%s): %s", p.Name, p.Address, why)
		}
	}
}

func selects(selector, labels map[string]string) bool {
	for key, value := range selector {
		if have, ok := labels[key]; !ok || have != value {
			return false
		}
	}
	return true
}

// add makes a neighbour of a peer, or says why not.
func (c *compiler) add(p *model.BGPPeer) string {
	if slices.Contains(c.self.Addresses, p.Address) || p.Address.IsLoopback() {
		return "this is an address of the node itself: select other nodes with nodeSelector"
	}
	if other, ok := c.taken[p.Address]; ok {
		return fmt.Sprintf("BGPPeer %q has the same address: remove one of them, or let them select different nodes", other)
	}
	password, why := c.password(p.PasswordSecret, p.PasswordFile)
	if why != "" {
		return "no session without its password: " + why
	}
	c.taken[p.Address] = p.Name
	n := Neighbour{
		Name: p.Name, Address: p.Address, ASN: p.ASN, LocalASN: cmp.Or(p.LocalASN, c.out.ASN), Port: p.Port, Source: p.Source, Passive: p.Passive,
		MultihopTTL: p.MultihopTTL, TTLSecurityHops: p.TTLSecurityHops, HoldSeconds: p.HoldSeconds, KeepaliveSeconds: p.KeepaliveSeconds,
		ConnectRetrySeconds: p.ConnectRetrySeconds, RestartSeconds: p.RestartSeconds, Password: password, IPv4: p.IPv4, IPv6: p.IPv6,
		MaxPrefixes: p.MaxPrefixes, ReflectorClient: p.ReflectorClient, Import: p.Import,
	}
	if !n.Internal() && p.MultihopTTL == 0 && p.TTLSecurityHops < 2 && !c.near(p.Address) {
		c.problem("BGPPeer %q (%s): the peer is on no subnet of this node, and external sessions reach no further: set multihopTTL", p.Name, p.Address)
	}
	if p.Passive && !c.cfg.Listen {
		c.problem("BGPPeer %q (%s): neither end will connect: the peer is passive, and bgp.listen is false in weft.yaml", p.Name, p.Address)
	}
	if p.ReflectorClient && !n.Internal() {
		c.problem("BGPPeer %q (%s): reflectorClient is for internal peers (peerASN %d): ignored", p.Name, p.Address, n.LocalASN)
		n.ReflectorClient = false
	}
	n.Group = c.group(&n, c.switchesOf(p))
	c.out.Neighbours = append(c.out.Neighbours, n)
	return ""
}

func (c *compiler) near(a netip.Addr) bool {
	return len(c.cfg.Subnets) == 0 || slices.ContainsFunc(c.cfg.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// maxPassword is what the kernel takes (TCP_MD5SIG_MAXKEYLEN).
const maxPassword = 80

// password finds the password that a Secret or a file has, or says why there is none. An empty one is none: the session would be
// open to everybody.
func (c *compiler) password(ref *model.SecretRef, path string) (text, why string) {
	switch {
	case ref != nil:
		key := model.SecretKey{Namespace: c.cfg.SecretNamespace, Name: ref.Name}
		secret := c.snap.Secrets[key]
		if secret == nil {
			return "", fmt.Sprintf("Secret %s does not exist, or weft may not read it (rbac.yaml names those that it may)", key)
		}
		text = strings.TrimRight(string(secret.Data[ref.Key]), "\r\n")
		if text == "" {
			return "", fmt.Sprintf("Secret %s has nothing under the key %q", key, ref.Key)
		}
	case path != "":
		file := c.cfg.Files[path]
		if text = strings.TrimRight(file.Text, "\r\n"); file.Problem != "" || text == "" {
			return "", fmt.Sprintf("%s: %s", path, cmp.Or(file.Problem, "the file is empty"))
		}
	default:
		return "", ""
	}
	if len(text) > maxPassword {
		return "", fmt.Sprintf("it has %d bytes, and the kernel takes %d", len(text), maxPassword)
	}
	return text, ""
}

// The sessions between nodes have the timers of RFC 4271, except that they try again sooner.
const (
	meshHold         = 90
	meshConnectRetry = 5
	meshRestart      = 120
)

// mesh adds sessions to the other nodes: to all, or to the reflectors when there are any.
func (c *compiler) mesh() {
	nodes := c.snap.SortedNodes()
	isReflector := func(n *model.Node) bool { return set(n.Labels, ReflectorLabel) }
	reflectors := slices.ContainsFunc(nodes, isReflector)
	if !reflectors && len(nodes) > c.cfg.MeshLimit {
		nodes = nodes[:c.cfg.MeshLimit]
		c.problem("BGP between nodes is limited to the first %d nodes by name (bgp.meshLimit): label some nodes %s=true, so that they reflect the routes of the others",
			c.cfg.MeshLimit, ReflectorLabel)
		if !slices.Contains(nodes, c.self) {
			return
		}
	}
	password, why := c.password(c.cfg.MeshSecret, c.cfg.MeshFile)
	if why != "" {
		c.problem("BGP between nodes: no session without its password: %s", why)
	}
	for _, n := range nodes {
		if n.Name == c.self.Name || reflectors && !isReflector(n) && !isReflector(c.self) {
			continue
		}
		c.meshPeer(n, isReflector(c.self) && !isReflector(n), password, why)
	}
}

// meshPeer adds the session with one node, or refuses it because the password is missing.
func (c *compiler) meshPeer(n *model.Node, client bool, password, noPassword string) {
	var address netip.Addr
	for _, own := range c.self.Addresses { // both ends must choose the same family
		for _, a := range n.Addresses {
			if a.Is4() == own.Is4() && (!address.IsValid() || a.Is4() && !address.Is4()) {
				address = a
			}
		}
	}
	switch other, ok := c.taken[address]; {
	case !address.IsValid():
		c.problem("node %s: no BGP session: it has no address of a family that this node has", n.Name)
		return
	case ok && other != "":
		return // a BGPPeer says how to speak with this node
	case noPassword != "":
		c.out.Refused = append(c.out.Refused, Refused{Name: n.Name, Address: address, ASN: c.asn(n), Why: "no session without its password: " + noPassword})
		return
	}
	c.taken[address] = n.Name
	nb := Neighbour{
		Name: n.Name, Mesh: true, Address: address, ASN: c.asn(n), LocalASN: c.out.ASN, Port: c.cfg.Port,
		HoldSeconds: meshHold, KeepaliveSeconds: meshHold / 3, ConnectRetrySeconds: meshConnectRetry, RestartSeconds: meshRestart,
		Password: password, IPv4: true, IPv6: true, ReflectorClient: client, Import: everything,
	}
	// One end connects, the other waits: gobgp closes what comes in while it pauses after a failure, and two that pause in turn
	// may miss each other for minutes.
	for _, own := range c.self.Addresses {
		if own.Is4() == address.Is4() {
			nb.Passive = c.cfg.Listen && own.Compare(address) > 0
			break
		}
	}
	if nb.ReflectorClient {
		if id, err := netip.ParseAddr(c.self.Labels[ReflectorLabel]); err == nil && id.Is4() {
			nb.ClusterID = id
		}
	}
	if !nb.Internal() {
		nb.MultihopTTL = 64
	}
	reflects := set(c.self.Labels, ReflectorLabel)
	nb.Group = c.group(&nb, switches{pods: c.cfg.Native, reflect: reflects && nb.Internal()})
	c.out.Neighbours = append(c.out.Neighbours, nb)
}

// everything is taken from other nodes; the fabric installs only what is a node's Pod range.
var everything = []model.PrefixRule{
	{Prefix: netip.MustParsePrefix("0.0.0.0/0"), LE: 32}, {Prefix: netip.MustParsePrefix("::/0"), LE: 128},
}

func set(labels map[string]string, key string) bool {
	value, ok := labels[key]
	return ok && value != "false"
}

// switches decide which paths a group is told.
type switches struct {
	pods, loadBalancer, external, cluster bool
	export                                []model.PrefixRule
	reflect                               bool
	advertise                             model.BGPAdvertise
}

// switchesOf lays what a peer says over the node's defaults, and those over weft's.
func (c *compiler) switchesOf(p *model.BGPPeer) switches {
	choose := func(peer, node *bool, otherwise bool) bool {
		switch {
		case peer != nil:
			return *peer
		case node != nil:
			return *node
		}
		return otherwise
	}
	d := &c.cfg.Advertise
	s := switches{
		pods:         choose(p.Advertise.PodCIDRs, d.PodCIDRs, c.cfg.Native),
		loadBalancer: choose(p.Advertise.LoadBalancer, d.LoadBalancer, true),
		external:     choose(p.Advertise.ExternalIPs, d.ExternalIPs, true),
		cluster:      choose(p.Advertise.ClusterIPs, d.ClusterIPs, false),
		export:       p.Export, reflect: p.ReflectorClient, advertise: p.Advertise,
	}
	if s.advertise.Communities == nil {
		s.advertise.Communities = d.Communities
	}
	if s.advertise.LargeCommunities == nil {
		s.advertise.LargeCommunities = d.LargeCommunities
	}
	if s.advertise.LocalPreference == nil {
		s.advertise.LocalPreference = d.LocalPreference
	}
	if s.advertise.MED == nil {
		s.advertise.MED = d.MED
	}
	return s
}

// group returns the name of the group of a neighbour, and makes the group if it is the first. A BGPPeer is a group by itself: gobgp
// withdraws from a neighbour what the neighbour's group is not named for any more, and only from such a one.
func (c *compiler) group(n *Neighbour, s switches) string {
	g := Group{
		IPv6: n.Address.Is6(), Communities: s.advertise.Communities, LargeCommunities: s.advertise.LargeCommunities,
		Reflect: s.reflect && n.Internal(),
	}
	if n.Internal() {
		g.LocalPreference = s.advertise.LocalPreference
	} else {
		g.MED = s.advertise.MED
	}
	number := func(v *uint32) string {
		if v == nil {
			return "-"
		}
		return strconv.FormatUint(uint64(*v), 10)
	}
	own := ""
	if !n.Mesh {
		own = n.Name
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %v %v %v %v %v %v %v %v %v %s %s", own, g.IPv6, g.Communities, g.LargeCommunities, g.Reflect,
		s.pods, s.loadBalancer, s.external, s.cluster, s.export, number(g.LocalPreference), number(g.MED)))
	g.Name = hex.EncodeToString(sum[:8])
	if _, known := c.switches[g.Name]; !known {
		c.switches[g.Name] = s
		c.out.Groups = append(c.out.Groups, g)
	}
	return g.Name
}

// drained says why this node tells no addresses of Services.
func (c *compiler) drained() string {
	switch {
	case c.cfg.Drained:
		return "weft bgp drain"
	case set(c.self.Labels, DrainLabel):
		return "node label " + DrainLabel
	case set(c.self.Labels, ExcludeLabel):
		return "node label " + ExcludeLabel
	}
	return ""
}
