package ruleset

import (
	"hash/fnv"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"

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
	shards    map[string]*shard
	sets      [serviceSets]*Set
	chains    map[picker]*Chain
	skeleton  skeleton
}

// serviceSets is the number of sets of both families.
const serviceSets = len(families) * setKinds

// shard is a group of Services that share their blocks. With a block for each of ten thousand Services, copying the list of
// blocks and comparing it would be most of the work of a change.
type shard struct {
	frontends map[model.ServiceKey]*service.Frontends
	blocks    [serviceSets]*Block
	pickers   []picker
}

// shardCount is how many groups there are; each large Service has one of its own besides.
const shardCount = 256

// shardOf returns the name of the group of a Service.
func shardOf(f *service.Frontends) string {
	for i := range f.Ports {
		if p := &f.Ports[i]; p.Hashed || len(p.Cluster)+len(p.Local) > 100 {
			return f.Service.String()
		}
	}
	h := fnv.New32a()
	h.Write([]byte(f.Service.Namespace))
	h.Write([]byte(f.Service.Name))
	return strconv.Itoa(int(h.Sum32() % shardCount))
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
	if len(s.shards) == 0 {
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
func (s *Services) present() (out [serviceSets]bool) {
	for i, set := range s.sets {
		out[i] = set != nil
	}
	return out
}

// pickChains returns the pickers that some Service names, and forgets the others.
func (s *Services) pickChains() []*Chain {
	used := map[picker]*Chain{}
	for _, sh := range s.shards {
		for _, p := range sh.pickers {
			if used[p] != nil {
				continue
			}
			if used[p] = s.chains[p]; used[p] == nil {
				used[p] = p.chain()
			}
		}
	}
	s.chains = used
	out := make([]*Chain, 0, len(used)+12)
	for _, p := range slices.SortedFunc(maps.Keys(used), picker.compare) {
		out = append(out, used[p])
	}
	return out
}

// update takes over the Services that changed.
func (s *Services) update(now map[model.ServiceKey]*service.Frontends) {
	if reflect.ValueOf(now).Pointer() == reflect.ValueOf(s.frontends).Pointer() {
		return
	}
	if s.shards == nil {
		s.shards = map[string]*shard{}
	}
	dirty := map[string]bool{}
	kept := 0
	for k, f := range now {
		old := s.frontends[k]
		if old != nil {
			kept++
		}
		if old == f {
			continue
		}
		if old != nil { // a Service that grew has another shard
			s.take(old, dirty)
		}
		s.put(f, dirty)
	}
	if kept < len(s.frontends) { // some are gone
		for k, old := range s.frontends {
			if now[k] == nil {
				s.take(old, dirty)
			}
		}
	}
	s.frontends = now
	s.rebuild(dirty)
}

func (s *Services) put(f *service.Frontends, dirty map[string]bool) {
	name := shardOf(f)
	if s.shards[name] == nil {
		s.shards[name] = &shard{frontends: map[model.ServiceKey]*service.Frontends{}}
	}
	s.shards[name].frontends[f.Service] = f
	dirty[name] = true
}

func (s *Services) take(f *service.Frontends, dirty map[string]bool) {
	name := shardOf(f)
	delete(s.shards[name].frontends, f.Service)
	dirty[name] = true
}

// rebuild makes the blocks of the shards anew and puts those that differ into new sets.
func (s *Services) rebuild(dirty map[string]bool) {
	var edits [serviceSets]map[string]*Block
	for name := range dirty {
		old := s.shards[name]
		sh := newShard(old.frontends)
		if s.shards[name] = sh; len(sh.frontends) == 0 {
			delete(s.shards, name)
		}
		for i, was := range old.blocks {
			switch is := sh.blocks[i]; {
			case was != nil && is != nil && slices.Equal(was.Elements, is.Elements):
				sh.blocks[i] = was
			case was != is:
				if edits[i] == nil {
					edits[i] = map[string]*Block{}
				}
				edits[i][name] = is
			}
		}
	}
	for i, edit := range edits {
		if edit != nil {
			s.sets[i] = edited(s.sets[i], i, edit)
		}
	}
}

// edited returns a set with other blocks; nil if none is left.
func edited(old *Set, id int, edit map[string]*Block) *Set {
	out := serviceSet(id)
	if out.Blocks = map[string]*Block{}; old != nil {
		out.Blocks = maps.Clone(old.Blocks)
	}
	for name, b := range edit {
		if b == nil {
			delete(out.Blocks, name)
		} else {
			out.Blocks[name] = b
		}
	}
	if len(out.Blocks) == 0 {
		return nil
	}
	return out
}
