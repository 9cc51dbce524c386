package iface

import (
	"context"
	"errors"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// remover takes links away in the background. One link costs an RCU wait of 16 to 20 ms, and 64 links in one request cost 33,
// so everything that was queued while one request ran goes with the next.
type remover struct {
	conn *conn

	mu     sync.Mutex
	queued uint64 // calls of enqueue
	done   uint64 // how many of them the kernel has answered
	err    error  // the last answer
	closed bool
	wake   *sync.Cond
	ended  chan struct{}
}

func startRemover(c *conn) *remover {
	r := &remover{conn: c, ended: make(chan struct{})}
	r.wake = sync.NewCond(&r.mu)
	go r.loop()
	return r
}

// enqueue says that there are links in GroupDeleting.
func (r *remover) enqueue() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queued++
	r.wake.Broadcast()
}

func (r *remover) loop() {
	defer close(r.ended)
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		for r.done == r.queued && !r.closed {
			r.wake.Wait()
		}
		if r.done == r.queued {
			return
		}
		upTo := r.queued
		r.mu.Unlock()
		err := r.conn.do(deleteGroup())
		r.mu.Lock()
		r.done, r.err = upTo, err
		r.wake.Broadcast()
	}
}

// deleteGroup removes every link of GroupDeleting in one request.
func deleteGroup() *request {
	r := newRequest("removing the links of deleted Pods", unix.RTM_DELLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(GroupDeleting)))
	r.fine = []error{unix.ENODEV}
	return r
}

// flush waits until all that was queued before is gone.
func (r *remover) flush(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.wake.Broadcast()
	})
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for target := r.queued; r.done < target; r.wake.Wait() {
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return r.err
}

// removeNow removes one link and waits for it; a link that is gone is fine.
func (r *remover) removeNow(name string, index int) error {
	return r.conn.do(delLink(name, index))
}

// removeByName is removeNow for a link whose index is not known.
func (r *remover) removeByName(name string) error {
	var link netlink.Link
	look := getLink(name, func(l netlink.Link) { link = l })
	look.fine = []error{unix.ENODEV}
	if err := r.conn.do(look); err != nil || link == nil {
		return err
	}
	return r.removeNow(name, link.Attrs().Index)
}

func (r *remover) close() error {
	r.mu.Lock()
	r.closed = true
	r.wake.Broadcast()
	r.mu.Unlock()
	<-r.ended
	r.conn.close()
	if errors.Is(r.err, unix.ENODEV) {
		return nil
	}
	return r.err
}
