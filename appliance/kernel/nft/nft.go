// Package nft puts nftables tables into the kernel: it keeps an exact picture of what it committed and sends only what differs.
package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/ruleset"
)

// Options say where the tables are.
type Options struct {
	// NetNS is an open file descriptor of a network namespace; 0 means that of the calling thread. It may be closed after Open.
	NetNS int
}

// Backend owns a socket to nftables and the picture of what the kernel holds. It may be used by several goroutines.
type Backend struct {
	netns int // our own descriptor, or 0
	mu    sync.Mutex
	send  *sender
	// tables are those that were applied, by ID. A nil state is unknown: it is read before the next change.
	tables map[string]*known
	watch  *watch // the newest; nil while nobody watches
}

// known is one table that we apply.
type known struct {
	table ruleset.Table // family and name
	state *state
	// valid says that state is what the kernel holds; a valid nil state is a table that is not there.
	valid bool
	// ours are the names of the objects that we put there: of a Partial table, only those may be removed.
	ours map[string]bool
}

// Stats says what one Apply did. The zero value means that nothing was sent.
type Stats struct {
	Transactions, Messages, Bytes  int
	ElementsAdded, ElementsDeleted int
	// Chains counts those whose rules were written.
	Chains int
	// Read says that at least one table was read back from the kernel first.
	Read bool
	// Rebuilt says that a table had to be deleted and made anew, in one transaction.
	Rebuilt bool
	// Retry is the error because of which the kernel was read again and the change computed again; nil if there was none.
	Retry error
}

// Open opens a Backend. It reads nothing and changes nothing.
func Open(o Options) (*Backend, error) {
	b := &Backend{tables: map[string]*known{}}
	if o.NetNS != 0 {
		fd, err := unix.FcntlInt(uintptr(o.NetNS), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, fmt.Errorf("keeping the network namespace open: %w", err)
		}
		b.netns = fd
	}
	send, err := newSender(b.netns)
	if err != nil {
		b.Close()
		return nil, err
	}
	b.send = send
	return b, nil
}

// Close closes the sockets. The tables stay: packets go on without us.
func (b *Backend) Close() {
	if b.send != nil {
		_ = b.send.conn.Close()
	}
	if b.netns != 0 {
		_ = unix.Close(b.netns)
		b.netns = 0
	}
}

// Invalidate forgets what the kernel holds, so that the next Apply reads it. Somebody else changed it.
func (b *Backend) Invalidate() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.invalidate()
}

func (b *Backend) invalidate() {
	for _, k := range b.tables {
		k.state, k.valid = nil, false
	}
}

// Apply makes the kernel hold exactly these tables; it may be repeated at any time. An empty table, and one that an earlier
// call named and this one does not, is removed; of a Partial table only those objects are, that an earlier call put there.
// Tables that were never named are not touched.
//
// The first call for a table reads the kernel and changes only what differs; later ones read nothing. An error of the kernel
// that says that the picture was wrong is answered by reading again, then by making the table anew in one transaction;
// the error that remains is an *Error that describes the batch.
func (b *Backend) Apply(ctx context.Context, tables []ruleset.Table) (Stats, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.withFormer(tables)
	stats, err := b.attempt(ctx, all)
	if err == nil {
		for _, t := range all[len(tables):] { // gone; who makes one of that name now is somebody else
			delete(b.tables, t.ID())
		}
	}
	return stats, err
}

// Update is Apply for these tables alone: all others stay as they are.
func (b *Backend) Update(ctx context.Context, tables []ruleset.Table) (Stats, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]*ruleset.Table, 0, len(tables))
	for i := range tables {
		all = append(all, &tables[i])
	}
	return b.attempt(ctx, all)
}

// attempt applies tables, and if the kernel is not as remembered reads it again, then makes them anew.
func (b *Backend) attempt(ctx context.Context, all []*ruleset.Table) (Stats, error) {
	stats, err := b.apply(ctx, all, false)
	for _, rebuild := range []bool{false, true} {
		if !outdated(err) {
			break
		}
		first := err
		var s Stats
		s, err = b.apply(ctx, all, rebuild)
		s.Rebuilt = rebuild
		s.Retry = first
		stats = s
	}
	return stats, err
}

// Differs reads the kernel and says how many messages Apply would send to make it hold exactly these tables; it changes nothing.
func (b *Backend) Differs(tables []ruleset.Table) (int, error) {
	messages := 0
	for i := range tables {
		k := known{}
		if err := b.read(&k, &tables[i]); err != nil {
			return 0, err
		}
		p, err := planTable(k.state, &tables[i], nil)
		if err != nil {
			return 0, fmt.Errorf("table %s: %w", tables[i].ID(), err)
		}
		messages += p.len()
	}
	return messages, nil
}

// withFormer adds, as empty tables, those that are not wanted any more.
func (b *Backend) withFormer(tables []ruleset.Table) []*ruleset.Table {
	out := make([]*ruleset.Table, 0, len(tables)+1)
	named := map[string]bool{}
	for i := range tables {
		out = append(out, &tables[i])
		named[tables[i].ID()] = true
	}
	var former []string
	for id := range b.tables {
		if !named[id] {
			former = append(former, id)
		}
	}
	slices.Sort(former)
	for _, id := range former {
		t := b.tables[id].table
		out = append(out, &t)
	}
	return out
}

// outdated reports whether an error says that the kernel does not hold what we think, or that we do not know what it did.
func outdated(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOENT, unix.EEXIST, unix.EBUSY, unix.ENOBUFS, unix.EMSGSIZE, unix.EINTR, unix.EAGAIN},
		func(e error) bool { return errors.Is(err, e) })
}

// apply is one attempt.
func (b *Backend) apply(ctx context.Context, tables []*ruleset.Table, rebuild bool) (stats Stats, err error) {
	var plans []*plan
	for _, t := range tables {
		k := b.tables[t.ID()]
		if k == nil {
			k = &known{table: ruleset.Table{Family: t.Family, Name: t.Name, Partial: t.Partial}}
			b.tables[t.ID()] = k
		}
		if !k.valid {
			stats.Read = true
			if err := b.read(k, t); err != nil {
				return stats, err
			}
		}
		make := planTable
		if rebuild {
			make = planRebuild
		}
		p, err := make(k.state, t, k.ours)
		if err != nil {
			return stats, fmt.Errorf("table %s: %w", t.ID(), err)
		}
		plans = append(plans, p)
	}
	if err := ctx.Err(); err != nil {
		return stats, err
	}
	elements := 0
	for _, p := range plans {
		elements += p.stats.ElementsAdded + p.stats.ElementsDeleted
	}
	missed, err := b.quietly(elements, &stats, func() error { return b.carryOut(plans, &stats) })
	if missed {
		offer(b.watch.events, Event{Lost: true})
	}
	if err == nil {
		for _, p := range plans {
			b.committed(p)
		}
	}
	if err != nil || missed { // of the last transaction the kernel took all or nothing, but there may have been others before
		b.invalidate()
	}
	return stats, err
}

// read fills in what the kernel holds of one table.
func (b *Backend) read(k *known, t *ruleset.Table) error { return b.readWith(k, t, false) }

func (b *Backend) readWith(k *known, t *ruleset.Table, dynamic bool) error {
	conn, err := dial(b.netns, 4<<20)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := reader{conn, dynamic}
	if k.state, err = r.table(t); err != nil {
		return err
	}
	k.valid = true
	return nil
}

// planRebuild replaces a table by deleting it and making it anew. Of a partial table only what is named is replaced.
func planRebuild(have *state, want *ruleset.Table, ours map[string]bool) (*plan, error) {
	if want.Partial {
		return planReplace(have, want, ours)
	}
	fresh, err := planTable(nil, want, nil)
	if err != nil {
		return nil, err
	}
	if want.Empty() && have == nil {
		return fresh, nil
	}
	// The first message makes the table if somebody deleted it meanwhile, so that deleting it cannot fail.
	rest := fresh.batch
	fresh.batch = batch{}
	fresh.addTable(want)
	fresh.deleteTable(want)
	fresh.join(&rest)
	fresh.filled = 0
	return fresh, nil
}

// planReplace replaces every object that is named, by taking it as different.
func planReplace(have *state, want *ruleset.Table, ours map[string]bool) (*plan, error) {
	if have == nil {
		return planTable(nil, want, ours)
	}
	other := &state{chains: map[string]*chainState{}, sets: map[string]*setState{}}
	for name, c := range have.chains {
		other.chains[name] = &chainState{base: c.base, rules: c.rules, spec: "to be replaced"}
	}
	for name := range have.sets {
		other.sets[name] = &setState{}
	}
	return planTable(other, want, ours)
}

// coldChunk is how many bytes of elements go in one transaction while the table is not in force: some 8,000 elements, which
// the kernel takes in about 30 ms.
const coldChunk = 512 << 10

// carryOut sends what there is to send: first the parts that may go alone, then all others as one transaction.
func (b *Backend) carryOut(plans []*plan, stats *Stats) error {
	var main batch
	for _, p := range plans {
		rest := p.batch
		filled := p.filled
		for filled > 0 && rest.at[filled-1] > coldChunk {
			n, _ := slices.BinarySearch(rest.at[:filled], coldChunk)
			var part batch
			part, rest = rest.cut(max(n, 1))
			filled -= part.len()
			if err := b.transact(&part, stats); err != nil {
				return fmt.Errorf("filling table %s: %w", p.table.ID(), err)
			}
		}
		main.join(&rest)
		stats.ElementsAdded += p.stats.ElementsAdded
		stats.ElementsDeleted += p.stats.ElementsDeleted
		stats.Chains += p.stats.Chains
	}
	if main.len() == 0 {
		return nil
	}
	return b.transact(&main, stats)
}

func (b *Backend) transact(part *batch, stats *Stats) error {
	stats.Transactions++
	stats.Messages += part.len()
	stats.Bytes += len(part.buf)
	return b.send.send(part, false)
}

// committed makes the plan's outcome the picture of the kernel.
func (b *Backend) committed(p *plan) {
	for _, o := range p.overlays {
		o.commit()
	}
	k := b.tables[p.table.ID()]
	k.state = p.next
	k.ours = map[string]bool{}
	for _, c := range p.table.Chains {
		k.ours[c.Name] = true
	}
	for _, s := range p.table.Sets {
		k.ours[s.Name] = true
	}
}

// Exists reads the kernel and says whether it has the table.
func (b *Backend) Exists(t ruleset.Table) (bool, error) {
	k := known{}
	err := b.read(&k, &t)
	return k.state != nil, err
}

// Elements reads the elements of a table's sets from the kernel, by the name of the set. The table says which sets, and of what
// kind they are; those that the kernel does not have, or has of another kind, are left out. What packets put into dynamic sets is there.
func (b *Backend) Elements(t ruleset.Table) (map[string][]ruleset.Element, error) {
	k := known{}
	if err := b.readWith(&k, &t, true); err != nil {
		return nil, err
	}
	out := map[string][]ruleset.Element{}
	if k.state == nil {
		return out, nil
	}
	for name, s := range k.state.sets {
		if s.index == nil {
			continue
		}
		out[name] = make([]ruleset.Element, 0, len(s.index))
		for _, slot := range s.index {
			out[name] = append(out[name], *slot.element)
		}
	}
	return out, nil
}
