package nft

import (
	"fmt"
	"hash/fnv"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/ruleset"
)

// Attributes and flags of linux/netfilter/nf_tables.h that golang.org/x/sys does not have.
const (
	nftaTableUserdata   = 6
	nftaChainUserdata   = 12
	nftaSetDescConcat   = 2
	nftaSetFieldLen     = 1
	nftaSetElemKeyEnd   = 10
	nftSetConcat        = 0x80
	nftDataVerdict      = 0xffffff00
	nftaVerdictCode     = 1
	nftaVerdictChain    = 2
	nftaDataValue       = 1
	nftaDataVerdict     = 2
	nftaRuleExpressions = 4
	nftaRuleUserdata    = 7
)

// Kinds of entries in user data areas (libnftnl's udata.h); a comment has the same one nearly everywhere.
const (
	udataComment      = 0
	udataSetKeyOrder  = 0
	udataSetDataOrder = 1
	udataSetComment   = 7
	// udataHash is ours: the hash of a rule as it was sent, by which it is known again. nft(8) skips what it does not know.
	udataHash = 0x77
)

// Byte orders in a set's user data, by which nft(8) prints keys and data.
const (
	hostEndian = 1
	bigEndian  = 2
)

// typeNumbers are nft(8)'s numbers of data types, which it finds again in the set.
var typeNumbers = [...]uint32{
	ruleset.TypeIPv4Addr: 7, ruleset.TypeIPv6Addr: 8, ruleset.TypeInetProto: 12, ruleset.TypeInetService: 13,
	ruleset.TypeMark: 19, ruleset.TypeIfName: 41,
}

func typeNumber(ts []ruleset.Type) uint32 {
	var n uint32
	for _, t := range ts {
		n = n<<6 | typeNumbers[t]
	}
	return n
}

// typeLen is the length of a key or of data: fields of a concatenation are padded to registers, a single field is not.
func typeLen(ts []ruleset.Type) uint32 {
	if len(ts) == 1 {
		return uint32(ts[0].Bytes())
	}
	var n uint32
	for _, t := range ts {
		n += uint32(t.Bytes()+3) &^ 3
	}
	return n
}

// addTable asks for a table; one that is there already is left as it is.
func (b *batch) addTable(t *ruleset.Table) {
	b.begin(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, familyNumbers[t.Family], "add table "+t.ID())
	b.attrString(unix.NFTA_TABLE_NAME, t.Name)
	b.attrUint32(unix.NFTA_TABLE_FLAGS, 0)
	if t.Comment != "" {
		b.attr(nftaTableUserdata, tlv(nil, udataComment, t.Comment+"\x00"))
	}
	b.end()
}

func (b *batch) deleteTable(t *ruleset.Table) {
	b.begin(unix.NFT_MSG_DELTABLE, 0, familyNumbers[t.Family], "delete table "+t.ID())
	b.attrString(unix.NFTA_TABLE_NAME, t.Name)
	b.end()
}

func (b *batch) addChain(t *ruleset.Table, c *ruleset.Chain) {
	b.begin(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, familyNumbers[t.Family], "add chain "+c.Name)
	b.attrString(unix.NFTA_CHAIN_TABLE, t.Name)
	b.attrString(unix.NFTA_CHAIN_NAME, c.Name)
	if h := c.Base; h != nil {
		at := b.nest(unix.NFTA_CHAIN_HOOK)
		b.attrUint32(unix.NFTA_HOOK_HOOKNUM, uint32(h.Hook))
		b.attrUint32(unix.NFTA_HOOK_PRIORITY, uint32(h.Priority))
		b.close(at)
		b.attrUint32(unix.NFTA_CHAIN_POLICY, policyNumber(h))
		b.attrString(unix.NFTA_CHAIN_TYPE, string(h.Type))
	}
	if c.Comment != "" {
		b.attr(nftaChainUserdata, tlv(nil, udataComment, c.Comment+"\x00"))
	}
	b.end()
}

func policyNumber(h *ruleset.Base) uint32 {
	if h.Drop {
		return 0 // NF_DROP
	}
	return 1 // NF_ACCEPT
}

// chainSpec is everything of a chain but its rules, in a form that can be compared.
func chainSpec(c *ruleset.Chain) string {
	if c.Base == nil {
		return "regular " + c.Comment
	}
	return fmt.Sprintf("%s %d %d %d %s", c.Base.Type, c.Base.Hook, c.Base.Priority, policyNumber(c.Base), c.Comment)
}

func (b *batch) deleteChain(t *ruleset.Table, name string) {
	b.begin(unix.NFT_MSG_DELCHAIN, 0, familyNumbers[t.Family], "delete chain "+name)
	b.attrString(unix.NFTA_CHAIN_TABLE, t.Name)
	b.attrString(unix.NFTA_CHAIN_NAME, name)
	b.end()
}

// flushChain deletes all rules of a chain.
func (b *batch) flushChain(t *ruleset.Table, name string) {
	b.begin(unix.NFT_MSG_DELRULE, 0, familyNumbers[t.Family], "flush chain "+name)
	b.attrString(unix.NFTA_RULE_TABLE, t.Name)
	b.attrString(unix.NFTA_RULE_CHAIN, name)
	b.end()
}

// rule is a rule ready to be sent.
type rule struct {
	text     string
	exprs    []byte
	userdata []byte
	hash     uint64
}

// encodeRule compiles a rule. Its hash covers all that is sent, so that a new weft sees what an older one did differently.
func encodeRule(f ruleset.Family, r *ruleset.Rule) (rule, error) {
	exprs, err := compileRule(f, r)
	if err != nil {
		return rule{}, err
	}
	out := rule{text: r.Text(), exprs: exprs}
	if r.Comment != "" {
		out.userdata = tlv(nil, udataComment, r.Comment+"\x00")
	}
	h := fnv.New64a()
	h.Write(exprs)
	h.Write([]byte(r.Comment))
	sum := h.Sum(nil)
	out.hash = h.Sum64()
	out.userdata = tlv(out.userdata, udataHash, string(sum))
	return out, nil
}

func (b *batch) addRule(t *ruleset.Table, chain string, r *rule) {
	b.begin(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, familyNumbers[t.Family], "add rule "+chain+" "+r.text)
	b.attrString(unix.NFTA_RULE_TABLE, t.Name)
	b.attrString(unix.NFTA_RULE_CHAIN, chain)
	b.attr(nftaRuleExpressions|unix.NLA_F_NESTED, r.exprs)
	b.attr(nftaRuleUserdata, r.userdata)
	b.end()
}

// setHead is a set without its elements, as the kernel has it; comparable.
type setHead struct {
	flags, keyType, keyLen, dataType, dataLen, size uint32
	comment                                         string
}

func headOf(s *ruleset.Set) setHead {
	h := setHead{keyType: typeNumber(s.Key), keyLen: typeLen(s.Key), size: s.Size, comment: s.Comment}
	if len(s.Key) > 1 {
		h.flags |= nftSetConcat
	}
	if s.Interval {
		h.flags |= unix.NFT_SET_INTERVAL
	}
	if s.Dynamic {
		h.flags |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	}
	if s.IsMap() {
		h.flags |= unix.NFT_SET_MAP
	}
	switch {
	case s.Verdicts:
		h.dataType = nftDataVerdict
	case len(s.Data) > 0:
		h.dataType, h.dataLen = typeNumber(s.Data), typeLen(s.Data)
	}
	return h
}

// addSet adds a set without elements. The id only has to differ within the batch.
func (b *batch) addSet(t *ruleset.Table, s *ruleset.Set, id uint32) {
	h := headOf(s)
	b.begin(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, familyNumbers[t.Family], "add set "+s.Name)
	b.attrString(unix.NFTA_SET_TABLE, t.Name)
	b.attrString(unix.NFTA_SET_NAME, s.Name)
	b.attrUint32(unix.NFTA_SET_FLAGS, h.flags)
	b.attrUint32(unix.NFTA_SET_KEY_TYPE, h.keyType)
	b.attrUint32(unix.NFTA_SET_KEY_LEN, h.keyLen)
	if s.IsMap() {
		b.attrUint32(unix.NFTA_SET_DATA_TYPE, h.dataType)
		b.attrUint32(unix.NFTA_SET_DATA_LEN, h.dataLen)
	}
	b.attrUint32(unix.NFTA_SET_ID, id)
	if h.size != 0 || len(s.Key) > 1 {
		b.describeSet(s, h.size)
	}
	userdata := tlv(nil, udataSetKeyOrder, byteOrder(s.Key))
	if len(s.Data) > 0 {
		userdata = tlv(userdata, udataSetDataOrder, byteOrder(s.Data))
	}
	if s.Comment != "" {
		userdata = tlv(userdata, udataSetComment, s.Comment+"\x00")
	}
	b.attr(unix.NFTA_SET_USERDATA, userdata)
	b.end()
}

// describeSet says how many elements there may be, and the length of each field: without it nft(8) cannot print the keys,
// and the kernel cannot have ranges in several fields.
func (b *batch) describeSet(s *ruleset.Set, size uint32) {
	desc := b.nest(unix.NFTA_SET_DESC)
	if size != 0 {
		b.attrUint32(unix.NFTA_SET_DESC_SIZE, size)
	}
	if len(s.Key) > 1 {
		fields := b.nest(nftaSetDescConcat)
		for _, t := range s.Key {
			field := b.nest(unix.NFTA_LIST_ELEM)
			b.attrUint32(nftaSetFieldLen, uint32(t.Bytes()))
			b.close(field)
		}
		b.close(fields)
	}
	b.close(desc)
}

// byteOrder tells nft(8) how to print marks and names; in a concatenation it goes by the type of each field.
func byteOrder(ts []ruleset.Type) string {
	if len(ts) == 1 && (ts[0] == ruleset.TypeMark || ts[0] == ruleset.TypeIfName) {
		return string([]byte{hostEndian, 0, 0, 0})
	}
	return string([]byte{bigEndian, 0, 0, 0})
}

func (b *batch) deleteSet(t *ruleset.Table, name string) {
	b.begin(unix.NFT_MSG_DELSET, 0, familyNumbers[t.Family], "delete set "+name)
	b.attrString(unix.NFTA_SET_TABLE, t.Name)
	b.attrString(unix.NFTA_SET_NAME, name)
	b.end()
}

// elements adds or deletes elements, in as many messages as the length of an attribute demands.
func (b *batch) elements(kind uint16, t *ruleset.Table, s *ruleset.Set, list []*ruleset.Element) {
	verb, flags := "add", uint16(unix.NLM_F_CREATE)
	if kind == unix.NFT_MSG_DELSETELEM {
		verb, flags = "delete", 0
	}
	for i := 0; i < len(list); {
		b.begin(kind, flags, familyNumbers[t.Family], "")
		b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
		b.attrString(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		at, first := b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS), i
		for ; i < len(list) && len(b.buf)-at < maxNested; i++ {
			b.element(s, list[i], kind == unix.NFT_MSG_DELSETELEM)
		}
		b.close(at)
		b.end()
		b.what[len(b.what)-1] = fmt.Sprintf("%s %d elements of %s, the first %s", verb, i-first, s.Name, s.ElementText(list[first]))
	}
}

// element appends one element. A range over one field is two entries for the kernel: its start, and a mark behind its end.
func (b *batch) element(s *ruleset.Set, e *ruleset.Element, keyOnly bool) {
	n := typeLen(s.Key)
	at := b.nest(unix.NFTA_LIST_ELEM)
	b.data(unix.NFTA_SET_ELEM_KEY, string(e.Key[:n]))
	if s.Interval && len(s.Key) > 1 {
		b.data(nftaSetElemKeyEnd, string(e.End[:n]))
	}
	if !keyOnly {
		b.elementData(s, e)
		if e.Comment != "" {
			b.attr(unix.NFTA_SET_ELEM_USERDATA, tlv(nil, udataComment, e.Comment+"\x00"))
		}
	}
	b.close(at)
	if !s.Interval || len(s.Key) > 1 {
		return
	}
	if end, ok := next(string(e.End[:n])); ok {
		at := b.nest(unix.NFTA_LIST_ELEM)
		b.attrUint32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		b.data(unix.NFTA_SET_ELEM_KEY, end)
		b.close(at)
	}
}

func (b *batch) elementData(s *ruleset.Set, e *ruleset.Element) {
	switch {
	case s.Verdicts:
		at := b.nest(unix.NFTA_SET_ELEM_DATA)
		v := b.nest(nftaDataVerdict)
		b.attrUint32(nftaVerdictCode, uint32(verdictCodes[e.Verdict.Kind]))
		if e.Verdict.Chain != "" {
			b.attrString(nftaVerdictChain, e.Verdict.Chain)
		}
		b.close(v)
		b.close(at)
	case len(s.Data) > 0:
		b.data(unix.NFTA_SET_ELEM_DATA, string(e.Data[:typeLen(s.Data)]))
	}
}

func (b *batch) data(kind uint16, value string) {
	at := b.nest(kind)
	b.attrValue(nftaDataValue, value)
	b.close(at)
}

// next returns the number that follows; ok is false behind the last one, where a range has no end in the kernel.
func next(key string) (string, bool) {
	b := []byte(key)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]++
		if b[i] != 0 {
			return string(b), true
		}
	}
	return "", false
}

// previous returns the number before.
func previous(key string) string {
	b := []byte(key)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			break
		}
	}
	return string(b)
}
