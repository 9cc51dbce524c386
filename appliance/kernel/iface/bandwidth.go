package iface

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// bandwidthPrefix starts the name of every ifb device.
	bandwidthPrefix = "weftb"
	// limitAlias starts the alias of an ifb device; the name of the host end that it serves follows.
	limitAlias = "weft egress limit of "
	// limitLatency is how long a packet may wait in the token bucket, as in the reference plugin.
	limitLatency = 0.025 // seconds
	// psched is the unit of time of the kernel's packet schedulers, in nanoseconds (PSCHED_SHIFT in include/net/pkt_sched.h).
	psched = 64
)

// Bandwidth limits one Pod, in bits per second and bits, as in the CNI capability bandwidth. Ingress is traffic to the Pod,
// egress traffic from it. A rate of 0 means no limit.
type Bandwidth struct {
	IngressRate, IngressBurst uint64
	EgressRate, EgressBurst   uint64
}

// check refuses what the reference plugin refuses.
func (bw Bandwidth) check() error {
	for _, d := range []struct {
		name        string
		rate, burst uint64
	}{{"ingress", bw.IngressRate, bw.IngressBurst}, {"egress", bw.EgressRate, bw.EgressBurst}} {
		switch {
		case d.rate == 0 && d.burst != 0:
			return fmt.Errorf("bandwidth: %sBurst is %d but %sRate is missing; give both or none", d.name, d.burst, d.name)
		case d.rate != 0 && d.burst == 0:
			return fmt.Errorf("bandwidth: %sRate is %d but %sBurst is missing; give both or none", d.name, d.rate, d.name)
		case d.rate != 0 && d.rate < 8:
			return fmt.Errorf("bandwidth: %sRate of %d bits per second is less than a byte per second", d.name, d.rate)
		case d.burst/8 >= math.MaxUint32:
			return fmt.Errorf("bandwidth: %sBurst of %d bits is more than the 4 GiB that the kernel can count", d.name, d.burst)
		}
	}
	return nil
}

// SetBandwidth limits the Pod behind the veth host end hostIf, weft's or another plugin's. Traffic to the Pod waits in a token
// bucket on the host end; traffic from it is redirected through an ifb device with another one. Setting it again changes the
// limits in place, and a direction without a rate loses its limit. After an error the limits may be set in part; set them again.
func (b *Backend) SetBandwidth(ctx context.Context, hostIf string, bw Bandwidth) error {
	if err := errors.Join(ctx.Err(), bw.check()); err != nil {
		return err
	}
	link, err := b.links.LinkByName(hostIf)
	if err != nil {
		return fmt.Errorf("limiting %s: %w", hostIf, err)
	}
	if bw.IngressRate == 0 {
		err = b.clearIngress(link)
	} else if err = b.links.QdiscReplace(bucket(link, bw.IngressRate, bw.IngressBurst)); err != nil {
		err = fmt.Errorf("setting the token bucket: %w", err)
	}
	if err != nil {
		return fmt.Errorf("limiting traffic to %s: %w", hostIf, err)
	}
	if bw.EgressRate == 0 {
		err = b.clearEgress(link, hostIf)
	} else {
		err = b.setEgress(link, bw)
	}
	if err != nil {
		return fmt.Errorf("limiting traffic from %s: %w", hostIf, err)
	}
	return nil
}

// ClearBandwidth takes both limits away. That hostIf is gone is fine: what is left of its limit is removed.
func (b *Backend) ClearBandwidth(ctx context.Context, hostIf string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	link, err := b.links.LinkByName(hostIf)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		link, err = nil, nil
	}
	if err == nil && link != nil {
		err = b.clearIngress(link)
	}
	if err == nil {
		err = b.clearEgress(link, hostIf)
	}
	if err != nil {
		return fmt.Errorf("removing the bandwidth limit of %s: %w", hostIf, err)
	}
	return nil
}

// CheckBandwidth compares the limits in the kernel with what they should be; the error names what differs.
func (b *Backend) CheckBandwidth(ctx context.Context, hostIf string, bw Bandwidth) error {
	if err := errors.Join(ctx.Err(), bw.check()); err != nil {
		return err
	}
	link, err := b.links.LinkByName(hostIf)
	if err != nil {
		return fmt.Errorf("checking the bandwidth limit of %s: %w", hostIf, err)
	}
	errs := []error{b.checkBucket(link, bw.IngressRate, bw.IngressBurst)}
	limit, err := b.limitLink(hostIf)
	if limit != nil && limit.Attrs().Group == GroupDeleting {
		limit = nil // on its way out
	}
	switch {
	case err != nil:
		errs = append(errs, err)
	case bw.EgressRate == 0:
		if limit != nil {
			errs = append(errs, fmt.Errorf("link %s is there, but there is no limit for traffic from the Pod", limit.Attrs().Name))
		}
	case limit == nil:
		errs = append(errs, fmt.Errorf("link %s %w", limitLinkName(hostIf), errMissing))
	default:
		if limit.Attrs().Flags&net.FlagUp == 0 {
			errs = append(errs, fmt.Errorf("link %s is down", limit.Attrs().Name))
		}
		errs = append(errs, b.checkBucket(limit, bw.EgressRate, bw.EgressBurst))
		redirected, err := b.redirects(link, limit.Attrs().Index)
		if err == nil && !redirected {
			err = fmt.Errorf("redirection of traffic from %s to %s %w", hostIf, limit.Attrs().Name, errMissing)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("checking the bandwidth limit of %s: %w", hostIf, err)
	}
	return nil
}

// SweepBandwidth removes the ifb devices whose host end is gone (the Pod's namespace vanished without DEL) and returns their names.
func (b *Backend) SweepBandwidth(ctx context.Context) (removed []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	links, err := dump("links", b.links.LinkList)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, l := range links {
		names[l.Attrs().Name] = true
	}
	var rs []*request
	for _, l := range links {
		owner, known := strings.CutPrefix(l.Attrs().Alias, limitAlias)
		if isLimitLink(l) && known && !names[owner] {
			removed = append(removed, l.Attrs().Name)
			rs = append(rs, giveUp(l.Attrs().Name, l.Attrs().Index))
		}
	}
	if len(rs) == 0 {
		return nil, nil
	}
	err = b.pods.do(rs...)
	b.remover.enqueue()
	return removed, err
}

// limitLinkName derives the name of the ifb device from the name of the host end.
func limitLinkName(hostIf string) string {
	sum := sha256.Sum256([]byte(hostIf))
	return bandwidthPrefix + hex.EncodeToString(sum[:5])
}

func isLimitName(name string) bool { return strings.HasPrefix(name, bandwidthPrefix) }

// isLimitLink reports whether a link is an ifb device that weft made.
func isLimitLink(l netlink.Link) bool {
	g := l.Attrs().Group
	return l.Type() == "ifb" && isLimitName(l.Attrs().Name) && (g == GroupPods || g == GroupDeleting)
}

// bucket is the token bucket for a rate and burst in bits. A burst smaller than one packet would let none pass, so it is
// raised to one; one that the kernel cannot count (274 seconds' worth) is lowered.
func bucket(l netlink.Link, rate, burst uint64) *netlink.Tbf {
	bytesPerSecond := rate / 8
	burstBytes := max(burst/8, uint64(l.Attrs().MTU)+unix.IFNAMSIZ) // + the Ethernet header of 14 bytes, rounded up
	ticks := float64(burstBytes) * 1e9 / psched / float64(bytesPerSecond)
	limit := float64(bytesPerSecond)*limitLatency + float64(burstBytes)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bytesPerSecond,
		Limit:      uint32(min(limit, math.MaxUint32)),
		Buffer:     uint32(min(ticks, math.MaxUint32)),
	}
}

// findBucket returns the token bucket at the root of a link, or nil.
func (b *Backend) findBucket(l netlink.Link) (*netlink.Tbf, error) {
	list, err := dump("queueing disciplines of "+l.Attrs().Name, func() ([]netlink.Qdisc, error) { return b.links.QdiscList(l) })
	if err != nil {
		return nil, err
	}
	for _, q := range list {
		if t, ok := q.(*netlink.Tbf); ok && t.Parent == netlink.HANDLE_ROOT {
			return t, nil
		}
	}
	return nil, nil
}

func (b *Backend) checkBucket(l netlink.Link, rate, burst uint64) error {
	have, err := b.findBucket(l)
	if err != nil || have == nil && rate == 0 {
		return err
	}
	name := l.Attrs().Name
	if have == nil {
		return fmt.Errorf("token bucket on %s %w", name, errMissing)
	}
	if rate == 0 {
		return fmt.Errorf("there is a token bucket of %d bits per second on %s, want none", have.Rate*8, name)
	}
	want := bucket(l, rate, burst)
	if have.Rate != want.Rate || have.Limit != want.Limit || have.Buffer != want.Buffer {
		return fmt.Errorf("token bucket on %s has rate %d, limit %d, buffer %d; want %d, %d, %d", name, have.Rate, have.Limit, have.Buffer, want.Rate, want.Limit, want.Buffer)
	}
	return nil
}

func (b *Backend) clearIngress(l netlink.Link) error {
	have, err := b.findBucket(l)
	if err != nil || have == nil {
		return err
	}
	if err := b.links.QdiscDel(have); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing the token bucket: %w", err)
	}
	return nil
}

// limitLink returns the ifb device of a host end, or nil.
func (b *Backend) limitLink(hostIf string) (netlink.Link, error) {
	name := limitLinkName(hostIf)
	l, err := b.links.LinkByName(name)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking up link %s: %w", name, err)
	case !isLimitLink(l):
		return nil, fmt.Errorf("link %s (%s) is on the node already; rename or remove it: %w", name, l.Type(), ErrNameTaken)
	}
	return l, nil
}

// setEgress prepares the ifb device completely before traffic is sent through it.
func (b *Backend) setEgress(l netlink.Link, bw Bandwidth) error {
	limit, err := b.limitLink(l.Attrs().Name)
	if err != nil {
		return err
	}
	if limit == nil || limit.Attrs().Group == GroupDeleting {
		if limit != nil {
			if err := b.remover.removeNow(limit.Attrs().Name, limit.Attrs().Index); err != nil {
				return err
			}
		}
		name := limitLinkName(l.Attrs().Name)
		limit = &netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: l.Attrs().MTU, TxQLen: -1, Group: GroupPods}}
		if err := b.links.LinkAdd(limit); err != nil {
			return fmt.Errorf("making link %s: %w", name, err)
		}
	}
	index := limit.Attrs().Index
	if err := b.links.QdiscReplace(bucket(limit, bw.EgressRate, bw.EgressBurst)); err != nil {
		return fmt.Errorf("setting the token bucket of %s: %w", limit.Attrs().Name, err)
	}
	err = b.pods.do(
		setLink("naming "+limit.Attrs().Name, index, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(limitAlias+l.Attrs().Name)), b.quietLink(nil)),
		linkUp("setting "+limit.Attrs().Name+" up", index))
	if err != nil {
		return err
	}
	return b.redirect(l, index)
}

// redirect sends everything that arrives on a link through another one. clsact, unlike ingress, leaves room for the filters of
// others; it stays when the limit is taken away, for the same reason.
func (b *Backend) redirect(l netlink.Link, to int) error {
	done, err := b.redirects(l, to)
	if err != nil || done {
		return err
	}
	index := l.Attrs().Index
	clsact := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := b.links.QdiscAdd(clsact); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding clsact to %s: %w", l.Attrs().Name, err)
	}
	if err := b.links.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: redirectPriority, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(to)},
	}); err != nil {
		return fmt.Errorf("redirecting what arrives on %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// redirectPriority is the place of weft's filter among those of others: late, so that theirs see the packets before the bucket.
const redirectPriority = 8700

// redirects reports whether what arrives on a link is sent through the other one.
func (b *Backend) redirects(l netlink.Link, to int) (bool, error) {
	list, err := dump("filters of "+l.Attrs().Name, func() ([]netlink.Filter, error) { return b.links.FilterList(l, netlink.HANDLE_MIN_INGRESS) })
	if err != nil {
		return false, err
	}
	for _, f := range list {
		u, ok := f.(*netlink.U32)
		if !ok || u.Priority != redirectPriority {
			continue
		}
		for _, action := range u.Actions {
			if m, ok := action.(*netlink.MirredAction); ok && m.Ifindex == to {
				return true, nil
			}
		}
	}
	return false, nil
}

// clearEgress stops sending traffic through the ifb device, then removes it; link is nil when the host end is gone.
func (b *Backend) clearEgress(link netlink.Link, hostIf string) error {
	limit, err := b.limitLink(hostIf)
	if err != nil || limit == nil {
		return err
	}
	if link != nil {
		err := b.links.FilterDel(&netlink.U32{FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: redirectPriority, Protocol: unix.ETH_P_ALL,
		}})
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // EINVAL: no clsact
			return fmt.Errorf("ending the redirection of what arrives on %s: %w", hostIf, err)
		}
	}
	err = b.pods.do(giveUp(limit.Attrs().Name, limit.Attrs().Index))
	b.remover.enqueue()
	return err
}
