package policy

import (
	"fmt"
	"strings"

	"weft.network/weft/appliance/model"
)

// RuleText says in words whom a rule lets pass: "from Pods app=front in namespace shop to TCP 80".
func RuleText(namespace string, d Direction, r *model.PolicyRule) string {
	who := "everybody"
	if !r.AnyPeer {
		var parts []string
		for i := range r.Peers {
			parts = append(parts, peerText(namespace, &r.Peers[i]))
		}
		if who = strings.Join(parts, ", or "); who == "" {
			who = "nobody (none of its peers can be used)"
		}
	}
	ports := "every port and protocol"
	if !r.AnyPort {
		var parts []string
		for i := range r.Ports {
			parts = append(parts, portText(&r.Ports[i]))
		}
		if ports = strings.Join(parts, ", "); ports == "" {
			ports = "no port (none of its ports can be used)"
		}
	}
	if d == Egress {
		return fmt.Sprintf("to %s, %s", who, ports)
	}
	return fmt.Sprintf("from %s, %s", who, ports)
}

func peerText(namespace string, p *model.PolicyPeer) string {
	if p.Block.IsValid() {
		text := p.Block.String()
		for i, e := range p.Except {
			text += map[bool]string{true: " without ", false: " and "}[i == 0] + e.String()
		}
		return text
	}
	where := "namespace " + namespace
	if p.Namespaces != nil {
		if where = "namespaces with " + p.Namespaces.String(); len(*p.Namespaces) == 0 {
			where = "all namespaces"
		}
	}
	if p.Pods == nil || len(*p.Pods) == 0 {
		return "all Pods in " + where
	}
	return "Pods " + p.Pods.String() + " in " + where
}

func portText(p *model.PolicyPort) string {
	proto := strings.ToUpper(p.Protocol.String())
	switch {
	case p.Name != "":
		return fmt.Sprintf("%s %q", proto, p.Name)
	case p.First == 0 && p.Last == 65535:
		return "all of " + proto
	case p.First == p.Last:
		return fmt.Sprintf("%s %d", proto, p.First)
	}
	return fmt.Sprintf("%s %d-%d", proto, p.First, p.Last)
}
