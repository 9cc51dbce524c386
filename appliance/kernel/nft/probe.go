package nft

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft.network/weft/appliance/ruleset"
)

// Problem is something that weft's rules need and this kernel does not take.
type Problem struct {
	// Feature is what is missing, in a reader's words.
	Feature string
	// Config is what brings it: kernel options, or a version.
	Config string
	Err    error
}

// String names the feature, the option and what the kernel said.
func (p Problem) String() string {
	return fmt.Sprintf("this kernel does not take nftables %s, which need %s: %v", p.Feature, p.Config, p.Err)
}

// feature is one thing to try.
type feature struct {
	name, config string
	table        ruleset.Table
}

// Probe asks the kernel for everything that weft's rules are made of. Nothing is put in force: the kernel checks each
// table and takes it back. The error says that it could not be asked at all.
func (b *Backend) Probe() ([]Problem, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.probe(features())
}

// probe tries everything in one transaction, since taking one back costs the kernel some 15 ms, and one by one what was refused.
func (b *Backend) probe(features []feature) ([]Problem, error) {
	var all batch
	plans := make([]*plan, len(features))
	for i, f := range features {
		f.table.Name = fmt.Sprintf("weft_probe%d", i)
		p, err := planTable(nil, &f.table, nil)
		if err != nil {
			return nil, fmt.Errorf("trying nftables %s: %w", f.name, err)
		}
		plans[i] = p
		all.join(&p.batch)
	}
	refused, err := b.try(&all)
	if refused == nil || err != nil {
		return nil, err
	}
	var out []Problem
	for i, f := range features {
		if refused, err = b.try(&plans[i].batch); err != nil {
			return nil, err
		}
		if refused != nil {
			out = append(out, Problem{f.name, f.config, fmt.Errorf("%s: %w", refused.Message, refused.Err)})
		}
	}
	return out, nil
}

// try asks whether the kernel would take a batch; refused says what it does not like.
func (b *Backend) try(batch *batch) (refused *Error, err error) {
	err = b.send.send(batch, true)
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("asking the kernel for nftables (CAP_NET_ADMIN is needed): %w", err)
	case errors.As(err, &refused):
		return refused, nil
	}
	return nil, err
}

func features() []feature {
	addr, port := ruleset.TypeIPv4Addr, ruleset.TypeInetService
	any4 := ruleset.Addr(netip.IPv4Unspecified())
	nat := func(h ruleset.Hook, s ...ruleset.Statement) ruleset.Table {
		return chainTable(&ruleset.Base{Type: ruleset.NATing, Hook: h, Priority: ruleset.PriorityDstNAT}, s...)
	}
	filter := func(s ...ruleset.Statement) ruleset.Table {
		return chainTable(&ruleset.Base{Type: ruleset.Filter, Hook: ruleset.Prerouting, Priority: ruleset.PriorityRaw}, s...)
	}
	toFirst := ruleset.NAT{Family: ruleset.IPv4, Addr: netip.IPv4Unspecified(), Port: 1}
	return []feature{
		{"tables of both families", "CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET", filter(ruleset.Counter{}, ruleset.Accept)},
		{"address translation", "CONFIG_NFT_NAT", nat(ruleset.Prerouting, toFirst)},
		{"masquerading", "CONFIG_NFT_MASQ", nat(ruleset.Postrouting, ruleset.Masquerade{FullyRandom: true})},
		{"redirection", "CONFIG_NFT_REDIR", nat(ruleset.Prerouting, ruleset.Redirect{})},
		{"routing lookups", "CONFIG_NFT_FIB_INET, CONFIG_NFT_FIB_IPV4 and CONFIG_NFT_FIB_IPV6", filter(ruleset.ToLocal, ruleset.ReturnRoute)},
		{"connection tracking", "CONFIG_NFT_CT and CONFIG_NF_CONNTRACK_MARK", filter(ruleset.Masked(ruleset.CtMark, 1, 1), ruleset.Notrack{})},
		{"number generators", "CONFIG_NFT_NUMGEN", filter(ruleset.Assign{Target: ruleset.MetaMark, From: ruleset.Numgen{Mod: 2}})},
		{"hashes", "CONFIG_NFT_HASH", filter(ruleset.Assign{Target: ruleset.MetaMark, From: ruleset.Jhash{Of: ruleset.IPSaddr, Mod: 2, Seed: 1}})},
		memoryFeature(),
		{"limits", "CONFIG_NFT_LIMIT", filter(ruleset.Limit{Rate: 1, Per: ruleset.Second, Burst: 5})},
		{"logging", "CONFIG_NFT_LOG and CONFIG_NETFILTER_NETLINK_LOG", filter(ruleset.Log{Group: 77, Prefix: "weft", Snaplen: 80})},
		{"rejection", "CONFIG_NFT_REJECT_INET and Linux 5.9 or newer", filter(ruleset.RejectPort)},
		{"maps of addresses and ports", "Linux 5.6 or newer", setTable(ruleset.Set{Key: []ruleset.Type{addr, port}, Data: []ruleset.Type{addr, port}},
			ruleset.Element{Key: ruleset.Tuple(any4, ruleset.Port(1)), Data: ruleset.Tuple(any4, ruleset.Port(1))})},
		{"sets of ranges", "Linux 5.6 or newer", setTable(ruleset.Set{Key: []ruleset.Type{addr}, Interval: true}, ruleset.Element{Key: any4, End: any4})},
		{"sets of ranges over several fields", "Linux 5.6 or newer", setTable(ruleset.Set{Key: []ruleset.Type{addr, port}, Interval: true},
			ruleset.Element{Key: ruleset.Tuple(any4, ruleset.Port(1)), End: ruleset.Tuple(any4, ruleset.Port(9))})},
	}
}

// memoryFeature is a map that packets fill: for clients that keep their endpoint.
func memoryFeature() feature {
	key, data := ruleset.Concat{ruleset.IPSaddr, ruleset.THDport}, ruleset.MetaPriority
	t := chainTable(&ruleset.Base{Type: ruleset.Filter, Hook: ruleset.Prerouting, Priority: ruleset.PriorityRaw},
		ruleset.Remember{Map: "probe", Key: key, Data: data, Timeout: 1}, ruleset.Forget{Map: "probe", Key: key, Data: data})
	t.Sets = []*ruleset.Set{{
		Name: "probe", Key: []ruleset.Type{ruleset.TypeIPv4Addr, ruleset.TypeInetService}, Data: []ruleset.Type{ruleset.TypeMark}, Size: 1, Dynamic: true,
	}}
	return feature{"maps that packets fill (sessionAffinity)", "Linux 5.4 or newer", t}
}

func chainTable(base *ruleset.Base, statements ...ruleset.Statement) ruleset.Table {
	return ruleset.Table{Chains: []*ruleset.Chain{{Name: "probe", Base: base, Rules: []ruleset.Rule{ruleset.R("", statements...)}}}}
}

func setTable(s ruleset.Set, e ruleset.Element) ruleset.Table {
	s.Name, s.Blocks = "probe", ruleset.Single(e)
	return ruleset.Table{Sets: []*ruleset.Set{&s}}
}
