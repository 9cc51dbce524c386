package policy

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft.network/weft/appliance/model"
)

// classes sorts the endpoints into classes by the selectors that some filter asks about.
type classes struct {
	active []*selector // sorted by attribute
	named  []portName  // names of ports whose numbers count
	// spaces are the selectors that may pick Pods of a namespace.
	spaces     map[string]*space
	namespaces map[string]*model.Namespace

	of      map[*endpoint]*Class
	byKey   map[string]*Class
	peers   [Shards]*Shard
	next    ID
	adopted map[netip.Addr]ID
	// version grows when the list of classes changes.
	version int
	// lists are the classes that have an attribute, as of version listed; changedAt is in which version a list was last another one.
	lists     map[int32][]*Class
	changedAt map[int32]int
	listed    int
	// left are the numbers that Pods had before they lost a selector, one after the other.
	left left
	// departed are the classes of addresses whose Pods went: what comes there next may find flows that were theirs.
	departed map[netip.Addr]*Class
}

// space is the selectors that may pick Pods of one namespace, found by one label that a Pod must have where there is such a one.
type space struct {
	byLabel map[[2]string][]*selector
	rest    []*selector
}

func newSpace(name string, labels map[string]string, active []*selector) *space {
	s := &space{byLabel: map[[2]string][]*selector{}}
	for _, sel := range active {
		if !sel.inNamespace(name, labels) {
			continue
		}
		i := slices.IndexFunc(sel.pods, func(r model.Requirement) bool { return r.Op == model.OpIn && len(r.Values) > 0 })
		if i < 0 {
			s.rest = append(s.rest, sel)
			continue
		}
		for _, v := range sel.pods[i].Values {
			at := [2]string{sel.pods[i].Key, v}
			s.byLabel[at] = append(s.byLabel[at], sel)
		}
	}
	return s
}

// picks returns the attributes of an endpoint, sorted: the selectors that pick it, and how it calls the ports that are asked for.
func (c *classes) picks(e *endpoint, s *space, sel *selectors) []int32 {
	var out []int32
	try := func(list []*selector) {
		for _, s := range list {
			if len(s.pods) == 0 || e.pod != nil && s.pods.Matches(e.pod.Labels) {
				out = append(out, s.attribute)
			}
		}
	}
	try(s.rest)
	if e.pod != nil && len(s.byLabel) > 0 {
		for k, v := range e.pod.Labels {
			try(s.byLabel[[2]string{k, v}])
		}
	}
	for _, n := range c.named {
		if port, ok := portOf(e.pod, n); ok {
			out = append(out, sel.port(n, port))
		}
	}
	slices.Sort(out)
	return out
}

// space returns that of a namespace. One that the cluster has not told of has the label that each has.
func (c *classes) space(name string) *space {
	if s := c.spaces[name]; s != nil {
		return s
	}
	s := newSpace(name, namespaceLabels(c.namespaces, name), c.active)
	c.spaces[name] = s
	return s
}

func namespaceLabels(all map[string]*model.Namespace, name string) map[string]string {
	if n := all[name]; n != nil {
		return n.Labels
	}
	return map[string]string{"kubernetes.io/metadata.name": name}
}

// What has to be sorted again.
const (
	nothing = iota
	someSelectors
	everything
)

// update sorts the endpoints. Where nothing but some endpoints changed, only those are looked at.
func (c *classes) update(w *who, moved bool, namespaces map[string]*model.Namespace, active []*selector, named []portName, sel *selectors) {
	again := nothing
	if !slices.Equal(active, c.active) {
		again = someSelectors
	}
	if !slices.Equal(named, c.named) || !model.SameMap(namespaces, c.namespaces) &&
		!maps.EqualFunc(namespaces, c.namespaces, func(a, b *model.Namespace) bool { return maps.Equal(a.Labels, b.Labels) }) {
		again = everything
	}
	c.namespaces = namespaces
	if again == nothing && !moved && c.of != nil {
		return
	}
	before := c.active
	c.active, c.named = active, named
	c.depart(w)
	switch {
	case again == everything || c.of == nil:
		old := c.of
		c.of, c.spaces = make(map[*endpoint]*Class, len(w.endpoints)), map[string]*space{}
		c.regroup(w, sel)
		for e := range c.of {
			c.compare(w, e, old)
		}
		for a := range w.owners {
			w.touched[a] = true
		}
	case again == someSelectors:
		c.split(w, before, sel)
		fallthrough
	default:
		for _, e := range w.came {
			c.of[e] = c.class(c.picks(e, c.space(e.ref.Namespace), sel), sel)
			c.compare(w, e, c.of)
		}
	}
	for _, e := range w.went {
		delete(c.of, e)
	}
	c.publish(w)
}

// depart remembers what the addresses were whose Pods went.
func (c *classes) depart(w *who) {
	if c.departed == nil {
		c.departed = map[netip.Addr]*Class{}
	}
	if len(c.departed) >= mostLeft { // then nobody knows any more
		clear(c.departed)
		c.left.forget()
	}
	for _, e := range w.went {
		if class := c.of[e]; class != nil {
			for _, a := range e.addr {
				c.departed[a] = class
			}
		}
	}
}

// compare notes whether an endpoint lost anything: it has another number now, and not all that it had. A number that stays says
// nothing: what it stands for is in the filters.
func (c *classes) compare(w *who, e *endpoint, before map[*endpoint]*Class) {
	was, now := before[e], c.of[e]
	for _, a := range e.addr {
		if gone := c.departed[a]; gone != nil && (now == nil || now.ID != gone.ID && !subset(gone.attributes, now.attributes)) {
			c.left.note(gone.ID)
		}
		delete(c.departed, a)
	}
	if old := w.former[e]; old != nil && slices.ContainsFunc(e.addr, func(a netip.Addr) bool { return slices.Contains(old.addr, a) }) {
		was = before[old]
	}
	switch {
	case was == nil || was == now || now != nil && was.ID == now.ID:
	case now == nil || !subset(was.attributes, now.attributes):
		c.left.note(was.ID)
	}
}

func containsSorted(list []int32, x int32) bool {
	_, ok := slices.BinarySearch(list, x)
	return ok
}

// class returns the class with exactly these attributes, or a new one; nil for none.
func (c *classes) class(attributes []int32, sel *selectors) *Class {
	if len(attributes) == 0 {
		return nil
	}
	key := attributesKey(attributes)
	if found := c.byKey[key]; found != nil {
		return found
	}
	out := c.make(attributes, c.next, sel)
	c.next++
	c.byKey[key] = out
	c.version++
	return out
}

func attributesKey(list []int32) string {
	b := make([]byte, 0, 4*len(list))
	for _, a := range list {
		b = binary.NativeEndian.AppendUint32(b, uint32(a))
	}
	return string(b)
}

func (c *classes) make(attributes []int32, id ID, sel *selectors) *Class {
	out := &Class{ID: id, attributes: attributes}
	var text []string
	for _, s := range c.active {
		if _, ok := slices.BinarySearch(attributes, s.attribute); ok {
			text = append(text, s.text)
		}
	}
	for _, n := range c.named {
		for _, a := range attributes {
			if port, ok := sel.portNumber(n, a); ok {
				if out.named == nil {
					out.named = map[portName]uint16{}
				}
				out.named[n] = port
				text = append(text, fmt.Sprintf("port %s is %d", n.name, port))
			}
		}
	}
	slices.Sort(text)
	out.Text = strings.Join(text, "; ")
	return out
}

// regroup makes all classes anew. Each keeps the number that most of its members had, so that the kernel has little to learn;
// after a start that is the number in the kernel.
func (c *classes) regroup(w *who, sel *selectors) {
	if c.next == 0 {
		c.next = firstID
	}
	held := func(a netip.Addr) ID {
		if s := c.peers[ShardOf(a)]; s != nil {
			if p, ok := s.Peers[a]; ok {
				return p.Class.ID
			}
		}
		return c.adopted[a]
	}
	type group struct {
		attributes []int32
		members    []*endpoint
		votes      map[ID]int
		id         ID
	}
	groups := map[string]*group{}
	for _, e := range w.endpoints {
		attributes := c.picks(e, c.space(e.ref.Namespace), sel)
		if len(attributes) == 0 {
			c.of[e] = nil
			continue
		}
		key := attributesKey(attributes)
		g := groups[key]
		if g == nil {
			g = &group{attributes: attributes, votes: map[ID]int{}}
			groups[key] = g
		}
		g.members = append(g.members, e)
		for _, a := range e.addr {
			if id := held(a); id != 0 {
				g.votes[id]++
			}
		}
	}
	type bid struct {
		key string
		id  ID
		n   int
	}
	var bids []bid
	keys := slices.Sorted(maps.Keys(groups))
	for _, k := range keys {
		for id, n := range groups[k].votes {
			bids = append(bids, bid{k, id, n})
		}
	}
	slices.SortFunc(bids, func(a, b bid) int {
		return cmp.Or(cmp.Compare(b.n, a.n), cmp.Compare(a.id, b.id), cmp.Compare(a.key, b.key))
	})
	taken := map[ID]bool{}
	for _, b := range bids {
		if groups[b.key].id == 0 && !taken[b.id] {
			groups[b.key].id, taken[b.id] = b.id, true
		}
	}
	old := c.byKey
	c.byKey = make(map[string]*Class, len(groups))
	for _, k := range keys {
		g := groups[k]
		if g.id == 0 {
			g.id = c.next
			c.next++
		}
		class := c.make(g.attributes, g.id, sel)
		if was := old[k]; was != nil && was.ID == class.ID && was.Text == class.Text && maps.Equal(was.named, class.named) {
			class = was
		}
		c.byKey[k] = class
		for _, e := range g.members {
			c.of[e] = class
		}
	}
	c.adopted = nil
	c.version++
}

// publish brings the peers up to date, copying only the groups with a change.
func (c *classes) publish(w *who) {
	var copies [Shards]map[netip.Addr]Peer
	for a := range w.touched {
		i := ShardOf(a)
		want, is := Peer{}, false
		if e := w.owner(a); e != nil && c.of[e] != nil {
			want, is = Peer{e.ref.Key(), c.of[e]}, true
		}
		var have Peer
		had := false
		if c.peers[i] != nil {
			have, had = c.peers[i].Peers[a]
		}
		if is == had && want == have {
			continue
		}
		if copies[i] == nil {
			copies[i] = map[netip.Addr]Peer{}
			if c.peers[i] != nil {
				maps.Copy(copies[i], c.peers[i].Peers)
			}
		}
		if copies[i][a] = want; !is {
			delete(copies[i], a)
		}
	}
	for i, peers := range copies {
		switch {
		case peers == nil:
		case len(peers) == 0:
			c.peers[i] = nil
		default:
			c.peers[i] = &Shard{peers}
		}
	}
}

// ShardOf spreads addresses over the groups.
func ShardOf(a netip.Addr) int {
	b := a.As16()
	return int(b[15]^b[14]<<1^b[13]) % Shards
}
