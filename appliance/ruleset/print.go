package ruleset

import (
	"fmt"
	"slices"
	"strings"
)

// String prints the table as `nft list table` does, counters at zero, when the backend made it: chains without a hook come
// before the others. The elements of an interval set over several fields
// come in the order of their keys; nft(8) prints those in the order of the kernel.
func (t *Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s {\n", t.ID())
	if t.Comment != "" {
		fmt.Fprintf(&b, "\tcomment %q\n", t.Comment)
	}
	for i, s := range t.Sets {
		if i > 0 {
			b.WriteByte('\n')
		}
		s.print(&b)
	}
	space := len(t.Sets) > 0
	for _, base := range []bool{false, true} {
		for _, c := range t.Chains {
			if (c.Base != nil) != base {
				continue
			}
			if space {
				b.WriteByte('\n')
			}
			space = true
			c.print(&b)
		}
	}
	b.WriteString("}\n")
	return b.String()
}

func (s *Set) print(b *strings.Builder) {
	kind := "set"
	if s.IsMap() {
		kind = "map"
	}
	fmt.Fprintf(b, "\t%s %s {\n\t\ttype %s", kind, s.Name, typeNames(s.Key))
	if s.Verdicts {
		b.WriteString(" : verdict")
	} else if len(s.Data) > 0 {
		b.WriteString(" : " + typeNames(s.Data))
	}
	b.WriteByte('\n')
	if s.Size != 0 {
		fmt.Fprintf(b, "\t\tsize %d\n", s.Size)
	}
	if s.Interval {
		b.WriteString("\t\tflags interval\n")
	}
	if s.Dynamic {
		b.WriteString("\t\tflags dynamic,timeout\n")
	}
	if s.Comment != "" {
		fmt.Fprintf(b, "\t\tcomment %q\n", s.Comment)
	}
	s.printElements(b)
	b.WriteString("\t}\n")
}

func (s *Set) printElements(b *strings.Builder) {
	elements := s.Sorted()
	if len(elements) == 0 {
		return
	}
	perLine := 1
	if len(s.Key) == 1 {
		perLine = types[s.Key[0]].perLine
	}
	b.WriteString("\t\telements = { ")
	for i, e := range elements {
		switch {
		case i == 0:
		case i%perLine == 0:
			b.WriteString(",\n\t\t\t     ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(s.ElementText(e))
	}
	b.WriteString(" }\n")
}

// Sorted returns the elements of all blocks, each once, in the order in which nft(8) prints them: single keys by value; a
// concatenation by its bytes from the last to the first, because nft(8) compares it as one number of the machine's byte order.
func (s *Set) Sorted() []*Element {
	seen := map[string]bool{}
	var out []*Element
	for _, b := range s.Blocks {
		for i := range b.Elements {
			if id := b.Elements[i].ID(); !seen[id] {
				seen[id] = true
				out = append(out, &b.Elements[i])
			}
		}
	}
	slices.SortFunc(out, func(a, b *Element) int { return strings.Compare(s.sortKey(a), s.sortKey(b)) })
	return out
}

func (s *Set) sortKey(e *Element) string {
	if len(s.Key) == 1 && s.Key[0] == TypeMark {
		return fmt.Sprintf("%08x", e.Key.uint32())
	}
	if len(s.Key) == 1 || s.Interval {
		return string(e.Key)
	}
	var flat []byte
	key := e.Key
	for _, t := range s.Key {
		flat = append(flat, key[:t.Bytes()]...)
		key = key[t.padded():]
	}
	slices.Reverse(flat)
	return string(flat)
}

// KeyText prints the key of an element.
func (s *Set) KeyText(e *Element) string {
	if len(e.Key) != width(s.Key) || e.End != "" && len(e.End) != len(e.Key) {
		return fmt.Sprintf("%x", string(e.Key))
	}
	return tupleText(s.Key, e.Key, e.End)
}

// ElementText prints an element with its comment and data.
func (s *Set) ElementText(e *Element) string {
	t := s.KeyText(e)
	if e.Comment != "" {
		t += fmt.Sprintf(" comment %q", e.Comment)
	}
	switch {
	case s.Verdicts:
		t += " : " + e.Verdict.Text()
	case len(s.Data) > 0 && len(e.Data) == width(s.Data):
		t += " : " + tupleText(s.Data, e.Data, "")
	}
	return t
}

func (c *Chain) print(b *strings.Builder) {
	fmt.Fprintf(b, "\tchain %s {\n", c.Name)
	if c.Comment != "" {
		fmt.Fprintf(b, "\t\tcomment %q\n", c.Comment)
	}
	if h := c.Base; h != nil {
		policy := "accept"
		if h.Drop {
			policy = "drop"
		}
		fmt.Fprintf(b, "\t\ttype %s hook %s priority %s; policy %s;\n", h.Type, h.Hook, h.priorityText(), policy)
	}
	for _, r := range c.Rules {
		fmt.Fprintf(b, "\t\t%s\n", r.Text())
	}
	b.WriteString("\t}\n")
}

// priorityText prints a priority by name where nft(8) has one for the hook, with an offset up to 10.
func (h *Base) priorityText() string {
	for _, n := range []struct {
		name  string
		value int32
		hooks []Hook
	}{
		{"raw", PriorityRaw, nil},
		{"mangle", PriorityMangle, nil},
		{"dstnat", PriorityDstNAT, []Hook{Prerouting}},
		{"filter", PriorityFilter, nil},
		{"security", 50, nil},
		{"srcnat", PrioritySrcNAT, []Hook{Postrouting}},
	} {
		off := h.Priority - n.value
		if off < -10 || off > 10 || n.hooks != nil && !slices.Contains(n.hooks, h.Hook) {
			continue
		}
		switch {
		case off > 0:
			return fmt.Sprintf("%s + %d", n.name, off)
		case off < 0:
			return fmt.Sprintf("%s - %d", n.name, -off)
		}
		return n.name
	}
	return fmt.Sprint(h.Priority)
}

// Text prints the rule as nft(8) does, counters at zero.
func (r *Rule) Text() string {
	parts := make([]string, 0, len(r.Statements)+1)
	for _, s := range r.Statements {
		parts = append(parts, s.Text())
	}
	if r.Comment != "" {
		parts = append(parts, fmt.Sprintf("comment %q", r.Comment))
	}
	return strings.Join(parts, " ")
}
