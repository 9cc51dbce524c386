package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"go.uber.org/zap"

	"weft.network/weft/appliance/announcer"
	"weft.network/weft/appliance/compile/announce"
	"weft.network/weft/appliance/compile/lb"
	"weft.network/weft/appliance/config"
	"weft.network/weft/appliance/kernel/l2"
	"weft.network/weft/appliance/model"
)

// moveCounts are the counters of what happened to addresses.
type moveCounts struct {
	mu                            sync.Mutex
	took, takeovers, gone, strife uint64
}

// heldFile is in the run directory: the addresses that this node answers for, so that the next daemon goes on at once.
const heldFile = "l2-held.json"

func (d *Daemon) newAnnouncer() *announcer.Announcer {
	d.lb.held = d.readHeld()
	h := fnv.New64a()
	h.Write([]byte(d.cfg.LoadBalancer.Segment))
	return announcer.New(announcer.Options{
		Settings: announce.Settings{Node: d.cfg.NodeName, Cluster: h.Sum64(), Boot: rand.Uint64()},
		Open: func(link string) (announcer.Port, error) {
			p, err := l2.Open(link)
			if err != nil {
				return nil, err
			}
			return p, nil
		},
		Resume: maps.Clone(d.lb.held), Keep: d.writeHeld, Report: d.addressMoved,
	})
}

// announceAddresses tells the announcer about each new picture until ctx ends.
func (d *Daemon) announceAddresses(ctx context.Context) {
	if !d.cfg.Has(config.RoleLB) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.lb.announcer.Run(ctx)
	}()
	for {
		_, changed := d.rounds.Watch()
		d.updateAnnouncer()
		select {
		case <-ctx.Done():
			<-done
			return
		case <-changed:
		}
	}
}

// updateAnnouncer tells the announcer what there is to announce. A node drained by hand (weft bgp drain) gives up everything.
func (d *Daemon) updateAnnouncer() {
	if under := d.kernel.underlay.Load(); under != nil && d.cfg.Has(config.RoleLB) {
		var list []lb.Announcement
		if d.loop.Status().Held {
			list = goOn(d.lb.held, d.snapshot(), d.cfg.NodeName)
		} else {
			list = d.announcements()
		}
		d.lb.announcer.Update(announcer.View{
			Links: under.Links, Announcements: list, Passive: d.bgp != nil && d.bgp.isDrained(),
		})
	}
}

// goOn are the announcements of a node that starts again and has not heard the cluster: what it answered for it goes on with, also
// what the picture in the store does not know yet, and nothing that it may have let go since. Every node may have a right to them: so
// nobody concludes from their absence that all others are known.
func goOn(held map[string][]netip.Addr, snap *model.Snapshot, node string) (out []lb.Announcement) {
	nodes := []string{node}
	for _, n := range snap.SortedNodes() {
		if n.Name != node {
			nodes = append(nodes, n.Name)
		}
	}
	slices.Sort(nodes)
	for link, addrs := range held {
		for _, addr := range addrs {
			out = append(out, lb.Announcement{Addr: addr, L2: true, Interfaces: []string{link}, Nodes: nodes})
		}
	}
	return out
}

// announcements are the addresses that nodes may announce, as the newest picture has it.
func (d *Daemon) announcements() []lb.Announcement {
	if !d.cfg.Has(config.RoleLB) {
		return nil
	}
	snap := d.snapshot()
	c := &d.lb.told
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.holds(snap) {
		c.list, c.local = lb.Announcements(snap), lb.AnyLocal(snap)
	}
	c.of = snap
	return c.list
}

// announced remembers the announcements: most Snapshots differ in what does not matter to them.
type announced struct {
	mu    sync.Mutex
	of    *model.Snapshot
	list  []lb.Announcement
	local bool // endpoints count
}

// holds reports whether the list is that of the Snapshot, too.
func (c *announced) holds(s *model.Snapshot) bool {
	if c.of == s || c.of == nil || s == nil {
		return c.of == s && s != nil
	}
	return model.SameMap(c.of.Services, s.Services) && model.SameMap(c.of.Pools, s.Pools) && maps.Equal(c.of.Nodes, s.Nodes) &&
		(!c.local || model.SameMap(c.of.Slices, s.Slices))
}

// addressMoved tells people and counters what happened on a segment.
func (d *Daemon) addressMoved(r announcer.Report) {
	c := &d.lb.counts
	c.mu.Lock()
	switch r.Kind {
	case announce.Took:
		c.took++
		if r.From != "" && r.From != d.cfg.NodeName {
			c.takeovers++
		}
	case announce.Released:
		c.gone++
	case announce.Conflict:
		c.strife++
	}
	c.mu.Unlock()
	link, address := zap.String("link", r.Link), zap.Stringer("address", r.Addr)
	switch r.Kind {
	case announce.Took:
		text := fmt.Sprintf("node %s answers for %s on %s", d.cfg.NodeName, r.Addr, r.Link)
		if r.From != "" && r.From != d.cfg.NodeName {
			text += ", after node " + r.From
		}
		d.log.Info("this node answers for a load balancer's address", address, link, zap.String("before", r.From))
		d.tellServices(r.Addr, false, "AddressAnnounced", text)
	case announce.Released:
		d.log.Info("this node no longer answers for a load balancer's address", address, link, zap.String("why", r.Why))
	case announce.Conflict:
		text := conflictText(r.Addr, r.MAC.String(), r.Link)
		d.log.Warn(text)
		d.tellServices(r.Addr, true, "AddressConflict", text)
	case announce.Namesake:
		d.log.Error("another machine on the segment says that it is this node: give each node its own name, and each cluster that shares "+
			"a segment its own loadBalancer.segment in weft.yaml", zap.Stringer("mac", r.MAC), link)
	case announcer.Failed:
		d.log.Error("addresses of load balancers are not answered for", link, zap.Error(r.Err))
	}
}

func conflictText(addr netip.Addr, mac, link string) string {
	return fmt.Sprintf("the address %s is used by %s on %s too, which is no node of this cluster: take it from that machine, or out of the LoadBalancerPool", addr, mac, link)
}

// tellServices emits an Event on each Service that has the address.
func (d *Daemon) tellServices(addr netip.Addr, warning bool, reason, text string) {
	snap := d.snapshot()
	for _, an := range d.announcements() {
		if an.Addr != addr {
			continue
		}
		for _, key := range an.Services {
			if s := snap.Services[key]; s != nil {
				d.source.Recorder().Service(key, s.UID, warning, reason, text)
			}
		}
	}
}

func (d *Daemon) readHeld() map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	data, err := os.ReadFile(filepath.Join(d.cfg.RunDir, heldFile))
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("what this node answered for before is not known; its addresses pause for a moment", zap.Error(err))
		return map[string][]netip.Addr{}
	}
	return out
}

func (d *Daemon) writeHeld(held map[string][]netip.Addr) {
	path := filepath.Join(d.cfg.RunDir, heldFile)
	data, err := json.Marshal(held)
	if err == nil {
		err = os.WriteFile(path+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		d.log.Warn("keeping what this node answers for", zap.Error(err))
	}
}
