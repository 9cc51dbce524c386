// Package iface puts links, addresses, routes, neighbours and interface settings into the kernel, in any network namespace.
//
// # What belongs to weft
//
// A thing in the kernel is weft's own, and only then changed or removed, when it carries one of these signs:
//
//	links    podnet.HostIfPrefix + group GroupPods      host end of a Pod
//	         bandwidthPrefix + group GroupPods          ifb device of a Pod with an egress limit
//	         any of these in group GroupDeleting        waiting to be removed
//	         route.NodeLink, route.TunnelLink + group GroupNode
//	routes   protocol ProtoWeft, table main
//	neighbours and forwarding entries                   those on weft's links
package iface

const (
	// ProtoWeft is the route protocol (rtm_protocol) of every route that weft sets. 87 is free in the kernel's rtnetlink.h and
	// in iproute2's rt_protos, and routing daemons leave routes of an unknown protocol alone.
	ProtoWeft = 87
	// GroupPods is the link group (IFLA_GROUP) of every host end. Unlike the alias, which is for people, it is set in the same
	// request that makes the link, so a link without it was never ours, whenever the daemon was killed.
	GroupPods = 8700
	// GroupDeleting is the link group of host ends that DelPod gave up; one request removes the whole group.
	GroupDeleting = 8701
	// GroupNode is the link group of route.NodeLink and route.TunnelLink.
	GroupNode = 8702
)
