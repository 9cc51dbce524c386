package cni

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft.network/weft/appliance/attach"
)

// asked keeps the request.
type asked struct {
	fakeAttacher
	req attach.Request
}

func (a *asked) Add(ctx context.Context, req attach.Request) (attach.Result, error) {
	a.req = req
	return a.fakeAttacher.Add(ctx, req)
}

// TestHostLocalBefore takes the place of a reference host-local whose containers still run.
func TestHostLocalBefore(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"net/10.5.0.2":           "c1\r\neth0",
		"net/fd05::2":            "c1\r\neth0",
		"net/10.5.0.3":           "c1\r\nnet1",
		"net/10.5.0.4":           "c1", // of an old version
		"net/10.5.0.5":           "c12\r\neth0",
		"net/last_reserved_ip.0": "10.5.0.5",
		"net/lock":               "",
		"other/10.5.0.6":         "c1\r\neth0",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	serve := func(plugin, command string) *asked {
		t.Helper()
		a := &asked{}
		conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": {"type": %q, "dataDir": %q, "ranges": [[{"subnet": "10.5.0.0/24"}]]}}`, plugin, dir)
		if r := Serve(t.Context(), Call{Plugin: plugin, Env: testEnv(command), Stdin: []byte(conf), NSFD: -1}, a); r.Exit != 0 {
			t.Fatalf("%s %s: %s", plugin, command, r.Stdout)
		}
		return a
	}
	left := func() (names []string) {
		files, err := filepath.Glob(filepath.Join(dir, "*/*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			names = append(names, filepath.Base(f))
		}
		return names
	}

	taken := serve("host-local", "ADD").req.Taken
	for addr, want := range map[string]bool{"10.5.0.2": true, "fd05::2": true, "10.5.0.5": true, "10.5.0.6": false, "10.5.0.7": false} {
		if who := taken(netip.MustParseAddr(addr)); (who != "") != want || want && !strings.Contains(who, "container c1") {
			t.Errorf("%s is taken by %q, taken should be %v", addr, who, want)
		}
	}
	if serve("weft-ipam", "ADD").req.Taken != nil {
		t.Error("weft-ipam looks at files that are not of its kind")
	}

	all := left()
	if serve("weft-ipam", "DEL"); !slices.Equal(left(), all) {
		t.Errorf("DEL of weft-ipam leaves %v", left())
	}
	want := []string{"10.5.0.3", "10.5.0.5", "last_reserved_ip.0", "lock", "10.5.0.6"}
	for range 2 {
		if serve("host-local", "DEL"); !slices.Equal(left(), want) {
			t.Errorf("DEL of host-local leaves %v, want %v", left(), want)
		}
	}
}
