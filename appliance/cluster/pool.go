package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.network/weft/appliance/model"
)

// poolKind is LoadBalancerPool, addresses for Services of type LoadBalancer.
var poolKind = newCustomKind("loadbalancerpools", "LoadBalancerPool", resolvePool,
	func(o *objects) *collection[string, model.LoadBalancerPool] { return &o.pools })

// poolSpec is the spec of a LoadBalancerPool as people write it.
type poolSpec struct {
	Addresses         []string              `json:"addresses,omitempty"`
	NodeAddresses     bool                  `json:"nodeAddresses,omitempty"`
	AutoAssign        *bool                 `json:"autoAssign,omitempty"`
	AvoidBuggyIPs     bool                  `json:"avoidBuggyIPs,omitempty"`
	Priority          int                   `json:"priority,omitempty"`
	ServiceSelector   *metav1.LabelSelector `json:"serviceSelector,omitempty"`
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	NodeSelector      *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	L2                *poolL2Spec           `json:"l2,omitempty"`
}

type poolL2Spec struct {
	Enabled    *bool    `json:"enabled,omitempty"`
	Interfaces []string `json:"interfaces,omitempty"`
}

func resolvePool(meta *metav1.ObjectMeta, spec *poolSpec) (*model.LoadBalancerPool, []fieldError) {
	var bad fieldErrors
	out := &model.LoadBalancerPool{
		Name: meta.Name, UID: string(meta.UID), NodeAddresses: spec.NodeAddresses, AvoidEdges: spec.AvoidBuggyIPs, Priority: spec.Priority,
		OnRequest: spec.AutoAssign != nil && !*spec.AutoAssign,
	}
	if !meta.CreationTimestamp.IsZero() {
		out.Created = meta.CreationTimestamp.Unix()
	}
	for i, text := range spec.Addresses {
		block, err := parseBlock(text)
		for _, o := range out.Blocks {
			if err == nil && o.Overlaps(block) {
				err = fmt.Errorf("%s overlaps %s, which is in the list already", block, o)
			}
		}
		if err != nil {
			bad.add(err, "spec.addresses[]", i)
			continue
		}
		out.Blocks = append(out.Blocks, block)
	}
	switch {
	case len(spec.Addresses) > 0 && spec.NodeAddresses:
		bad.add(errors.New("give either addresses or the nodes' own, in two pools if you want both"), "spec.nodeAddresses")
	case len(spec.Addresses) == 0 && !spec.NodeAddresses:
		bad.add(errors.New("no addresses: write ranges such as 192.0.2.0/28 or 192.0.2.10-192.0.2.20, or set nodeAddresses"), "spec.addresses")
	}
	for _, s := range []struct {
		from  *metav1.LabelSelector
		to    **model.Selector
		field string
	}{
		{spec.ServiceSelector, &out.Services, "spec.serviceSelector"},
		{spec.NamespaceSelector, &out.Namespaces, "spec.namespaceSelector"},
		{spec.NodeSelector, &out.Nodes, "spec.nodeSelector"},
	} {
		if s.from != nil {
			*s.to, _ = selector(s.from, s.field, &bad)
		}
	}
	if l2 := spec.L2; l2 != nil {
		out.NoL2, out.Interfaces = l2.Enabled != nil && !*l2.Enabled, l2.Interfaces
		for i, pattern := range l2.Interfaces {
			if _, err := path.Match(pattern, "eth0"); err != nil || pattern == "" {
				bad.add(fmt.Errorf("%q is not the name of an interface or a pattern such as eth*", pattern), "spec.l2.interfaces[]", i)
			}
		}
	}
	return out, bad
}

// parseBlock reads a range of addresses: a prefix, two ends, or one address.
func parseBlock(text string) (model.AddressBlock, error) {
	var b model.AddressBlock
	first, last, isRange := strings.Cut(text, "-")
	switch {
	case strings.Contains(text, "/"):
		prefix, err := parseRange(strings.TrimSpace(text))
		if err != nil {
			return b, err
		}
		if given := netip.MustParsePrefix(strings.TrimSpace(text)); given != prefix {
			return b, fmt.Errorf("%s has host bits set: write %s, or a range such as %s-%s", given, prefix, given.Addr(), model.BlockOf(prefix).Last)
		}
		b = model.BlockOf(prefix)
	case !isRange:
		last = first
		fallthrough
	default:
		var errs [2]error
		b.First, errs[0] = parseAddress(strings.TrimSpace(first))
		b.Last, errs[1] = parseAddress(strings.TrimSpace(last))
		if err := errors.Join(errs[:]...); err != nil {
			return b, fmt.Errorf("%q is not a range of addresses such as 192.0.2.0/28, 192.0.2.10-192.0.2.20 or 2001:db8::/120", text)
		}
	}
	switch {
	case b.First.Is4() != b.Last.Is4():
		return b, fmt.Errorf("%s and %s are of two families", b.First, b.Last)
	case b.Last.Less(b.First):
		return b, fmt.Errorf("the range ends before it begins: write %s-%s", b.Last, b.First)
	}
	for _, end := range []netip.Addr{b.First, b.Last} {
		if err := checkUnicast(end); err != nil {
			return b, err
		}
	}
	return b, nil
}
