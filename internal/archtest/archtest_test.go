// Package archtest keeps the rules of the repository: which package may import which, how much each exports, and what every file must have or must not.
// Each rule is a function of a tree of files, so that it is tried on a small tree that it must accept, on broken ones that it must refuse, and then on this repository.
package archtest

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/behest-go/behest"

// A rule looks at a tree and says what is wrong with it. A rule whose subject is missing says so: it never passes for lack of anything to look at.
type rule struct {
	name  string
	check func(*tree, *report)
}

var rules = []rule{
	{"the code parses", parses},
	{"the top level is fixed", topLevel},
	{"imports follow the arrows", arrowsHold},
	{"every package has a comment", packageComments},
	{"the surface is small", smallSurface},
	{"every exported name is documented", documented},
	{"nothing sleeps", nothingSleeps},
	{"no global state", noGlobalState},
	{"scope, store and grant start no goroutine", noGoroutines},
	{"every library package has an example", examplesOfPackages},
	{"every example program has a test", examplePrograms},
	{"every promise has a test of its name", promises},
	{"every standard has a test of each requirement", standards},
	{"every direct dependency is explained", dependencies},
	{"the README is short and names the commands", readme},
	{"the README's code is compiled", readmeCode},
	{"links lead somewhere", links},
	{"nothing is left unfinished", unfinished},
	{"nothing names a machine or a registry", machines},
	{"the licence is there", licence},
}

func TestRules(t *testing.T) {
	repository, err := load("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			var found report
			r.check(repository, &found)
			for _, note := range found.notes {
				t.Log(note)
			}
			for _, fault := range found.faults {
				t.Error(fault)
			}
		})
	}
}

type report struct{ faults, notes []string }

func (r *report) fault(format string, args ...any) {
	r.faults = append(r.faults, fmt.Sprintf(format, args...))
}
func (r *report) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// A tree is the repository's files by their path, with "/" on every system.
type tree struct {
	files    map[string][]byte
	fset     *token.FileSet
	packages map[string]*pkg // by folder
	broken   []error         // files that do not parse
}

// A pkg is the Go files of one folder.
type pkg struct {
	dir    string
	nested bool // in a module of its own
	files  []*ast.File
	tests  []*ast.File
}

// load reads what is tracked, or would be with the next commit; without git, everything.
func load(root string) (*tree, error) {
	files := map[string][]byte{}
	names, err := listed(root)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, not yet committed
		}
		if err != nil {
			return nil, err
		}
		files[name] = text
	}
	return newTree(files), nil
}

func listed(root string) ([]string, error) {
	var names []string
	// Walked with git as well: it makes go test look at the folders again when a file was added.
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules"):
			return filepath.SkipDir
		case d.IsDir():
			return nil
		}
		rel, err := filepath.Rel(root, name)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	if out, failed := cmd.Output(); failed == nil && len(out) > 0 {
		return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"), err
	}
	return names, err
}

func newTree(files map[string][]byte) *tree {
	t := &tree{files: files, fset: token.NewFileSet(), packages: map[string]*pkg{}}
	for _, name := range t.names() {
		if !strings.HasSuffix(name, ".go") || slices.ContainsFunc(strings.Split(name, "/"), ignoredByGo) {
			continue
		}
		parsed, err := parser.ParseFile(t.fset, name, files[name], parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.broken = append(t.broken, err)
			continue
		}
		dir := path.Dir(name)
		p := t.packages[dir]
		if p == nil {
			p = &pkg{dir: dir, nested: t.nested(dir)}
			t.packages[dir] = p
		}
		if strings.HasSuffix(name, "_test.go") {
			p.tests = append(p.tests, parsed)
		} else {
			p.files = append(p.files, parsed)
		}
	}
	return t
}

func ignoredByGo(segment string) bool {
	return segment == "testdata" || segment == "vendor" || strings.HasPrefix(segment, "_") || strings.HasPrefix(segment, ".")
}

func (t *tree) nested(dir string) bool {
	for ; dir != "."; dir = path.Dir(dir) {
		if _, ok := t.files[dir+"/go.mod"]; ok {
			return true
		}
	}
	return false
}

func (t *tree) names() []string { return slices.Sorted(maps.Keys(t.files)) }

// dirs are the folders with Go files, in order.
func (t *tree) dirs() []string { return slices.Sorted(maps.Keys(t.packages)) }

// text is a file that must be there.
func (t *tree) text(name string, r *report) string {
	text, ok := t.files[name]
	if !ok {
		r.fault("%s is missing", name)
	}
	return string(text)
}

// texts are the names of all files that people wrote: neither binary, nor the sums that tools write.
func (t *tree) texts() []string {
	return slices.DeleteFunc(t.names(), func(name string) bool {
		return path.Base(name) == "go.sum" || path.Base(name) == "package-lock.json" || bytes.IndexByte(t.files[name], 0) >= 0
	})
}

func (t *tree) at(n ast.Node) token.Position { return t.fset.Position(n.Pos()) }
