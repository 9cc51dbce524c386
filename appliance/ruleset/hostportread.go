package ruleset

import (
	"cmp"
	"net/netip"
	"slices"

	"weft.network/weft/appliance/model"
)

// ReadHostPorts turns the elements of the host port maps, by the name of the map, back into mappings by the Pod's address: what
// Fabric made of model.HostPorts, for when those are lost.
func ReadHostPorts(elements map[string][]Element) map[netip.Addr][]model.PortMapping {
	out := map[netip.Addr][]model.PortMapping{}
	for _, f := range families {
		width := 4
		if f.Family == IPv6 {
			width = 16
		}
		for _, name := range []string{"hostport_ip" + f.suffix, "hostport" + f.suffix} {
			for _, e := range elements[name] {
				var m model.PortMapping
				key := e.Key
				if name == "hostport_ip"+f.suffix && len(key) == width+8 {
					m.HostIP, key = key[:width].addr(), key[width:]
				}
				if len(key) != 8 || len(e.Data) != width+4 {
					continue // not one of ours
				}
				m.Protocol, m.HostPort = model.Protocol(key[0]), key[4:].port()
				m.ContainerPort = e.Data[width:].port()
				pod := e.Data[:width].addr()
				out[pod] = append(out[pod], m)
			}
		}
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b model.PortMapping) int {
			return cmp.Or(cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.Protocol, b.Protocol), a.HostIP.Compare(b.HostIP))
		})
	}
	return out
}
