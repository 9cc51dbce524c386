package iface

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ipvsDevice is the link on which kube-proxy's IPVS mode puts the addresses of Services.
const ipvsDevice = "kube-ipvs0"

// ipvsFlush is IPVS_CMD_FLUSH and ipvsVersion IPVS_GENL_VERSION of linux/ip_vs.h.
const (
	ipvsFlush   = 17
	ipvsVersion = 1
)

// KubeProxyIPVS names what kube-proxy's IPVS mode has left, in words; with remove it takes that away: all virtual servers, and the link
// with the addresses. Without that link the virtual servers are somebody else's and stay.
func (b *Backend) KubeProxyIPVS(ctx context.Context, remove bool) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l, err := b.links.LinkByName(ipvsDevice)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for link %s: %w", ipvsDevice, err)
	}
	out := []string{"link " + ipvsDevice}
	generic, err := netlink.NewHandleAt(b.ns, unix.NETLINK_GENERIC)
	if err != nil {
		return out, fmt.Errorf("opening a generic netlink socket: %w", err)
	}
	defer generic.Close()
	// A kernel without IPVS does not have the family; then there are no virtual servers.
	if family, err := generic.GenlFamilyGet("IPVS"); err == nil {
		out = append(out, "virtual servers of IPVS")
		if remove {
			if err := b.flushIPVS(family.ID); err != nil {
				return out, fmt.Errorf("removing the virtual servers of IPVS: %w", err)
			}
		}
	}
	if remove {
		if err := b.links.LinkDel(l); err != nil {
			return out, fmt.Errorf("removing link %s: %w", ipvsDevice, err)
		}
	}
	return out, nil
}

func (b *Backend) flushIPVS(family uint16) error {
	sock, err := nl.GetNetlinkSocketAt(b.ns, netns.None(), unix.NETLINK_GENERIC)
	if err != nil {
		return err
	}
	defer sock.Close()
	req := nl.NewNetlinkRequest(int(family), unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_GENERIC: {Socket: sock}}
	req.AddData(&nl.Genlmsg{Command: ipvsFlush, Version: ipvsVersion})
	_, err = req.Execute(unix.NETLINK_GENERIC, 0)
	return err
}
