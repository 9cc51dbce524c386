package arch

import (
	"go/ast"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// directDependencies returns the modules that go.mod requires without "// indirect", with their versions.
func directDependencies(t *testing.T) map[string]string {
	t.Helper()
	deps := map[string]string{}
	line := regexp.MustCompile(`^(?:require )?\s*([a-z0-9.]+/\S+) (v\S+)$`)
	for l := range strings.Lines(read(t, "go.mod")) {
		if m := line.FindStringSubmatch(strings.TrimRight(l, "\n")); m != nil {
			deps[m[1]] = m[2]
		}
	}
	if len(deps) < 10 {
		t.Fatalf("found only %d direct dependencies in go.mod: the pattern no longer fits", len(deps))
	}
	return deps
}

// TestDependenciesAreDocumented compares docs/deps.md with go.mod: a row for each module, and no row too many.
func TestDependenciesAreDocumented(t *testing.T) {
	rows := map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `([^` ]+)` \\| (\\S+) \\|")
	for _, m := range row.FindAllStringSubmatch(read(t, "docs/deps.md"), -1) {
		rows[m[1]] = m[2]
	}
	deps := directDependencies(t)
	for mod, version := range deps {
		if rows[mod] != version {
			t.Errorf("docs/deps.md: %s is at %q, go.mod requires %s: what is it for, and what does it cost?", mod, rows[mod], version)
		}
	}
	for mod := range rows {
		if _, ok := deps[mod]; !ok {
			t.Errorf("docs/deps.md: %s is no longer a direct dependency: remove its row", mod)
		}
	}
}

// stateName matches the names of constants whose value other programs on the node can see.
var stateName = regexp.MustCompile(`(Bucket|Chain|Link|Map|Mark|Mask|Port|Prefix|Protocol|Set|Table|VNI)$`)

// stateFolders are where those constants live.
var stateFolders = []string{"appliance/compile/...", "appliance/config", "appliance/kernel/...", "appliance/ruleset", "appliance/store"}

// stateConstants returns name and value of the constants that docs/state.md must mention: those named like state, and
// every text that starts with weft.
func stateConstants(f file) map[string]string {
	found := map[string]string{}
	for _, decl := range f.syntax.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.CONST {
			continue
		}
		for _, spec := range gen.Specs {
			vs := spec.(*ast.ValueSpec)
			for i, value := range vs.Values {
				lit, ok := value.(*ast.BasicLit)
				if !ok {
					continue
				}
				text := lit.Value
				if unquoted, err := strconv.Unquote(text); err == nil {
					text = unquoted
				}
				if stateName.MatchString(vs.Names[i].Name) || strings.HasPrefix(text, "weft") {
					found[vs.Names[i].Name] = text
				}
			}
		}
	}
	return found
}

// TestStateIsDocumented wants every link, chain, table, set, bucket, port and mark that the code names in docs/state.md.
func TestStateIsDocumented(t *testing.T) {
	doc, n := read(t, "docs/state.md"), 0
	for _, f := range goFiles(t) {
		if f.test || !within(f.dir, stateFolders...) {
			continue
		}
		for name, value := range stateConstants(f) {
			if n++; !strings.Contains(doc, value) {
				t.Errorf("docs/state.md does not mention %s (constant %s in %s)", value, name, f.path)
			}
		}
	}
	if n == 0 {
		t.Error("found no constants: the pattern no longer fits")
	}
}

// mirrors are the hosts that builds fetch from. The tree names none of them: every user has mirrors of their own. They are
// put together here, or this file would name them.
var mirrors = []string{
	"proxy." + "golang.org", "sum." + "golang.org", "deb." + "debian.org", "security." + "debian.org",
	"registry." + "npmjs.org", "ghcr" + ".io/", "quay" + ".io/",
}

func TestNoMirrorIsNamed(t *testing.T) {
	err := eachFile(func(rel string) error {
		if path.Base(rel) == "go.sum" {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(root, rel))
		if err != nil || !utf8.Valid(b) {
			return err
		}
		for _, host := range mirrors {
			if strings.Contains(string(b), host) {
				t.Errorf("%s names %s: leave the choice of mirror to the machine", rel, host)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
