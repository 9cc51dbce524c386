package iface

import (
	"context"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ethtoolValue is struct ethtool_value of include/uapi/linux/ethtool.h.
type ethtoolValue struct{ command, data uint32 }

// ifreqData is struct ifreq of include/uapi/linux/if.h with a pointer as its content.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

// SetTxChecksum switches checksum offload for sent packets of one link. Off makes the kernel compute checksums itself before
// the packet is encapsulated: the way around network cards and hypervisors that get those of tunnelled packets wrong.
func (b *Backend) SetTxChecksum(ctx context.Context, link string, on bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(link) >= unix.IFNAMSIZ {
		return fmt.Errorf("setting checksum offload: link name %q is longer than %d characters", link, unix.IFNAMSIZ-1)
	}
	// Interface ioctls work on any socket; a netlink socket is the kind that can be opened in another namespace.
	sock, err := nl.GetNetlinkSocketAt(b.ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	defer sock.Close()
	value := ethtoolValue{command: unix.ETHTOOL_STXCSUM}
	if on {
		value.data = 1
	}
	request := ifreqData{data: unsafe.Pointer(&value)}
	copy(request.name[:], link)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(sock.GetFd()), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(sock)
	if errno != 0 {
		return fmt.Errorf("setting checksum offload of %s: %w", link, errno)
	}
	return nil
}
