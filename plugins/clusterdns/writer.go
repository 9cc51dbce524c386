package clusterdns

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// writer makes a reply. The header and the question are written first, when the first record or the end comes.
type writer struct {
	out                         []byte
	ttl                         uint32
	zone                        int    // where the domain begins in the question; 0 when it is not there
	namespace                   []byte // in the question; nil when it is not there
	answers, authorities, extra uint16
}

// begin copies header and question: the case of the name is the client's own.
func (w *writer) begin(q *query) {
	if len(w.out) == 0 {
		w.out = append(w.out, q.raw[:q.end]...)
	}
}

// record writes the fixed part of a record whose owner is at that offset in the packet, and its data of that length.
func (w *writer) record(owner int, kind uint16, ttl uint32, length int) {
	w.out = binary.BigEndian.AppendUint16(w.out, 0xc000|uint16(owner))
	w.out = binary.BigEndian.AppendUint16(w.out, kind)
	w.out = binary.BigEndian.AppendUint16(w.out, 1)
	w.out = binary.BigEndian.AppendUint32(w.out, ttl)
	w.out = binary.BigEndian.AppendUint16(w.out, uint16(length))
}

func (w *writer) address(owner int, a netip.Addr) {
	if a.Is4() {
		w.record(owner, typeA, w.ttl, 4)
		b := a.As4()
		w.out = append(w.out, b[:]...)
		return
	}
	w.record(owner, typeAAAA, w.ttl, 16)
	b := a.As16()
	w.out = append(w.out, b[:]...)
}

// addresses writes those of the family that was asked for, each once, beginning anywhere.
func (w *writer) addresses(q *query, list []netip.Addr) {
	w.begin(q)
	start := shuffled(len(list))
	for i := range list {
		at := (start + i) % len(list)
		a := list[at]
		if a.Is4() != (q.kind == typeA) || slices.Contains(list[:at], a) {
			continue
		}
		w.address(headerLen, a)
		w.answers++
	}
}

// srv writes the port of a Service with its addresses. The weight is what the kubernetes plugin gives.
func (w *writer) srv(q *query, s *model.Service, port uint16) {
	w.begin(q)
	weight := uint16(100 / len(s.ClusterIPs))
	length := 6 + 1 + len(s.Name) + 1 + len(s.Namespace) + 4 + (q.total - (w.zone - headerLen))
	w.record(headerLen, typeSRV, w.ttl, length)
	w.out = append(w.out, 0, 0, byte(weight>>8), byte(weight), byte(port>>8), byte(port))
	target := len(w.out)
	w.label(s.Name)
	w.label(s.Namespace)
	w.label("svc")
	w.out = append(w.out, q.raw[w.zone:q.end-4]...) // RFC 2782: no compression here
	w.answers++
	for _, a := range s.ClusterIPs {
		w.address(target, a)
		w.extra++
	}
}

func (w *writer) label(text string) {
	w.out = append(append(w.out, byte(len(text))), text...)
}

// ptr writes the name of a Service, or of its endpoint when there is a hostname.
func (w *writer) ptr(n *Names, q *query, hostname []byte, service, namespace string) {
	w.begin(q)
	length := 1 + len(service) + 1 + len(namespace) + 4 + len(n.wire)
	if hostname != nil {
		length += 1 + len(hostname)
	}
	w.record(headerLen, typePTR, w.ttl, length)
	if hostname != nil {
		w.label(string(hostname))
	}
	w.label(service)
	w.label(namespace)
	w.label("svc")
	w.out = append(w.out, n.wire...)
	w.answers++
}

// The timers of the SOA record, as CoreDNS gives them.
const (
	soaRefresh, soaRetry, soaExpire = 7200, 1800, 86400
	soaMaxTTL                       = 300
)

// soa says how long a name that does not exist, or has no such record, may be remembered.
func (w *writer) soa(n *Names, p *picture, q *query) {
	w.begin(q)
	const mname, rname = "\x02ns\x03dns", "\x0ahostmaster"
	w.record(w.zone, typeSOA, min(n.ttl, soaMaxTTL), len(mname)+2+len(rname)+2+20)
	pointer := []byte{0xc0 | byte(w.zone>>8), byte(w.zone)}
	w.out = append(append(w.out, mname...), pointer...)
	w.out = append(append(w.out, rname...), pointer...)
	for _, v := range [...]uint32{uint32(p.changed), soaRefresh, soaRetry, soaExpire, n.ttl} {
		w.out = binary.BigEndian.AppendUint32(w.out, v)
	}
	w.authorities++
}

// finish writes the flags, the counts and the OPT record.
func (w *writer) finish(q *query, rcode int) {
	if q.edns {
		w.out = append(w.out, 0, 0, typeOPT, q.raw[q.end+3], q.raw[q.end+4], 0, 0, q.do[0], q.do[1], 0, 0)
		w.extra++
	}
	w.out[2] = 0x84 | q.raw[2]&1                // a reply with authority; recursion desired is the client's
	w.out[3] = q.raw[3]&0x10 | byte(rcode)&0x0f // checking disabled is, too
	binary.BigEndian.PutUint16(w.out[4:], 1)
	binary.BigEndian.PutUint16(w.out[6:], w.answers)
	binary.BigEndian.PutUint16(w.out[8:], w.authorities)
	binary.BigEndian.PutUint16(w.out[10:], w.extra)
}
