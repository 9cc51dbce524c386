package nft

import (
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// quietFrom is how many elements are worth a change without notifications: the kernel writes one for each as soon as anybody listens, and throws it
// away where the listener's filter does not want it. That takes about as long as the element itself.
const quietFrom = 1000

// watch is a Watch under way.
type watch struct {
	conn   *netlink.Conn
	events chan Event
}

// quietly makes a change of so many elements, while the watch does not listen if they are many. It reports whether somebody else may have changed
// nftables meanwhile: each transaction raises the kernel's generation by one, and ours are counted. One whose notifications are just being written is
// missed; the loop's audit finds what it changed.
func (b *Backend) quietly(elements int, stats *Stats, change func() error) (missed bool, err error) {
	if b.watch == nil || elements < quietFrom {
		return false, change()
	}
	conn, err := dial(b.netns, 64<<10)
	if err != nil {
		return false, change() // as right, and slower
	}
	defer conn.Close()
	r := reader{conn: conn}
	before, err := r.generation()
	if err == nil {
		err = b.watch.conn.LeaveGroup(unix.NFNLGRP_NFTABLES)
	}
	if err != nil {
		return false, change()
	}
	ours := stats.Transactions
	err = change()
	if b.watch.conn.JoinGroup(unix.NFNLGRP_NFTABLES) != nil {
		_ = b.watch.conn.SetReadDeadline(time.Unix(1, 0)) // who watches hears of the end, and begins anew
		return true, err
	}
	after, unknown := r.generation()
	return unknown != nil || after-before != uint32(stats.Transactions-ours), err
}
