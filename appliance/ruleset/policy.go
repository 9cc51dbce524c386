package ruleset

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/compile/policy"
	"weft.network/weft/appliance/model"
)

// PolicyTable is the name of the two tables, one for each family, that hold NetworkPolicies: "ip" and "ip6" need no rule that
// asks for the family first.
const PolicyTable = "weft_policy"

// PolicyMarkMask are the bits of the connection mark that belong to policy: the generation in which a flow was last judged.
const PolicyMarkMask = 0xffffff00

// PolicyStep is the distance between two generations: the lowest of those bits.
const PolicyStep = 0x00000100

// PolicyLogGroup is the nflog group to which dropped packets go.
const PolicyLogGroup uint16 = 8087

// PolicyInput is what the tables depend on.
type PolicyInput struct {
	Filters *policy.Filters
	// Generation is the mark of flows that were judged by what is in force; a multiple of PolicyStep, never 0.
	Generation uint32
	// Linger leaves what belonged to Pods that are gone: nobody has their addresses, and a transaction that takes something
	// away waits for the kernel far longer than one that only adds.
	Linger bool
	// Closed leaves out all that is allowed: a table that was lost is first there for those who are isolated.
	Closed bool
}

// Policies makes the tables for NetworkPolicies and remembers them, so that the next ones keep the pointers of all that stays.
// Its zero value is ready. It is not for several goroutines at once.
//
//	forwarded packet   filter   forward -> orig or reply -> eg, in or their mirrors eg_reply, in_reply
//	to the node's DNS  filter   input -> eg
//
// The rules are the same for any number of policies and Pods. A chain that judges puts the identity of the peer into the
// packet's priority, which nothing needs at that place, and asks sets for (own address, identity, protocol, port).
type Policies struct {
	families [2]policyFamily
}

// policyFamily is one of the two tables.
type policyFamily struct {
	own    map[netip.Addr]*ownBlocks
	shards [policy.Shards]shardBlock
	sets   [policySets]*Set
	ids    idsBlock
	dns    []netip.AddrPort
	stale  bool // some own address is nobody's any more
	chains map[policyChains][]*Chain
}

// ownBlocks are the elements of one address.
type ownBlocks struct {
	filter *policy.Filter
	closed bool
	blocks [policySets]*Block
}

// shardBlock are the elements of one group of peers, and those that linger.
type shardBlock struct {
	shard *policy.Shard
	gone  map[netip.Addr]policy.Peer
	block *Block
	// inherited says that the block is what the kernel had, and not what a shard says.
	inherited bool
}

// idsBlock describes the identities.
type idsBlock struct {
	classes []*policy.Class
	block   *Block
}

// policyFamilies are the families of the two tables.
var policyFamilies = [...]Family{IPv4, IPv6}

// Tables returns both tables; empty ones, which the backend removes, when no policy selects any Pod of this node.
func (p *Policies) Tables(in PolicyInput) []Table {
	out := make([]Table, 0, 2)
	for i, family := range policyFamilies {
		f := &p.families[i]
		f.update(family, in)
		out = append(out, f.table(family, in))
	}
	return out
}

// Lingering reports whether anything is there of Pods that are gone.
func (p *Policies) Lingering() bool {
	for i := range p.families {
		f := &p.families[i]
		if f.stale {
			return true
		}
		for j := range f.shards {
			if len(f.shards[j].gone) > 0 {
				return true
			}
		}
	}
	return false
}

// Keep returns both tables as they would be now, with the filters of some addresses put in and all else left as it is: for the
// time in which the kernel knows better than the picture of the cluster.
func (p *Policies) Keep(in PolicyInput, addresses []netip.Addr) []Table {
	out := make([]Table, 0, 2)
	for i, family := range policyFamilies {
		f := &p.families[i]
		for _, a := range addresses {
			if a.Is4() == (family == IPv4) {
				f.put(family, a, in.Filters.Own[a], false)
				f.admit(family, a, in.Filters)
			}
		}
		out = append(out, f.table(family, in))
	}
	return out
}

// update takes new filters over.
func (f *policyFamily) update(family Family, in PolicyInput) {
	f.stale = false
	for addr := range f.own {
		if in.Filters.Own[addr] != nil {
			continue
		}
		if _, attached := in.Filters.Attached[addr]; in.Linger && !attached {
			f.stale = true
			continue
		}
		f.put(family, addr, nil, false)
	}
	for addr, filter := range in.Filters.Own {
		if addr.Is4() == (family == IPv4) {
			f.put(family, addr, filter, in.Closed)
		}
	}
	edit := map[string]*Block{}
	for i := range f.shards {
		old := f.shards[i].block
		if f.shards[i].update(family, in.Filters.Peers[i], in.Linger); f.shards[i].block != old {
			edit[shardName(i)] = f.shards[i].block
		}
	}
	f.edit(family, setPeers, edit)
	if !slices.Equal(f.ids.classes, in.Filters.Classes) || f.ids.block == nil {
		f.ids.classes = in.Filters.Classes
		next := identities(in.Filters.Classes)
		if f.ids.block == nil || !slices.Equal(f.ids.block.Elements, next.Elements) {
			f.ids.block = next
			f.edit(family, setIdentities, map[string]*Block{"": next})
		}
	}
	dns := slices.DeleteFunc(slices.Clone(in.Filters.DNS), func(a netip.AddrPort) bool { return a.Addr().Is4() != (family == IPv4) })
	slices.SortFunc(dns, netip.AddrPort.Compare)
	if !slices.Equal(f.dns, dns) {
		f.dns = dns
		f.edit(family, setDNS, map[string]*Block{"": dnsBlock(dns)})
	}
}

// put sets the filter of one address; nil removes it.
func (f *policyFamily) put(family Family, addr netip.Addr, filter *policy.Filter, closed bool) {
	old := f.own[addr]
	if old != nil && old.filter == filter && filter != nil && old.closed == closed || old == nil && filter == nil {
		return
	}
	if old == nil {
		old = &ownBlocks{}
	}
	next := &ownBlocks{filter: filter, closed: closed}
	if filter != nil {
		next.fill(filter, closed)
	}
	for i := range next.blocks {
		was, is := old.blocks[i], next.blocks[i]
		if was != nil && is != nil && slices.Equal(was.Elements, is.Elements) {
			next.blocks[i] = was
			continue
		}
		if was != is {
			f.edit(family, i, map[string]*Block{addr.String(): is})
		}
	}
	if f.own == nil {
		f.own = map[netip.Addr]*ownBlocks{}
	}
	if f.own[addr] = next; filter == nil {
		delete(f.own, addr)
	}
}

// edit replaces some blocks of a set.
func (f *policyFamily) edit(family Family, kind int, blocks map[string]*Block) {
	if len(blocks) == 0 {
		return
	}
	next := policySet(kind, family)
	next.Blocks = map[string]*Block{}
	if f.sets[kind] != nil {
		maps.Copy(next.Blocks, f.sets[kind].Blocks)
	}
	for owner, b := range blocks {
		if b == nil || len(b.Elements) == 0 {
			delete(next.Blocks, owner)
		} else {
			next.Blocks[owner] = b
		}
	}
	f.sets[kind] = next
}

// admit adds one address to the peers as they are.
func (f *policyFamily) admit(family Family, addr netip.Addr, filters *policy.Filters) {
	i := policy.ShardOf(addr)
	s := &f.shards[i]
	var list []Element
	if s.block != nil {
		list = slices.DeleteFunc(slices.Clone(s.block.Elements), func(e Element) bool { return e.Key == Addr(addr) })
	}
	if shard := filters.Peers[i]; shard != nil {
		if p, ok := shard.Peers[addr]; ok {
			list = append(list, peerElement(addr, p))
		}
	}
	s.block, s.inherited = &Block{Elements: list}, true
	f.edit(family, setPeers, map[string]*Block{shardName(i): s.block})
}

func peerElement(addr netip.Addr, p policy.Peer) Element {
	return Element{Key: Addr(addr), Data: idValue(p.Class.ID), Comment: policyComment(p.Pod.Namespace + "/" + p.Pod.Name)}
}

// table puts a table together.
func (f *policyFamily) table(family Family, in PolicyInput) Table {
	t := Table{Family: family, Name: PolicyTable, Comment: "written by weft; changes made by hand are undone"}
	if len(f.own) == 0 {
		return t
	}
	f.generation(family, in.Generation)
	for i := range f.sets {
		if f.sets[i] == nil {
			f.sets[i] = policySet(i, family)
		}
		t.Sets = append(t.Sets, f.sets[i])
	}
	key := policyChains{in.Generation, len(f.dns) > 0}
	if f.chains[key] == nil {
		f.chains = map[policyChains][]*Chain{key: key.chains(family)}
	}
	t.Chains = f.chains[key]
	return t
}

// generation writes the generation down where a daemon that starts can read it.
func (f *policyFamily) generation(family Family, gen uint32) {
	e := Element{Key: Mark(gen)}
	if s := f.sets[setGeneration]; s != nil && s.Blocks[""] != nil && s.Blocks[""].Elements[0].Key == e.Key {
		return
	}
	f.edit(family, setGeneration, map[string]*Block{"": {Elements: []Element{e}}})
}

// update takes over a group of peers.
func (s *shardBlock) update(family Family, now *policy.Shard, linger bool) {
	if s.shard == now && (linger || len(s.gone) == 0) && !s.inherited {
		return
	}
	peers := map[netip.Addr]policy.Peer{}
	if now != nil {
		peers = now.Peers
	}
	gone := map[netip.Addr]policy.Peer{}
	if linger {
		maps.Copy(gone, s.gone)
		if s.shard != nil {
			maps.Copy(gone, s.shard.Peers)
		}
		maps.DeleteFunc(gone, func(a netip.Addr, _ policy.Peer) bool { _, is := peers[a]; return is })
	}
	s.shard, s.gone, s.inherited = now, gone, false
	var list []Element
	for _, from := range []map[netip.Addr]policy.Peer{peers, gone} {
		for addr, p := range from {
			if addr.Is4() == (family == IPv4) {
				list = append(list, peerElement(addr, p))
			}
		}
	}
	sortByKey(list)
	switch {
	case len(list) == 0:
		s.block = nil
	case s.block == nil || !slices.Equal(s.block.Elements, list):
		s.block = &Block{Elements: list}
	}
}

// fill makes the elements of one address.
func (o *ownBlocks) fill(f *policy.Filter, closed bool) {
	lists := [policySets][]Element{}
	own := Addr(f.Addr)
	lists[setSelf] = []Element{{Key: Tuple(own, own)}}
	for d, a := range f.Directions {
		if a == nil {
			continue
		}
		at := func(kind int) *[]Element { return &lists[ofDirection(policy.Direction(d), kind)] }
		*at(dirIsolated) = []Element{{Key: own, Comment: isolatedText(f.Pod, a)}}
		if a.Audit {
			*at(dirAudit) = []Element{{Key: own}}
		}
		if closed && !a.Audit {
			continue
		}
		if a.Pods {
			*at(dirPods) = []Element{{Key: own}}
		}
		for _, p := range a.PodPorts {
			*at(dirPodPorts) = append(*at(dirPodPorts), portRange(Tuple(own), Tuple(own), p))
		}
		for _, id := range a.Any {
			*at(dirAny) = append(*at(dirAny), Element{Key: Tuple(own, idValue(id))})
		}
		for _, p := range a.Ports {
			key := Tuple(own, idValue(p.Peer))
			if p.First == p.Last {
				*at(dirAllow) = append(*at(dirAllow), Element{Key: Tuple(key, Proto(p.Protocol), Port(p.First))})
			} else {
				*at(dirRange) = append(*at(dirRange), portRange(key, key, p.Ports))
			}
		}
		for _, n := range a.Nets {
			*at(dirNet) = append(*at(dirNet), Element{Key: Tuple(own, Addr(n.From)), End: Tuple(own, Addr(n.To))})
		}
		for _, b := range a.Blocks {
			*at(dirCIDR) = append(*at(dirCIDR), portRange(Tuple(own, Addr(b.From)), Tuple(own, Addr(b.To)), b.Ports))
		}
	}
	for i, list := range lists {
		if len(list) > 0 {
			sortByKey(list)
			o.blocks[i] = &Block{Elements: list}
		}
	}
}

// sortByKey brings elements into one order, so that equal blocks compare equal.
func sortByKey(list []Element) {
	slices.SortFunc(list, func(a, b Element) int { return strings.Compare(a.ID(), b.ID()) })
}

func portRange(from, to Value, p policy.Ports) Element {
	return Element{Key: Tuple(from, Proto(p.Protocol), Port(p.First)), End: Tuple(to, Proto(p.Protocol), Port(p.Last))}
}

// idValue is an identity in the form in which nft(8) prints it.
func idValue(id policy.ID) Value {
	return Value([]byte{byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)})
}

func isolatedText(pod model.PodRef, a *policy.Allowed) string {
	var names []string
	for _, k := range a.Policies {
		names = append(names, k.Name)
	}
	return policyComment(pod.String() + " by " + strings.Join(names, ", "))
}

// policyComment cuts a text to what a comment may be.
func policyComment(text string) string {
	if strings.ContainsAny(text, "\"\n\x00") {
		text = strings.NewReplacer("\"", "'", "\n", " ", "\x00", " ").Replace(text)
	}
	const most = 120
	if len(text) <= most {
		return text
	}
	return text[:most] + "..."
}

func identities(classes []*policy.Class) *Block {
	b := &Block{}
	for _, c := range classes {
		b.Elements = append(b.Elements, Element{Key: idValue(c.ID), Comment: policyComment(c.Text)})
	}
	return b
}

func dnsBlock(list []netip.AddrPort) *Block {
	b := &Block{}
	for _, a := range list {
		for _, p := range []model.Protocol{model.TCP, model.UDP} {
			b.Elements = append(b.Elements, Element{Key: Tuple(Addr(a.Addr()), Proto(p), Port(a.Port()))})
		}
	}
	return b
}
