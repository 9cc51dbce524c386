// Package arch tests the tree itself: who imports whom, how big files and functions grow, and whether the documents keep up.
package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// root is the top of the repository, seen from this folder.
const root = "../.."

// file is one parsed Go file; path and dir are relative to the top, with slashes.
type file struct {
	path, dir string
	test      bool
	fset      *token.FileSet
	syntax    *ast.File
}

// eachFile calls fn for every file that belongs to the repository: not for caches, built programs and Git's own.
func eachFile(fn func(rel string) error) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		switch rel = filepath.ToSlash(rel); {
		case d.IsDir() && (rel == ".git" || rel == ".cache" || rel == "bin"):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		return fn(rel)
	})
}

// parseAll reads every hand-written Go file of the repository once for all tests.
var parseAll = sync.OnceValues(func() ([]file, error) {
	var files []file
	err := eachFile(func(rel string) error {
		if path.Ext(rel) != ".go" || strings.Contains(rel, "/testdata/") {
			return nil
		}
		fset := token.NewFileSet()
		syntax, err := parser.ParseFile(fset, filepath.Join(root, rel), nil, parser.ParseComments)
		if err == nil && !ast.IsGenerated(syntax) {
			files = append(files, file{rel, path.Dir(rel), strings.HasSuffix(rel, "_test.go"), fset, syntax})
		}
		return err
	})
	return files, err
})

func goFiles(t *testing.T) []file {
	t.Helper()
	files, err := parseAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("found only %d Go files: looking in the wrong place", len(files))
	}
	return files
}

func read(t *testing.T, rel string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, rel))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
