package config

import (
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// explain turns the library's words into ours: the line, the key and what to do.
func explain(err error, data []byte) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		text := strings.TrimPrefix(err.Error(), "yaml: ")
		var doc yaml.Node
		if yaml.Unmarshal(data, &doc) == nil {
			if why := refused(&doc, "", text); why != nil {
				return why
			}
		}
		return errors.New(text)
	}
	var out []error
	for _, msg := range te.Errors {
		if line, rest, ok := strings.Cut(msg, ": field "); ok {
			if key, _, ok := strings.Cut(rest, " not found"); ok {
				msg = fmt.Sprintf("%s: unknown key %q (weft config shows every key with its default)", line, key)
			}
		}
		if line, rest, ok := strings.Cut(msg, ": cannot unmarshal !!int `"); ok && strings.HasSuffix(rest, "` into time.Duration") {
			number := strings.TrimSuffix(rest, "` into time.Duration")
			msg = fmt.Sprintf("%s: %s: a duration needs its unit: write %ss", line, number, number)
		}
		out = append(out, errors.New(msg))
	}
	return errors.Join(out...)
}

// refused finds the value that a type has refused with that text, of which the library says neither line nor key.
func refused(n *yaml.Node, key, text string) error {
	join := func(name string) string { return strings.TrimPrefix(key+"."+name, ".") }
	for i, child := range n.Content {
		at := key
		switch {
		case n.Kind == yaml.MappingNode && i%2 == 0:
			continue
		case n.Kind == yaml.MappingNode:
			at = join(n.Content[i-1].Value)
		case n.Kind == yaml.SequenceNode:
			at = fmt.Sprintf("%s[%d]", key, i)
		}
		if err := refused(child, at, text); err != nil {
			return err
		}
	}
	if n.Kind != yaml.ScalarNode || !strings.Contains(text, fmt.Sprintf("(%q)", n.Value)) {
		return nil
	}
	what := "an address such as 192.0.2.1"
	if strings.Contains(text, "ParsePrefix") {
		what = "a range such as 192.0.2.0/24"
	}
	return fmt.Errorf("line %d: %s: %q is not %s", n.Line, key, n.Value, what)
}
