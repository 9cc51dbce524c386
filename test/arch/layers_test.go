package arch

import (
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "weft.network/weft"

// rank gives each folder its layer: an import must go to a lower number, so the same number is not allowed. A folder that is
// not listed fails, until somebody has decided where it belongs. Folders below test/ and helpers for tests, whose name ends
// in "test", may import everything, and nothing else may import them.
var rank = map[string]int{
	"appliance/model": 0,

	"packaging":         1,
	"appliance/cluster": 1,
	"appliance/config":  1,
	"appliance/control": 1,
	"appliance/cri":     1,
	"appliance/ipam":    1,
	"appliance/store":   1,

	"appliance/compile/podnet":   2,
	"appliance/compile/peering":  2,
	"appliance/compile/route":    2,
	"appliance/compile/policy":   2,
	"appliance/compile/service":  2,
	"appliance/install":          2,
	"appliance/compile/announce": 1,
	"appliance/compile/lb":       2,

	"appliance/attach":   3,
	"appliance/ruleset":  3,
	"appliance/compile":  3,
	"plugins/clusterdns": 3,

	"appliance/announcer":        4,
	"appliance/kernel/conntrack": 4,
	"appliance/kernel/dnssocket": 4,
	"appliance/kernel/iface":     4,
	"appliance/kernel/l2":        4,
	"appliance/kernel/nft":       4,
	"appliance/kernel/nflog":     4,
	"appliance/kernel/probe":     4,
	"appliance/prober":           4,
	"appliance/reconcile":        4,
	"appliance/trace":            4,
	"embedded/coredns":           4,
	"embedded/gobgp":             4,
	"plugins/cni":                4,
	"plugins/cni/early":          4,

	"appliance":     5,
	"appliance/lab": 5,
	"appliance/cli": 6,
	".":             7,
}

// owners names, for each third party and for starting programs, the only folders that may import it; "/..." means the folders below it too. The
// longest prefix counts. A third party that is not listed fails: every dependency has an owner.
var owners = map[string][]string{
	"a.weft/early":                    {"."},
	"github.com/containernetworking/": {"plugins/cni", "appliance/lab"},
	"github.com/coredns/":             {"embedded/coredns", "plugins/clusterdns"},
	"github.com/fsnotify/fsnotify":    {"appliance/cluster"},
	"github.com/go-logr/":             {"appliance/cluster"},
	"github.com/google/nftables":      {"appliance/kernel/nft"},
	"github.com/mdlayher/":            {"appliance/kernel/...", "appliance/lab"},
	"github.com/miekg/dns":            {"embedded/coredns", "plugins/clusterdns", "appliance/lab"},
	"github.com/osrg/gobgp/":          {"embedded/gobgp"},
	"github.com/prometheus/":          {"appliance", "appliance/attach", "appliance/reconcile", "embedded/..."},
	"github.com/ti-mo/":               {"appliance/kernel/conntrack"},
	"github.com/urfave/cli":           {"appliance/cli"},
	"github.com/vishvananda/":         {"appliance/kernel/...", "appliance/lab"},
	"go.etcd.io/bbolt":                {"appliance/store"},
	"go.uber.org/zap":                 {"appliance", "appliance/attach", "appliance/cli", "appliance/reconcile", "embedded/..."},
	"go.yaml.in/yaml":                 {"appliance/cluster", "appliance/config"},
	"golang.org/x/sync/":              {"appliance", "appliance/lab", "appliance/prober"},
	"golang.org/x/sys/unix":           {"appliance/kernel/...", "appliance/lab", "embedded/gobgp"},
	"google.golang.org/grpc":          {"appliance/cri"},
	"google.golang.org/protobuf":      {"embedded/gobgp"},
	"k8s.io/":                         {"appliance/cluster"},
	"os/exec":                         {"appliance/install", "appliance/lab"},      // systemctl, and Pods of the lab; nothing else
	"k8s.io/api/core/v1":              {"appliance/cluster", "plugins/clusterdns"}, // types in the interface of CoreDNS' kubernetes plugin
	"k8s.io/cri-api":                  {"appliance/cri"},
	"sigs.k8s.io/":                    {"appliance/cluster"},
}

// pure folders compute; they may not touch the world.
var pure = []string{"appliance/model", "appliance/ipam", "appliance/compile/...", "appliance/ruleset", "appliance/trace"}

// impure lists standard packages that a pure folder may not import, and what to do instead.
var impure = map[string]string{
	"context":      "a pure function cannot block",
	"crypto/rand":  "results must repeat",
	"log":          "return, do not log",
	"log/slog":     "return, do not log",
	"math/rand":    "results must repeat",
	"math/rand/v2": "results must repeat",
	"net":          "use net/netip",
	"net/http":     "a pure function does no I/O",
	"os":           "a pure function does not read the machine",
	"os/exec":      "a pure function does no I/O",
	"sync":         "a pure function shares nothing",
	"sync/atomic":  "a pure function shares nothing",
	"syscall":      "a pure function does not read the machine",
	"time":         "pass time in as data",
}

// importProblem says why a file in dir may not import imp; the empty text means that it may.
func importProblem(dir, imp string) string {
	if within(dir, "test/...") || strings.HasSuffix(dir, "test") {
		return ""
	}
	from, known := rank[dir]
	if !known {
		return "the folder has no rank: place it in test/arch/layers_test.go"
	}
	if why := impure[imp]; why != "" && within(dir, pure...) {
		return "this folder is pure: " + why
	}
	if sub, ours := strings.CutPrefix(imp, module+"/"); ours {
		to, known := rank[sub]
		switch {
		case !known:
			return "it has no rank: place it in test/arch/layers_test.go"
		case to >= from:
			return "imports must go down: declare a small interface here, and let the folder above pass the value in"
		}
		return ""
	}
	folders := ownersOf(imp)
	first, _, _ := strings.Cut(imp, "/")
	standard := !strings.Contains(first, ".")
	if folders == nil && standard {
		return ""
	}
	if folders == nil {
		return "this third party has no owner: name one in test/arch/layers_test.go and add a row to docs/deps.md"
	}
	if !within(dir, folders...) {
		return "only " + strings.Join(folders, ", ") + " may"
	}
	return ""
}

// ownersOf returns the folders of the longest prefix in owners.
func ownersOf(imp string) []string {
	longest := ""
	for prefix := range owners {
		if strings.HasPrefix(imp, prefix) && len(prefix) > len(longest) {
			longest = prefix
		}
	}
	return owners[longest]
}

// within reports whether dir is one of the folders; "a/..." is a and all below it.
func within(dir string, folders ...string) bool {
	return slices.ContainsFunc(folders, func(f string) bool {
		root, deep := strings.CutSuffix(f, "/...")
		return dir == root || deep && strings.HasPrefix(dir, root+"/")
	})
}

// TestImports checks every import of every file that is not a test.
func TestImports(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.test {
			continue
		}
		for _, spec := range f.syntax.Imports {
			imp := strings.Trim(spec.Path.Value, `"`)
			if why := importProblem(f.dir, imp); why != "" {
				t.Errorf("%s imports %s: %s", f.path, imp, why)
			}
		}
	}
}

// TestImportProblem makes sure that the rules above can refuse.
func TestImportProblem(t *testing.T) {
	for _, tc := range []struct {
		dir, imp string
		refused  bool
	}{
		{"appliance/store", module + "/appliance/model", false},
		{"appliance/model", module + "/appliance/store", true},
		{"appliance/attach", module + "/appliance/kernel/iface", true},
		{"appliance/attach", module + "/appliance/reconcile", true},
		{"appliance/kernel/nft", module + "/appliance/kernel/iface", true},
		{"appliance/ruleset", module + "/appliance/kernel/nft", true},
		{"appliance/util", "fmt", true},
		{"appliance/cli", module + "/appliance/util", true},
		{"appliance/ipam", "time", true},
		{"appliance/compile/route", "net", true},
		{"appliance/compile/route", "net/netip", false},
		{"appliance/cluster", "k8s.io/client-go/informers", false},
		{"appliance/cri", "k8s.io/client-go/informers", true},
		{"appliance/cri", "k8s.io/cri-api/pkg/apis/runtime/v1", false},
		{"appliance/cluster", "k8s.io/cri-api/pkg/apis/runtime/v1", true},
		{"appliance", "go.uber.org/zap", false},
		{"appliance/install", "go.uber.org/zap", true},
		{"appliance", "example.com/unknown", true},
		{"plugins/cni", "a.weft/early", true},
		{"appliance/kernel/iface", "os/exec", true},
		{"appliance/kernel/netnstest", "os/exec", false},
		{"appliance/kernel/iface", module + "/appliance/kernel/netnstest", true},
		{"test/netlab", module + "/appliance/cli", false},
	} {
		if got := importProblem(tc.dir, tc.imp); (got != "") != tc.refused {
			t.Errorf("%s imports %s: refused %v (%s), want %v", tc.dir, tc.imp, got != "", got, tc.refused)
		}
	}
}

// TestRanks fails for a rank whose folder has gone, so that the table stays a picture of the tree.
func TestRanks(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range goFiles(t) {
		seen[f.dir] = true
		for dir := f.dir; dir != "."; dir = path.Dir(dir) {
			seen[path.Dir(dir)] = true
		}
	}
	for dir := range rank {
		if !seen[dir] {
			t.Errorf("%s has a rank and no Go files: remove it from the table", dir)
		}
	}
}

// TestLintKnowsOwners compares the table of owners with the lint configuration, which repeats it for editors.
func TestLintKnowsOwners(t *testing.T) {
	lint := read(t, ".golangci.yml")
	for prefix := range owners {
		if !strings.Contains(lint, "pkg: "+prefix+",") {
			t.Errorf(".golangci.yml has no depguard rule for %s", prefix)
		}
	}
}
