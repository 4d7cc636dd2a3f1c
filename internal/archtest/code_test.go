package archtest

import (
	"fmt"
	"go/ast"
	"go/doc"
	"go/token"
	"go/types"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// An arrow is what one package may import beside the standard library. Paths without a dot are ours; "/..." stands for a path and all below it.
type arrow struct {
	uses  []string
	tests []string // in tests, beside uses, the package itself and testify
}

const (
	goOAuth2 = "github.com/go-oauth2/oauth2/v4"
	testify  = "github.com/stretchr/testify/..."
)

// arrows are the layout: a package that is not here has no place in it yet.
var arrows = map[string]arrow{
	"scope":            {},
	"store":            {tests: []string{"store/storetest"}},
	"store/sqlstore":   {uses: []string{"store"}, tests: []string{"authz", "grant", "scope", "store/storetest", "internal/crash", "internal/outage", "internal/servers", "internal/stores", "github.com/jackc/pgx/v5/...", "modernc.org/sqlite"}},
	"store/sqlite":     {uses: []string{"store", "store/sqlstore", "modernc.org/sqlite", "modernc.org/sqlite/...", "modernc.org/libc"}, tests: []string{"store/storetest", "internal/crash", "internal/stores"}},
	"store/storetest":  {uses: []string{"store"}},
	"store/redisstore": {uses: []string{"store", "github.com/redis/go-redis/..."}, tests: []string{"store/storetest", "internal/crash", "internal/outage", "internal/servers", "grant", "scope"}},
	"grant":            {uses: []string{"scope", "store", "golang.org/x/crypto/..."}, tests: []string{"store/storetest", "internal/stores"}},
	"authz": {
		uses: []string{"grant", "scope", "store", "authz/webhook", "internal/guard", "internal/jose", "internal/refusals", "golang.org/x/crypto/argon2", "golang.org/x/crypto/chacha20poly1305",
			goOAuth2, goOAuth2 + "/errors", goOAuth2 + "/models", goOAuth2 + "/server"},
		tests: []string{"authz/app", "authz/authztest", "store/storetest", "internal/stores",
			"store/sqlstore", "github.com/jackc/pgx/v5/...", "modernc.org/sqlite",
			goOAuth2 + "/manage", goOAuth2 + "/store", goOAuth2 + "/generates", "github.com/go-jose/go-jose/v4/...",
			"golang.org/x/oauth2/..."},
	},
	"authz/goauth2": {
		uses: []string{"authz", "store", goOAuth2, goOAuth2 + "/errors", goOAuth2 + "/models", goOAuth2 + "/server"},
		tests: []string{"authz/authztest", "grant", "scope", "internal/stores",
			goOAuth2 + "/manage", goOAuth2 + "/store"},
	},
	"authz/grpcauthz": {uses: []string{"authz", "grant", "scope", "internal/refusals", "google.golang.org/grpc/..."}, tests: []string{"authz/authztest", "internal/stores", "store"}},
	"authz/webhook":   {},
	// The third-party side: it knows the wire, not the server.
	"authz/app":         {uses: []string{"scope", "authz/webhook", "internal/jose", "golang.org/x/oauth2"}},
	"authz/authztest":   {uses: []string{"authz", "authz/app", "authz/webhook", "grant", "scope", "store"}},
	"internal/guard":    {},
	"internal/jose":     {uses: []string{"github.com/go-jose/go-jose/v4", "github.com/go-jose/go-jose/v4/json"}},
	"internal/refusals": {tests: []string{"grant", "scope"}},
	"internal/crash":    {uses: []string{"grant", "scope", "store"}},                                                // tests only
	"internal/outage":   {uses: []string{"authz", "grant", "scope", "store", "internal/crash", "internal/servers"}}, // tests only
	"internal/servers":  {},                                                                                         // tests only
	"internal/stores": { // tests only
		uses: []string{"internal/servers", "store", "store/redisstore", "store/sqlite", "store/sqlstore", "github.com/redis/go-redis/...", "github.com/jackc/pgx/v5/..."}},
}

// drivers are what examples may import of third parties: those that a user of the same stores would.
var drivers = map[string][]string{
	"examples/go-oauth2": {goOAuth2, goOAuth2 + "/manage", goOAuth2 + "/models", goOAuth2 + "/server", goOAuth2 + "/store", "golang.org/x/oauth2"},
	"examples/groupchat": {"golang.org/x/oauth2", "github.com/jackc/pgx/v5", "github.com/jackc/pgx/v5/stdlib", "github.com/redis/go-redis/v9", "modernc.org/sqlite"},
}

// libraries are the packages that users' programs contain.
func libraries() []string { return slices.Sorted(maps.Keys(arrows)) }

// library calls f for each package of the library, and says which are missing.
func (t *tree) library(r *report, f func(*pkg)) {
	for _, dir := range libraries() {
		if p := t.packages[dir]; p == nil || len(p.files) == 0 {
			r.fault("%s: no such package", dir)
		} else {
			f(p)
		}
	}
}

func parses(t *tree, r *report) {
	if len(t.packages) == 0 {
		r.fault("no Go files")
	}
	for _, err := range t.broken {
		r.fault("%v", err)
	}
}

func arrowsHold(t *tree, r *report) {
	t.library(r, func(*pkg) {})
	for _, dir := range t.dirs() {
		p := t.packages[dir]
		if _, drawn := arrows[dir]; !drawn && !p.nested && exampleOf(dir) == "" && len(p.files) > 0 {
			r.fault("%s: no arrows are drawn for it", dir)
		}
		for _, f := range p.files {
			t.imports(r, p, f, false)
		}
		for _, f := range p.tests {
			t.imports(r, p, f, true)
		}
	}
}

func (t *tree) imports(r *report, p *pkg, f *ast.File, test bool) {
	for _, spec := range f.Imports {
		name, _ := strconv.Unquote(spec.Path.Value)
		if name == "C" {
			r.fault("%s: cgo", t.at(spec))
		}
		if !strings.Contains(strings.Split(name, "/")[0], ".") {
			continue // the standard library
		}
		short, ours := strings.CutPrefix(name, module+"/")
		if ours && strings.HasPrefix(short, "examples/") && !within(short, exampleOf(p.dir)) {
			r.fault("%s: %s imports %s: nothing imports examples", t.at(spec), p.dir, short)
			continue
		}
		if !p.nested && !mayImport(p.dir, short, test) {
			in := ""
			if test {
				in = " in tests"
			}
			r.fault("%s: %s must not import %s%s", t.at(spec), p.dir, short, in)
		}
	}
}

func mayImport(dir, name string, test bool) bool {
	if test && (matches(testify, name) || name == dir) {
		return true
	}
	if a, ok := arrows[dir]; ok {
		allowed := a.uses
		if test {
			allowed = slices.Concat(a.uses, a.tests)
		}
		return slices.ContainsFunc(allowed, func(pattern string) bool { return matches(pattern, name) })
	}
	// Examples show what users can write: nothing internal, and no third party but drivers.
	if example := exampleOf(dir); example != "" {
		return within(name, example) || arrowsOf(name) || slices.Contains(drivers[example], name)
	}
	return test && strings.HasPrefix(dir, "internal/") && arrowsOf(name)
}

// arrowsOf reports whether name is a package of ours that users can import.
func arrowsOf(name string) bool {
	_, ok := arrows[name]
	return ok && !strings.HasPrefix(name, "internal/")
}

func matches(pattern, name string) bool {
	if root, ok := strings.CutSuffix(pattern, "/..."); ok {
		return within(name, root)
	}
	return pattern == name
}

// exampleOf is "examples/groupchat" for all folders in it, and empty for others.
func exampleOf(dir string) string {
	parts := strings.Split(dir, "/")
	if len(parts) < 2 || parts[0] != "examples" {
		return ""
	}
	return parts[0] + "/" + parts[1]
}

func within(name, dir string) bool {
	return dir != "" && (name == dir || strings.HasPrefix(name, dir+"/"))
}

func packageComments(t *tree, r *report) {
	t.library(r, func(*pkg) {})
	for _, dir := range t.dirs() {
		p := t.packages[dir]
		if len(p.files) == 0 {
			continue // tests alone have no reader of documentation
		}
		var comments []string
		for _, f := range p.files {
			if f.Doc != nil {
				comments = append(comments, f.Doc.Text())
			}
		}
		switch name := p.files[0].Name.Name; {
		case len(comments) == 0:
			r.fault("%s has no package comment", dir)
		case len(comments) > 1:
			r.fault("%s has %d package comments", dir, len(comments))
		case name != "main" && !strings.HasPrefix(comments[0], "Package "+name+" "):
			r.fault("%s: the package comment does not begin with %q", dir, "Package "+name)
		}
	}
}

const (
	mostNames = 40
	manyNames = 25
)

func smallSurface(t *tree, r *report) {
	t.library(r, func(p *pkg) {
		var names []string
		exported(p, func(name string, node ast.Node, _ bool) {
			if !strings.Contains(name, ".") {
				names = append(names, name)
			}
		})
		slices.Sort(names)
		switch n := len(names); {
		case n > mostNames:
			r.fault("%s exports %d names, more than %d: %s", p.dir, n, mostNames, strings.Join(names, " "))
		case n > manyNames:
			r.note("%s exports %d names, about %d is the aim: %s", p.dir, n, manyNames, strings.Join(names, " "))
		}
	})
}

func documented(t *tree, r *report) {
	t.library(r, func(p *pkg) {
		exported(p, func(name string, node ast.Node, documented bool) {
			if !documented {
				r.fault("%s: %s has no doc comment", t.at(node), name)
			}
		})
	})
}

// exported calls f for each exported name of the package: "Name", and "Type.Method" for methods of exported types and interfaces.
func exported(p *pkg, f func(name string, node ast.Node, documented bool)) {
	for _, file := range p.files {
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					receiver := receiverName(d.Recv.List[0].Type)
					if !ast.IsExported(receiver) {
						continue
					}
					name = receiver + "." + name
				}
				if d.Name.IsExported() {
					f(name, d, d.Doc != nil)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					exportedSpec(d, spec, f)
				}
			}
		}
	}
}

func exportedSpec(d *ast.GenDecl, spec ast.Spec, f func(name string, node ast.Node, documented bool)) {
	switch s := spec.(type) {
	case *ast.ValueSpec:
		for _, name := range s.Names {
			if name.IsExported() {
				f(name.Name, name, d.Doc != nil || s.Doc != nil || s.Comment != nil)
			}
		}
	case *ast.TypeSpec:
		if !s.Name.IsExported() {
			return
		}
		// The comment of a group says nothing about each of its types.
		f(s.Name.Name, s, d.Doc != nil && !d.Lparen.IsValid() || s.Doc != nil || s.Comment != nil)
		if i, ok := s.Type.(*ast.InterfaceType); ok {
			for _, m := range i.Methods.List {
				for _, name := range m.Names {
					if name.IsExported() {
						f(s.Name.Name+"."+name.Name, m, m.Doc != nil || m.Comment != nil)
					}
				}
			}
		}
	}
}

func receiverName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiverName(e.X)
	case *ast.IndexExpr:
		return receiverName(e.X)
	case *ast.IndexListExpr:
		return receiverName(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// nothingSleeps: a test that sleeps hopes. In a test with synctest.Test time is not real, and sleeping is how it is moved.
func nothingSleeps(t *tree, r *report) {
	t.library(r, func(p *pkg) {
		names := resolve(t.fset, p)
		for _, f := range slices.Concat(p.files, p.tests) {
			for _, decl := range f.Decls {
				var sleeps []ast.Node
				bubble := false
				ast.Inspect(decl, func(n ast.Node) bool {
					if e, ok := n.(*ast.SelectorExpr); ok {
						switch names.qualified(e) {
						case "testing/synctest.Test":
							bubble = true
						case "time.Sleep":
							sleeps = append(sleeps, e)
						}
					}
					return true
				})
				for _, n := range sleeps {
					if !bubble {
						r.fault("%s: time.Sleep", t.at(n))
					}
				}
			}
		}
	})
}

// setsGlobals are functions and variables by which a library would change what belongs to the program.
var setsGlobals = []string{"log/slog.SetDefault", "log/slog.SetLogLoggerLevel", "log.SetOutput", "log.SetFlags", "log.SetPrefix", "net/http.DefaultServeMux", "net/http.Handle",
	"net/http.HandleFunc", "os.Setenv", "os.Unsetenv", "os.Clearenv", "os.Chdir", "expvar.Publish", "flag.Parse", "os/signal.Notify"}

func noGlobalState(t *tree, r *report) {
	t.library(r, func(p *pkg) {
		names := resolve(t.fset, p)
		written := func(at ast.Node, e ast.Expr) {
			if target := names.foreign(e); target != "" {
				r.fault("%s: writes to %s", t.at(at), target)
			}
		}
		for _, f := range p.files {
			for _, spec := range f.Imports {
				if spec.Name != nil && spec.Name.Name == "." {
					r.fault("%s: imports names without their package", t.at(spec))
				}
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					if n.Recv == nil && n.Name.Name == "init" {
						r.fault("%s: init", t.at(n))
					}
				case *ast.SelectorExpr:
					if name := names.qualified(n); slices.Contains(setsGlobals, name) {
						r.fault("%s: %s", t.at(n), name)
					}
				case *ast.AssignStmt:
					for _, e := range n.Lhs {
						written(n, e)
					}
				case *ast.IncDecStmt:
					written(n, n.X)
				case *ast.UnaryExpr: // its address is as good as writing
					if n.Op == token.AND {
						written(n, n.X)
					}
				case *ast.CallExpr:
					if id, ok := n.Fun.(*ast.Ident); ok && slices.Contains([]string{"delete", "clear", "copy"}, id.Name) && len(n.Args) > 0 {
						written(n, n.Args[0])
					}
				}
				return true
			})
		}
	})
}

// noGoroutines: what is computed here ends when the call returns; goroutines belong to authz's Run.
func noGoroutines(t *tree, r *report) {
	t.library(r, func(p *pkg) {
		if !slices.Contains([]string{"scope", "store", "grant"}, p.dir) {
			return
		}
		names := resolve(t.fset, p)
		for _, f := range p.files {
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					r.fault("%s: a goroutine", t.at(n))
				case *ast.SelectorExpr:
					if name := names.qualified(n); name == "time.AfterFunc" || name == "context.AfterFunc" {
						r.fault("%s: a goroutine by %s", t.at(n), name)
					}
				case *ast.CallExpr:
					if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Go" {
						r.fault("%s: a goroutine by Go", t.at(n))
					}
				}
				return true
			})
		}
	})
}

// resolved knows which identifiers are packages, so that a variable named like one is not taken for it.
type resolved map[*ast.Ident]types.Object

func resolve(fset *token.FileSet, p *pkg) resolved {
	info := types.Info{Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: hollow{}, Error: func(error) {}} // nothing that is imported has members here
	units := map[string][]*ast.File{}
	for _, f := range slices.Concat(p.files, p.tests) {
		units[f.Name.Name] = append(units[f.Name.Name], f)
	}
	for name, files := range units {
		_, _ = conf.Check(name, fset, files, &info)
	}
	return info.Uses
}

// hollow imports packages without their content.
type hollow struct{}

var version = regexp.MustCompile(`^v[0-9]+$`)

func (hollow) Import(name string) (*types.Package, error) {
	base := path.Base(name)
	if version.MatchString(base) && strings.Contains(name, ".") {
		base = path.Base(path.Dir(name))
	}
	p := types.NewPackage(name, base)
	p.MarkComplete()
	return p, nil
}

// qualified is "net/http.Handle" for an expression that names a member of an imported package, and empty for others.
func (names resolved) qualified(e ast.Expr) string {
	s, ok := ast.Unparen(e).(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	id, ok := s.X.(*ast.Ident)
	if !ok {
		return ""
	}
	if p, ok := names[id].(*types.PkgName); ok {
		return p.Imported().Path() + "." + s.Sel.Name
	}
	return ""
}

// foreign is the variable of another package that a write to e would change.
func (names resolved) foreign(e ast.Expr) string {
	for {
		if name := names.qualified(e); name != "" {
			return name
		}
		switch x := ast.Unparen(e).(type) {
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		default:
			return ""
		}
	}
}

// needsTest are the packages whose functions take a testing.TB: their examples are compiled, and cannot run.
var needsTest = []string{"store/storetest", "authz/authztest", "internal/servers", "internal/stores"}

func examplesOfPackages(t *tree, r *report) {
	t.library(r, func(p *pkg) {
		examples := doc.Examples(p.tests...)
		switch {
		case len(examples) == 0:
			r.fault("%s has no Example", p.dir)
		case !slices.Contains(needsTest, p.dir) && !slices.ContainsFunc(examples, func(e *doc.Example) bool { return e.Output != "" }):
			r.fault("%s has no Example with an Output comment", p.dir)
		}
	})
}

func examplePrograms(t *tree, r *report) {
	found := false
	for _, dir := range t.dirs() {
		p := t.packages[dir]
		if exampleOf(dir) != dir || len(p.files) == 0 {
			continue
		}
		found = true
		if p.files[0].Name.Name != "main" {
			r.fault("%s is not a program", dir)
		}
		if len(p.tests) == 0 {
			r.fault("%s has no test", dir)
		}
	}
	if !found {
		r.fault("examples: there is no program")
	}
}

func promises(t *tree, r *report) {
	tested := map[string]bool{}
	for _, dir := range []string{"grant", "authz"} {
		if p := t.packages[dir]; p != nil {
			for _, f := range p.tests {
				for _, decl := range f.Decls {
					if d, ok := decl.(*ast.FuncDecl); ok {
						tested[promise.FindString(d.Name.Name)] = true
					}
				}
			}
		}
	}
	for n := range 10 {
		if name := fmt.Sprint("TestP", n+1); !tested[name] {
			r.fault("no test in grant or authz begins with %s", name)
		}
	}
}

var promise = regexp.MustCompile(`^TestP[0-9]+`)

// standards: the table in the package comment of authz names for each requirement of a standard the tests that hold it, and these exist. A row is a line that is
// indented by a tab: the standard, the requirement and the tests, with two spaces or more between them.
func standards(t *tree, r *report) {
	const file = "authz/doc.go"
	_, table, _ := strings.Cut(t.text(file, r), "\n// # Standards\n")
	tested := map[string]bool{}
	for _, p := range t.packages {
		for _, f := range p.tests {
			for _, decl := range f.Decls {
				if d, ok := decl.(*ast.FuncDecl); ok && d.Recv == nil {
					tested[d.Name.Name] = true
				}
			}
		}
	}
	rows := 0
	for line := range strings.Lines(table) {
		row, ok := strings.CutPrefix(line, "//\t")
		if !ok {
			if strings.HasPrefix(line, "// # ") || !strings.HasPrefix(line, "//") {
				break
			}
			continue
		}
		rows++
		cells := columns.Split(strings.TrimSpace(row), -1)
		if len(cells) != 3 {
			r.fault("%s: %q is not a standard, a requirement and its tests", file, strings.TrimSpace(row))
			continue
		}
		for name := range strings.SplitSeq(cells[2], ", ") {
			if !test.MatchString(name) || !tested[name] {
				r.fault("%s: %s: there is no test %s", file, cells[0], name)
			}
		}
	}
	if rows == 0 {
		r.fault("%s has no table of standards", file)
	}
}

var (
	columns = regexp.MustCompile(`  +`)
	test    = regexp.MustCompile(`^(Test|Fuzz|Example)`)
)
