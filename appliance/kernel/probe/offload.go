package probe

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TxChecksum reports whether the kernel leaves transport checksums of packets that a link sends to that link, or to the
// hardware below it. The link is looked up in the network namespace of the calling thread.
func TxChecksum(link string) (bool, error) {
	value := ethtoolValue{command: unix.ETHTOOL_GTXCSUM}
	if err := ethtool(link, &value); err != nil {
		return false, fmt.Errorf("reading tx checksum offload of link %s: %w", link, err)
	}
	return value.data != 0, nil
}

// SetTxChecksum switches tx checksum offload of a link. Off makes the kernel write the checksums itself before a packet
// reaches the link: slower, and right also where the hardware below computes wrong ones for tunnelled packets.
func SetTxChecksum(link string, on bool) error {
	value := ethtoolValue{command: unix.ETHTOOL_STXCSUM}
	if on {
		value.data = 1
	}
	if err := ethtool(link, &value); err != nil {
		return fmt.Errorf("switching tx checksum offload of link %s: %w", link, err)
	}
	return nil
}

// ethtoolValue is struct ethtool_value (linux/ethtool.h).
type ethtoolValue struct{ command, data uint32 }

// ethtoolRequest is struct ifreq (netdevice(7)) with a pointer in its union, which is 24 bytes long on 64-bit machines.
type ethtoolRequest struct {
	name  [unix.IFNAMSIZ]byte
	value unsafe.Pointer
	_     [24 - unsafe.Sizeof(uintptr(0))]byte
}

func ethtool(link string, value *ethtoolValue) error {
	if len(link) >= unix.IFNAMSIZ {
		return unix.ENODEV
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	request := ethtoolRequest{value: unsafe.Pointer(value)}
	copy(request.name[:], link)
	// The kernel reads and writes value behind the compiler's back; it must stay where it is until the call is over.
	var pin runtime.Pinner
	pin.Pin(value)
	defer pin.Unpin()
	_, _, number := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if number != 0 {
		return number
	}
	return nil
}
