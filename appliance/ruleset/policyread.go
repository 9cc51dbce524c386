package ruleset

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/compile/policy"
)

// Inherited is what the kernel tells a daemon that starts.
type Inherited struct {
	// IDs are the identities by address; Last is the highest that is in use anywhere.
	IDs        map[netip.Addr]policy.ID
	Last       policy.ID
	Generation uint32
}

// PolicyShape returns both tables with all their sets and without elements: to ask the kernel for what it holds.
func PolicyShape() []Table {
	var out []Table
	for _, family := range policyFamilies {
		t := Table{Family: family, Name: PolicyTable}
		for i := range policySets {
			t.Sets = append(t.Sets, policySet(i, family))
		}
		out = append(out, t)
	}
	return out
}

// Inherit takes over what the kernel holds of one of those tables, by the names of the sets.
func (p *Policies) Inherit(family Family, elements map[string][]Element, into *Inherited) {
	f := &p.families[slices.Index(policyFamilies[:], family)]
	size := TypeIPv4Addr.Bytes()
	if family == IPv6 {
		size = TypeIPv6Addr.Bytes()
	}
	if into.IDs == nil {
		into.IDs = map[netip.Addr]policy.ID{}
	}
	f.own = map[netip.Addr]*ownBlocks{}
	for kind := range policySets {
		set := policySet(kind, family)
		list := elements[set.Name]
		sortByKey(list)
		switch kind {
		case setPeers:
			f.inheritPeers(family, list, into)
		case setIdentities:
			for _, e := range list {
				into.Last = max(into.Last, idOf(e.Key))
			}
			if len(list) > 0 {
				f.ids.block = &Block{Elements: list}
				f.edit(family, kind, map[string]*Block{"": f.ids.block})
			}
		case setGeneration:
			for _, e := range list {
				into.Generation = e.Key.uint32()
			}
		case setDNS:
			f.inheritDNS(family, list, size)
		default:
			f.inheritOwn(family, kind, set, list, size, into)
		}
	}
}

func idOf(v Value) policy.ID { return policy.ID(binary.BigEndian.Uint32([]byte(v[:4]))) }

func (f *policyFamily) inheritPeers(family Family, list []Element, into *Inherited) {
	blocks := map[string]*Block{}
	for _, e := range list {
		addr, id := e.Key.addr(), idOf(e.Data)
		into.IDs[addr], into.Last = id, max(into.Last, id)
		i := policy.ShardOf(addr)
		s := &f.shards[i]
		if s.block == nil {
			s.block, s.inherited = &Block{}, true
			blocks[shardName(i)] = s.block
		}
		s.block.Elements = append(s.block.Elements, e)
	}
	f.edit(family, setPeers, blocks)
}

func (f *policyFamily) inheritDNS(family Family, list []Element, size int) {
	for _, e := range list {
		a := netip.AddrPortFrom(e.Key[:size].addr(), e.Key[size+4:].port())
		if !slices.Contains(f.dns, a) {
			f.dns = append(f.dns, a)
		}
	}
	slices.SortFunc(f.dns, netip.AddrPort.Compare)
	if len(list) > 0 {
		f.edit(family, setDNS, map[string]*Block{"": {Elements: list}})
	}
}

// inheritOwn sorts the elements of a set by the address of this node that begins the key.
func (f *policyFamily) inheritOwn(family Family, kind int, set *Set, list []Element, size int, into *Inherited) {
	withID := len(set.Key) > 1 && set.Key[1] == TypeIPv4Addr && (kind-setDirections)%dirSets != dirNet && (kind-setDirections)%dirSets != dirCIDR
	blocks := map[string]*Block{}
	for _, e := range list {
		addr := e.Key[:size].addr()
		if withID && kind != setSelf {
			into.Last = max(into.Last, idOf(e.Key[size:]))
		}
		if f.own[addr] == nil {
			f.own[addr] = &ownBlocks{}
		}
		b := f.own[addr].blocks[kind]
		if b == nil {
			b = &Block{}
			f.own[addr].blocks[kind], blocks[addr.String()] = b, b
		}
		b.Elements = append(b.Elements, e)
	}
	f.edit(family, kind, blocks)
}
