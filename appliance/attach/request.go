package attach

import (
	"errors"
	"net/netip"

	"weft.network/weft/appliance/ipam"
	"weft.network/weft/appliance/model"
)

// Request is one attachment that a runtime asks for, free of any protocol's words.
type Request struct {
	Key  model.AttachmentKey
	Kind model.LeaseKind
	Pod  model.PodRef
	// NetNS is the path as the runtime knows it; NSFD an open descriptor of the same namespace, or -1.
	NetNS string
	NSFD  int
	// Ranges, one set per address; empty means this node's own Pod ranges.
	Ranges [][]ipam.Range
	// Taken says who has an address although the store knows nothing of it, empty when nobody has. May be nil.
	Taken func(netip.Addr) string
	// Want are addresses asked for by name.
	Want []netip.Addr
	MAC  model.MAC
	// MTU in bytes; 0 takes the fabric's.
	MTU       int
	Ports     []model.PortMapping
	NoSNAT    bool
	Bandwidth model.Bandwidth
}

// Result is what an attachment got.
type Result struct {
	Lease *model.Lease
	// Prefixes are the addresses with the length of the range they came from (IPAM) or as host prefixes (Pod).
	Prefixes []netip.Prefix
	// Gateways, one per address: the next hop of the Pod's default route. Zero when there is none.
	Gateways []netip.Addr
}

// Errors by which a caller decides what to answer.
var (
	// ErrNotReady says that the node cannot attach Pods yet; it heals by itself.
	ErrNotReady = errors.New("not ready")
	// ErrUnknown says that no such attachment exists.
	ErrUnknown = errors.New("no such attachment")
	// ErrRefused says that the request cannot be met as it is, however often it is tried.
	ErrRefused = errors.New("request refused")
	// ErrNetNSGone says that the network namespace does not exist (any more).
	ErrNetNSGone = errors.New("network namespace is gone")
)
