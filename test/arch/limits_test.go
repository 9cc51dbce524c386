package arch

import (
	"go/ast"
	"strings"
	"testing"
)

const (
	maxFileLines = 500
	maxTestLines = 800
	maxFuncLines = 80
	// maxNolint is how many lint findings are silenced in place. It may only fall.
	maxNolint = 0
)

func TestFileSize(t *testing.T) {
	for _, f := range goFiles(t) {
		limit := maxFileLines
		if f.test {
			limit = maxTestLines
		}
		if n := f.fset.Position(f.syntax.FileEnd).Line; n > limit {
			t.Errorf("%s: %d lines, at most %d: split it by noun", f.path, n, limit)
		}
	}
}

func TestFunctionSize(t *testing.T) {
	for _, f := range goFiles(t) {
		for _, decl := range f.syntax.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || f.test {
				continue
			}
			if n := f.fset.Position(fn.End()).Line - f.fset.Position(fn.Pos()).Line + 1; n > maxFuncLines {
				t.Errorf("%s: func %s has %d lines, at most %d", f.path, fn.Name.Name, n, maxFuncLines)
			}
		}
	}
}

// TestPackageComments wants exactly one per package; a folder with tests only has it in one of them.
func TestPackageComments(t *testing.T) {
	code, tests := map[string]int{}, map[string]int{}
	for _, f := range goFiles(t) {
		count := code
		if f.test {
			count = tests
		}
		count[f.dir] += 0
		if f.syntax.Doc != nil {
			count[f.dir]++
		}
	}
	for dir, n := range tests {
		if _, ok := code[dir]; !ok {
			code[dir] = n
		}
	}
	for dir, n := range code {
		if n != 1 {
			t.Errorf("%s: %d package comments, want exactly 1", dir, n)
		}
	}
}

func TestNoGoroutineInPureFolders(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.test || !within(f.dir, pure...) {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if _, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: go statement in a pure folder", f.fset.Position(n.Pos()))
			}
			return true
		})
	}
}

func TestNolint(t *testing.T) {
	n := 0
	for _, f := range goFiles(t) {
		for _, group := range f.syntax.Comments {
			for _, c := range group.List {
				if strings.HasPrefix(c.Text, "//nolint") {
					n++
					t.Logf("%s: %s", f.fset.Position(c.Pos()), c.Text)
				}
			}
		}
	}
	switch {
	case n > maxNolint:
		t.Errorf("%d silenced lint findings, at most %d: mend the code instead", n, maxNolint)
	case n < maxNolint:
		t.Errorf("%d silenced lint findings left: lower maxNolint from %d", n, maxNolint)
	}
}
