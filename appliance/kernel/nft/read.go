package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/ruleset"
)

// reader reads what the kernel has, over a socket of its own.
type reader struct {
	conn *netlink.Conn
	// dynamic reads the elements of dynamic sets, too.
	dynamic bool
}

// get asks one question; a dump if kind lists objects.
func (r *reader) get(kind uint16, flags netlink.HeaderFlags, family byte, b *batch) ([]netlink.Message, error) {
	data := append([]byte{family, unix.NFNETLINK_V0, 0, 0}, b.buf...)
	return r.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   data,
	})
}

// generation is the number of transactions so far; it tells whether several answers belong together.
func (r *reader) generation() (uint32, error) {
	msgs, err := r.get(unix.NFT_MSG_GETGEN, 0, unix.NFPROTO_UNSPEC, &batch{})
	if err != nil || len(msgs) == 0 {
		return 0, fmt.Errorf("reading the nftables generation: %w", err)
	}
	var gen uint32
	attributes(msgs[0].Data[4:], func(kind uint16, v []byte) {
		if kind == unix.NFTA_GEN_ID {
			gen = binary.BigEndian.Uint32(v)
		}
	})
	return gen, nil
}

// table reads one table, of whose sets only those in want with their elements. It returns nil if the table is not there.
func (r *reader) table(t *ruleset.Table) (*state, error) {
	const attempts = 5 // somebody else writing all the time must not keep us here
	for range attempts {
		before, err := r.generation()
		if err != nil {
			return nil, err
		}
		s, err := r.tableOnce(t)
		after, err2 := r.generation()
		if err2 == nil && before == after {
			return s, err
		}
	}
	return nil, fmt.Errorf("reading table %s: somebody changes nftables all the time: %w", t.ID(), unix.EINTR)
}

func (r *reader) tableOnce(t *ruleset.Table) (*state, error) {
	var b batch
	b.attrString(unix.NFTA_TABLE_NAME, t.Name)
	family := familyNumbers[t.Family]
	msgs, err := r.get(unix.NFT_MSG_GETTABLE, 0, family, &b)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading table %s: %w", t.ID(), err)
	}
	s := &state{chains: map[string]*chainState{}, sets: map[string]*setState{}}
	for _, m := range msgs {
		attributes(m.Data[4:], func(kind uint16, v []byte) {
			if kind == unix.NFTA_TABLE_FLAGS {
				s.dormant = binary.BigEndian.Uint32(v)&unix.NFT_TABLE_F_DORMANT != 0
			}
		})
	}
	for _, read := range []func(*ruleset.Table, *state) error{r.chains, r.rules, r.sets, r.elements} {
		if err := read(t, s); err != nil {
			return nil, fmt.Errorf("reading table %s: %w", t.ID(), err)
		}
	}
	return s, nil
}

func (r *reader) chains(t *ruleset.Table, s *state) error {
	msgs, err := r.get(unix.NFT_MSG_GETCHAIN, netlink.Dump, familyNumbers[t.Family], &batch{})
	if err != nil {
		return err
	}
	for _, m := range msgs {
		if table, c := decodeChain(m); table == t.Name {
			s.chains[c.Name] = &chainState{spec: chainSpec(&c), base: c.Base != nil}
		}
	}
	return nil
}

// decodeChain reads one chain without its rules, and the name of its table.
func decodeChain(m netlink.Message) (table string, c ruleset.Chain) {
	var policy string
	var base ruleset.Base
	attributes(m.Data[4:], func(kind uint16, v []byte) {
		switch kind {
		case unix.NFTA_CHAIN_TABLE:
			table = cString(v)
		case unix.NFTA_CHAIN_NAME:
			c.Name = cString(v)
		case unix.NFTA_CHAIN_TYPE:
			base.Type = ruleset.ChainType(cString(v))
			c.Base = &base
		case unix.NFTA_CHAIN_POLICY:
			policy = string(v)
		case unix.NFTA_CHAIN_HOOK:
			attributes(v, func(kind uint16, v []byte) {
				switch kind {
				case unix.NFTA_HOOK_HOOKNUM:
					base.Hook = ruleset.Hook(binary.BigEndian.Uint32(v))
				case unix.NFTA_HOOK_PRIORITY:
					base.Priority = int32(binary.BigEndian.Uint32(v))
				}
			})
		case nftaChainUserdata:
			c.Comment = comment(v, udataComment)
		}
	})
	base.Drop = policy == "\x00\x00\x00\x00"
	return table, c
}

func (r *reader) rules(t *ruleset.Table, s *state) error {
	var b batch
	b.attrString(unix.NFTA_RULE_TABLE, t.Name)
	msgs, err := r.get(unix.NFT_MSG_GETRULE, netlink.Dump, familyNumbers[t.Family], &b)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		var table, chain string
		var hash uint64 // stays 0 for a rule that is not ours
		attributes(m.Data[4:], func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_RULE_TABLE:
				table = cString(v)
			case unix.NFTA_RULE_CHAIN:
				chain = cString(v)
			case nftaRuleUserdata:
				eachTLV(v, func(kind byte, data []byte) {
					if kind == udataHash && len(data) == 8 {
						hash = binary.BigEndian.Uint64(data)
					}
				})
			}
		})
		if c := s.chains[chain]; table == t.Name && c != nil {
			c.rules = append(c.rules, hash)
		}
	}
	return nil
}

func (r *reader) sets(t *ruleset.Table, s *state) error {
	var b batch
	b.attrString(unix.NFTA_SET_TABLE, t.Name)
	msgs, err := r.get(unix.NFT_MSG_GETSET, netlink.Dump, familyNumbers[t.Family], &b)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		var table, name string
		var h setHead
		attributes(m.Data[4:], func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_SET_TABLE:
				table = cString(v)
			case unix.NFTA_SET_NAME:
				name = cString(v)
			case unix.NFTA_SET_FLAGS:
				h.flags = binary.BigEndian.Uint32(v)
			case unix.NFTA_SET_KEY_TYPE:
				h.keyType = binary.BigEndian.Uint32(v)
			case unix.NFTA_SET_KEY_LEN:
				h.keyLen = binary.BigEndian.Uint32(v)
			case unix.NFTA_SET_DATA_TYPE:
				h.dataType = binary.BigEndian.Uint32(v)
			case unix.NFTA_SET_DATA_LEN:
				h.dataLen = binary.BigEndian.Uint32(v)
			case unix.NFTA_SET_DESC:
				attributes(v, func(kind uint16, v []byte) {
					if kind == unix.NFTA_SET_DESC_SIZE {
						h.size = binary.BigEndian.Uint32(v)
					}
				})
			case unix.NFTA_SET_USERDATA:
				h.comment = comment(v, udataSetComment)
			}
		})
		if h.dataType == nftDataVerdict {
			h.dataLen = 0 // the size of a structure of the kernel
		}
		if table == t.Name && h.flags&unix.NFT_SET_ANONYMOUS == 0 {
			s.sets[name] = &setState{head: h}
		}
	}
	return nil
}

// elements reads the elements of the sets that the kernel has as t wants them.
func (r *reader) elements(t *ruleset.Table, s *state) error {
	for _, want := range t.Sets {
		have := s.sets[want.Name]
		if have == nil || have.head != headOf(want) {
			continue
		}
		if want.Dynamic && !r.dynamic { // what packets put there is not ours to know
			have.index = map[string]slot{}
			continue
		}
		var b batch
		b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
		b.attrString(unix.NFTA_SET_ELEM_LIST_SET, want.Name)
		msgs, err := r.get(unix.NFT_MSG_GETSETELEM, netlink.Dump, familyNumbers[t.Family], &b)
		if err != nil {
			return fmt.Errorf("set %s: %w", want.Name, err)
		}
		var entries []entry
		for _, m := range msgs {
			attributes(m.Data[4:], func(kind uint16, v []byte) {
				if kind == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
					attributes(v, func(_ uint16, v []byte) { entries = append(entries, decodeEntry(v)) })
				}
			})
		}
		if want.Interval && len(want.Key) == 1 {
			entries = pairs(entries, int(typeLen(want.Key)))
		}
		have.adopt(want, entries)
	}
	return nil
}

// entry is an element as the kernel lists it.
type entry struct {
	ruleset.Element
	end bool // not an element but the mark behind a range
}

func decodeEntry(b []byte) (e entry) {
	attributes(b, func(kind uint16, v []byte) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			e.Key = dataValue(v)
		case nftaSetElemKeyEnd:
			e.End = dataValue(v)
		case unix.NFTA_SET_ELEM_FLAGS:
			e.end = binary.BigEndian.Uint32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_DATA:
			attributes(v, func(kind uint16, v []byte) {
				if kind == nftaDataVerdict {
					e.Verdict = decodeVerdict(v)
				} else {
					e.Data = padded(v)
				}
			})
		case unix.NFTA_SET_ELEM_USERDATA:
			e.Comment = comment(v, udataComment)
		}
	})
	return e
}

func dataValue(b []byte) (out ruleset.Value) {
	attributes(b, func(kind uint16, v []byte) {
		if kind == nftaDataValue {
			out = padded(v)
		}
	})
	return out
}

// padded makes a key of a single field as wide as the registers.
func padded(b []byte) ruleset.Value {
	return ruleset.Value(append(slices.Clip(b), make([]byte, -len(b)&3)...))
}

func decodeVerdict(b []byte) (out ruleset.Verdict) {
	attributes(b, func(kind uint16, v []byte) {
		switch kind {
		case nftaVerdictCode:
			code := int32(binary.BigEndian.Uint32(v))
			out.Kind = ruleset.VerdictKind(slices.Index(verdictCodes[1:], code) + 1)
		case nftaVerdictChain:
			out.Chain = cString(v)
		}
	})
	return out
}

// pairs joins the starts of ranges with the marks behind their ends; n is the length of a key in bytes.
func pairs(entries []entry, n int) []entry {
	slices.SortFunc(entries, func(a, b entry) int {
		if c := strings.Compare(string(a.Key), string(b.Key)); c != 0 || a.end == b.end {
			return c
		}
		if a.end {
			return -1
		}
		return 1
	})
	var out []entry
	open := false
	for _, e := range entries {
		if open && out[len(out)-1].End == "" {
			out[len(out)-1].End = padded([]byte(previous(string(e.Key[:n]))))
		}
		open = !e.end
		if open {
			out = append(out, e)
		}
	}
	if open { // up to the last number there is
		out[len(out)-1].End = padded([]byte(strings.Repeat("\xff", n)))
	}
	return out
}

func cString(b []byte) string { return strings.TrimRight(string(b), "\x00") }

func comment(userdata []byte, kind byte) (out string) {
	eachTLV(userdata, func(k byte, data []byte) {
		if k == kind {
			out = cString(data)
		}
	})
	return out
}
