package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"weft.network/weft/appliance/model"
)

func key(i int) model.AttachmentKey {
	return model.AttachmentKey{Network: "weft", ContainerID: fmt.Sprintf("c%d", i), IfName: "eth0"}
}

func pod(i int) model.PodRef {
	return model.PodRef{Namespace: "default", Name: fmt.Sprintf("p%d", i), UID: fmt.Sprintf("uid-%d", i)}
}

func nodeRanges(t *testing.T, prefixes ...string) [][]Range {
	t.Helper()
	var sets [][]Range
	for _, p := range prefixes {
		r, err := NodeRange(netip.MustParsePrefix(p))
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, []Range{r})
	}
	return sets
}

func TestRange(t *testing.T) {
	for _, tc := range []struct {
		prefix, first, last string
		want                string // FIRST-LAST SIZE, or part of the error
	}{
		{"10.0.0.0/24", "", "", "10.0.0.1-10.0.0.254 254"},
		{"10.0.0.77/24", "", "", "10.0.0.1-10.0.0.254 254"},
		{"10.0.0.0/30", "", "", "10.0.0.1-10.0.0.2 2"},
		{"fd00::/64", "", "", "fd00::1-fd00::ffff:ffff:ffff:ffff 1048576"},
		{"fd00::/126", "", "", "fd00::1-fd00::3 3"},
		{"10.0.0.0/24", "10.0.0.10", "10.0.0.12", "10.0.0.10-10.0.0.12 3"},
		{"10.0.0.0/31", "", "", "too small"},
		{"10.0.0.0/24", "10.0.1.1", "", "outside the subnet"},
		{"10.0.0.0/24", "10.0.0.9", "10.0.0.8", "comes after"},
	} {
		parse := func(s string) (a netip.Addr) {
			if s != "" {
				a = netip.MustParseAddr(s)
			}
			return a
		}
		r, err := NewRange(netip.MustParsePrefix(tc.prefix), parse(tc.first), parse(tc.last))
		got := fmt.Sprintf("%s-%s %d", r.First, r.Last, r.size())
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tc.want) {
			t.Errorf("%s %s %s: got %q, want %q", tc.prefix, tc.first, tc.last, got, tc.want)
		}
	}
}

func TestPickOrder(t *testing.T) {
	p := NewPool(30)
	ranges := nodeRanges(t, "10.1.0.0/29", "fd01::/64")
	pick := func(i int, now int64, want ...string) string {
		t.Helper()
		req := Request{Key: key(i), Pod: pod(i), Ranges: ranges, Now: now}
		for _, w := range want {
			req.Want = append(req.Want, netip.MustParseAddr(w))
		}
		got, err := p.Pick(req)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(got)
	}
	release := func(i int, now int64) {
		for a, k := range p.held {
			if k == key(i) {
				p.Release(a, model.Release{Pod: pod(i), At: now})
			}
		}
	}
	check := func(got, want string) {
		t.Helper()
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	check(pick(1, 100), "[10.1.0.2 fd01::2]") // .1 is the node's own
	check(pick(2, 100), "[10.1.0.3 fd01::3]")
	release(1, 101)
	check(pick(3, 102), "[10.1.0.4 fd01::4]")                  // next fit, not the freed one
	check(pick(1, 103), "[10.1.0.2 fd01::2]")                  // the same Pod has its address again, cooling or not
	check(pick(4, 104, "10.1.0.6"), "[10.1.0.6 fd01::5]")      // by name
	check(pick(5, 104, "10.1.0.6"), "held by weft/c4/eth0")    // taken
	check(pick(5, 104, "10.1.0.1"), "reserved")                // the node's
	check(pick(5, 104, "10.9.0.1"), "none of this node's ran") // elsewhere
	check(pick(5, 105), "[10.1.0.5 fd01::6]")
	check(pick(6, 106), "no address left in 10.1.0.0/29: 5 usable, 5 held by attachments, 0 in use by others")
	release(2, 110)
	release(3, 108)
	check(pick(6, 111), "[10.1.0.4 ") // all cooling: the longest unused
	if _, err := p.Pick(Request{Key: key(9), Ranges: ranges, Now: 111, InUse: func(netip.Addr) string { return "a route" }}); err == nil ||
		!strings.Contains(err.Error(), "1 in use by others") {
		t.Errorf("in use: %v", err)
	}
	check(pick(7, 200), "[10.1.0.3 ")
}

// A failed pick holds nothing, also when the second family is the one that is full.
func TestPickUndo(t *testing.T) {
	p := NewPool(0)
	ranges := nodeRanges(t, "10.1.0.0/24", "fd01::/126")
	for i := range 2 {
		if _, err := p.Pick(Request{Key: key(i), Ranges: ranges}); err != nil {
			t.Fatal(err)
		}
	}
	var full *ExhaustedError
	if _, err := p.Pick(Request{Key: key(3), Ranges: ranges}); !errors.As(err, &full) {
		t.Fatalf("want ExhaustedError, got %v", err)
	}
	if total, held, _ := p.Usage(ranges[0], 0); total != 253 || held != 2 {
		t.Errorf("IPv4 total %d held %d, want 253 and 2", total, held)
	}
}

// Whatever happens, no address is held twice and each one given lies in its range.
func TestPickRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := NewPool(5)
	ranges := nodeRanges(t, "10.1.0.0/27", "fd01::/120")
	holder := map[netip.Addr]int{}
	attached := map[int][]netip.Addr{}
	for now := range int64(20000) {
		i := rng.IntN(40)
		if addrs, ok := attached[i]; ok {
			for _, a := range addrs {
				p.Release(a, model.Release{Pod: pod(i), At: now})
				delete(holder, a)
			}
			delete(attached, i)
			continue
		}
		got, err := p.Pick(Request{Key: key(i), Pod: pod(i), Ranges: ranges, Now: now})
		var full *ExhaustedError
		if errors.As(err, &full) {
			if len(attached) != 29 {
				t.Fatalf("exhausted with %d attached", len(attached))
			}
			continue
		}
		if err != nil || len(got) != 2 {
			t.Fatal(got, err)
		}
		for n, a := range got {
			if other, taken := holder[a]; taken {
				t.Fatalf("%s given to %d and %d", a, other, i)
			}
			if !ranges[n][0].Contains(a) || a == ranges[n][0].Reserved[0] {
				t.Fatalf("%s is not to be given", a)
			}
			holder[a] = i
		}
		attached[i] = got
	}
}

func TestTrim(t *testing.T) {
	p := NewPool(5)
	for i := range 10 {
		p.Release(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), model.Release{At: int64(i)})
	}
	if got := fmt.Sprint(p.Trim(8)); got != "[10.0.0.0 10.0.0.1]" {
		t.Errorf("forgot %s", got)
	}
	if got := p.Trim(8); got != nil {
		t.Errorf("then %v", got)
	}
}
