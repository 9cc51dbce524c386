package appliance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"weft.network/weft/appliance/kernel/dnssocket"
	"weft.network/weft/appliance/model"
	"weft.network/weft/embedded/coredns"
)

// dnsSockets are the sockets of the DNS server, by address.
type dnsSockets struct {
	mu    sync.Mutex
	open  []netip.Addr // in use
	begun bool         // set was called
	log   *zap.Logger
	udp   map[netip.Addr]*dnssocket.UDP
	tcp   map[netip.Addr]*net.TCPListener
}

// adopt takes over what the process before this one has left with the service manager.
func (s *dnsSockets) adopt(files []*os.File, log *zap.Logger) {
	s.log = log
	s.udp, s.tcp = map[netip.Addr]*dnssocket.UDP{}, map[netip.Addr]*net.TCPListener{}
	for _, f := range files {
		var err error
		switch {
		case strings.HasPrefix(f.Name(), udpName):
			var u *dnssocket.UDP
			if u, err = dnssocket.AdoptUDP(f); err == nil {
				s.udp[u.Addr().Addr()] = u
			}
		case strings.HasPrefix(f.Name(), tcpName):
			var l *net.TCPListener
			if l, err = dnssocket.AdoptTCP(f); err == nil {
				s.tcp[l.Addr().(*net.TCPAddr).AddrPort().Addr().Unmap()] = l
			}
		default:
			err = f.Close()
		}
		if err != nil {
			log.Warn("a socket of the DNS server before this one is lost", zap.Error(err))
		}
	}
	if n := len(s.udp) + len(s.tcp); n > 0 {
		log.Info("the DNS server goes on with the sockets of the one before", zap.Int("sockets", n))
	}
}

// The names of sockets with the service manager.
const (
	udpName = "dns-udp-"
	tcpName = "dns-tcp-"
)

func storeName(prefix string, a netip.Addr) string {
	return prefix + strings.ReplaceAll(a.String(), ":", "_")
}

// set listens at exactly these addresses, and says whether anything changed and what could not be done.
func (s *dnsSockets) set(want []netip.Addr, server *coredns.Server, store fdStore) (changed bool, problems []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var open []netip.Addr
	for _, a := range want {
		if slices.Contains(open, a) {
			continue
		}
		if !slices.Contains(s.open, a) {
			if err := s.listen(a, server, store); err != nil {
				problems = append(problems, fmt.Sprintf("the DNS server cannot listen at %s: %v: stop the program that does, or set dns.addresses", a, err))
				continue
			}
			changed = true
		}
		open = append(open, a)
	}
	var gone []netip.Addr
	for a := range s.udp {
		if !slices.Contains(open, a) {
			gone = append(gone, a)
		}
	}
	for _, a := range gone {
		changed = true
		err := server.Forget(context.Background(), netip.AddrPortFrom(a, model.DNSPort))
		if !slices.Contains(s.open, a) { // adopted, and not needed any more
			err = errors.Join(err, s.udp[a].Close())
			if l := s.tcp[a]; l != nil {
				err = errors.Join(err, l.Close())
			}
		}
		delete(s.udp, a)
		delete(s.tcp, a)
		if err = errors.Join(err, store.forget(storeName(udpName, a)), store.forget(storeName(tcpName, a))); err != nil {
			problems = append(problems, fmt.Sprintf("closing the DNS sockets at %s: %v", a, err))
		}
	}
	s.open, changed, s.begun = open, changed || !s.begun, true
	return changed, problems
}

// listen opens the sockets at one address, unless they were adopted.
func (s *dnsSockets) listen(a netip.Addr, server *coredns.Server, store fdStore) (err error) {
	at := netip.AddrPortFrom(a, model.DNSPort)
	u, l := s.udp[a], s.tcp[a]
	if u == nil {
		if u, err = dnssocket.ListenUDP(at); err != nil {
			return err
		}
	}
	if l == nil {
		if l, err = dnssocket.ListenTCP(at); err != nil {
			return errors.Join(err, u.Close())
		}
	}
	s.udp[a], s.tcp[a] = u, l
	server.Listen(coredns.Socket{
		Addr: at, UDP: u.UDPConn, TCP: l, Batch: func(n, size int) coredns.Batch { return u.NewBatch(n, size) },
	})
	if err := errors.Join(store.keep(storeName(udpName, a), u), store.keep(storeName(tcpName, a), l)); err != nil {
		s.log.Warn("a restart of weftd will lose DNS queries: the service manager does not keep the sockets", zap.Error(err))
	}
	return nil
}

// addresses are those in use; begun is false before the first call of set.
func (s *dnsSockets) addresses() (list []netip.Addr, begun bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.open), s.begun
}
