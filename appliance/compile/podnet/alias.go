package podnet

import (
	"strings"

	"weft.network/weft/appliance/model"
)

// aliasMark starts the interface alias of every host end (IFLA_IFALIAS, at most 255 bytes).
const aliasMark = "weft"

// Alias prints what the host end of a veth pair says about its owner: "weft NETWORK CONTAINER IFNAME NAMESPACE NAME UID".
// It is how leases are rebuilt when the store was lost. "-" stands for an empty field.
func Alias(l *model.Lease) string {
	fields := []string{aliasMark, l.Network, l.ContainerID, l.IfName, l.Pod.Namespace, l.Pod.Name, l.Pod.UID}
	for i, f := range fields {
		if f == "" {
			fields[i] = "-"
		}
	}
	s := strings.Join(fields, " ")
	if len(s) > 255 {
		// The key must survive; a Pod name may be 253 bytes long.
		s = strings.Join(append(fields[:4:4], "-", "-", fields[6]), " ")
	}
	return s
}

// ParseAlias reads back what Alias printed; ok is false for an interface that is not one of ours.
func ParseAlias(s string) (key model.AttachmentKey, pod model.PodRef, ok bool) {
	f := strings.Split(s, " ")
	if len(f) != 7 || f[0] != aliasMark {
		return key, pod, false
	}
	for i, v := range f {
		if v == "-" {
			f[i] = ""
		}
	}
	key = model.AttachmentKey{Network: f[1], ContainerID: f[2], IfName: f[3]}
	pod = model.PodRef{Namespace: f[4], Name: f[5], UID: f[6]}
	return key, pod, key.ContainerID != "" && key.IfName != ""
}
