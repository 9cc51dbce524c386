package nft

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/ruleset"
)

// firstRegister is NFT_REG32_00, the first of sixteen registers of 32 bits. All expressions of a rule start there.
const (
	firstRegister = unix.NFT_REG32_00
	registers     = 16
)

// ruleCompiler turns one rule into the expressions of the kernel.
type ruleCompiler struct {
	family ruleset.Family
	out    []expr.Any
	// proto3 and proto4 are what is known of the packet at this point of the rule: the checks that nft(8) adds before the
	// first field of a header, and does not print.
	proto3, proto4 byte
	err            error
}

// compileRule returns the rule's expressions, encoded.
func compileRule(family ruleset.Family, r *ruleset.Rule) ([]byte, error) {
	c := ruleCompiler{family: family, proto3: familyNumbers[family]}
	if family == ruleset.INet {
		c.proto3 = 0
	}
	for _, s := range r.Statements {
		c.statement(s)
	}
	if c.err != nil {
		return nil, fmt.Errorf("rule %q: %w", r.Text(), c.err)
	}
	var b batch
	for _, e := range c.out {
		data, err := expr.Marshal(familyNumbers[family], e)
		if err != nil {
			return nil, fmt.Errorf("rule %q: %w", r.Text(), err)
		}
		b.attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data)
	}
	return b.buf, nil
}

var familyNumbers = [...]byte{ruleset.INet: unix.NFPROTO_INET, ruleset.IPv4: unix.NFPROTO_IPV4, ruleset.IPv6: unix.NFPROTO_IPV6}

func (c *ruleCompiler) add(e ...expr.Any) { c.out = append(c.out, e...) }

func (c *ruleCompiler) fail(format string, a ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, a...)
	}
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func (c *ruleCompiler) statement(s ruleset.Statement) {
	switch s := s.(type) {
	case ruleset.Match:
		c.match(s)
	case ruleset.HasAny:
		c.load(s.Left, firstRegister)
		c.bitwise(s.Bits, 0)
		c.add(&expr.Cmp{Op: expr.CmpOpNeq, Register: firstRegister, Data: native(0)})
	case ruleset.Lookup:
		c.load(s.Key, firstRegister)
		c.add(&expr.Lookup{SourceRegister: firstRegister, SetName: s.Set, Invert: s.Not})
	case ruleset.Vmap:
		c.load(s.Key, firstRegister)
		c.add(&expr.Lookup{SourceRegister: firstRegister, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: s.Map})
	case ruleset.Assign:
		c.assign(s)
	case ruleset.NAT:
		c.nat(s)
	case ruleset.Remember:
		c.dynset(unix.NFT_DYNSET_OP_UPDATE, s.Map, s.Key, s.Data, s.Timeout)
	case ruleset.Forget:
		c.dynset(dynsetDelete, s.Map, s.Key, s.Data, 0)
	case ruleset.Masquerade:
		c.add(&expr.Masq{FullyRandom: s.FullyRandom})
	case ruleset.Redirect:
		c.redirect(s)
	case ruleset.Counter:
		c.add(&expr.Counter{})
	case ruleset.Limit:
		c.add(&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(s.Rate), Unit: expr.LimitTime(s.Per), Burst: s.Burst})
	case ruleset.Log:
		c.log(s)
	case ruleset.Reject:
		c.reject(s)
	case ruleset.Notrack:
		c.add(&expr.Notrack{})
	case ruleset.Verdict:
		c.add(verdict(s))
	default:
		c.fail("no way to say %T to the kernel", s)
	}
}

func (c *ruleCompiler) match(m ruleset.Match) {
	c.load(m.Left, firstRegister)
	op := expr.CmpOpEq
	if m.Not {
		op = expr.CmpOpNeq
	}
	right := []byte(m.Right)
	if t := m.Left.Type(); t != 0 && len(right) > t.Bytes() {
		right = right[:t.Bytes()]
	}
	if m.Mask != "" {
		c.add(&expr.Bitwise{
			SourceRegister: firstRegister, DestRegister: firstRegister, Len: uint32(len(m.Mask)),
			Mask: []byte(m.Mask), Xor: make([]byte, len(m.Mask)),
		})
	}
	c.add(&expr.Cmp{Op: op, Register: firstRegister, Data: right})
	if !m.Not && m.Mask == "" && len(right) == 1 {
		switch m.Left {
		case ruleset.MetaNFProto:
			c.proto3 = right[0]
		case ruleset.MetaL4Proto:
			c.proto4 = right[0]
		}
	}
}

// bitwise computes (register & mask) ^ xor.
func (c *ruleCompiler) bitwise(mask, xor uint32) {
	c.add(&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4, Mask: native(mask), Xor: native(xor)})
}

// load computes an expression into the registers from reg on and returns how many it took.
func (c *ruleCompiler) load(e ruleset.Expr, reg uint32) uint32 {
	width := uint32(1)
	switch e := e.(type) {
	case ruleset.Field:
		width = c.field(e, reg)
	case ruleset.Meta:
		c.add(&expr.Meta{Key: metaKeys[e], Register: reg})
		if e == ruleset.MetaIIFName || e == ruleset.MetaOIFName {
			width = 4
		}
	case ruleset.Ct:
		c.add(&expr.Ct{Key: ctKeys[e], Register: reg})
	case ruleset.Fib:
		if e == ruleset.FibSaddrIif {
			c.add(&expr.Fib{Register: reg, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true})
		} else {
			c.add(&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true})
		}
	case ruleset.Numgen:
		c.add(&expr.Numgen{Register: reg, Modulus: e.Mod, Type: unix.NFT_NG_RANDOM})
	case ruleset.Jhash:
		n := c.load(e.Of, reg)
		if e.Seed == 0 || e.Mod == 0 {
			c.fail("jhash needs a seed and a modulus")
		}
		c.add(&expr.Hash{SourceRegister: reg, DestRegister: reg, Length: 4 * n, Modulus: e.Mod, Seed: e.Seed, Type: expr.HashTypeJenkins})
	case ruleset.Concat:
		width = 0
		for _, part := range e {
			width += c.load(part, reg+width)
		}
	case ruleset.MapOf:
		c.load(e.Key, reg)
		c.add(&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: e.Map})
	default:
		c.fail("no way to ask the kernel for %T", e)
	}
	if reg+width > firstRegister+registers {
		c.fail("the key does not fit in the registers")
	}
	return width
}

var metaKeys = [...]expr.MetaKey{
	ruleset.MetaIIFName: expr.MetaKeyIIFNAME, ruleset.MetaOIFName: expr.MetaKeyOIFNAME, ruleset.MetaMark: expr.MetaKeyMARK,
	ruleset.MetaL4Proto: expr.MetaKeyL4PROTO, ruleset.MetaNFProto: expr.MetaKeyNFPROTO,
	ruleset.MetaPriority: expr.MetaKeyPRIORITY, ruleset.MetaPktType: expr.MetaKeyPKTTYPE,
}

var ctKeys = [...]expr.CtKey{
	ruleset.CtState: expr.CtKeySTATE, ruleset.CtStatus: expr.CtKeySTATUS, ruleset.CtMark: expr.CtKeyMARK, ruleset.CtDirection: expr.CtKeyDIRECTION,
}

// headerField is where a field lies, and which protocol the packet must have for it to be there; 0 for any.
type headerField struct {
	base           expr.PayloadBase
	offset, length uint32
	proto3, proto4 byte
}

var headerFields = [...]headerField{
	ruleset.IPSaddr:  {expr.PayloadBaseNetworkHeader, 12, 4, unix.NFPROTO_IPV4, 0},
	ruleset.IPDaddr:  {expr.PayloadBaseNetworkHeader, 16, 4, unix.NFPROTO_IPV4, 0},
	ruleset.IP6Saddr: {expr.PayloadBaseNetworkHeader, 8, 16, unix.NFPROTO_IPV6, 0},
	ruleset.IP6Daddr: {expr.PayloadBaseNetworkHeader, 24, 16, unix.NFPROTO_IPV6, 0},
	ruleset.THSport:  {expr.PayloadBaseTransportHeader, 0, 2, 0, 0},
	ruleset.THDport:  {expr.PayloadBaseTransportHeader, 2, 2, 0, 0},
	ruleset.TCPSport: {expr.PayloadBaseTransportHeader, 0, 2, 0, unix.IPPROTO_TCP},
	ruleset.TCPDport: {expr.PayloadBaseTransportHeader, 2, 2, 0, unix.IPPROTO_TCP},
	ruleset.UDPSport: {expr.PayloadBaseTransportHeader, 0, 2, 0, unix.IPPROTO_UDP},
	ruleset.UDPDport: {expr.PayloadBaseTransportHeader, 2, 2, 0, unix.IPPROTO_UDP},
}

func (c *ruleCompiler) field(f ruleset.Field, reg uint32) uint32 {
	h := headerFields[f]
	c.require(expr.MetaKeyNFPROTO, &c.proto3, h.proto3, reg)
	c.require(expr.MetaKeyL4PROTO, &c.proto4, h.proto4, reg)
	c.add(&expr.Payload{DestRegister: reg, Base: h.base, Offset: h.offset, Len: h.length})
	return max(1, h.length/4)
}

// require adds the check that the packet has that protocol, unless it is known. The register is free: its field comes next.
func (c *ruleCompiler) require(key expr.MetaKey, known *byte, want byte, reg uint32) {
	if want == 0 || *known == want {
		return
	}
	if *known != 0 {
		c.fail("it asks for two protocols at once")
	}
	*known = want
	c.add(&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{want}})
}

func (c *ruleCompiler) assign(a ruleset.Assign) {
	switch {
	case a.From != nil:
		c.load(a.From, firstRegister)
	case a.Keep == 0:
		c.add(&expr.Immediate{Register: firstRegister, Data: native(a.Value)})
	default:
		c.load(a.Target, firstRegister)
		c.bitwise(a.Keep&^a.Value, a.Value)
	}
	switch t := a.Target.(type) {
	case ruleset.Meta:
		c.add(&expr.Meta{Key: metaKeys[t], SourceRegister: true, Register: firstRegister})
	case ruleset.Ct:
		c.add(&expr.Ct{Key: ctKeys[t], SourceRegister: true, Register: firstRegister})
	default:
		c.fail("%T cannot be written", a.Target)
	}
}

func (c *ruleCompiler) nat(n ruleset.NAT) {
	kind := expr.NATTypeDestNAT
	if n.Source {
		kind = expr.NATTypeSourceNAT
	}
	width := uint32(1)
	if n.Family == ruleset.IPv6 {
		width = 4
	}
	out := &expr.NAT{Type: kind, Family: uint32(familyNumbers[n.Family]), RegAddrMin: firstRegister}
	switch {
	case n.From != nil:
		c.load(*n.From, firstRegister)
	default:
		c.add(&expr.Immediate{Register: firstRegister, Data: n.Addr.AsSlice()})
		if n.Port != 0 {
			c.add(&expr.Immediate{Register: firstRegister + width, Data: binary.BigEndian.AppendUint16(nil, n.Port)})
			out.Specified = true
		}
	}
	if n.From != nil && n.WithPort || n.Port != 0 {
		out.RegProtoMin = firstRegister + width
	}
	c.add(out)
}

// dynsetDelete is NFT_DYNSET_OP_DELETE (Linux 5.4), which golang.org/x/sys does not have.
const dynsetDelete = 2

// dynset changes an element of a dynamic map.
func (c *ruleCompiler) dynset(op uint32, set string, key, data ruleset.Expr, seconds uint32) {
	n := c.load(key, firstRegister)
	c.load(data, firstRegister+n)
	c.add(&expr.Dynset{
		SrcRegKey: firstRegister, SrcRegData: firstRegister + n, SetName: set, Operation: op, Timeout: time.Duration(seconds) * time.Second,
	})
}

func (c *ruleCompiler) redirect(r ruleset.Redirect) {
	if r.Port == 0 {
		c.add(&expr.Redir{})
		return
	}
	c.add(&expr.Immediate{Register: firstRegister, Data: binary.BigEndian.AppendUint16(nil, r.Port)},
		&expr.Redir{RegisterProtoMin: firstRegister, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED})
}

func (c *ruleCompiler) log(l ruleset.Log) {
	if len(l.Prefix) > 127 {
		c.fail("the log prefix is longer than 127 bytes") // NF_LOG_PREFIXLEN
	}
	key := uint32(1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX)
	if l.Snaplen != 0 {
		key |= 1 << unix.NFTA_LOG_SNAPLEN
	}
	c.add(&expr.Log{Key: key, Group: l.Group, Data: []byte(l.Prefix), Snaplen: l.Snaplen})
}

// reject uses the form that each family knows for "port unreachable" (RFC 792, RFC 4443).
func (c *ruleCompiler) reject(r ruleset.Reject) {
	switch {
	case r == ruleset.RejectReset:
		c.add(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	case c.family == ruleset.INet:
		c.add(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})
	case c.family == ruleset.IPv4:
		c.add(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3})
	default:
		c.add(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 4})
	}
}

func verdict(v ruleset.Verdict) *expr.Verdict {
	return &expr.Verdict{Kind: expr.VerdictKind(verdictCodes[v.Kind]), Chain: v.Chain}
}

// verdictCodes are those of linux/netfilter.h and linux/netfilter/nf_tables.h.
var verdictCodes = [...]int32{
	ruleset.VerdictAccept: 1, ruleset.VerdictDrop: 0, ruleset.VerdictReturn: unix.NFT_RETURN,
	ruleset.VerdictJump: unix.NFT_JUMP, ruleset.VerdictGoto: unix.NFT_GOTO,
}
