package scope_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/behest-go/behest/scope"
	"github.com/stretchr/testify/require"
)

// The grammar a second time, written in another way than the parser, for tests to compare with.
const (
	lower      = "abcdefghijklmnopqrstuvwxyz"
	digits     = "0123456789"
	word       = lower + digits + "_-"
	unreserved = word + "ABCDEFGHIJKLMNOPQRSTUVWXYZ.~"
	hexDigits  = digits + "abcdefABCDEF"

	segmentRE = `[a-z][a-z0-9_-]{0,31}:(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+`
	actionRE  = `[a-z][a-z0-9_-]*(?:\.[a-z][a-z0-9_-]*)*`
)

var (
	domainShape = regexp.MustCompile(`\A` + segmentRE + `(?:/` + segmentRE + `){0,7}\z`)
	actionShape = regexp.MustCompile(`\A` + actionRE + `\z`)
	escape      = regexp.MustCompile(`%..`)
)

func goodDomain(text string) bool {
	if len(text) > 1024 || !domainShape.MatchString(text) {
		return false
	}
	for seg := range strings.SplitSeq(text, "/") {
		_, id, _ := strings.Cut(seg, ":")
		if len(escape.ReplaceAllString(id, "x")) > 256 {
			return false
		}
	}
	return true
}

func goodAction(text string) bool { return len(text) <= 64 && actionShape.MatchString(text) }

func goodScope(text string) bool {
	i := strings.LastIndexByte(text, '/')
	return i > 0 && len(text) <= 1024 && goodDomain(text[:i]) && goodAction(text[i+1:])
}

// eachByte walks all 256 byte values through one place of a text ("?"), and wants exactly the good ones accepted.
func eachByte(t *testing.T, place, text, good string, parse func(string) error) {
	t.Helper()
	for i := range 256 {
		c := string([]byte{byte(i)})
		err := parse(strings.Replace(text, "?", c, 1))
		if strings.Contains(good, c) {
			require.NoError(t, err, "%s: byte %#02x", place, i)
			continue
		}
		require.ErrorIs(t, err, scope.ErrSyntax, "%s: byte %#02x", place, i)
	}
}

func parseDomain(text string) error  { _, err := scope.ParseDomain(text); return err }
func parseScope(text string) error   { _, err := scope.Parse(text); return err }
func parsePattern(text string) error { _, err := scope.ParsePattern(text); return err }

func mustSet(t testing.TB, text string) scope.Set {
	t.Helper()
	set, err := scope.ParseSet(text)
	require.NoError(t, err)
	return set
}

func mustPattern(t testing.TB, text string) scope.Pattern {
	t.Helper()
	p, err := scope.ParsePattern(text)
	require.NoError(t, err)
	return p
}

// A gen makes values from few parts, so that any two are often related. Its seed is fixed.
type gen struct{ *rand.Rand }

func newGen() gen { return gen{rand.New(rand.NewPCG(1, 2))} }

func pick[T any](g gen, from ...T) T { return from[g.IntN(len(from))] }

func (g gen) kind() string   { return pick(g, "group", "thread", "g", "gr") }
func (g gen) id() string     { return pick(g, "4", "42", "a/b", "a", "群", "*", "\x00", "{x}") }
func (g gen) action() string { return pick(g, "message.write", "message.read", "write", "message") }

// domain has 0 to 4 segments.
func (g gen) domain() (d scope.Domain) {
	for range g.IntN(5) {
		d = g.below(d)
	}
	return d
}

func (g gen) below(d scope.Domain) scope.Domain {
	child, err := d.Child(g.kind(), g.id())
	if err != nil {
		panic(err)
	}
	return child
}

// scope is zero now and then.
func (g gen) scope() scope.Scope {
	s, err := scope.New(g.domain(), g.action())
	if err != nil {
		return scope.Scope{}
	}
	return s
}

func (g gen) scopes() []scope.Scope {
	list := make([]scope.Scope, g.IntN(6))
	for i := range list {
		list[i] = g.scope()
	}
	return list
}

// pattern matches domains: those of d with some ids replaced by "*", or any.
func (g gen) pattern(d scope.Domain) scope.Pattern {
	segs := strings.Split(d.String(), "/")
	for i, seg := range segs {
		if kind, _, ok := strings.Cut(seg, ":"); ok && g.IntN(2) == 0 {
			segs[i] = kind + ":*"
		}
	}
	text := strings.Join(segs, "/")
	if text == "" {
		text = "*"
	}
	p, err := scope.ParsePattern(text)
	if err != nil {
		panic(err)
	}
	return p
}

// segments is what a domain means, without its text: decoded pairs, from the root down.
func segments(d scope.Domain) (list [][2]string) {
	for ; !d.IsZero(); d = d.Parent() {
		list = append(list, [2]string{d.Kind(), d.ID()})
	}
	slices.Reverse(list)
	return list
}

// coversByMeaning is Covers the slow way, over decoded segments.
func coversByMeaning(a, b scope.Domain) bool {
	above, below := segments(a), segments(b)
	return len(above) > 0 && len(above) <= len(below) && slices.Equal(above, below[:len(above)])
}

func boundedError(t testing.TB, err error) {
	t.Helper()
	if err != nil && len(err.Error()) > 600 {
		t.Fatalf("an error of %d bytes: %v", len(err.Error()), err)
	}
}

func wantSyntax(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, scope.ErrSyntax) {
		t.Fatalf("not ErrSyntax: %v", err)
	}
	boundedError(t, err)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprintf("must: %v", err))
	}
	return v
}
