package archtest

import (
	"encoding/json"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

var (
	topFolders = []string{".ci", "authz", "examples", "grant", "internal", "scope", "store"}
	topFiles   = []string{".gitattributes", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md", "go.mod", "go.sum"}
)

func topLevel(t *tree, r *report) {
	seen := map[string]bool{}
	for _, name := range t.names() {
		top, _, isFolder := strings.Cut(name, "/")
		allowed := topFiles
		if isFolder {
			allowed = topFolders
		}
		if !slices.Contains(allowed, top) && !seen[top] {
			r.fault("%s: the top level has no place for it", top)
		}
		seen[top] = true
	}
	for _, want := range slices.Concat(topFolders, topFiles) {
		if !seen[want] && want != ".gitattributes" {
			r.fault("%s is missing", want)
		}
	}
	if _, ok := t.files[".ci/run"]; !ok {
		r.fault(".ci/run is missing")
	}
}

// dependencies: CONTRIBUTING.md says of each direct dependency why it is there, those of nested modules and of the browser tests included.
func dependencies(t *tree, r *report) {
	why := t.text("CONTRIBUTING.md", r)
	if len(requirements(t.text("go.mod", r))) == 0 {
		r.fault("go.mod has no direct dependency")
	}
	for _, name := range t.names() {
		var needed []string
		switch path.Base(name) {
		case "go.mod":
			needed = requirements(string(t.files[name]))
		case "package.json":
			var p struct{ Dependencies, DevDependencies map[string]string }
			if err := json.Unmarshal(t.files[name], &p); err != nil {
				r.fault("%s: %v", name, err)
			}
			needed = slices.Concat(slices.Sorted(maps.Keys(p.Dependencies)), slices.Sorted(maps.Keys(p.DevDependencies)))
		}
		for _, dependency := range needed {
			if dependency != module && !strings.Contains(why, "`"+dependency+"`") {
				r.fault("%s: CONTRIBUTING.md does not say why `%s` is needed", name, dependency)
			}
		}
	}
}

// requirements are the modules that a go.mod requires directly.
func requirements(mod string) []string {
	var direct []string
	block := false
	for line := range strings.Lines(mod) {
		line = strings.TrimSpace(line)
		switch rest, one := strings.CutPrefix(line, "require "); {
		case line == "require (":
			block = true
		case line == ")":
			block = false
		case (block || one) && line != "" && !strings.HasPrefix(line, "//") && !strings.Contains(line, "// indirect"):
			direct = append(direct, strings.Fields(rest)[0])
		}
	}
	return direct
}

const readmeLines = 150

func readme(t *tree, r *report) {
	text := t.text("README.md", r)
	if n := strings.Count(text, "\n"); n >= readmeLines {
		r.fault("README.md has %d lines, want fewer than %d", n, readmeLines)
	}
	for _, command := range []string{"go test ./...", "go run ./examples/groupchat"} {
		if !strings.Contains(text, command) {
			r.fault("README.md does not name the command %q", command)
		}
	}
}

const compiled = "authz/example_test.go"

var (
	goBlock = regexp.MustCompile("(?ms)^```go\n(.*?)^```")
	region  = regexp.MustCompile(`(?ms)^[\t ]*// README begin\n(.*?)^[\t ]*// README end$`)
)

// readmeCode: each block of Go in the README is a region between "// README begin" and "// README end" of an Example.
func readmeCode(t *tree, r *report) {
	blocks := goBlock.FindAllStringSubmatch(t.text("README.md", r), -1)
	if len(blocks) == 0 {
		r.fault("README.md has no block of Go")
	}
	var regions []string
	for _, m := range region.FindAllStringSubmatch(t.text(compiled, r), -1) {
		regions = append(regions, outdent(m[1]))
	}
	if len(regions) == 0 {
		r.fault("%s has no lines between // README begin and // README end", compiled)
	}
	for n, b := range blocks {
		if block := outdent(b[1]); !slices.Contains(regions, block) {
			r.fault("README.md: block %d of Go is not what %s compiles; it differs from line %q", n+1, compiled, difference(block, regions))
		}
	}
	if len(regions) != len(blocks) {
		r.fault("README.md has %d blocks of Go, %s marks %d", len(blocks), compiled, len(regions))
	}
}

// outdent removes the tabs that all lines begin with.
func outdent(text string) string {
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	least := -1
	for _, line := range lines {
		if tabs := len(line) - len(strings.TrimLeft(line, "\t")); line != "" && (least < 0 || tabs < least) {
			least = tabs
		}
	}
	for i, line := range lines {
		if line != "" {
			lines[i] = line[least:]
		}
	}
	return strings.Join(lines, "\n")
}

func difference(block string, regions []string) string {
	if len(regions) == 0 {
		return ""
	}
	want := strings.Split(regions[0], "\n")
	for i, line := range strings.Split(block, "\n") {
		if i >= len(want) || line != want[i] {
			return line
		}
	}
	return "(the end)"
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// links: what a page points to in this repository exists.
func links(t *tree, r *report) {
	found := false
	for _, name := range t.names() {
		if !strings.HasSuffix(name, ".md") {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(string(t.files[name]), -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if target == "" || strings.Contains(target, ":") {
				continue
			}
			found = true
			if !t.exists(path.Join(path.Dir(name), target)) {
				r.fault("%s links to %s, which does not exist", name, m[1])
			}
		}
	}
	if !found {
		r.fault("no page links to anything")
	}
}

// exists says whether there is such a file or folder.
func (t *tree) exists(name string) bool {
	if _, ok := t.files[name]; ok {
		return true
	}
	return slices.ContainsFunc(t.names(), func(file string) bool { return strings.HasPrefix(file, name+"/") })
}

// The words are put together here so that this file does not contain them.
var (
	later      = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`)
	onMachines = regexp.MustCompile(`/wo` + `rk/(main|shared|\.library)|/tmp` + `/plan|/ro` + `ot/|/usr/loc` + `al/go\b`)
	registries = regexp.MustCompile(`\b(pro` + `xy\.golang\.org|su` + `m\.golang\.org|registry\.npm` + `js\.org|registry\.yarn` + `pkg\.com|deb\.deb` + `ian\.org)\b`)
	resolvedBy = `"resol` + `ved":`
)

func unfinished(t *tree, r *report) { t.mustNot(r, later) }

func machines(t *tree, r *report) {
	t.mustNot(r, onMachines)
	t.mustNot(r, registries)
	for _, name := range t.names() {
		if path.Base(name) == "package-lock.json" && strings.Contains(string(t.files[name]), resolvedBy) {
			r.fault("%s records where packages were downloaded: npm install --omit-lockfile-registry-resolved", name)
		}
	}
}

func (t *tree) mustNot(r *report, pattern *regexp.Regexp) {
	if len(t.files) == 0 {
		r.fault("no files")
	}
	for _, name := range t.texts() {
		line := 0
		for text := range strings.Lines(string(t.files[name])) {
			line++
			if found := pattern.FindString(text); found != "" {
				r.fault("%s:%d: %s", name, line, found)
			}
		}
	}
}

func licence(t *tree, r *report) {
	text := t.text("LICENSE", r)
	for _, part := range []string{"Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS"} {
		if !strings.Contains(text, part) {
			r.fault("LICENSE: %q is not in it", part)
		}
	}
}
