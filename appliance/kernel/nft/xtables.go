package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options of linux/netfilter_ipv4/ip_tables.h, the same for IPv6 at its own level.
const (
	iptGetInfo    = 64
	iptGetEntries = 65
	iptNameLen    = 32
	// iptInfoLen is the size of struct ipt_getinfo, iptSizeAt the offset of its size of all entries.
	iptInfoLen = 84
	iptSizeAt  = 80
	// iptHeadLen is the size of struct ipt_get_entries before its entries.
	iptHeadLen = 40
)

// LegacyKubeProxy names the tables of the older iptables (legacy, not a part of nftables) in which kube-proxy has chains, in the
// network namespace of the calling thread. Only tables that the kernel has already are looked at: to ask for one makes it.
func LegacyKubeProxy() ([]string, error) {
	var out []string
	for _, v := range []struct {
		name, file    string
		family, level int
	}{{"iptables", "/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.IPPROTO_IP}, {"ip6tables", "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.IPPROTO_IPV6}} {
		text, err := os.ReadFile(v.file)
		if err != nil {
			continue // this kernel has none
		}
		for table := range strings.FieldsSeq(string(text)) {
			entries, err := legacyEntries(v.family, v.level, table)
			if err != nil {
				return nil, fmt.Errorf("reading table %s of %s (legacy): %w", table, v.name, err)
			}
			if hasProxyChain(entries) {
				out = append(out, fmt.Sprintf("%s (legacy) table %s", v.name, table))
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// hasProxyChain looks for the names of chains, which stand as text in the entries, each at the start of a chain.
func hasProxyChain(entries []byte) bool {
	for at := 0; ; {
		i := bytes.Index(entries[at:], []byte("KUBE-"))
		if i < 0 {
			return false
		}
		name, _, _ := bytes.Cut(entries[at+i:min(at+i+iptNameLen, len(entries))], []byte{0})
		if isProxyChain(string(name)) {
			return true
		}
		at += i + 1
	}
}

func legacyEntries(family, level int, table string) ([]byte, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	info := make([]byte, iptInfoLen)
	copy(info, table)
	if err := getsockopt(fd, level, iptGetInfo, info); err != nil {
		return nil, err
	}
	size := binary.NativeEndian.Uint32(info[iptSizeAt:])
	all := make([]byte, iptHeadLen+int(size))
	copy(all, table)
	binary.NativeEndian.PutUint32(all[iptNameLen:], size)
	if err := getsockopt(fd, level, iptGetEntries, all); err != nil {
		return nil, err
	}
	return all[iptHeadLen:], nil
}

func getsockopt(fd, level, option int, b []byte) error {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
