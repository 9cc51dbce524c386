package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	yamlnode "go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// object is one object of a manifest file.
type object struct {
	title string // kind, namespace and name
	at    string // file and line
	value any    // a pointer to a type of package model
}

// document is one YAML document of a file.
type document struct {
	path string
	line int // of its first line in the file, from 1
	text []byte

	readers map[string]reader
	tree    *yamlnode.Node // with the lines; read when the first is asked for
}

// reader decodes and converts one object; the value is nil when weft has no use for the object.
type reader func(raw []byte) (metav1.Object, any, []fieldError, error)

// readers is the table of kinds that are read from files, by apiVersion and kind. Others are ignored.
func readers(o ManifestsOptions) map[string]reader {
	all := map[string]reader{
		"v1/Node": read(convertNode, ""),
		"v1/Pod":  read(convertPod, metav1.NamespaceDefault),
	}
	if o.Services {
		all["v1/Service"] = read(convertService, metav1.NamespaceDefault)
		all["discovery.k8s.io/v1/EndpointSlice"] = read(convertSlice, metav1.NamespaceDefault)
	}
	if o.Policies || o.Pools {
		all["v1/Namespace"] = read(convertNamespace, "")
	}
	if o.Policies {
		all["networking.k8s.io/v1/NetworkPolicy"] = read(convertPolicy, metav1.NamespaceDefault)
	}
	if o.DNS {
		all["v1/ConfigMap"] = read(convertConfigMap, metav1.NamespaceDefault)
	}
	if o.BGP {
		all["v1/Secret"] = read(convertSecret, metav1.NamespaceDefault)
	}
	for _, ck := range customKinds(o.BGP, o.Pools) {
		all[customGroup+"/"+customVersion+"/"+ck.kind] = ck.read
	}
	return all
}

// read decodes as the API server does: unknown fields are ignored, names of fields are case-sensitive. An object without
// namespace gets the given one.
func read[O any, T any, P interface {
	*O
	metav1.Object
}](convert func(P) (*T, []fieldError), namespace string) reader {
	return func(raw []byte) (metav1.Object, any, []fieldError, error) {
		o := P(new(O))
		if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, o); err != nil {
			return nil, nil, nil, err
		}
		if o.GetNamespace() == "" {
			o.SetNamespace(namespace)
		}
		value, bad := convert(o)
		if value == nil {
			return o, nil, bad, nil
		}
		return o, value, bad, nil
	}
}

// parseFile returns the objects in a file, or the first thing that is wrong with it, with its line.
func parseFile(path string, text []byte, readers map[string]reader) ([]object, error) {
	var out []object
	for _, d := range split(path, text) {
		d.readers = readers
		raw, err := yaml.YAMLToJSONStrict(d.text)
		if err != nil {
			return nil, d.syntaxError(err)
		}
		if bytes.Equal(raw, []byte("null")) {
			continue
		}
		objects, err := d.parse(raw, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, objects...)
	}
	return out, nil
}

// split cuts a file at the lines "---" and "...". What follows on such a line belongs to the next document.
func split(path string, text []byte) []*document {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	out := []*document{{path: path, line: 1}}
	line := 0
	for len(text) > 0 {
		line++
		end := bytes.IndexByte(text, '\n') + 1
		if end == 0 {
			end = len(text)
		}
		current := text[:end]
		text = text[end:]
		mark := len(current) >= 3 && (string(current[:3]) == "---" || string(current[:3]) == "...")
		if mark && strings.ContainsAny(string(append(current[3:len(current):len(current)], '\n')[:1]), " \t\r\n") {
			out = append(out, &document{path: path, line: line})
			current = append([]byte("   "), current[3:]...) // spaces keep the columns
		}
		last := out[len(out)-1]
		last.text = append(last.text, current...)
	}
	return out
}

// head is what all objects and lists have in common.
type head struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Items      []json.RawMessage `json:"items"`
}

// parse returns the objects in one JSON value, which is at a place in the document.
func (d *document) parse(raw []byte, at []any) ([]object, error) {
	var h head
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &h); err != nil {
		return nil, d.fieldError(at, "", decodeError(err))
	}
	switch {
	case h.Kind == "":
		return nil, d.fieldError(at, "", fieldError{"kind", errors.New("missing; every object needs apiVersion and kind")})
	case h.APIVersion == "":
		return nil, d.fieldError(at, "", fieldError{"apiVersion", errors.New("missing; every object needs apiVersion and kind")})
	}
	if strings.HasSuffix(h.Kind, "List") && h.Items != nil {
		return d.parseList(h, at)
	}
	read, ok := d.readers[h.APIVersion+"/"+h.Kind]
	if !ok {
		return nil, d.checkForeign(h, at)
	}
	meta, value, bad, err := read(raw)
	if err != nil {
		return nil, d.fieldError(at, d.guessTitle(h.Kind, raw), decodeError(err))
	}
	name := title(h.Kind, meta.GetNamespace(), meta.GetName())
	if err := checkNames(meta); err != nil {
		return nil, d.fieldError(at, name, *err)
	}
	if len(bad) > 0 {
		return nil, d.fieldError(at, name, bad[0])
	}
	if value == nil {
		return nil, nil
	}
	return []object{{title: name, at: fmt.Sprintf("%s:%d", d.path, d.lineOf(at)), value: value}}, nil
}

// checkForeign lets pass what is not weft's, and kinds whose role is off on this node. Within weft's own group, a name that no
// weft knows is a slip.
func (d *document) checkForeign(h head, at []any) error {
	group, version, _ := strings.Cut(h.APIVersion, "/")
	if group != customGroup {
		return nil
	}
	if version != customVersion {
		wrong := fmt.Errorf("%s: unknown version; write %s/%s", h.APIVersion, customGroup, customVersion)
		return d.fieldError(at, "", fieldError{"apiVersion", wrong})
	}
	var known []string
	for _, ck := range customKinds(true, true) {
		if ck.kind == h.Kind {
			return nil
		}
		known = append(known, ck.kind)
	}
	return d.fieldError(at, "", fieldError{"kind", fmt.Errorf("%s: unknown kind; weft knows %s", h.Kind, strings.Join(known, ", "))})
}

// parseList returns the objects of a list. In a list of one kind, the items need not name it.
func (d *document) parseList(h head, at []any) ([]object, error) {
	var out []object
	for i, item := range h.Items {
		place := append(at[:len(at):len(at)], "items", i)
		if kind := strings.TrimSuffix(h.Kind, "List"); kind != "" {
			var own map[string]json.RawMessage
			if err := json.Unmarshal(item, &own); err != nil {
				return nil, d.fieldError(place, "", fieldError{"", errors.New("not an object")})
			}
			for key, value := range map[string]string{"apiVersion": h.APIVersion, "kind": kind} {
				if _, ok := own[key]; !ok {
					own[key] = json.RawMessage(strconv.Quote(value))
				}
			}
			var err error
			if item, err = json.Marshal(own); err != nil {
				return nil, d.fieldError(place, "", fieldError{"", err})
			}
		}
		objects, err := d.parse(item, place)
		if err != nil {
			return nil, err
		}
		out = append(out, objects...)
	}
	return out, nil
}

// checkNames checks what the API server would have checked: the names end up in keys, file names and messages.
func checkNames(m metav1.Object) *fieldError {
	if m.GetName() == "" {
		return &fieldError{"metadata.name", errors.New("missing")}
	}
	check := validation.IsDNS1123Subdomain
	if _, ok := m.(*corev1.Service); ok { // it becomes one label of a name of the DNS
		check = validation.IsDNS1123Label
	}
	if wrong := check(m.GetName()); len(wrong) > 0 {
		return &fieldError{"metadata.name", errors.New(wrong[0])}
	}
	if m.GetNamespace() == "" {
		return nil
	}
	if wrong := validation.IsDNS1123Label(m.GetNamespace()); len(wrong) > 0 {
		return &fieldError{"metadata.namespace", errors.New(wrong[0])}
	}
	return nil
}

// guessTitle names an object that cannot be decoded.
func (d *document) guessTitle(kind string, raw []byte) string {
	var o struct {
		Metadata struct {
			Namespace any `json:"namespace"`
			Name      any `json:"name"`
		} `json:"metadata"`
	}
	if json.Unmarshal(raw, &o) != nil {
		return kind
	}
	name, _ := o.Metadata.Name.(string)
	namespace, _ := o.Metadata.Namespace.(string)
	return title(kind, namespace, name)
}

// decodeError turns an error of the JSON decoder into one with a field.
func decodeError(err error) fieldError {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return fieldError{wrongType.Field, fmt.Errorf("got %s, want %s", article(wrongType.Value), goType(wrongType.Type.String()))}
	}
	return fieldError{"", err}
}

func article(value string) string {
	if value == "array" || value == "object" {
		return "an " + value
	}
	return "a " + value
}

// goType names a Go type in the terms of JSON.
func goType(t string) string {
	switch {
	case t == "string":
		return "a string"
	case t == "bool":
		return "true or false"
	case strings.HasPrefix(t, "int"), strings.HasPrefix(t, "uint"), strings.HasPrefix(t, "float"):
		return "a number"
	case strings.HasPrefix(t, "[]"):
		return "an array"
	}
	return "an object"
}

// fieldError says where in which file what is wrong with which object.
func (d *document) fieldError(at []any, name string, e fieldError) error {
	line := d.lineOf(append(at[:len(at):len(at)], steps(e.field)...))
	parts := []string{fmt.Sprintf("%s:%d", d.path, line)}
	for _, part := range []string{name, e.field} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return fmt.Errorf("%s: %w", strings.Join(parts, ": "), e.err)
}

var lineInError = regexp.MustCompile(`(?s)line (\d+): (.*)`)

// syntaxError turns an error of the YAML parser, which counts lines from the start of the document, into one of the file.
func (d *document) syntaxError(err error) error {
	found := lineInError.FindStringSubmatch(err.Error())
	if found == nil {
		return fmt.Errorf("%s:%d: not valid YAML: %s", d.path, d.line, strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "))
	}
	line, _ := strconv.Atoi(found[1]) // the expression matches digits only
	text, _, _ := strings.Cut(found[2], "\n")
	return fmt.Errorf("%s:%d: not valid YAML: %s", d.path, d.line+line-1, text)
}

var stepInField = regexp.MustCompile(`\[[^]]*]|[^.[]+`)

// steps splits the name of a field, such as spec.podCIDRs[0] or metadata.annotations[weft.network/x], into keys and indexes.
func steps(field string) (out []any) {
	for _, part := range stepInField.FindAllString(field, -1) {
		part = strings.Trim(part, "[]")
		if i, err := strconv.Atoi(part); err == nil {
			out = append(out, i)
			continue
		}
		out = append(out, part)
	}
	return out
}

// lineOf returns the line in the file of what the path leads to, as far as it can be followed.
func (d *document) lineOf(path []any) int {
	if d.tree == nil {
		d.tree = &yamlnode.Node{}
		if err := yamlnode.Unmarshal(d.text, d.tree); err != nil {
			d.tree = &yamlnode.Node{}
		}
	}
	if len(d.tree.Content) == 0 {
		return d.line
	}
	node := d.tree.Content[0]
	for _, step := range path {
		next := child(node, step)
		if next == nil {
			break
		}
		node = next
	}
	return d.line + node.Line - 1
}

// child returns the value of a key or the element of an index, or nil.
func child(node *yamlnode.Node, step any) *yamlnode.Node {
	if node.Kind == yamlnode.AliasNode {
		node = node.Alias
	}
	switch step := step.(type) {
	case int:
		if node.Kind == yamlnode.SequenceNode && step < len(node.Content) {
			return node.Content[step]
		}
	case string:
		if node.Kind == yamlnode.SequenceNode { // the decoder does not say which element it was: take the first that has the key
			for _, element := range node.Content {
				if found := child(element, step); found != nil {
					return found
				}
			}
			return nil
		}
		for i := 0; i+1 < len(node.Content) && node.Kind == yamlnode.MappingNode; i += 2 {
			if node.Content[i].Value == step {
				return node.Content[i+1]
			}
		}
	}
	return nil
}
