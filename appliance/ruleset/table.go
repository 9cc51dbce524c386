package ruleset

import (
	"fmt"
	"strings"
)

// Family is the address family of a table.
type Family uint8

// The families in use.
const (
	INet Family = iota // both IPv4 and IPv6
	IPv4
	IPv6
)

// String prints the name that nft(8) uses.
func (f Family) String() string { return [...]string{"inet", "ip", "ip6"}[f] }

// Table is the whole desired content of one nftables table.
type Table struct {
	Family  Family
	Name    string
	Comment string
	// Partial leaves objects of the kernel's table alone that are not named here: another process owns them.
	Partial bool
	Sets    []*Set
	Chains  []*Chain
}

// ID prints family and name, as in "inet weft".
func (t *Table) ID() string { return t.Family.String() + " " + t.Name }

// Empty reports whether the table holds nothing; the backend removes such a table from the kernel.
func (t *Table) Empty() bool { return len(t.Sets) == 0 && len(t.Chains) == 0 }

// Set returns the set of that name, or nil.
func (t *Table) Set(name string) *Set {
	for _, s := range t.Sets {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Chain returns the chain of that name, or nil.
func (t *Table) Chain(name string) *Chain {
	for _, c := range t.Chains {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Chain is a list of rules; a chain with a Base is called by the kernel, the others by jump and goto.
type Chain struct {
	Name    string
	Comment string
	Base    *Base
	Rules   []Rule
}

// Base says where the kernel calls a chain.
type Base struct {
	Type     ChainType
	Hook     Hook
	Priority int32
	// Drop is the policy for packets that no rule decided; otherwise they are accepted.
	Drop bool
}

// ChainType is the type of a base chain.
type ChainType string

// The types in use.
const (
	Filter ChainType = "filter"
	NATing ChainType = "nat"
	Route  ChainType = "route"
)

// Hook is a place on a packet's way through the kernel; the numbers are those of enum nf_inet_hooks.
type Hook uint8

// The hooks of the families in use.
const (
	Prerouting Hook = iota
	Input
	Forward
	Output
	Postrouting
)

// String prints the name that nft(8) uses.
func (h Hook) String() string {
	return [...]string{"prerouting", "input", "forward", "output", "postrouting"}[h]
}

// Priorities with a name (linux/netfilter_ipv4.h).
const (
	PriorityRaw    int32 = -300
	PriorityMangle int32 = -150
	PriorityDstNAT int32 = -100
	PriorityFilter int32 = 0
	PrioritySrcNAT int32 = 100
)

// Rule is a list of statements that are carried out from left to right until one does not match.
type Rule struct {
	Statements []Statement
	Comment    string
}

// R makes a rule; the comment may be empty.
func R(comment string, statements ...Statement) Rule {
	return Rule{Statements: statements, Comment: comment}
}

// Set is a named set, or a map if it has Data or Verdicts.
type Set struct {
	Name    string
	Comment string
	// Key is the list of fields of a key; more than one makes a concatenation.
	Key []Type
	// Data is the list of fields of a map's data.
	Data []Type
	// Verdicts makes a verdict map.
	Verdicts bool
	// Interval allows elements that are ranges. The ranges of a set must not overlap.
	Interval bool
	// Size limits the number of elements; 0 does not.
	Size uint32
	// Dynamic means that packets fill the set (Update) and that its elements leave after a time: it has no Blocks, and what the
	// kernel holds is nobody else's to change.
	Dynamic bool
	// Blocks are the elements, by owner (a Service, a Pod). An unchanged pointer means unchanged elements.
	Blocks map[string]*Block
}

// IsMap reports whether elements carry data or a verdict.
func (s *Set) IsMap() bool { return s.Verdicts || len(s.Data) > 0 }

// Len counts the elements of all blocks; an element that several blocks share counts for each.
func (s *Set) Len() int {
	n := 0
	for _, b := range s.Blocks {
		n += len(b.Elements)
	}
	return n
}

// Block is the elements of one owner.
type Block struct{ Elements []Element }

// Single makes the Blocks of a set that has one owner.
func Single(elements ...Element) map[string]*Block {
	if len(elements) == 0 {
		return nil
	}
	return map[string]*Block{"": {Elements: elements}}
}

// Element is one entry of a set or map.
type Element struct {
	Key Value
	// End is the last key of a range, inclusive. Every element of an interval set has one, equal to Key if it is alone; no
	// element of another set has.
	End     Value
	Data    Value
	Verdict Verdict
	Comment string
}

// ID is what two elements of one set may not share: the key, or the range.
func (e *Element) ID() string {
	if e.End == "" {
		return string(e.Key) // no copy, for this is the usual case
	}
	return string(e.Key) + string(e.End)
}

// MaxComment is the longest comment in bytes that both the kernel (NFT_USERDATA_MAXLEN) and nft(8) take.
const MaxComment = 250

// Check returns an error if the element does not fit the set.
func (s *Set) Check(e *Element) error {
	want := width(s.Key)
	switch {
	case len(e.Key) != want || e.End != "" && len(e.End) != want:
		return fmt.Errorf("element of %d bytes in set %s, whose keys (%s) have %d", len(e.Key), s.Name, typeNames(s.Key), want)
	case e.End != "" != s.Interval:
		return fmt.Errorf("element %s of set %s: ranges belong to interval sets, and only there", s.KeyText(e), s.Name)
	case s.Verdicts != (e.Verdict.Kind != 0):
		return fmt.Errorf("element %s of set %s: a verdict belongs to verdict maps, and only there", s.KeyText(e), s.Name)
	case len(e.Data) != width(s.Data):
		return fmt.Errorf("element %s of set %s has %d bytes of data instead of %d", s.KeyText(e), s.Name, len(e.Data), width(s.Data))
	case len(e.Comment) > MaxComment || strings.ContainsAny(e.Comment, "\"\n\x00"):
		return fmt.Errorf("element %s of set %s has a comment that is too long or has a quote in it", s.KeyText(e), s.Name)
	}
	return nil
}

// Check returns an error if an element does not fit its set, or if two blocks have the same key with different data.
// It reads everything: it is for tests and tools, the backend checks only what changed.
func (t *Table) Check() error {
	for _, s := range t.Sets {
		seen := map[string]string{}
		for owner, b := range s.Blocks {
			for i := range b.Elements {
				e := &b.Elements[i]
				if err := s.Check(e); err != nil {
					return err
				}
				id := e.ID()
				if other, ok := seen[id]; ok && s.IsMap() {
					return s.Conflict(e, owner, other)
				}
				seen[id] = owner
			}
		}
	}
	return nil
}

// Conflict is the error for an element that two owners want.
func (s *Set) Conflict(e *Element, owner, other string) error {
	if other < owner {
		owner, other = other, owner
	}
	return fmt.Errorf("element %s of map %s is wanted by both %q and %q", s.KeyText(e), s.Name, owner, other)
}
