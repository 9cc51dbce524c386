// Package conntrack makes the kernel forget connections whose other end is not there any more, and tells how full its table is.
package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	ct "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/model"
)

// Filter names connections. Fields at their zero value match everything; a Filter without any address or port is refused.
type Filter struct {
	// Proto is the transport protocol.
	Proto model.Protocol
	// Src is the source of the first packet.
	Src netip.Addr
	// Dst and DstPort are where the first packet was sent: the address of a Service, a host port.
	Dst     netip.Addr
	DstPort uint16
	// Backend and BackendPort are who answers: after address translation another one than Dst.
	Backend     netip.Addr
	BackendPort uint16
	// Untranslated matches only connections whose destination was not translated: those that began before there was
	// somebody to translate to, and that would go nowhere for as long as packets come.
	Untranslated bool
}

func (f Filter) empty() bool {
	return !f.Src.IsValid() && !f.Dst.IsValid() && !f.Backend.IsValid() && f.DstPort == 0 && f.BackendPort == 0
}

// flow is the part of a kernel entry that filters look at.
type flow struct {
	id          uint32
	zone        uint16
	orig, reply tuple
}

// tuple is one direction of a connection.
type tuple struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16
}

func (f Filter) matches(e *flow) bool {
	return (f.Proto == 0 || uint8(f.Proto) == e.orig.proto) &&
		(!f.Src.IsValid() || f.Src == e.orig.src) &&
		(!f.Dst.IsValid() || f.Dst == e.orig.dst) &&
		(f.DstPort == 0 || f.DstPort == e.orig.dport) &&
		(!f.Backend.IsValid() || f.Backend == e.reply.src) &&
		(f.BackendPort == 0 || f.BackendPort == e.reply.sport) &&
		(!f.Untranslated || e.orig.dst == e.reply.src && e.orig.dport == e.reply.sport)
}

// index finds the filters that may match without trying all of them.
type index struct {
	byDst, byBackend, bySrc map[netip.Addr][]Filter
	rest                    []Filter
}

func newIndex(filters []Filter) (index, error) {
	ix := index{map[netip.Addr][]Filter{}, map[netip.Addr][]Filter{}, map[netip.Addr][]Filter{}, nil}
	for _, f := range filters {
		f.Src, f.Dst, f.Backend = f.Src.Unmap(), f.Dst.Unmap(), f.Backend.Unmap()
		switch {
		case f.empty():
			return ix, errors.New("forgetting connections: a filter without address and port would match all of them")
		case f.Backend.IsValid():
			ix.byBackend[f.Backend] = append(ix.byBackend[f.Backend], f)
		case f.Dst.IsValid():
			ix.byDst[f.Dst] = append(ix.byDst[f.Dst], f)
		case f.Src.IsValid():
			ix.bySrc[f.Src] = append(ix.bySrc[f.Src], f)
		default:
			ix.rest = append(ix.rest, f)
		}
	}
	return ix, nil
}

func (ix *index) matches(e *flow) bool {
	for _, list := range [][]Filter{ix.byBackend[e.reply.src], ix.byDst[e.orig.dst], ix.bySrc[e.orig.src], ix.rest} {
		for _, f := range list {
			if f.matches(e) {
				return true
			}
		}
	}
	return false
}

// Table is the connection tracking table of one network namespace.
type Table struct{ netns int }

// Open returns the table of a network namespace, given as an open descriptor that must stay valid; 0 is that of the
// calling thread.
func Open(netns int) *Table { return &Table{netns: netns} }

// Usage returns how many connections the kernel tracks in the network namespace of the calling thread, and how many it can.
func Usage() (count, limit int, err error) {
	for name, value := range map[string]*int{"nf_conntrack_count": &count, "nf_conntrack_max": &limit} {
		path := "/proc/sys/net/netfilter/" + name
		b, err := os.ReadFile(path)
		if err == nil {
			*value, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		if err != nil {
			return 0, 0, fmt.Errorf("reading the size of the conntrack table (does the kernel track connections?): %w", err)
		}
	}
	return count, limit, nil
}

// Forget deletes the connections that match at least one of the filters and returns how many there were. It reads the
// table once, or once for each address family if all filters name the same protocol, which lets the kernel leave out the
// others. An entry that ends by itself meanwhile is no error.
func (t *Table) Forget(ctx context.Context, filters ...Filter) (int, error) {
	if len(filters) == 0 {
		return 0, nil
	}
	ix, err := newIndex(filters)
	if err != nil {
		return 0, err
	}
	found, err := t.find(ctx, filters, ix.matches)
	if err != nil {
		return 0, err
	}
	return t.remove(ctx, found)
}

// find returns the entries that match; filters say what the kernel may leave out.
func (t *Table) find(ctx context.Context, filters []Filter, matches func(*flow) bool) (found []flow, err error) {
	dump, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: t.netns})
	if err != nil {
		return nil, fmt.Errorf("opening a conntrack socket: %w", err)
	}
	defer dump.Close()
	_ = dump.SetReadBuffer(4 << 20)
	entries := fewEntries + 1
	if t.netns == 0 {
		if n, _, err := Usage(); err == nil {
			entries = n
		}
	}
	for _, request := range requests(filters, entries) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if _, err := dump.Send(request); err != nil {
			return nil, fmt.Errorf("reading the conntrack table: %w", err)
		}
		// One message at a time: a table of 100,000 entries would be hundreds of megabytes at once.
		for m, err := range dump.ReceiveIter() {
			if err != nil {
				return nil, fmt.Errorf("reading the conntrack table: %w", err)
			}
			if e := decode(m.Data); matches(&e) {
				found = append(found, e)
			}
		}
	}
	return found, nil
}

func (t *Table) remove(ctx context.Context, found []flow) (n int, err error) {
	if len(found) == 0 {
		return 0, nil
	}
	conn, err := ct.Dial(&netlink.Config{NetNS: t.netns})
	if err != nil {
		return 0, fmt.Errorf("opening a conntrack socket: %w", err)
	}
	defer conn.Close()
	for _, e := range found {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		// The ID keeps us from deleting a new connection that has taken the place of the one that we saw.
		f := ct.Flow{ID: e.id, Zone: e.zone}
		f.TupleOrig.IP.SourceAddress, f.TupleOrig.IP.DestinationAddress = e.orig.src, e.orig.dst
		f.TupleReply.IP.SourceAddress, f.TupleReply.IP.DestinationAddress = e.reply.src, e.reply.dst
		f.TupleOrig.Proto = ct.ProtoTuple{Protocol: e.orig.proto, SourcePort: e.orig.sport, DestinationPort: e.orig.dport}
		f.TupleReply.Proto = ct.ProtoTuple{Protocol: e.reply.proto, SourcePort: e.reply.sport, DestinationPort: e.reply.dport}
		switch err := conn.Delete(f); {
		case err == nil:
			n++
		case !errors.Is(err, unix.ENOENT):
			return n, fmt.Errorf("forgetting the connection from %v to %v: %w", e.orig.src, e.orig.dst, err)
		}
	}
	return n, nil
}

// Attributes of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaTupleOrig, ctaTupleReply               = 1, 2
	ctaID, ctaZone, ctaFilter                 = 12, 18, 25
	ctaTupleIP, ctaTupleProto                 = 1, 2
	ctaIPv4Src, ctaIPv4Dst                    = 1, 2
	ctaIPv6Src, ctaIPv6Dst                    = 3, 4
	ctaProtoNum, ctaProtoSport, ctaProtoDport = 1, 2, 3
	ctaFilterOrigFlags                        = 1
	// filterProtoNum is the flag that makes the kernel look at the protocol (nf_conntrack_netlink.c).
	filterProtoNum = 1 << 3
	ipctnlMsgCtGet = 1
)

// fewEntries is a table whose entries cost less than another walk through its buckets: there are some 260,000 of those on a
// machine of a few gigabytes, and a walk takes 3 ms even when they are empty.
const fewEntries = 4096

// requests returns the dumps to ask for. Kernels before 5.8 do not know the filter and send everything.
func requests(filters []Filter, entries int) []netlink.Message {
	proto := filters[0].Proto
	if entries <= fewEntries {
		proto = 0
	}
	for _, f := range filters {
		if f.Proto != proto {
			proto = 0
		}
	}
	families := []byte{unix.AF_UNSPEC}
	if proto != 0 {
		families = []byte{unix.AF_INET, unix.AF_INET6}
	}
	var out []netlink.Message
	for _, family := range families {
		m := netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_CTNETLINK<<8 | ipctnlMsgCtGet, Flags: netlink.Request | netlink.Dump},
			Data:   []byte{family, unix.NFNETLINK_V0, 0, 0},
		}
		if proto != 0 {
			ae := netlink.NewAttributeEncoder()
			ae.Nested(ctaTupleOrig, func(ae *netlink.AttributeEncoder) error {
				ae.Nested(ctaTupleProto, func(ae *netlink.AttributeEncoder) error {
					ae.Uint8(ctaProtoNum, uint8(proto))
					return nil
				})
				return nil
			})
			ae.Nested(ctaFilter, func(ae *netlink.AttributeEncoder) error {
				ae.Uint32(ctaFilterOrigFlags, filterProtoNum)
				return nil
			})
			if b, err := ae.Encode(); err == nil { // cannot fail: nothing is longer than a few bytes
				m.Data = append(m.Data, b...)
			}
		}
		out = append(out, m)
	}
	return out
}

// decode reads the fields of an entry that we look at; the rest, which is most, costs nothing.
func decode(b []byte) (e flow) {
	if len(b) < 4 {
		return e
	}
	attributes(b[4:], func(kind uint16, v []byte) {
		switch kind {
		case ctaTupleOrig:
			e.orig = decodeTuple(v)
		case ctaTupleReply:
			e.reply = decodeTuple(v)
		case ctaID:
			e.id = binary.BigEndian.Uint32(v)
		case ctaZone:
			e.zone = binary.BigEndian.Uint16(v)
		}
	})
	return e
}

func decodeTuple(b []byte) (t tuple) {
	attributes(b, func(kind uint16, v []byte) {
		attributes(v, func(inner uint16, v []byte) {
			switch {
			case kind == ctaTupleIP && (inner == ctaIPv4Src || inner == ctaIPv6Src):
				t.src, _ = netip.AddrFromSlice(v)
			case kind == ctaTupleIP && (inner == ctaIPv4Dst || inner == ctaIPv6Dst):
				t.dst, _ = netip.AddrFromSlice(v)
			case kind == ctaTupleProto && inner == ctaProtoNum:
				t.proto = v[0]
			case kind == ctaTupleProto && inner == ctaProtoSport:
				t.sport = binary.BigEndian.Uint16(v)
			case kind == ctaTupleProto && inner == ctaProtoDport:
				t.dport = binary.BigEndian.Uint16(v)
			}
		})
	})
	return t
}

// attributes calls f for each attribute in b that has data.
func attributes(b []byte, f func(kind uint16, data []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		if n > 4 {
			f(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n])
		}
		b = b[min((n+3)&^3, len(b)):]
	}
}
