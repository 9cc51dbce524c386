package coredns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadUpstreams(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("169.254.20.10")}
	behind := "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch lan\n"
	for _, tc := range []struct{ name, text, behind, want, search, skipped string }{
		{"plain", "# a comment\nnameserver 192.0.2.1\n; another\nnameserver 2001:db8::1\noptions ndots:2\nsearch a.example b.example\n", "", "192.0.2.1:53 [2001:db8::1]:53", "a.example b.example", ""},
		{"the stub of systemd-resolved", "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.example\n", behind, "192.0.2.53:53 [2001:db8::53]:53", "lan", ""},
		{"the stub, and nothing behind it", "nameserver 127.0.0.53\n", "", "127.0.0.53:53", "", ""},
		{"a resolver on the node", "nameserver 127.0.0.1\n", "", "127.0.0.1:53", "", ""},
		{"itself", "nameserver 10.96.0.10\nnameserver 192.0.2.1\n", "", "192.0.2.1:53", "", "loop"},
		{"itself through the stub", "nameserver 127.0.0.53\n", "nameserver 169.254.20.10\nnameserver 192.0.2.9\n", "192.0.2.9:53", "", "loop"},
		{"words", "nameserver none\nnameserver\nnameserver 192.0.2.1 trailing\n", "", "192.0.2.1:53", "", "not an address"},
		{"empty", "", "", "", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			path, stub := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "stub.conf")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if tc.behind != "" {
				if err := os.WriteFile(stub, []byte(tc.behind), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			u, err := readUpstreams(path, stub, own)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Trim(fmt.Sprint(u.Servers), "[]"); got != strings.Trim(tc.want, "[]") {
				t.Errorf("servers %s, want %s", got, tc.want)
			}
			if want := tc.name == "the stub, and nothing behind it"; u.Stub != want {
				t.Errorf("the stub stands for its servers: %v, want %v", u.Stub, want)
			}
			if got := strings.Join(u.Search, " "); got != tc.search {
				t.Errorf("search %q, want %q", got, tc.search)
			}
			if got := strings.Join(u.Skipped, " "); !strings.Contains(got, tc.skipped) || tc.skipped == "" && got != "" {
				t.Errorf("skipped %q, want %q", got, tc.skipped)
			}
		})
	}
	if _, err := ReadUpstreams("/does/not/exist", nil); err == nil {
		t.Error("a file that is not there gives no error")
	}
}
