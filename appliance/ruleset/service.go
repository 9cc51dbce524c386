package ruleset

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"weft.network/weft/appliance/compile/service"
	"weft.network/weft/appliance/model"
)

// ServiceTable is the name of the table that serves Services. It is one of its own, since role "services" may run alone; and
// since a table that nothing hooks yet can be filled in several transactions, whatever else is in force.
const ServiceTable = "weft_services"

// ServiceMark is the bit of the connection mark that says: the destination of this connection was chosen here. The upper 24
// bits are those of policy.
const ServiceMark = 0x00000001

// ServicesInput is what the rules for Services depend on.
type ServicesInput struct {
	Frontends map[model.ServiceKey]*service.Frontends
	// PodRanges are the addresses of this node's own Pods: answers to them come by this node in any case.
	PodRanges []netip.Prefix
	// NodePortAddresses are those of the node's addresses at which node ports answer; empty means all but loopback.
	NodePortAddresses []netip.Prefix
}

// Services makes the table for Services and remembers it, so that the next one keeps the pointers of all that stays. Its zero
// value is ready. It is not for several goroutines at once.
type Services struct {
	frontends map[model.ServiceKey]*service.Frontends
	services  map[model.ServiceKey]*serviceParts
	sets      [len(families) * setKinds]*Set
	pickers   map[picker]*pickerUse
	skeleton  skeleton
}

// serviceParts is what one Service adds to the table.
type serviceParts struct {
	owner   string // in the Blocks
	blocks  []ownBlock
	pickers []picker
}

// ownBlock is one Service's share of a set.
type ownBlock struct {
	set   int
	block *Block
}

// pickerUse is a chain that picks an endpoint, and how often Services name it.
type pickerUse struct {
	chain *Chain
	uses  int
}

// Table returns the table for Services; an empty one, which the backend removes, if there are none.
//
//	connection from a Pod or outside   dstnat   prerouting -> services [-> nodeports] -> a picker, refuse, no_local_endpoint
//	connection of the node itself      dstnat   output     -> the same
//	chosen, on its way out             srcnat   postrouting -> translated
//
// A picker is a chain that all frontends with the same number of endpoints share: it draws a number and looks up frontend and
// number in one map. So a Service is some map elements and no rules, and a change of it is a change of those.
func (s *Services) Table(in ServicesInput) Table {
	t := Table{Family: INet, Name: ServiceTable, Comment: "written by weft; changes made by hand are undone"}
	s.update(in.Frontends)
	if len(s.services) == 0 {
		return t
	}
	if next := (skeletonInput{s.present(), in.PodRanges, in.NodePortAddresses}); !reflect.DeepEqual(next, s.skeleton.in) {
		s.skeleton = newSkeleton(next)
	}
	for _, set := range s.sets {
		if set != nil {
			t.Sets = append(t.Sets, set)
		}
	}
	t.Sets = append(t.Sets, s.skeleton.sets...)
	t.Chains = append(s.pickChains(), s.skeleton.chains...)
	return t
}

// present returns which sets have elements.
func (s *Services) present() (out [len(families) * setKinds]bool) {
	for i, set := range s.sets {
		out[i] = set != nil
	}
	return out
}

func (s *Services) pickChains() []*Chain {
	used := slices.SortedFunc(maps.Keys(s.pickers), picker.compare)
	out := make([]*Chain, 0, len(used)+12)
	for _, p := range used {
		out = append(out, s.pickers[p].chain)
	}
	return out
}

// update takes over the Services that changed.
func (s *Services) update(now map[model.ServiceKey]*service.Frontends) {
	if s.services == nil {
		s.services, s.pickers = make(map[model.ServiceKey]*serviceParts, len(now)), map[picker]*pickerUse{}
	}
	if reflect.ValueOf(now).Pointer() == reflect.ValueOf(s.frontends).Pointer() {
		return
	}
	var edits [len(families) * setKinds]map[string]*Block
	for k, f := range now {
		if s.frontends[k] != f {
			s.replace(k, f, &edits)
		}
	}
	if len(s.services) > len(now) { // some are gone
		for k := range s.services {
			if now[k] == nil {
				s.replace(k, nil, &edits)
			}
		}
	}
	s.frontends = now
	for i, edit := range edits {
		if edit != nil {
			s.sets[i] = edited(s.sets[i], i, edit)
		}
	}
	for p, use := range s.pickers {
		if use.uses == 0 {
			delete(s.pickers, p)
		}
	}
}

// replace notes how one Service changes the sets; f is nil if it is gone.
func (s *Services) replace(k model.ServiceKey, f *service.Frontends, edits *[len(families) * setKinds]map[string]*Block) {
	old := s.services[k]
	if old == nil {
		old = &serviceParts{owner: k.String()}
	}
	parts := &serviceParts{owner: old.owner}
	if f != nil {
		parts = serviceElements(old.owner, f)
		s.services[k] = parts
	} else {
		delete(s.services, k)
	}
	edit := func(set int, b *Block) {
		if edits[set] == nil {
			edits[set] = map[string]*Block{}
		}
		edits[set][old.owner] = b
	}
	for i := range parts.blocks {
		b := &parts.blocks[i]
		if was := old.block(b.set); was != nil && slices.Equal(was.Elements, b.block.Elements) {
			b.block = was
		} else {
			edit(b.set, b.block)
		}
	}
	for _, b := range old.blocks {
		if parts.block(b.set) == nil {
			edit(b.set, nil)
		}
	}
	for _, p := range parts.pickers {
		if s.pickers[p] == nil {
			s.pickers[p] = &pickerUse{chain: p.chainOf()}
		}
		s.pickers[p].uses++
	}
	for _, p := range old.pickers {
		s.pickers[p].uses--
	}
}

func (p *serviceParts) block(set int) *Block {
	for _, b := range p.blocks {
		if b.set == set {
			return b.block
		}
	}
	return nil
}

// edited returns a set with other blocks; nil if none is left.
func edited(old *Set, id int, edit map[string]*Block) *Set {
	var blocks map[string]*Block
	if old != nil {
		blocks = maps.Clone(old.Blocks)
	} else {
		blocks = make(map[string]*Block, len(edit))
	}
	for owner, b := range edit {
		if b == nil {
			delete(blocks, owner)
		} else {
			blocks[owner] = b
		}
	}
	if len(blocks) == 0 {
		return nil
	}
	out := serviceSet(id)
	out.Blocks = blocks
	return out
}
