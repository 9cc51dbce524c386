package reconcile

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"weft.network/weft/appliance/ruleset"
)

// dnsLink is a link that remembers its addresses.
type dnsLink struct {
	have  []netip.Addr
	calls int
	fail  error
}

func (l *dnsLink) ApplyDNS(_ context.Context, want []netip.Addr) ([]string, error) {
	l.calls++
	if l.fail != nil {
		return nil, l.fail
	}
	l.have = want
	return []string{"changed"}, nil
}

func TestDNSOfTheLoop(t *testing.T) {
	link := &dnsLink{}
	var list []netip.Addr
	begun := false
	d := &DNS{Link: link, Addresses: func() ([]netip.Addr, bool) { return list, begun }}
	round := func(again bool, calls int) error {
		t.Helper()
		before := link.calls
		_, err := d.apply(t.Context(), again)
		if got := link.calls - before; got != calls {
			t.Errorf("the link was set %d times, want %d", got, calls)
		}
		return err
	}
	// Before the server has begun, what the daemon before this one left stays.
	if err := round(true, 0); err != nil || d.tables() != nil {
		t.Errorf("before the server has begun: %v %v", err, d.tables())
	}
	list, begun = []netip.Addr{netip.MustParseAddr("10.96.0.10")}, true
	link.fail = errors.New("no such device")
	if err := round(false, 1); err == nil {
		t.Error("an error of the link is lost")
	}
	if table := d.tables(); len(table) != 1 || !table[0].Empty() {
		t.Error("packets are kept from NAT although the address is not there")
	}
	link.fail = nil
	if err := round(false, 1); err != nil || !slices.Equal(link.have, list) {
		t.Errorf("%v %v", err, link.have)
	}
	if table := d.tables(); len(table) != 1 || table[0].Name != ruleset.DNSTable || table[0].Empty() {
		t.Error("there are no rules for the address")
	}
	_ = round(false, 0)
	_ = round(true, 1) // somebody touched the links
	list = nil
	_ = round(false, 1)
	if table := d.tables(); len(table) != 1 || !table[0].Empty() {
		t.Error("rules for an address that is gone")
	}

	// Without the role everything is taken away.
	off := &DNS{Link: link}
	if _, err := off.apply(t.Context(), true); err != nil || len(link.have) > 0 || len(off.tables()) != 1 {
		t.Errorf("without the role: %v %v", err, link.have)
	}
}
