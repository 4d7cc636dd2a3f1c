package archtest

import (
	"fmt"
	"maps"
	"path"
	"strings"
	"testing"
)

// whole is a small repository that every rule accepts.
func whole() map[string][]byte {
	files := map[string]string{
		"LICENSE":                    "Apache License\nVersion 2.0, January 2004\nEND OF TERMS AND CONDITIONS\n",
		"README.md":                  "go test ./...\ngo run ./examples/groupchat\n[why](CONTRIBUTING.md#why) [far](https://example.com/x)\n\n```go\nif ok {\n\tuse()\n}\n```\n",
		"CONTRIBUTING.md":            "`example.com/one`, `example.com/two`, `browser`\n",
		"CHANGELOG.md":               "\n",
		"SECURITY.md":                "\n",
		".gitignore":                 "\n",
		".ci/run":                    "\n",
		"go.mod":                     "module " + module + "\n\nrequire example.com/one v1.0.0\n\nrequire (\n\texample.com/three v1.0.0 // indirect\n)\n",
		"go.sum":                     "\n",
		"internal/two/go.mod":        "module two\n\nrequire (\n\t" + module + " v0.0.0\n\texample.com/two v1.0.0\n)\n",
		"internal/two/two_test.go":   "package two\n\nimport _ \"example.com/two\"\n",
		"internal/e2e/package.json":  `{"devDependencies": {"browser": "1.0.0"}}`,
		"internal/e2e/e2e_test.go":   "package e2e\n\nimport _ \"" + module + "/authz/app\"\n",
		"examples/hello/main.go":     "// Hello greets.\npackage main\n\nimport _ \"" + module + "/examples/hello/part\"\nimport _ \"" + module + "/authz\"\n",
		"examples/hello/x_test.go":   "package main\n",
		"examples/hello/part/p.go":   "// Package part is a part.\npackage part\n",
		"authz/example_test.go":      "package authz_test\n\nfunc Example() {\n\t// README begin\n\tif ok {\n\t\tuse()\n\t}\n\t// README end\n\n\t// Output: x\n}\n",
		"store/storetest/x_test.go":  "package storetest_test\n\nfunc Example() {}\n",
		"authz/authztest/x_test.go":  "package authztest_test\n\nfunc Example() {}\n",
		"authz/webhook/sleepless.go": "package webhook\n\nimport \"net/http\"\n\nfunc f() { http := struct{ DefaultServeMux int }{}; http.DefaultServeMux = 1 }\n",
		"authz/app/bubble_test.go":   "package app_test\n\nimport (\n\t\"testing/synctest\"\n\t\"time\"\n)\n\nfunc f() { synctest.Test(nil, func() { time.Sleep(1) }) }\n",
		"grant/words.txt":            "todo is a word, TODOS as well\n",
	}
	for _, dir := range libraries() {
		name := path.Base(dir)
		files[dir+"/doc.go"] = fmt.Sprintf("// Package %s is one.\npackage %s\n", name, name)
		if _, ok := files[dir+"/x_test.go"]; !ok && dir != "authz" {
			files[dir+"/x_test.go"] = fmt.Sprintf("package %s_test\n\nimport _ %q\n\nfunc Example() {\n\t// Output: x\n}\n", name, module+"/"+dir)
		}
	}
	files["authz/doc.go"] = standardsOf("RFC 1 §2  be good  TestP1Holds, Example")
	for n := range 10 {
		files[fmt.Sprintf("grant/p%d_test.go", n+1)] = fmt.Sprintf("package grant\n\nfunc TestP%dHolds() {}\n", n+1)
	}
	out := map[string][]byte{}
	for name, text := range files {
		out[name] = []byte(text)
	}
	return out
}

// standardsOf is a package comment of authz with a table of one row.
func standardsOf(row string) string {
	return "// Package authz is one.\n//\n// # Standards\n//\n// All of it:\n//\n//\t" + row + "\n//\n// That is all.\npackage authz\n"
}

const gone = "\x00gone"

// broken are changes to the whole tree, each with the fault that the rule must find.
var broken = []struct {
	rule    string
	changed map[string]string
	fault   string
}{
	{"the code parses", map[string]string{"scope/a.go": "package scope\nfunc {"}, "scope/a.go:2"},

	{"the top level is fixed", map[string]string{"util/a.go": "package util\n"}, "util: the top level has no place"},
	{"the top level is fixed", map[string]string{"NOTES.txt": "x"}, "NOTES.txt: the top level has no place"},
	{"the top level is fixed", map[string]string{"LICENSE": gone}, "LICENSE is missing"},
	{"the top level is fixed", map[string]string{".ci/run": gone, ".ci/x": ""}, ".ci/run is missing"},

	{"imports follow the arrows", map[string]string{"scope/a.go": importing("scope", module+"/store")}, "scope must not import store"},
	{"imports follow the arrows", map[string]string{"scope/a.go": importing("scope", "example.com/one")}, "scope must not import example.com/one"},
	{"imports follow the arrows", map[string]string{"store/a_test.go": importing("store", module+"/grant")}, "store must not import grant in tests"},
	{"imports follow the arrows", map[string]string{"store/a.go": importing("store", "github.com/stretchr/testify/require")}, "store must not import github.com/stretchr/testify/require"},
	{"imports follow the arrows", map[string]string{"store/a.go": importing("store", module+"/store/storetest")}, "store must not import store/storetest"},
	{"imports follow the arrows", map[string]string{"store/storetest/a.go": importing("storetest", module+"/scope")}, "store/storetest must not import scope"},
	{"imports follow the arrows", map[string]string{"grant/a.go": importing("grant", module+"/authz")}, "grant must not import authz"},
	{"imports follow the arrows", map[string]string{"grant/a.go": importing("grant", "golang.org/x/cryptography")}, "grant must not import golang.org/x/cryptography"},
	{"imports follow the arrows", map[string]string{"authz/a.go": importing("authz", goOAuth2+"/manage")}, "authz must not import " + goOAuth2 + "/manage"},
	{"imports follow the arrows", map[string]string{"authz/a.go": importing("authz", module+"/authz/app")}, "authz must not import authz/app"},
	{"imports follow the arrows", map[string]string{"authz/app/a.go": importing("app", module+"/grant")}, "authz/app must not import grant"},
	{"imports follow the arrows", map[string]string{"authz/app/a_test.go": importing("app", module+"/authz")}, "authz/app must not import authz in tests"},
	{"imports follow the arrows", map[string]string{"authz/webhook/a.go": importing("webhook", module+"/scope")}, "authz/webhook must not import scope"},
	{"imports follow the arrows", map[string]string{"authz/a.go": importing("authz", module+"/examples/hello/part")}, "nothing imports examples"},
	{"imports follow the arrows", map[string]string{"internal/two/a.go": importing("two", module+"/examples/hello/part")}, "nothing imports examples"},
	{"imports follow the arrows", map[string]string{"examples/hello/a.go": importing("main", module+"/internal/guard")}, "examples/hello must not import internal/guard"},
	{"imports follow the arrows", map[string]string{"examples/hello/a.go": importing("main", "example.com/one")}, "examples/hello must not import example.com/one"},
	{"imports follow the arrows", map[string]string{"examples/hello/a.go": importing("main", "modernc.org/sqlite")}, "examples/hello must not import modernc.org/sqlite"},
	{"imports follow the arrows", map[string]string{"examples/groupchat/a.go": importing("main", "modernc.org/sqlite/lib")}, "examples/groupchat must not import modernc.org/sqlite/lib"},
	{"imports follow the arrows", map[string]string{"authz/late/a.go": importing("late", module+"/scope")}, "authz/late must not import scope"},
	{"imports follow the arrows", map[string]string{"authz/late/a.go": "package late\n"}, "authz/late: no arrows are drawn"},
	{"imports follow the arrows", map[string]string{"internal/util/a.go": "package util\n"}, "internal/util: no arrows are drawn"},
	{"imports follow the arrows", map[string]string{"store/a.go": importing("store", "C")}, "cgo"},
	{"imports follow the arrows", map[string]string{"grant/doc.go": gone}, "grant: no such package"},

	{"every package has a comment", map[string]string{"scope/doc.go": "package scope\n"}, "scope has no package comment"},
	{"every package has a comment", map[string]string{"scope/doc.go": "// Scope is.\npackage scope\n"}, "scope: the package comment does not begin"},
	{"every package has a comment", map[string]string{"scope/a.go": "// Package scope again.\npackage scope\n"}, "scope has 2 package comments"},
	{"every package has a comment", map[string]string{"examples/hello/main.go": "package main\n"}, "examples/hello has no package comment"},

	{"the surface is small", map[string]string{"scope/a.go": "package scope\n\n" + declarations(mostNames+1)}, "scope exports 41 names"},

	{"every exported name is documented", map[string]string{"scope/a.go": "package scope\n\nfunc F() {}\n"}, "scope/a.go:3:1: F has no doc comment"},
	{"every exported name is documented", map[string]string{"scope/a.go": "package scope\n\nvar V int\n"}, "V has no doc comment"},
	{"every exported name is documented", map[string]string{"scope/a.go": "package scope\n\n// Group.\ntype (\n\tT int\n)\n"}, "T has no doc comment"},
	{"every exported name is documented", map[string]string{"scope/a.go": "package scope\n\n// T is.\ntype T[X any] int\n\nfunc (*T[X]) M() {}\n"}, "T.M has no doc comment"},
	{"every exported name is documented", map[string]string{"scope/a.go": "package scope\n\n// I is.\ntype I interface {\n\tM()\n}\n"}, "I.M has no doc comment"},

	{"nothing sleeps", map[string]string{"grant/a.go": "package grant\n\nimport \"time\"\n\nfunc f() { time.Sleep(1) }\n"}, "grant/a.go:5:12: time.Sleep"},
	{"nothing sleeps", map[string]string{"grant/a_test.go": "package grant_test\n\nimport clock \"time\"\n\nvar f = clock.Sleep\n"}, "time.Sleep"},
	{"nothing sleeps", map[string]string{"grant/a_test.go": "package grant\n\nimport (\n\t\"testing/synctest\"\n\t\"time\"\n)\n\nfunc f() { synctest.Wait(); time.Sleep(1) }\n"}, "time.Sleep"},

	{"no global state", map[string]string{"authz/a.go": "package authz\n\nimport \"log/slog\"\n\nfunc f() { slog.SetDefault(nil) }\n"}, "log/slog.SetDefault"},
	{"no global state", map[string]string{"authz/a.go": "package authz\n\nimport \"net/http\"\n\nvar m = http.DefaultServeMux\n"}, "net/http.DefaultServeMux"},
	{"no global state", map[string]string{"authz/a.go": "package authz\n\nimport \"net/http\"\n\nfunc f() { http.Handle(\"/\", nil) }\n"}, "net/http.Handle"},
	{"no global state", map[string]string{"authz/a.go": "package authz\n\nfunc init() {}\n"}, "init"},
	{"no global state", map[string]string{"authz/a.go": "package authz\n\nimport \"" + goOAuth2 + "/errors\"\n\nfunc f() { errors.Descriptions[nil] = \"x\" }\n"}, "writes to " + goOAuth2 + "/errors.Descriptions"},
	{"no global state", map[string]string{"authz/a.go": "package authz\n\nimport \"" + goOAuth2 + "\"\n\nfunc f() { oauth2.Count++ }\n"}, "writes to " + goOAuth2 + ".Count"},
	{"no global state", map[string]string{"authz/a.go": "package authz\n\nimport \"net/http\"\n\nfunc f() { http.DefaultClient.Timeout = 1 }\n"}, "writes to net/http.DefaultClient"},
	{"no global state", map[string]string{"authz/a.go": "package authz\n\nimport \"net/http\"\n\nfunc f() { delete(http.Codes, 1) }\n"}, "writes to net/http.Codes"},
	{"no global state", map[string]string{"authz/a.go": "package authz\n\nimport \"net/http\"\n\nvar p = &http.DefaultTransport\n"}, "writes to net/http.DefaultTransport"},
	{"no global state", map[string]string{"authz/a.go": "package authz\n\nimport . \"net/http\"\n"}, "imports names without their package"},

	{"scope, store and grant start no goroutine", map[string]string{"grant/a.go": "package grant\n\nfunc f() { go f() }\n"}, "grant/a.go:3:12: a goroutine"},
	{"scope, store and grant start no goroutine", map[string]string{"store/a.go": "package store\n\nimport \"sync\"\n\nfunc f() { var wg sync.WaitGroup; wg.Go(f) }\n"}, "a goroutine by Go"},
	{"scope, store and grant start no goroutine", map[string]string{"scope/a.go": "package scope\n\nimport \"time\"\n\nfunc f() { time.AfterFunc(1, f) }\n"}, "a goroutine by time.AfterFunc"},

	{"every library package has an example", map[string]string{"scope/x_test.go": "package scope\n"}, "scope has no Example"},
	{"every library package has an example", map[string]string{"scope/x_test.go": "package scope\n\nfunc Example() {}\n"}, "scope has no Example with an Output comment"},

	{"every example program has a test", map[string]string{"examples/hello/x_test.go": gone}, "examples/hello has no test"},
	{"every example program has a test", map[string]string{"examples/hello/main.go": "package hello\n"}, "examples/hello is not a program"},
	{"every example program has a test", map[string]string{"examples/hello/main.go": gone, "examples/hello/x_test.go": gone}, "there is no program"},

	{"every promise has a test of its name", map[string]string{"grant/p1_test.go": gone}, "TestP1"},
	{"every promise has a test of its name", map[string]string{"grant/p10_test.go": "package grant\n\nfunc TestP100() {}\n"}, "TestP10"},

	{"every standard has a test of each requirement", map[string]string{"authz/doc.go": "// Package authz is one.\npackage authz\n"}, "authz/doc.go has no table of standards"},
	{"every standard has a test of each requirement", map[string]string{"authz/doc.go": standardsOf("RFC 1 §2  be good")}, `"RFC 1 §2  be good" is not a standard, a requirement and its tests`},
	{"every standard has a test of each requirement", map[string]string{"authz/doc.go": standardsOf("RFC 1 §2  be good  TestP1Holds, TestGood")}, "authz/doc.go: RFC 1 §2: there is no test TestGood"},
	{"every standard has a test of each requirement", map[string]string{"authz/doc.go": standardsOf("RFC 1 §2  be good  helper"), "authz/h_test.go": "package authz\n\nfunc helper() {}\n"}, "there is no test helper"},

	{"every direct dependency is explained", map[string]string{"CONTRIBUTING.md": "`example.com/two` `browser`"}, "go.mod: CONTRIBUTING.md does not say why `example.com/one`"},
	{"every direct dependency is explained", map[string]string{"CONTRIBUTING.md": "`example.com/one` `browser`"}, "internal/two/go.mod: CONTRIBUTING.md does not say why `example.com/two`"},
	{"every direct dependency is explained", map[string]string{"CONTRIBUTING.md": "`example.com/one` `example.com/two`"}, "package.json: CONTRIBUTING.md does not say why `browser`"},
	{"every direct dependency is explained", map[string]string{"internal/e2e/package.json": "["}, "internal/e2e/package.json: "},
	{"every direct dependency is explained", map[string]string{"CONTRIBUTING.md": gone}, "CONTRIBUTING.md is missing"},
	{"every direct dependency is explained", map[string]string{"go.mod": gone}, "go.mod has no direct dependency"},

	{"the README is short and names the commands", map[string]string{"README.md": gone}, "README.md is missing"},
	{"the README is short and names the commands", map[string]string{"README.md": strings.Repeat("go test ./... go run ./examples/groupchat\n", readmeLines)}, "README.md has 150 lines"},
	{"the README is short and names the commands", map[string]string{"README.md": "go test ./...\n"}, `"go run ./examples/groupchat"`},

	{"the README's code is compiled", map[string]string{"README.md": gone}, "README.md is missing"},
	{"the README's code is compiled", map[string]string{"README.md": "words\n"}, "README.md has no block of Go"},
	{"the README's code is compiled", map[string]string{"README.md": "```go\nif ok {\n\tuseless()\n}\n```\n"}, `differs from line "\tuseless()"`},
	{"the README's code is compiled", map[string]string{"README.md": "```go\nif ok {\n\tuse()\n}\n```\n```go\nmore()\n```\n"}, "block 2 of Go"},
	{"the README's code is compiled", map[string]string{compiled: "package authz\n"}, "has no lines between"},

	{"links lead somewhere", map[string]string{"README.md": "[a](docs/none.md)\n"}, "README.md links to docs/none.md"},
	{"links lead somewhere", map[string]string{"authz/README.md": "[a](README.txt)\n"}, "authz/README.md links to README.txt"},
	{"links lead somewhere", map[string]string{"README.md": gone}, "no page links"},

	{"nothing is left unfinished", map[string]string{"grant/a.go": "package grant\n\n// TO" + "DO: more\n"}, "grant/a.go:3: TO" + "DO"},
	{"nothing is left unfinished", map[string]string{"README.md": "(FIX" + "ME)"}, "README.md:1: FIX" + "ME"},

	{"nothing names a machine or a registry", map[string]string{"README.md": "in /wo" + "rk/main/x"}, "/wo" + "rk/main"},
	{"nothing names a machine or a registry", map[string]string{".ci/run": "GOPROXY=https://pro" + "xy.golang.org"}, "pro" + "xy.golang.org"},
	{"nothing names a machine or a registry", map[string]string{"internal/e2e/package-lock.json": `{"resol` + `ved": "x"}`}, "records where packages were downloaded"},

	{"the licence is there", map[string]string{"LICENSE": gone}, "LICENSE is missing"},
	{"the licence is there", map[string]string{"LICENSE": "MIT\n"}, `"Apache License" is not in it`},
}

func importing(name, imported string) string {
	return fmt.Sprintf("package %s\n\nimport _ %q\n", name, imported)
}

func declarations(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "var V%d int // one\n", i)
	}
	return b.String()
}

func TestRulesAcceptTheWhole(t *testing.T) {
	for _, r := range rules {
		var found report
		r.check(newTree(whole()), &found)
		for _, fault := range found.faults {
			t.Errorf("%s: %s", r.name, fault)
		}
	}
}

func TestRulesFindWhatIsBroken(t *testing.T) {
	checks := map[string]func(*tree, *report){}
	for _, r := range rules {
		checks[r.name] = r.check
	}
	untried := maps.Clone(checks)
	for _, b := range broken {
		check, ok := checks[b.rule]
		if !ok {
			t.Fatalf("no rule %q", b.rule)
		}
		delete(untried, b.rule)
		files := whole()
		for name, text := range b.changed {
			if text == gone {
				delete(files, name)
			} else {
				files[name] = []byte(text)
			}
		}
		var found report
		check(newTree(files), &found)
		if !strings.Contains(strings.Join(found.faults, "\n"), b.fault) {
			t.Errorf("%s: found %q, want %q", b.rule, found.faults, b.fault)
		}
	}
	for name := range untried {
		t.Errorf("nothing shows that the rule %q can fail", name)
	}
}

// Nothing there is never good enough.
func TestRulesRefuseAnEmptyTree(t *testing.T) {
	for _, r := range rules {
		var found report
		r.check(newTree(nil), &found)
		if len(found.faults) == 0 {
			t.Errorf("%s: accepts an empty tree", r.name)
		}
	}
}
