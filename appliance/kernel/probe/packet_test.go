package probe

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"net/netip"
	"testing"
	"time"
)

func TestReply(t *testing.T) {
	p, n := newProbe(1000, 7)
	out := make([]byte, headerSize)
	if !newReply(out, p) {
		t.Fatal("a probe was not recognised")
	}
	arrived, checksum, ok := parseReply(out, n)
	if !ok || arrived != 1000 || checksum != crc32.ChecksumIEEE(p) {
		t.Errorf("got %d bytes, checksum %x, %v", arrived, checksum, ok)
	}
	if bytes.Count(p, []byte{0}) > 50 {
		t.Error("the padding is not noise")
	}
	other, m := newProbe(1000, 8)
	if bytes.Equal(p[headerSize:], other[headerSize:]) || n == m {
		t.Error("two probes are alike")
	}
	if _, _, ok := parseReply(out, m); ok {
		t.Error("the reply to another probe was taken")
	}
	if newReply(make([]byte, headerSize), out) {
		t.Error("a reply was answered: two responders could talk for ever")
	}
}

func TestOnlyProbesAreAnswered(t *testing.T) {
	good, _ := newProbe(headerSize, 1)
	for _, tc := range []struct {
		name   string
		change func(p []byte) []byte
		want   bool
	}{
		{"as it is", func(p []byte) []byte { return p }, true},
		{"empty", func([]byte) []byte { return nil }, false},
		{"one byte short", func(p []byte) []byte { return p[:headerSize-1] }, false},
		{"other magic", func(p []byte) []byte { p[0] = 'W'; return p }, false},
		{"other version", func(p []byte) []byte { p[4] = 2; return p }, false},
		{"reply", func(p []byte) []byte { p[5] = kindReply; return p }, false},
		{"no nonce", func(p []byte) []byte { clear(p[16:32]); return p }, false},
	} {
		if got := newReply(make([]byte, headerSize), tc.change(bytes.Clone(good))); got != tc.want {
			t.Errorf("%s: answered %v, want %v", tc.name, got, tc.want)
		}
	}
}

// FuzzReply makes sure that nothing that arrives is amplified or breaks the responder.
func FuzzReply(f *testing.F) {
	p, _ := newProbe(200, 1)
	f.Add(p)
	f.Add([]byte("weft"))
	f.Fuzz(func(t *testing.T, p []byte) {
		out := make([]byte, headerSize)
		if newReply(out, p) && len(out) > len(p) {
			t.Errorf("%d bytes answered with %d", len(p), len(out))
		}
		parseReply(p, nonce{1})
		_ = parseExtendedError(p)
	})
}

func TestLimiter(t *testing.T) {
	now := time.Now()
	l := newLimiter(now)
	a := netip.MustParseAddr("192.0.2.1")
	count := func(from netip.Addr) (n int) {
		for l.allow(from, now) {
			n++
		}
		return n
	}
	if n := count(a); n != answerBurst {
		t.Errorf("a burst of %d, want %d", n, answerBurst)
	}
	now = now.Add(10 * answerEvery)
	if n := count(a); n != 10 {
		t.Errorf("%d after ten turns", n)
	}
	now = now.Add(time.Hour)
	if n := count(a); n != answerBurst {
		t.Errorf("a burst of %d after an hour, want %d", n, answerBurst)
	}
	others := 0
	for i := range 100 {
		if l.allow(netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i)), now) {
			others++
		}
	}
	if others < 90 {
		t.Errorf("%d of 100 other sources are served while one is limited", others)
	}
}
