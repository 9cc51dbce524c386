package clusterdns

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"weft.network/weft/appliance/model"
)

// The parts of a message that answers are made of (RFC 1035, RFC 6891).
const (
	typeA, typeSOA, typePTR, typeAAAA, typeSRV, typeOPT, typeHTTPS = 1, 6, 12, 28, 33, 41, 65

	headerLen  = 12
	optLen     = 11
	minPayload = 512

	rcodeOK, rcodeNXDomain = 0, 3
	// mostLabels is how many labels a name of the fast path has at most before the domain; longer ones do not exist.
	mostLabels = 64
	// mostAddresses is how many addresses the fast path gives; more of them do not fit into a packet anyway.
	mostAddresses = 64
)

// Reply is the outcome of Answer, for the counters.
type Reply struct {
	Type  uint16
	Rcode int
	// Namespace is the label before svc, as it is in the packet; nil where there is none.
	Namespace []byte
}

// query is a question that the fast path understands. It lives on the stack of Answer.
type query struct {
	raw   []byte // the packet
	end   int    // of the question
	kind  uint16
	size  int // what the client can take
	edns  bool
	do    [2]byte // the flags of the OPT record that are returned
	lower [256]byte
	label [mostLabels]uint8 // offset of each label in lower
	count int               // of labels
	total int               // length of the name in lower, with the root
}

// Answer answers the questions that Pods ask all day straight from the Snapshot, packet to packet: addresses of Services and
// their endpoints, SRV of Services, reverse names, and the misses that search lists make. It returns nil for everything else
// and whenever it is in doubt: CoreDNS then answers with all its plugins. Both give the same answers; a test compares them.
func (n *Names) Answer(packet, out []byte) ([]byte, Reply) {
	p := n.current.Load()
	if p == nil {
		return nil, Reply{}
	}
	var q query
	if !q.parse(packet) {
		return nil, Reply{}
	}
	w := writer{out: out[:0], ttl: n.ttl}
	var rcode int
	switch {
	case q.kind == typePTR:
		rcode = n.pointer(p, &q, &w)
	case q.kind == typeA || q.kind == typeAAAA || q.kind == typeSRV || q.kind == typeHTTPS:
		rcode = n.forward(p, &q, &w)
	default:
		return nil, Reply{}
	}
	if rcode < 0 {
		return nil, Reply{}
	}
	if w.answers == 0 {
		w.soa(n, p, &q)
	}
	w.finish(&q, rcode)
	if len(w.out) > q.size {
		return nil, Reply{}
	}
	return w.out, Reply{Type: q.kind, Rcode: rcode, Namespace: w.namespace}
}

// unsure is returned in place of a code when CoreDNS shall answer.
const unsure = -1

// parse reads a packet with one plain question and at most an empty OPT record.
func (q *query) parse(b []byte) bool {
	if len(b) < headerLen+5 || b[2]&0xfe != 0 || b[3]&0xcf != 0 { // a response, another opcode, flags that mean nothing here
		return false
	}
	counts := binary.BigEndian.Uint64(b[4:])
	if counts>>16 != 1<<32 || counts&0xffff > 1 { // one question, nothing else but perhaps one OPT
		return false
	}
	q.raw, q.size = b, minPayload
	i := headerLen
	for {
		if i >= len(b) {
			return false
		}
		l := int(b[i])
		if l == 0 {
			break
		}
		if l > 63 || i+1+l >= len(b) || q.total+1+l > 254 || q.count == mostLabels {
			return false
		}
		q.label[q.count] = uint8(q.total)
		q.count++
		q.lower[q.total] = byte(l)
		for j, c := range b[i+1 : i+1+l] {
			switch {
			case c >= 'A' && c <= 'Z':
				c += 'a' - 'A'
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return false
			}
			q.lower[q.total+1+j] = c
		}
		q.total += 1 + l
		i += 1 + l
	}
	q.total++ // the root, which is 0
	i++
	if i+4 > len(b) || b[i+2] != 0 || b[i+3] != 1 {
		return false
	}
	q.kind = binary.BigEndian.Uint16(b[i:])
	q.end = i + 4
	return q.parseOPT(b[q.end:], counts&0xffff == 1)
}

func (q *query) parseOPT(b []byte, present bool) bool {
	if !present {
		return len(b) == 0
	}
	if len(b) != optLen || b[0] != 0 || b[1] != 0 || b[2] != typeOPT || b[5]|b[6] != 0 || b[9]|b[10] != 0 {
		return false
	}
	q.edns, q.size = true, max(minPayload, int(binary.BigEndian.Uint16(b[3:])))
	q.do = [2]byte{b[7], 0}
	return true
}

// text returns a label in lower case.
func (q *query) text(i int) []byte {
	at := q.label[i]
	return q.lower[at+1 : at+1+q.lower[at]]
}

// below returns how many labels come before the domain; ok is false for a name that is not below it.
func (q *query) below(domain []byte) (labels int, ok bool) {
	start := q.total - len(domain)
	if start <= 0 || string(q.lower[start:q.total]) != string(domain) {
		return 0, false
	}
	for i := q.count - 1; i >= 0; i-- {
		if int(q.label[i]) == start {
			return i, true
		}
	}
	return 0, false
}

// offset is where a label of the question is in the packet.
func (q *query) offset(label int) int { return headerLen + int(q.label[label]) }

// forward answers for a name below the domain, by the rules of the kubernetes plugin: ENDPOINT.SERVICE.NAMESPACE.svc and
// _PORT._PROTOCOL.SERVICE.NAMESPACE.svc.
func (n *Names) forward(p *picture, q *query, w *writer) int {
	labels, ok := q.below(n.wire)
	if !ok || labels < 2 {
		return unsure
	}
	w.zone = q.offset(labels)
	switch last := string(q.text(labels - 1)); {
	case last == "dns", last == "pod":
		return unsure
	case last != "svc":
		return rcodeNXDomain
	}
	if labels > 2 {
		at := q.offset(labels - 2)
		w.namespace = q.raw[at+1 : at+1+int(q.raw[at])]
	}
	if labels > 5 {
		return rcodeNXDomain
	}
	if labels < 3 || q.kind == typeHTTPS {
		return unsure
	}
	s := p.service(string(q.text(labels-2)), string(q.text(labels-3)))
	switch {
	case s == nil:
		return rcodeNXDomain
	case s.ExternalName != "":
		return unsure
	case labels == 4:
		return p.endpoints(q, w, s, q.text(0))
	case labels == 5:
		return p.port(q, w, s)
	case s.Headless:
		return p.endpoints(q, w, s, nil)
	case q.kind == typeSRV:
		return unsure
	}
	w.addresses(q, s.ClusterIPs)
	return rcodeOK
}

// endpoints answers with the addresses behind a Service, or with those of the endpoint of that name.
func (p *picture) endpoints(q *query, w *writer, s *model.Service, hostname []byte) int {
	if q.kind == typeSRV {
		return unsure
	}
	found := false
	var list [mostAddresses]netip.Addr
	n := 0
	for _, slice := range p.slices.get(s.Key()) {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if !e.Ready && !s.PublishNotReady {
				continue
			}
			for _, a := range e.Addresses {
				if hostname != nil && !named(e, a, hostname) {
					continue
				}
				found = true
				if a.Is4() != (q.kind == typeA) {
					continue
				}
				if n == len(list) {
					return unsure
				}
				list[n] = a
				n++
			}
		}
	}
	if !found {
		return rcodeNXDomain
	}
	w.addresses(q, list[:n])
	return rcodeOK
}

// named reports whether an endpoint has that name: its hostname, or else its address with dashes.
func named(e *model.Endpoint, a netip.Addr, name []byte) bool {
	if e.Hostname != "" {
		return string(name) == e.Hostname
	}
	var buffer [48]byte
	return string(dashed(buffer[:0], a)) == string(name)
}

// dashed appends the name of an endpoint that has none.
func dashed(b []byte, a netip.Addr) []byte {
	b = a.AppendTo(b)
	for i, c := range b {
		if c == '.' || c == ':' {
			b[i] = '-'
		}
	}
	if a.Is6() && b[len(b)-1] == '-' { // a label must not end so
		b = append(b, '0')
	}
	return b
}

// port answers for _PORT._PROTOCOL of a Service with an address.
func (p *picture) port(q *query, w *writer, s *model.Service) int {
	if s.Headless {
		return unsure
	}
	name, protocol := bare(q.text(0)), bare(q.text(1))
	if len(name) == 0 || len(protocol) == 0 {
		return unsure
	}
	for i := range s.Ports {
		if port := &s.Ports[i]; string(name) == port.Name && string(protocol) == port.Protocol.String() {
			if q.kind == typeSRV {
				w.srv(q, s, port.Port)
			} else {
				w.addresses(q, s.ClusterIPs)
			}
			return rcodeOK
		}
	}
	return rcodeNXDomain
}

func bare(label []byte) []byte {
	if len(label) > 0 && label[0] == '_' {
		return label[1:]
	}
	return label
}

// pointer answers for the reverse name of a Service or an endpoint.
func (n *Names) pointer(p *picture, q *query, w *writer) int {
	a, ok := q.reverse()
	if !ok {
		return unsure
	}
	owners := p.reverse.get(a)
	for _, o := range owners {
		if o.service != nil {
			w.ptr(n, q, nil, o.service.Name, o.service.Namespace)
			return rcodeOK
		}
	}
	for i, o := range owners {
		e := &o.slice.Endpoints[o.index]
		if !p.published(o.slice, e) {
			continue
		}
		var buffer [64]byte
		hostname := append(buffer[:0], e.Hostname...)
		if len(hostname) == 0 {
			hostname = dashed(hostname, a)
		}
		if i > 0 && w.answers > 0 {
			return unsure // several names, perhaps equal ones
		}
		w.ptr(n, q, hostname, o.slice.Service, o.slice.Namespace)
	}
	if w.answers == 0 {
		return unsure // perhaps the upstream knows
	}
	return rcodeOK
}

// reverse reads an address from a name below in-addr.arpa or ip6.arpa.
func (q *query) reverse() (a netip.Addr, ok bool) {
	if q.count < 2 || string(q.text(q.count-1)) != "arpa" {
		return a, false
	}
	switch string(q.text(q.count - 2)) {
	case "in-addr":
		if q.count != 6 {
			return a, false
		}
		var b [4]byte
		for i := range b {
			text, v := q.text(3-i), 0
			if len(text) > 3 || len(text) > 1 && text[0] == '0' {
				return a, false
			}
			for _, c := range text {
				if c < '0' || c > '9' {
					return a, false
				}
				v = 10*v + int(c-'0')
			}
			if v > 255 {
				return a, false
			}
			b[i] = byte(v)
		}
		return netip.AddrFrom4(b), true
	case "ip6":
		if q.count != 34 {
			return a, false
		}
		var b [16]byte
		for i := range 32 {
			text := q.text(31 - i)
			if len(text) != 1 {
				return a, false
			}
			v := text[0]
			switch {
			case v >= '0' && v <= '9':
				v -= '0'
			case v >= 'a' && v <= 'f':
				v -= 'a' - 10
			default:
				return a, false
			}
			b[i/2] = b[i/2]<<4 | v
		}
		if a = netip.AddrFrom16(b); a.Is4In6() {
			return a, false
		}
		return a, true
	}
	return a, false
}

// shuffled returns where to begin in a list of n, so that clients that take the first spread.
func shuffled(n int) int {
	if n < 2 {
		return 0
	}
	return int(rand.Uint32N(uint32(n)))
}
