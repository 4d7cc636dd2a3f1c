package scope_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/behest-go/behest/scope"
	"github.com/stretchr/testify/require"
)

var (
	benchGroup  = scope.MustDomain("group:42")
	benchThread = scope.MustDomain("group:42/thread:a%2Fb/message:1")
	benchWant   = scope.MustParse("group:42/thread:7/message.write")
	sinkBool    bool
	sinkErr     error
	sinkString  string
	sinkDomain  scope.Domain
	sinkScope   scope.Scope
	sinkSet     scope.Set
	sinkInt     int
)

const benchSet = "group:42/file.read group:42/member.read group:42/message.read group:42/message.write"

// hot are the functions on the path of each event and each API call, with the allocations that they may make.
func hot(t testing.TB) []struct {
	name   string
	allocs float64
	call   func()
} {
	set, all, groups, threads := mustSet(t, benchSet), mustPattern(t, "*"), mustPattern(t, "group:*"), mustPattern(t, "group:*/thread:7")
	route, two, fixed := mustPattern(t, "group:{group}/message.write"), mustPattern(t, "group:{group}/thread:{thread}/message.write"), mustPattern(t, "feed:main/x")
	path := map[string]string{"group": "42", "thread": "a/b"}
	value := func(name string) (string, bool) { v, ok := path[name]; return v, ok }
	catalog := scope.BuiltIn()
	wrong := scope.MustParse("group:42/thread:7/file.write")
	return []struct {
		name   string
		allocs float64
		call   func()
	}{
		{"Domain.Covers/yes", 0, func() { sinkBool = benchGroup.Covers(benchThread) }},
		{"Domain.Covers/no", 0, func() { sinkBool = benchThread.Covers(benchGroup) }},
		{"Domain.Root", 0, func() { sinkDomain = benchThread.Root() }},
		{"Domain.Parent", 0, func() { sinkDomain = benchThread.Parent() }},
		{"Domain.Kind", 0, func() { sinkString = benchThread.Kind() }},
		{"Domain.ID", 0, func() { sinkString = benchThread.ID() }},
		{"Domain.Ancestor", 0, func() { sinkDomain, sinkBool = benchThread.Ancestor("group") }},
		{"Domain.Child", 1, func() { sinkDomain, sinkErr = benchGroup.Child("thread", "a/b") }},
		{"Scope.Covers", 0, func() { sinkBool = benchWant.Covers(benchWant) }},
		{"New", 1, func() { sinkScope, sinkErr = scope.New(benchGroup, "message.write") }},
		{"Set.Allows/yes", 0, func() { sinkErr = set.Allows(benchWant) }},
		{"Set.Allows/no", 1, func() { sinkErr = set.Allows(wrong) }},
		{"Set.All", 0, func() {
			for s := range set.All() {
				sinkScope = s
			}
		}},
		{"Set.Narrow/same", 0, func() { sinkSet, sinkErr = set.Narrow(set) }},
		{"Pattern.Match/any", 0, func() { sinkErr = all.Match(benchThread) }},
		{"Pattern.Match/yes", 0, func() { sinkErr = groups.Match(benchThread) }},
		{"Pattern.Match/no", 0, func() { sinkErr = threads.Match(benchThread) }},
		{"Pattern.Expand/none", 0, func() { sinkScope, sinkErr = fixed.Expand(value) }},
		{"Pattern.Expand/one", 1, func() { sinkScope, sinkErr = route.Expand(value) }},
		{"Pattern.Expand/two", 1, func() { sinkScope, sinkErr = two.Expand(value) }},
		{"ParseDomain/canonical", 0, func() { sinkDomain, sinkErr = scope.ParseDomain("group:42/thread:a%2Fb") }},
		{"Parse/canonical", 0, func() { sinkScope, sinkErr = scope.Parse("group:42/thread:a%2Fb/message.write") }},
		{"ParseSet/canonical", 0, func() { sinkSet, sinkErr = scope.ParseSet(benchSet) }},
		{"Catalog.Cost", 0, func() { sinkInt, sinkBool = catalog.Cost("message.write") }},
	}
}

func TestAllocations(t *testing.T) {
	for _, h := range hot(t) {
		require.LessOrEqual(t, testing.AllocsPerRun(100, h.call), h.allocs, h.name)
	}
}

func BenchmarkHot(b *testing.B) {
	for _, h := range hot(b) {
		b.Run(h.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h.call()
			}
		})
	}
}

// The dearest input that the parsers take, and as much that they refuse: neither may be a way to keep a server busy.
func BenchmarkWorst(b *testing.B) {
	var scopes []string
	for i := range 128 {
		scopes = append(scopes, strings.Repeat("g:"+strings.Repeat("%61", 80)+"/", 4)+strings.Repeat("a", 1+i%50))
	}
	set := strings.Join(scopes, " ")
	// Each of 128 is compared with 128 domains that differ in their last byte only, and the last one covers it.
	var wide, narrow []scope.Scope
	deep := strings.Repeat("g:"+strings.Repeat("a", 230)+"/", 4)
	for i := range 128 {
		wide = append(wide, scope.MustParse(fmt.Sprintf("%sg:%03d/a", deep, i)))
		narrow = append(narrow, scope.MustParse(fmt.Sprintf("%sg:127/g:%03d/a", deep, i)))
	}
	spaces := strings.Repeat(" ", 1<<20)
	w, n := scope.NewSet(wide...), scope.NewSet(narrow...)
	for name, call := range map[string]func(){
		"ParseSet/accepted": func() { sinkSet, sinkErr = scope.ParseSet(set) },
		"ParseSet/refused":  func() { sinkSet, sinkErr = scope.ParseSet(set + "!") },
		"ParseSet/spaces":   func() { sinkSet, sinkErr = scope.ParseSet(spaces) },
		"Narrow/accepted":   func() { sinkSet, sinkErr = w.Narrow(n) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}
