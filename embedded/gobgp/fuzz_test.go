package gobgp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"weft.network/weft/appliance/compile/peering"
	"weft.network/weft/appliance/model"
)

// hostile are neighbours that say anything. After each failure gobgp pauses for five seconds, so there are many, taken in turn.
const hostile = 200

// victim is a speaker with hostile neighbours and one that behaves, each in a process of its own.
type victim struct {
	s      *Speaker
	friend *Speaker
	want   peering.Speaker
	port   uint16
	next   atomic.Uint32
	said   atomic.Uint32
}

func hostileAddress(i uint32) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 9, byte(i + 1)}) }

func newVictim(t testing.TB) *victim {
	t.Helper()
	everything := []model.PrefixRule{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), LE: 32}, {Prefix: netip.MustParsePrefix("::/0"), LE: 128}}
	session := func(address string, asn, own uint32, port uint16, source string, passive bool) peering.Neighbour {
		return peering.Neighbour{
			Name: address, Address: netip.MustParseAddr(address), ASN: asn, LocalASN: own, Port: port, Source: netip.MustParseAddr(source), Passive: passive,
			HoldSeconds: 90, KeepaliveSeconds: 30, ConnectRetrySeconds: 1, RestartSeconds: 20, IPv4: true, IPv6: true, MultihopTTL: 4, Group: "g", Import: everything,
		}
	}
	v := &victim{port: freePort(t)}
	v.s, _ = family(t)
	v.friend, _ = family(t)
	speaker := peering.Speaker{ASN: 65001, RouterID: netip.MustParseAddr("127.0.0.1"), Port: v.port, Groups: []peering.Group{{Name: "g"}}}
	speaker.Neighbours = append(speaker.Neighbours, session("127.0.0.2", 65002, 65001, 179, "127.0.0.1", true))
	for i := range uint32(hostile) {
		n := session(hostileAddress(i).String(), 65100, 65001, 179, "127.0.0.1", true)
		if i%2 == 1 {
			n.ASN = 65001 // internal sessions read other attributes
		}
		speaker.Neighbours = append(speaker.Neighbours, n)
	}
	if _, err := v.s.Apply(t.Context(), speaker); err != nil {
		t.Fatal(err)
	}
	v.want = peering.Speaker{ASN: 65002, RouterID: netip.MustParseAddr("127.0.0.2"), Groups: []peering.Group{{Name: "g"}}}
	v.want.Neighbours = []peering.Neighbour{session("127.0.0.1", 65001, 65002, v.port, "127.0.0.2", false)}
	return v
}

// works tells the victim a new route through the neighbour that behaves, and waits until it is there.
func (v *victim) works(t testing.TB) {
	t.Helper()
	n := v.said.Add(1)
	prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 32)
	v.want.Paths = []peering.Path{{Prefix: prefix, Groups: []string{"g"}}}
	if _, err := v.friend.Apply(t.Context(), v.want); err != nil {
		t.Fatal(err)
	}
	wait(t, "a route by the neighbour that behaves", func() bool {
		if why := v.s.Failure(); why != "" {
			t.Fatalf("the speaker has failed: %s", why)
		}
		for _, r := range v.s.Routes() {
			if r.Prefix == prefix {
				return true
			}
		}
		return false
	})
	if n := v.s.Starts(); n != 1 {
		t.Fatalf("the speaker died %d times", n-1)
	}
}

func message(kind byte, body []byte) []byte {
	out := make([]byte, 19, 19+len(body))
	for i := range 16 {
		out[i] = 0xff
	}
	binary.BigEndian.PutUint16(out[16:], uint16(19+len(body)))
	out[18] = kind
	return append(out, body...)
}

// open is a good OPEN with both families, graceful restart and four-byte AS numbers.
func open(asn uint16) []byte {
	capabilities := []byte{1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 64, 10, 0, 60, 0, 1, 1, 0x80, 0, 2, 1, 0x80, 65, 4, 0, 0, byte(asn >> 8), byte(asn)}
	body := append([]byte{4, byte(asn >> 8), byte(asn), 0, 90, 10, 9, 9, 9, byte(2 + len(capabilities)), 2, byte(len(capabilities))}, capabilities...)
	return body
}

// attack says something to the victim as one of the hostile neighbours: kind 0 instead of an OPEN, 1 as a message after the OPEN, 2 as an UPDATE in a
// session that is established, 3 as a message of any type there.
func (v *victim) attack(kind byte, payload []byte) error {
	i := v.next.Add(1) % hostile
	asn := uint16(65100)
	if i%2 == 1 {
		asn = 65001
	}
	d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: hostileAddress(i).AsSlice()}}
	conn, err := d.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", v.port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return err
	}
	send := func(kind byte, body []byte) { _, _ = conn.Write(message(kind, body)) } // the victim may have closed
	payload = payload[:min(len(payload), 4096-19)]
	first := byte(2)
	if len(payload) > 0 {
		// gobgp 3.37.0 dies of a message type that it does not know (handlingError in fsm.go). That is what the process of its own is for;
		// the lab has a story about it.
		first = payload[0]%5 + 1
	}
	switch kind % 4 {
	case 0:
		send(1, payload)
	case 1:
		send(1, open(asn))
		send(first, payload)
	default:
		send(1, open(asn))
		send(4, nil)
		if err := untilKeepalive(conn); err != nil {
			return nil // it pauses, or closed: nothing was said
		}
		if kind%4 == 2 {
			first = 2
		}
		send(first, payload)
	}
	_, err = conn.Read(make([]byte, 4096)) // wait for its answer, or for a moment
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return nil
}

// untilKeepalive reads until the victim has sent its OPEN and a KEEPALIVE.
func untilKeepalive(conn net.Conn) error {
	head := make([]byte, 19)
	for {
		if _, err := io.ReadFull(conn, head); err != nil {
			return err
		}
		body := make([]byte, binary.BigEndian.Uint16(head[16:])-19)
		if _, err := io.ReadFull(conn, body); err != nil {
			return err
		}
		if head[18] == 4 {
			return nil
		}
	}
}

// malformed are messages that have broken speakers before, and good ones to start from.
func malformed() map[byte][][]byte {
	attrs := func(a ...byte) []byte {
		return append(append([]byte{0, 0, byte(len(a) >> 8), byte(len(a))}, a...), 24, 10, 66, 6)
	}
	return map[byte][][]byte{
		0: {open(65100), open(65100)[:9], open(65001), {}, {4}, {3, 0xfe, 0x4c, 0, 90, 1, 1, 1, 1, 0}, {4, 0xfe, 0x4c, 0, 1, 1, 1, 1, 1, 0}, {4, 0xfe, 0x4c, 0, 90, 0, 0, 0, 0, 255, 2, 253, 64, 200}},
		1: {{2}, {3, 6, 2}, {5, 0, 1, 0, 1}, {9, 9, 9}, {1}},
		2: {
			// good
			attrs(0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfe, 0x4c, 0x40, 3, 4, 127, 0, 9, 1),
			// ORIGIN that is none
			attrs(0x40, 1, 1, 9, 0x40, 2, 6, 2, 1, 0, 0, 0xfe, 0x4c, 0x40, 3, 4, 127, 0, 9, 1),
			// AS_PATH of an unknown kind
			attrs(0x40, 2, 6, 7, 1, 0, 0, 0xfe, 0x4c),
			// AS_PATH that is longer than it says
			attrs(0x40, 2, 2, 2, 200),
			// no AS_PATH, NEXT_HOP 0.0.0.0
			attrs(0x40, 1, 1, 0, 0x40, 3, 4, 0, 0, 0, 0),
			// MP_REACH_NLRI without next hop
			attrs(0x80, 14, 5, 0, 2, 1, 0, 0),
			// MP_REACH_NLRI with a next hop that is cut
			attrs(0x80, 14, 9, 0, 2, 1, 255, 1, 2, 3, 4, 5),
			// COMMUNITIES of three bytes
			attrs(0xc0, 8, 3, 1, 2, 3),
			// LARGE_COMMUNITY of five bytes
			attrs(0xc0, 32, 5, 1, 2, 3, 4, 5),
			// an attribute that is longer than the message
			attrs(0xd0, 99, 255, 255),
			// AS4_PATH in a session with four-byte numbers
			attrs(0xe0, 17, 6, 2, 1, 0, 0, 0, 1),
			// ORIGINATOR_ID, and a CLUSTER_LIST that is cut
			attrs(0x80, 9, 4, 1, 2, 3, 4, 0x80, 10, 3, 1, 2, 3),
			// ATTR_SET, prefix SID
			attrs(0xc0, 128, 4, 1, 2, 3, 4, 0xc0, 40, 6, 1, 0, 3, 0, 0, 0, 1),
			{0, 255},
			{0, 0, 0, 0},
			{0, 1, 33, 0, 0},
			{0, 5, 129, 1, 2, 3, 4, 0, 0},
			{},
		},
		3: {{1}, {3}, {3, 6}, {4, 4}, {5, 0, 9, 0, 9}, {6, 0, 0}, {0}, {255}},
	}
}

// FuzzSpeaker says anything to a running speaker. It must neither die nor forget a neighbour that behaves.
func FuzzSpeaker(f *testing.F) {
	for kind, list := range malformed() {
		for _, payload := range list {
			f.Add(kind, payload)
		}
	}
	v := newVictim(f)
	v.works(f)
	f.Fuzz(func(t *testing.T, kind byte, payload []byte) {
		if err := v.attack(kind, payload); err != nil {
			t.Fatal(err)
		}
		if v.next.Load()%50 == 0 {
			v.works(t)
		}
	})
}

// TestMalformedMessages says what has broken speakers before, and looks afterwards whether the speaker is well.
func TestMalformedMessages(t *testing.T) {
	v := newVictim(t)
	v.works(t)
	for kind, list := range malformed() {
		for _, payload := range list {
			if err := v.attack(kind, payload); err != nil {
				t.Fatal(err)
			}
		}
	}
	v.works(t)
	sessions, err := v.s.Sessions(t.Context(), false)
	if err != nil || sessions[0].State != "Established" || sessions[0].Ended != 0 {
		t.Errorf("the session with the neighbour that behaves: %+v %v", sessions[0], err)
	}
	wait(t, "no route of a neighbour whose session is over", func() bool { return len(v.s.Routes()) == 1 })
}
